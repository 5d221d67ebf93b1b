//! A backend without a virtual machine: the actors' tests and the benchmarks of host work run on it.
//!
//! It keeps the state machine, checks configurations, publishes exits and serves the agent's socket as a real backend
//! does, and has no process. A [`FakeControl`] makes its operations slow or fail, crashes it, and tells what was called.

mod agent;
mod control;

pub use agent::{AgentHandler, AgentMode, Cut};
pub use control::{Failure, FakeControl};

use crate::{
    AgentChannel, Capabilities, DeviceConfig, DeviceId, ExitCause, Hypervisor, HypervisorError, MiB, Operation,
    ResizeRequest, Resized, StopDeadlines, VmConfig, VmExit, VmMetrics, VmProcess, VmState,
};
use control::Script;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

const NAME: &str = "fake";
const SOCKET: &str = "vsock.sock";

/// How a fake machine is made.
#[derive(Clone)]
pub struct FakeOptions {
    /// What it claims and does.
    pub capabilities: Capabilities,
    /// Serves the guest's end of each connection to the agent's socket; `None`: no port has a listener.
    pub agent: Option<AgentHandler>,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            capabilities: Capabilities {
                acceleration: "none (no virtual machine)".to_owned(),
                share: true,
                block_hotplug: true,
                net_hotplug: true,
                vcpu_hotplug: true,
                memory_hotplug: true,
                snapshots: false,
                max_vcpus: 64,
            },
            agent: None,
        }
    }
}

impl fmt::Debug for FakeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeOptions")
            .field("capabilities", &self.capabilities)
            .field("agent", &self.agent.is_some())
            .finish()
    }
}

/// A machine of the fake backend.
#[derive(Debug)]
pub struct FakeHypervisor {
    inner: Arc<Inner>,
}

/// What the machine and its controls share. The lock is never held across an await.
#[derive(Debug)]
struct Inner {
    capabilities: Capabilities,
    handler: Option<AgentHandler>,
    machine: Mutex<Machine>,
    script: Mutex<Script>,
    exit: watch::Sender<Option<VmExit>>,
}

#[derive(Debug)]
struct Machine {
    state: VmState,
    config: Option<VmConfig>,
    starting: bool,
    devices: BTreeMap<DeviceId, DeviceConfig>,
    next_device: u32,
    present: Resized,
    agent: Option<agent::Server>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Ends the machine once; a later cause changes nothing.
    fn end(&self, cause: ExitCause) {
        let server = {
            let mut machine = lock(&self.machine);
            if machine.state == VmState::Stopped {
                return;
            }
            machine.state = VmState::Stopped;
            machine.agent.take()
        };
        drop(server);
        self.exit.send_replace(Some(VmExit { cause }));
    }

    /// Notes the call, checks the state, then takes the scripted delay and failure.
    async fn enter(&self, operation: Operation) -> Result<(), HypervisorError> {
        let (delay, failure) = lock(&self.script).called(operation);
        lock(&self.machine).state.check(operation)?;
        if !delay.is_zero() {
            let mut exit = self.exit.subscribe();
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                cause = ended(&mut exit) => if operation != Operation::Stop {
                    return Err(HypervisorError::Exited { operation, cause });
                },
            }
        }
        failure.map_or(Ok(()), |failure| Err(failure()))
    }

    fn refuse_unless(&self, can: bool, operation: Operation, what: &str) -> Result<(), HypervisorError> {
        if can {
            return Ok(());
        }
        Err(HypervisorError::Unsupported { operation, backend: NAME, reason: format!("{what} is switched off") })
    }
}

async fn ended(exit: &mut watch::Receiver<Option<VmExit>>) -> ExitCause {
    match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
        Ok(Some(exit)) => exit.cause,
        // The sender lives in the machine that the caller borrows.
        _ => std::future::pending().await,
    }
}

