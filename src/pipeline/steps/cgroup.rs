//! The host's control group of the sandbox's processes. On a host with version 1 a directory is made in each of some ten
//! hierarchies, so it is begun early, and waited for when there is a process to join it.

use crate::cgroup::{CgroupError, SandboxCgroup};
use crate::error::{ErrorKind, OpError};
use crate::pipeline::{LiveUndo, Step, UndoStack, perform};
use crate::state::UndoRecord;
use std::path::PathBuf;
use stockade_hypervisor::VmProcess;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Begins to make it where the spec says.
#[derive(Debug)]
pub struct BeginCgroup {
    /// The sandbox's id, for a spec that names no path.
    pub id: String,
    /// `linux.cgroupsPath`
    pub path: Option<PathBuf>,
    /// Whether the path has systemd's form.
    pub systemd: bool,
}

/// A control group that is being made; `None` where the host has none to give.
#[derive(Debug)]
pub struct CgroupBegun(JoinHandle<Result<Option<SandboxCgroup>, CgroupError>>);

impl Step for BeginCgroup {
    type Output = CgroupBegun;
    const NAME: &'static str = "begin-cgroup";

    async fn run(self, undo: &mut UndoStack) -> Result<CgroupBegun, OpError> {
        let plan = SandboxCgroup::plan(&self.id, self.path.as_deref(), self.systemd).map_err(failed)?;
        let record = UndoRecord::RemoveCgroup { directories: plan.directories().to_vec() };
        let decided = CancellationToken::new();
        let deciding = decided.clone().drop_guard();
        undo.push_live(record.clone(), Remove { decided, record })?;
        Ok(CgroupBegun(tokio::task::spawn_blocking(move || {
            let _deciding = deciding;
            plan.create()
        })))
    }
}

impl Step for CgroupBegun {
    type Output = Option<SandboxCgroup>;
    const NAME: &'static str = "cgroup";

    async fn run(self, _: &mut UndoStack) -> Result<Self::Output, OpError> {
        self.0.await.map_err(|error| OpError::internal(CANNOT, error))?.map_err(failed)
    }
}

/// Puts the machine's processes into it, as far as they are not in it from their start.
#[derive(Debug)]
pub struct JoinCgroup {
    /// The group.
    pub cgroup: Option<SandboxCgroup>,
    /// The processes.
    pub processes: Vec<VmProcess>,
}

impl Step for JoinCgroup {
    /// The group's directories, one a hierarchy.
    type Output = Vec<PathBuf>;
    const NAME: &'static str = "join-cgroup";

    async fn run(self, _: &mut UndoStack) -> Result<Vec<PathBuf>, OpError> {
        let Some(cgroup) = self.cgroup else { return Ok(Vec::new()) };
        let leaves = cgroup.leaves().to_vec();
        // Each hierarchy makes the thread wait for a grace period of the kernel's.
        let joining = tokio::task::spawn_blocking(move || {
            for process in self.processes {
                if let Err(error) = cgroup.add_process(process.pid) {
                    tracing::warn!(%error, pid = process.pid, "the process is not in the sandbox's control group");
                }
            }
        });
        joining.await.map_err(|error| OpError::internal("cannot join the control group", error))?;
        Ok(leaves)
    }
}

const CANNOT: &str = "cannot make the control group on the host";

fn failed(error: CgroupError) -> OpError {
    OpError::because(ErrorKind::Internal, CANNOT, error)
}

/// Removes what was made of it, once nothing more is being made.
struct Remove {
    decided: CancellationToken,
    record: UndoRecord,
}

#[async_trait::async_trait]
impl LiveUndo for Remove {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.decided.cancelled().await;
        perform(self.record).await
    }
}
