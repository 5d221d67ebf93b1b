//! `stockade pause` and `stockade resume`.

use super::client::{SHORT_CALL, answer};
use super::container::supervisor_of;
use super::globals::Context;
use crate::ids::ContainerId;
use containerd_shim_protos::api::{PauseRequest, ResumeRequest};
use std::process::ExitCode;
use ttrpc::context::with_duration;

/// Freeze the processes of a container
#[derive(Debug, clap::Args)]
pub(super) struct PauseArguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
}

/// Let the processes of a paused container go on
#[derive(Debug, clap::Args)]
pub(super) struct ResumeArguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
}

impl PauseArguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "pause").await?;
            let request = PauseRequest { id: self.id.to_string(), ..PauseRequest::default() };
            answer("Pause", connection.task.pause(with_duration(SHORT_CALL), &request).await)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl ResumeArguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "resume").await?;
            let request = ResumeRequest { id: self.id.to_string(), ..ResumeRequest::default() };
            answer("Resume", connection.task.resume(with_duration(SHORT_CALL), &request).await)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
