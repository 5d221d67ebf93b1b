//! `stockade state`, and the document that `list` prints as well.

use super::container::current;
use super::globals::Context;
use crate::ids::ContainerId;
use crate::oci::Status;
use crate::state::ContainerRecord;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print the state of a container as JSON
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let record = context.runtime.block_on(current(context, &self.id))?;
        super::table::print_json(&StateDocument::new(record))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The OCI's state, with the additions that runc prints.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateDocument {
    oci_version: String,
    pub(super) id: String,
    /// Of the stand-in; 0 when there is none any more.
    pub(super) pid: i32,
    pub(super) status: Status,
    pub(super) bundle: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

impl StateDocument {
    /// Of a record whose status is the one of now.
    pub(super) fn new(record: ContainerRecord) -> Self {
        let stand_in = record.stand_in.filter(|_| record.status != Status::Stopped);
        Self {
            oci_version: record.oci_version,
            id: record.id.to_string(),
            pid: stand_in.map_or(0, |process| process.pid),
            status: record.status,
            bundle: record.bundle,
            created: record.created,
            annotations: record.annotations,
            owner: record.owner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ProcessId;

    #[test]
    fn the_document_has_runcs_keys_and_pid_0_when_stopped() {
        let mut record = ContainerRecord {
            id: "c".parse().unwrap(),
            sandbox: "c".parse().unwrap(),
            bundle: "/b".into(),
            stand_in: Some(ProcessId { pid: 7, start_time: 1 }),
            status: Status::Running,
            created: "2026-01-02T03:04:05Z".into(),
            exit_status: None,
            annotations: [("a".to_owned(), "1".to_owned())].into(),
            oci_version: "1.2.0".into(),
            owner: "root".into(),
        };
        let value = serde_json::to_value(StateDocument::new(record.clone())).unwrap();
        let wanted = serde_json::json!({"ociVersion": "1.2.0", "id": "c", "pid": 7, "status": "running", "bundle": "/b",
            "created": "2026-01-02T03:04:05Z", "annotations": {"a": "1"}, "owner": "root"});
        assert_eq!(value, wanted);
        record.status = Status::Stopped;
        assert_eq!(StateDocument::new(record).pid, 0);
    }
}
