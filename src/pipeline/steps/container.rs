//! Step 9, the guest's part: the container exists, its process waits.

use crate::agent::AgentClient;
use crate::error::{ErrorKind, OpError};
use crate::oci::GuestSpec;
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use std::time::Duration;
use stockade_agent_protocol::agent::Storage;
use stockade_hypervisor::VmExit;
use tokio::sync::watch;

/// How long the guest may take to remove a container; its processes get SIGKILL at once.
pub(super) const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// Makes it.
#[derive(Debug)]
pub struct CreateInGuest {
    /// The agent.
    pub agent: AgentClient,
    /// The machine's end, after which there is nothing to remove.
    pub exit: watch::Receiver<Option<VmExit>>,
    /// The container's id.
    pub id: String,
    /// Its specification.
    pub guest: GuestSpec,
    /// What the agent mounts for it. A file system on a disk would have to be unmounted before the host takes it away.
    pub storages: Vec<Storage>,
    /// The guest need not be asked to remove it when its sandbox goes next.
    pub goes_with_sandbox: bool,
}

impl Step for CreateInGuest {
    type Output = ();
    const NAME: &'static str = "container";

    async fn run(self, undo: &mut UndoStack) -> Result<(), OpError> {
        let record = UndoRecord::Live { what: format!("remove the container {} in the guest", self.id) };
        let remove = Remove {
            agent: self.agent.clone(),
            exit: self.exit,
            id: self.id.clone(),
            goes_with_sandbox: self.goes_with_sandbox,
        };
        undo.push_live(record, remove)?;
        let shared = self.guest.shared_pid_namespace;
        self.agent.create_container(&self.id, &self.guest.spec, self.storages, shared).await
    }
}

struct Remove {
    agent: AgentClient,
    exit: watch::Receiver<Option<VmExit>>,
    id: String,
    goes_with_sandbox: bool,
}

#[async_trait::async_trait]
impl LiveUndo for Remove {
    async fn undo(mut self: Box<Self>) -> Result<(), OpError> {
        if self.goes_with_sandbox && self.agent.leave_container() {
            return Ok(());
        }
        let removed = tokio::select! {
            biased;
            _ = self.exit.wait_for(Option::is_some) => return Ok(()),
            removed = self.agent.remove_container(&self.id, REMOVE_LIMIT) => removed,
        };
        match removed {
            // An agent that is lost costs the whole machine, and so the container; that it ends may be seen only later.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AgentGone) => Ok(()),
            Err(_) if self.exit.borrow().is_some() => Ok(()),
            other => other,
        }
    }
}
