//! `stockade update`.

use super::client::{LONG_CALL, answer};
use super::container::supervisor_of;
use super::globals::Context;
use super::resources::Changes;
use crate::ids::ContainerId;
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use std::process::ExitCode;
use ttrpc::context::with_duration;

/// What containerd names OCI resources in an `Any`.
const RESOURCES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Change the limits of a container
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
    #[command(flatten)]
    changes: Changes,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let value = self.changes.document()?;
        context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "update").await?;
            let request = UpdateTaskRequest {
                id: self.id.to_string(),
                resources: MessageField::some(Any { type_url: RESOURCES_URL.to_owned(), value, ..Any::default() }),
                ..UpdateTaskRequest::default()
            };
            answer("Update", connection.task.update(with_duration(LONG_CALL), &request).await)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