impl FakeHypervisor {
    /// A new machine and its controls.
    pub fn new(options: FakeOptions) -> (Self, FakeControl) {
        let inner = Arc::new(Inner {
            capabilities: options.capabilities,
            handler: options.agent,
            machine: Mutex::new(Machine {
                state: VmState::New,
                config: None,
                starting: false,
                devices: BTreeMap::new(),
                next_device: 0,
                present: Resized { vcpus: 0, memory: MiB(0) },
                agent: None,
            }),
            script: Mutex::new(Script::default()),
            exit: watch::Sender::new(None),
        });
        (Self { inner: Arc::clone(&inner) }, FakeControl::new(inner))
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.inner.machine)
    }

    fn launch(&self) -> Result<(), HypervisorError> {
        let mode = lock(&self.inner.script).agent_mode();
        let mut machine = self.machine();
        machine.state.check(Operation::Start)?;
        let Some(config) = &machine.config else {
            return Err(HypervisorError::WrongState { operation: Operation::Start, state: machine.state });
        };
        let path = config.run_dir.join(SOCKET);
        let server = agent::Server::start(path.clone(), self.inner.handler.clone(), mode)
            .map_err(|e| HypervisorError::host(Operation::Start, format!("listen on {}", path.display()), e))?;
        machine.agent = Some(server);
        machine.state = VmState::Running;
        Ok(())
    }
}

impl Drop for FakeHypervisor {
    fn drop(&mut self) {
        lock(&self.inner.machine).agent = None;
    }
}

impl Machine {
    fn insert(&mut self, device: DeviceConfig) -> DeviceId {
        let id = DeviceId(format!("dev{}", self.next_device));
        self.next_device = self.next_device.saturating_add(1);
        self.devices.insert(id.clone(), device);
        id
    }
}

