//! The test's hand on a fake machine.

use super::{AgentMode, Inner, lock};
use crate::{DeviceConfig, DeviceId, ExitCause, HypervisorError, Operation, VmConfig};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Makes the error of a scripted failure.
pub type Failure = Arc<dyn Fn() -> HypervisorError + Send + Sync>;

/// What shall happen at which operation, and what was called.
#[derive(Default)]
pub(super) struct Script {
    calls: Vec<Operation>,
    delays: HashMap<Operation, Duration>,
    failures: HashMap<Operation, (Failure, bool)>,
    agent: AgentMode,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("calls", &self.calls).field("delays", &self.delays).finish_non_exhaustive()
    }
}

impl Script {
    pub(super) fn called(&mut self, operation: Operation) -> (Duration, Option<Failure>) {
        self.calls.push(operation);
        let failure = match self.failures.get(&operation) {
            Some((_, true)) => self.failures.remove(&operation).map(|(failure, _)| failure),
            Some((failure, false)) => Some(Arc::clone(failure)),
            None => None,
        };
        (self.delays.get(&operation).copied().unwrap_or_default(), failure)
    }

    pub(super) fn agent_mode(&self) -> AgentMode {
        self.agent
    }
}

/// Scripts a fake machine and looks into it. Clones control the same machine.
#[derive(Debug, Clone)]
pub struct FakeControl {
    inner: Arc<Inner>,
}

impl FakeControl {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Lets the next call of `operation` that the state allows fail; the one after succeeds.
    pub fn fail_once(&self, operation: Operation, failure: impl Fn() -> HypervisorError + Send + Sync + 'static) {
        lock(&self.inner.script).failures.insert(operation, (Arc::new(failure), true));
    }

    /// Lets every call of `operation` fail until [`FakeControl::succeed`].
    pub fn fail_always(&self, operation: Operation, failure: impl Fn() -> HypervisorError + Send + Sync + 'static) {
        lock(&self.inner.script).failures.insert(operation, (Arc::new(failure), false));
    }

    /// Takes a scripted failure back.
    pub fn succeed(&self, operation: Operation) {
        lock(&self.inner.script).failures.remove(&operation);
    }

    /// Lets each call of `operation` take `delay` of tokio's time; the machine's end cuts it short.
    pub fn delay(&self, operation: Operation, delay: Duration) {
        lock(&self.inner.script).delays.insert(operation, delay);
    }

    /// How the agent's socket behaves; takes effect at the next start.
    pub fn set_agent_mode(&self, mode: AgentMode) {
        lock(&self.inner.script).agent = mode;
    }

    /// Ends the machine with `cause` and cuts the agent's connections, as a crash, a guest's shutdown or reset would.
    pub fn crash(&self, cause: ExitCause) {
        self.inner.end(cause);
    }

    /// The operations that were called, in order, refused ones included. Calls that are not asynchronous
    /// (`agent_channel` and the like) are not noted.
    pub fn calls(&self) -> Vec<Operation> {
        lock(&self.inner.script).calls.clone()
    }

    /// The configuration that was accepted.
    pub fn config(&self) -> Option<VmConfig> {
        lock(&self.inner.machine).config.clone()
    }

    /// The present devices.
    pub fn devices(&self) -> Vec<(DeviceId, DeviceConfig)> {
        lock(&self.inner.machine).devices.iter().map(|(id, device)| (id.clone(), device.clone())).collect()
    }
}
