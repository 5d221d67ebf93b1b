//! `stockade start`.

use super::container::supervisor_of;
use super::foreground;
use super::globals::Context;
use crate::ids::ContainerId;
use crate::stand_in::Subject;
use std::process::ExitCode;

/// Start the process of a created container
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "start").await?;
            foreground::start(&connection, &Subject { container: self.id, exec: None }).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
