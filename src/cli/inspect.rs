//! `stockade inspect`.

use super::client::{self, SHORT_CALL, answer};
use super::globals::Context;
use super::table::print_json;
use crate::api::InspectRequest;
use crate::ids::ContainerId;
use crate::state::StateError;
use anyhow::Context as _;
use std::process::ExitCode;
use ttrpc::context::with_duration;

/// Show a sandbox: its virtual machine, actors, timings and messages, as JSON
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A container of the sandbox, or the sandbox
    #[arg(value_name = "ID")]
    id: ContainerId,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let sandbox = match context.store.container(&self.id) {
            Ok(record) => record.sandbox,
            Err(StateError::NoSuchContainer(id)) => {
                let sandbox = id.clone().into();
                context.store.sandbox(&sandbox).map_err(|_| StateError::NoSuchContainer(id))?;
                sandbox
            }
            Err(error) => return Err(error.into()),
        };
        let response = context.runtime.block_on(async {
            let connection = client::connect(&context.store, &sandbox).await?;
            let result = connection.supervisor.inspect(with_duration(SHORT_CALL), &InspectRequest::default()).await;
            answer("Inspect", result)
        })?;
        let document: serde_json::Value =
            serde_json::from_str(&response.json).context("the supervisor's answer is not JSON")?;
        print_json(&document)?;
        Ok(ExitCode::SUCCESS)
    }
}
