//! The host's control group of the sandbox's processes.

use crate::cgroup::SandboxCgroup;
use crate::error::{ErrorKind, OpError};
use crate::pipeline::{Step, UndoStack};
use crate::state::UndoRecord;
use std::path::PathBuf;

/// Makes it where the spec says. The machine's processes join it when they exist.
#[derive(Debug)]
pub struct JoinCgroup {
    /// The sandbox's id, for a spec that names no path.
    pub id: String,
    /// `linux.cgroupsPath`
    pub path: Option<PathBuf>,
    /// Whether the path has systemd's form.
    pub systemd: bool,
}

impl Step for JoinCgroup {
    type Output = Option<SandboxCgroup>;
    const NAME: &'static str = "cgroup";

    async fn run(self, undo: &mut UndoStack) -> Result<Option<SandboxCgroup>, OpError> {
        let failed = |error| OpError::because(ErrorKind::Internal, "cannot make the control group on the host", error);
        let plan = SandboxCgroup::plan(&self.id, self.path.as_deref(), self.systemd).map_err(failed)?;
        undo.push(UndoRecord::RemoveCgroup { directories: plan.directories().to_vec() })?;
        plan.create().map_err(failed)
    }
}
