//! The versioned records.

use super::ProcessId;
use crate::ids::{ContainerId, SandboxId};
use crate::oci::Status;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The version that this program writes and reads. Fields are only ever added, as `Option` or with a default.
pub(super) const VERSION: u32 = 1;

/// One container: its place in the world and its last known state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container.
    pub id: ContainerId,
    /// The sandbox it is in: the container-id -> sandbox-id mapping.
    pub sandbox: SandboxId,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The process that stands in for it on the host.
    pub stand_in: Option<ProcessId>,
    /// The state when this was written; [`super::recovery::truth`] says what it is now.
    pub status: Status,
    /// When it was created: RFC 3339, UTC.
    pub created: String,
    /// Its exit status, once it has one.
    pub exit_status: Option<u32>,
    /// The bundle's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The bundle's `ociVersion`.
    pub oci_version: String,
    /// The name of the user that made it, for `list`.
    pub owner: String,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The sandbox.
    pub id: SandboxId,
    /// Its supervisor.
    pub supervisor: ProcessId,
    /// Name of the backend, once chosen.
    pub backend: Option<String>,
    /// When it was made: RFC 3339, UTC.
    pub created: String,
    /// A symlink to its socket, which goes with it.
    #[serde(default)]
    pub link: Option<PathBuf>,
}
