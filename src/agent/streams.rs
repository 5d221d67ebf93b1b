//! One process's streams in the guest.

use super::AgentClient;
use crate::error::OpError;
use crate::stdio::{GuestStdio, ReadOutcome};

/// The streams of a container's process (`exec_id` empty: its first).
#[derive(Debug)]
pub struct AgentStdio {
    agent: AgentClient,
    container: String,
    exec_id: String,
}

impl AgentStdio {
    /// The streams of a process.
    pub fn new(agent: AgentClient, container: impl Into<String>, exec_id: impl Into<String>) -> Self {
        Self { agent, container: container.into(), exec_id: exec_id.into() }
    }

    async fn read(&self, limit: usize, error_stream: bool) -> Result<ReadOutcome, OpError> {
        let data = self.agent.read_stream(&self.container, &self.exec_id, limit, error_stream).await?;
        Ok(data.map_or(ReadOutcome::End, ReadOutcome::Data))
    }
}

#[async_trait::async_trait]
impl GuestStdio for AgentStdio {
    async fn write_stdin(&self, bytes: Vec<u8>) -> Result<(), OpError> {
        self.agent.write_stdin(&self.container, &self.exec_id, bytes).await
    }

    async fn close_stdin(&self) -> Result<(), OpError> {
        self.agent.close_stdin(&self.container, &self.exec_id).await
    }

    async fn read_stdout(&self, limit: usize) -> Result<ReadOutcome, OpError> {
        self.read(limit, false).await
    }

    async fn read_stderr(&self, limit: usize) -> Result<ReadOutcome, OpError> {
        self.read(limit, true).await
    }
}