#[async_trait::async_trait]
impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities.clone()
    }

    fn state(&self) -> VmState {
        self.machine().state
    }

    async fn prepare(&self, config: VmConfig) -> Result<(), HypervisorError> {
        self.inner.enter(Operation::Prepare).await?;
        config.validate()?;
        if config.vcpus > self.inner.capabilities.max_vcpus {
            return Err(HypervisorError::Config {
                option: "default_vcpus",
                problem: format!("at most {} are possible", self.inner.capabilities.max_vcpus),
            });
        }
        if config.devices.iter().any(|device| matches!(device, DeviceConfig::Share { .. })) {
            self.inner.refuse_unless(self.inner.capabilities.share, Operation::Prepare, "sharing directories")?;
        }
        let mut machine = self.machine();
        machine.state.check(Operation::Prepare)?;
        machine.present = Resized { vcpus: config.vcpus, memory: config.memory };
        for device in config.devices.clone() {
            machine.insert(device);
        }
        machine.config = Some(config);
        machine.state = VmState::Prepared;
        Ok(())
    }

    async fn start(&self) -> Result<(), HypervisorError> {
        {
            let mut machine = self.machine();
            if machine.starting {
                return Err(HypervisorError::WrongState { operation: Operation::Start, state: machine.state });
            }
            machine.starting = machine.state.allows(Operation::Start);
        }
        let result = match self.inner.enter(Operation::Start).await {
            Ok(()) => self.launch(),
            Err(e) => Err(e),
        };
        let began = std::mem::take(&mut self.machine().starting);
        if result.is_err() && began {
            self.inner.end(ExitCause::NeverStarted);
        }
        result
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.inner.enter(Operation::Pause).await?;
        let mut machine = self.machine();
        machine.state.check(Operation::Pause)?;
        machine.state = VmState::Paused;
        Ok(())
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.inner.enter(Operation::Resume).await?;
        let mut machine = self.machine();
        machine.state.check(Operation::Resume)?;
        machine.state = VmState::Running;
        Ok(())
    }

    async fn stop(&self, _deadlines: StopDeadlines) -> Result<VmExit, HypervisorError> {
        self.inner.enter(Operation::Stop).await?;
        let started = matches!(self.state(), VmState::Running | VmState::Paused);
        self.inner.end(if started { ExitCause::Stopped } else { ExitCause::NeverStarted });
        let cause = ended(&mut self.inner.exit.subscribe()).await;
        Ok(VmExit { cause })
    }

    fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.inner.exit.subscribe()
    }

    async fn add_device(&self, device: DeviceConfig) -> Result<DeviceId, HypervisorError> {
        self.inner.enter(Operation::AddDevice).await?;
        device.validate()?;
        let can = &self.inner.capabilities;
        let booted = self.state() != VmState::Prepared;
        match device {
            DeviceConfig::Share { .. } => {
                self.inner.refuse_unless(can.share && !booted, Operation::AddDevice, "adding a share")?;
            }
            DeviceConfig::Block { .. } if booted => {
                self.inner.refuse_unless(can.block_hotplug, Operation::AddDevice, "hot-plug of block devices")?;
            }
            DeviceConfig::Net { .. } if booted => {
                self.inner.refuse_unless(can.net_hotplug, Operation::AddDevice, "hot-plug of network interfaces")?;
            }
            DeviceConfig::Block { .. } | DeviceConfig::Net { .. } => {}
        }
        let mut machine = self.machine();
        machine.state.check(Operation::AddDevice)?;
        Ok(machine.insert(device))
    }

    async fn remove_device(&self, id: &DeviceId) -> Result<(), HypervisorError> {
        self.inner.enter(Operation::RemoveDevice).await?;
        let mut machine = self.machine();
        machine.state.check(Operation::RemoveDevice)?;
        machine.devices.remove(id).map(drop).ok_or_else(|| HypervisorError::NoSuchDevice(id.clone()))
    }

    async fn resize(&self, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        self.inner.enter(Operation::Resize).await?;
        let can = &self.inner.capabilities;
        let mut machine = self.machine();
        machine.state.check(Operation::Resize)?;
        let mut present = machine.present;
        let (max_vcpus, max_memory) =
            machine.config.as_ref().map_or((0, MiB(0)), |config| (config.max_vcpus, config.max_memory));
        if let Some(vcpus) = request.vcpus.filter(|&vcpus| vcpus != present.vcpus) {
            self.inner.refuse_unless(can.vcpu_hotplug, Operation::Resize, "hot-plug of vCPUs")?;
            if vcpus == 0 || vcpus > max_vcpus {
                return Err(HypervisorError::Config {
                    option: "default_maxvcpus",
                    problem: format!("{vcpus} vCPUs are not between 1 and {max_vcpus}"),
                });
            }
            present.vcpus = vcpus;
        }
        if let Some(memory) = request.memory.filter(|&memory| memory != present.memory) {
            self.inner.refuse_unless(can.memory_hotplug, Operation::Resize, "hot-plug of memory")?;
            if memory > max_memory {
                return Err(HypervisorError::Config {
                    option: "default_maxmemory",
                    problem: format!("{memory} are more than {max_memory}"),
                });
            }
            present.memory = memory;
        }
        machine.present = present;
        Ok(present)
    }

    fn agent_channel(&self) -> Result<AgentChannel, HypervisorError> {
        let machine = self.machine();
        machine.state.check(Operation::AgentChannel)?;
        let run_dir = machine.config.as_ref().map(|config| &config.run_dir);
        run_dir
            .map(|run_dir| AgentChannel::HybridVsock(run_dir.join(SOCKET)))
            .ok_or(HypervisorError::WrongState { operation: Operation::AgentChannel, state: machine.state })
    }

    async fn metrics(&self) -> Result<VmMetrics, HypervisorError> {
        self.inner.enter(Operation::Metrics).await?;
        let machine = self.machine();
        machine.state.check(Operation::Metrics)?;
        Ok(VmMetrics {
            vcpus: machine.present.vcpus,
            memory_bytes: machine.present.memory.bytes(),
            ..VmMetrics::default()
        })
    }

    fn processes(&self) -> Vec<VmProcess> {
        Vec::new()
    }
}
