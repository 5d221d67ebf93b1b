//! The choice of the fake backend, and the hand on the machine that it made.

use std::fmt;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};

use stockade::error::OpError;
use stockade::hypervisor::{Backends, ChosenBackend};
use stockade_config::{Backend, Config, HypervisorChoice};
use stockade_hypervisor::Hypervisor;
use stockade_hypervisor::fake::{AgentHandler, FakeControl, FakeHypervisor, FakeOptions};

use super::FakeAgent;

type Prepare = Box<dyn Fn(&FakeControl) + Send + Sync>;

/// Makes fake machines with one agent in them.
pub(crate) struct FakeBackends {
    agent: FakeAgent,
    made: Mutex<Option<(Arc<dyn Hypervisor>, FakeControl)>>,
    prepare: Mutex<Option<Prepare>>,
}

impl fmt::Debug for FakeBackends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeBackends")
    }
}

impl FakeBackends {
    /// Machines with this agent.
    pub(crate) fn new(agent: FakeAgent) -> Self {
        Self { agent, made: Mutex::new(None), prepare: Mutex::new(None) }
    }

    /// Tells the machine what to do before it is used.
    pub(crate) fn script(&self, prepare: impl Fn(&FakeControl) + Send + Sync + 'static) {
        *self.prepare.lock().expect("no panic") = Some(Box::new(prepare));
    }

    /// The machine that was made.
    pub(crate) fn machine(&self) -> Option<Arc<dyn Hypervisor>> {
        self.made.lock().expect("no panic").as_ref().map(|(machine, _)| machine.clone())
    }

    /// Whether a machine was prepared, which is when it begins to take something of the host.
    pub(crate) fn prepared(&self) -> bool {
        self.made.lock().expect("no panic").as_ref().is_some_and(|(_, control)| control.config().is_some())
    }

    /// Lets go of the machine. Answers the name of its network namespace, as in /proc/self/fd.
    pub(crate) fn let_go(&self) -> Option<String> {
        let (_, control) = self.made.lock().expect("no panic").take()?;
        let netns = control.config()?.netns?;
        let link = format!("/proc/self/fd/{}", netns.as_raw_fd());
        Some(std::fs::read_link(link).expect("a descriptor").display().to_string())
    }

    /// The hand on it.
    pub(crate) fn control(&self) -> FakeControl {
        self.made.lock().expect("no panic").as_ref().expect("a machine").1.clone()
    }
}

#[async_trait::async_trait]
impl Backends for FakeBackends {
    async fn choose(&self, _: HypervisorChoice) -> Result<ChosenBackend, OpError> {
        Ok(ChosenBackend { backend: Backend::Qemu, reason: "a test".into() })
    }

    fn make(&self, _: &Config, _: &ChosenBackend) -> Result<Arc<dyn Hypervisor>, OpError> {
        let agent = self.agent.clone();
        let options = FakeOptions {
            agent: Some(AgentHandler::new(move |port, stream| agent.serve(port, stream))),
            ..FakeOptions::default()
        };
        let (machine, control) = FakeHypervisor::new(options);
        let machine: Arc<dyn Hypervisor> = Arc::new(machine);
        self.agent.lives_in(control.clone());
        if let Some(prepare) = &*self.prepare.lock().expect("no panic") {
            prepare(&control);
        }
        *self.made.lock().expect("no panic") = Some((machine.clone(), control));
        Ok(machine)
    }
}
