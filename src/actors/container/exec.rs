//! A further process in a container.

use super::{ContainerState, Exit};
use crate::state::ProcessId;
use crate::stdio::StdioNames;
use oci_spec::runtime::Process;
use tokio::sync::watch;

/// One registered, running or ended exec.
#[derive(Debug)]
pub(super) struct ExecEntry {
    pub(super) process: Box<Process>,
    pub(super) stdio: StdioNames,
    pub(super) stand_in: Option<ProcessId>,
    pub(super) state: ContainerState,
    pub(super) exit: watch::Sender<Option<Exit>>,
}

impl ExecEntry {
    pub(super) fn new(process: Box<Process>, stdio: StdioNames, stand_in: Option<ProcessId>) -> Self {
        Self { process, stdio, stand_in, state: ContainerState::Created, exit: watch::Sender::new(None) }
    }
}
