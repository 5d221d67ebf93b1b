//! Step 8: the agent answers, and the guest has what the sandbox's containers share.

use crate::agent::{AGENT_PORT, AgentClient, GuestSandbox, dial};
use crate::error::{ErrorKind, OpError};
use crate::pipeline::steps::container::REMOVE_LIMIT;
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use std::sync::Arc;
use std::time::Duration;
use stockade_config::{AgentOptions, MachineOptions};
use stockade_hypervisor::{Hypervisor, VmExit};
use tokio::sync::Notify;

/// Connects, and sets the sandbox up.
#[derive(Debug)]
pub struct ConnectAgent {
    /// The machine.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Told when the guest says that the agent serves calls, if its agent is one that says so.
    pub ready: Arc<Notify>,
    /// `[agent.kata]`
    pub agent: AgentOptions,
    /// The machine's options.
    pub machine: MachineOptions,
    /// What the guest is told.
    pub sandbox: GuestSandbox,
}

/// An agent that answers.
#[derive(Debug, Clone)]
pub struct GuestReady {
    /// The connection.
    pub agent: AgentClient,
    /// The agent's version, as it says.
    pub version: String,
}

impl Step for ConnectAgent {
    type Output = GuestReady;
    const NAME: &'static str = "agent";

    async fn run(self, undo: &mut UndoStack) -> Result<GuestReady, OpError> {
        let mut exit = self.hypervisor.exit();
        let channel = self.hypervisor.agent_channel().map_err(|error| match &*exit.borrow() {
            // It ended in between: why is worth more than that it has no channel.
            Some(ended) => died(Some(ended)),
            None => error.into(),
        })?;
        let limit = self.machine.boot_timeout.max(self.agent.reconnect_timeout);
        let dialled = tokio::select! {
            biased;
            ended = exit.wait_for(Option::is_some) => Err(match ended {
                Ok(ended) => died(ended.as_ref()),
                Err(_) => died(None),
            }),
            dialled = dial(&channel, AGENT_PORT, self.agent.dial_timeout, limit, &self.ready) => dialled,
        };
        let agent = AgentClient::new(dialled?, self.agent.request_timeout, self.agent.create_container_timeout);
        let record = UndoRecord::Live { what: "let the guest end its sandbox".into() };
        let limit = self.machine.stop_timeout;
        undo.push_live(record, EndGuest { agent: agent.clone(), hypervisor: self.hypervisor.clone(), limit })?;
        // All at once: none needs another's answer, and each answer comes a journey to the guest and back later.
        let clock = async {
            if let Err(error) = agent.set_clock().await {
                tracing::warn!(error = error.one_line(), "the guest's clock is not set");
            }
            Ok(())
        };
        let (version, (), ()) = tokio::try_join!(agent.version(), clock, agent.create_sandbox(self.sandbox))?;
        Ok(GuestReady { agent, version: version.agent_version })
    }
}

fn died(exit: Option<&VmExit>) -> OpError {
    let cause = exit.map_or_else(|| "for an unknown reason".to_owned(), |exit| exit.cause.to_string());
    OpError::new(ErrorKind::Internal, format!("the virtual machine ended before its agent answered: {cause}"))
}

struct EndGuest {
    agent: AgentClient,
    hypervisor: Arc<dyn Hypervisor>,
    limit: Duration,
}

#[async_trait::async_trait]
impl LiveUndo for EndGuest {
    /// The first rung of the ladder. The answer comes when all containers have ended and all that they wrote is on its
    /// disks, so that nothing is gained by waiting for the guest to power off as well: the next undo ends the machine.
    /// That one also ends a guest that does not answer, so that is no failure, unless a container was left to this request:
    /// what it has not written by then is lost.
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        let with_container = self.agent.has_left_container();
        let limit = if with_container { self.limit + REMOVE_LIMIT } else { self.limit };
        let mut exit = self.hypervisor.exit();
        let asked = async {
            tokio::select! {
                biased;
                _ = exit.wait_for(Option::is_some) => Ok(()),
                answer = self.agent.destroy_sandbox(limit) => answer,
            }
        };
        let timed_out = || {
            let what = format!("the guest did not end its sandbox within {limit:?}");
            OpError::new(ErrorKind::DeadlineExceeded, what)
        };
        let answer = tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(timed_out()));
        let runs = self.hypervisor.exit().borrow().is_none();
        match answer {
            Err(error) if with_container && runs && error.kind() != ErrorKind::AgentGone => Err(error),
            Err(error) => {
                tracing::debug!(error = error.one_line(), "the guest did not end its sandbox");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
