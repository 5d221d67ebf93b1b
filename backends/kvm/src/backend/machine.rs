//! One virtual machine that is a `stockade vmm` process: the trait, and the task that sees its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stockade_hypervisor::{
    AgentChannel, Capabilities, DeviceConfig, DeviceId, ExitCause, Hypervisor, HypervisorError, MiB, Operation,
    ResizeRequest, Resized, StopDeadlines, VmConfig, VmExit, VmMetrics, VmProcess, VmState,
};
use stockade_machine_process::process::Process;
use stockade_machine_process::usage;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::devices::{self, Device, Table};
use super::exit::{self, Stopping};
use super::launch::{self, Launched, SOCKET, hotplug_memory};
use super::{KvmOptions, NAME, capabilities};
use crate::control::{Added, Answer, Client, ClientError, Disk, Network, Request, bounded};
use crate::machine::{MAX_MEMORY, MAX_VCPUS};

/// How long the end of a machine whose process broke off is waited for, to name it.
const END_WAIT: Duration = Duration::from_secs(4);
/// How long the rest of the console is read after the end.
const CONSOLE_WAIT: Duration = Duration::from_millis(500);

/// A machine of the KVM backend. Dropping it kills what runs.
#[derive(Debug)]
pub struct Kvm {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Arc<KvmOptions>,
    /// Never held across an await.
    machine: Mutex<Machine>,
    /// One operation at a time changes the machine; stopping does not wait for it.
    operation: tokio::sync::Mutex<()>,
    exit: watch::Sender<Option<VmExit>>,
    /// Ends a start that is under way.
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Machine {
    state: VmState,
    starting: bool,
    config: Option<Arc<VmConfig>>,
    devices: Table,
    present: Resized,
    running: Option<Arc<Running>>,
}

/// What there is from the start to the end.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) client: Client,
    panicked: Arc<AtomicBool>,
    stopping: watch::Sender<Stopping>,
}

impl Running {
    /// Notes that the end was asked for; a later note never weakens an earlier one.
    pub(super) fn note_stopping(&self, to: Stopping) {
        self.stopping.send_if_modified(|stopping| {
            let stronger = *stopping != Stopping::Forced && *stopping != to;
            if stronger {
                *stopping = to;
            }
            stronger
        });
    }
}

impl Shared {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the machine once. Everything of it is gone when the exit is told.
    fn end(&self, cause: ExitCause) {
        let (running, config) = {
            let mut machine = self.machine();
            if machine.state == VmState::Stopped {
                return;
            }
            machine.state = VmState::Stopped;
            machine.devices = Table::default();
            // Taken, so that descriptors of network interfaces are closed.
            (machine.running.take(), machine.config.take())
        };
        drop(running);
        if let Some(config) = config {
            let socket = config.run_dir.join(SOCKET);
            if let Err(e) = std::fs::remove_file(&socket)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %socket.display(), error = %e, "the agent's socket stays");
            }
        }
        tracing::debug!(%cause, "the virtual machine has ended");
        self.exit.send_replace(Some(VmExit { cause }));
    }

    async fn exited(&self) -> ExitCause {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(VmExit { cause })) => cause,
            // The sender is in self.
            _ => std::future::pending().await,
        }
    }

    /// The running machine, in a state that allows `operation`.
    fn running(&self, operation: Operation) -> Result<Arc<Running>, HypervisorError> {
        let machine = self.machine();
        machine.state.check(operation)?;
        machine.running.clone().ok_or(HypervisorError::WrongState { operation, state: machine.state })
    }

    /// Asks the process. A machine that has ended meanwhile is named as the reason for having no answer.
    async fn ask(
        &self,
        running: &Running,
        operation: Operation,
        request: Request,
        descriptors: &[Arc<OwnedFd>],
    ) -> Result<Answer, HypervisorError> {
        let limit = self.options.answer_limit;
        let (error, wait) = match running.client.ask(request, descriptors, limit).await {
            Ok(Answer::Failed { message }) => {
                return Err(HypervisorError::Refused { operation, message: bounded(&message) });
            }
            Ok(Answer::Unsupported { reason }) => return Err(unsupported(operation, bounded(&reason))),
            Ok(answer) => return Ok(answer),
            Err(ClientError::Timeout(limit)) => (HypervisorError::Timeout { operation, limit }, Duration::ZERO),
            Err(error) => {
                let error = HypervisorError::host(operation, "ask the machine's process", io::Error::other(error));
                (error, END_WAIT)
            }
        };
        match tokio::time::timeout(wait, self.exited()).await {
            Ok(cause) => Err(HypervisorError::Exited { operation, cause }),
            Err(_) => Err(error),
        }
    }

    async fn start(self: Arc<Self>, config: Arc<VmConfig>) -> Result<(), HypervisorError> {
        let (devices, checked) = {
            let machine = self.machine();
            (machine.devices.all(), machine.devices.check(&config))
        };
        let launched = match checked {
            Ok(()) => launch::launch(&self.options, &config, &devices, &self.cancel).await,
            Err(e) => Err(e.into()),
        };
        let Launched { process, client, console, panicked } = match launched {
            Ok(launched) => launched,
            Err(failed) => {
                self.end(failed.cause);
                return Err(failed.error);
            }
        };
        let running = Arc::new(Running { process, client, panicked, stopping: watch::Sender::new(Stopping::No) });
        let cancelled = {
            let mut machine = self.machine();
            machine.starting = false;
            let cancelled = self.cancel.is_cancelled();
            if !cancelled {
                machine.state = VmState::Running;
                machine.running = Some(Arc::clone(&running));
            }
            cancelled
        };
        if cancelled {
            running.process.signal(libc::SIGKILL);
            running.process.ended().await;
            let cause = ExitCause::NeverStarted;
            self.end(cause.clone());
            return Err(HypervisorError::Exited { operation: Operation::Start, cause });
        }
        tokio::spawn(Arc::clone(&self).watch(running, console));
        Ok(())
    }

    /// Waits for the end and tells it.
    async fn watch(self: Arc<Self>, running: Arc<Running>, console: JoinHandle<()>) {
        let (ended, seen) = exit::ended(&running.process, running.client.seen()).await;
        if tokio::time::timeout(CONSOLE_WAIT, console).await.is_err() {
            tracing::debug!("the console stays open after the machine's end");
        }
        let stopping = *running.stopping.borrow();
        let cause = exit::cause(&ended, &seen, exit::has_panicked(&running.panicked), stopping);
        drop(running);
        self.end(cause);
    }

    async fn plug(&self, running: &Running, config: DeviceConfig) -> Result<DeviceId, HypervisorError> {
        let operation = Operation::AddDevice;
        let (device, descriptors) = match &config {
            DeviceConfig::Share { .. } => {
                return Err(unsupported(
                    operation,
                    "a share must be there from the boot: the process is confined to it",
                ));
            }
            DeviceConfig::Block { path, read_only } => {
                let fd = launch::open(path, !read_only, operation)?;
                (Added::Disk(Disk { read_only: *read_only }), vec![Arc::new(fd)])
            }
            DeviceConfig::Net { mac, queues, mtu } => {
                (Added::Network(Network { mac: *mac, mtu: *mtu }), queues.0.clone())
            }
        };
        let id = self.machine().devices.next_id();
        let request = Request::Add { id: id.0.clone(), device };
        self.ask(running, operation, request, &descriptors).await?;
        self.machine().devices.insert(Device { id: id.clone(), config });
        Ok(id)
    }

    /// Checks a new size against the machine's ceilings.
    fn check_size(&self, request: ResizeRequest) -> Result<(), HypervisorError> {
        let Some(config) = self.machine().config.clone() else { return Ok(()) };
        let refuse = |option, problem| Err(HypervisorError::Config { option, problem });
        match request.vcpus {
            Some(0) => return refuse("vcpus", "a machine needs at least 1 vCPU".to_owned()),
            Some(vcpus) if vcpus > config.max_vcpus => {
                let problem = format!("{vcpus} is more than the {} that the machine can have", config.max_vcpus);
                return refuse("default_maxvcpus", problem);
            }
            _ => {}
        }
        let most = MiB(config.memory.0 + hotplug_memory(&config).0);
        match request.memory {
            Some(memory) if memory > most => {
                refuse("default_maxmemory", format!("{memory} is more than the {most} that the machine can have"))
            }
            Some(memory) if memory < config.memory => {
                refuse("memory", format!("{memory} is less than the {} of the boot", config.memory))
            }
            _ => Ok(()),
        }
    }
}

fn unsupported(operation: Operation, reason: impl Into<String>) -> HypervisorError {
    HypervisorError::Unsupported { operation, backend: NAME, reason: reason.into() }
}

impl Kvm {
    pub(super) fn new(options: Arc<KvmOptions>) -> Self {
        let machine = Machine {
            state: VmState::New,
            starting: false,
            config: None,
            devices: Table::default(),
            present: Resized { vcpus: 0, memory: MiB(0) },
            running: None,
        };
        Self {
            shared: Arc::new(Shared {
                options,
                machine: Mutex::new(machine),
                operation: tokio::sync::Mutex::new(()),
                exit: watch::Sender::new(None),
                cancel: CancellationToken::new(),
            }),
        }
    }

    /// Pauses or resumes.
    async fn run_vcpus(&self, operation: Operation, to: VmState) -> Result<(), HypervisorError> {
        let shared = &self.shared;
        let _one = shared.operation.lock().await;
        let running = shared.running(operation)?;
        if shared.machine().state == to {
            return Ok(());
        }
        let request = if to == VmState::Paused { Request::Pause } else { Request::Resume };
        shared.ask(&running, operation, request, &[]).await?;
        let mut machine = shared.machine();
        machine.state.check(operation)?;
        machine.state = to;
        Ok(())
    }
}

impl Drop for Kvm {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        // The watching task reaps.
        if let Some(running) = self.shared.machine().running.clone() {
            running.note_stopping(Stopping::Forced);
            running.process.signal(libc::SIGKILL);
        }
    }
}

#[async_trait::async_trait]
impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    fn state(&self) -> VmState {
        self.shared.machine().state
    }

    async fn prepare(&self, config: VmConfig) -> Result<(), HypervisorError> {
        self.shared.machine().state.check(Operation::Prepare)?;
        config.validate()?;
        let max = u32::from(MAX_VCPUS);
        if config.max_vcpus > max {
            let problem = format!("at most {max} vCPUs are possible");
            return Err(HypervisorError::Config { option: "default_maxvcpus", problem });
        }
        if config.memory > MAX_MEMORY {
            let problem = format!("{} is more than the {MAX_MEMORY} that a machine can have", config.memory);
            return Err(HypervisorError::Config { option: "default_memory", problem });
        }
        let mut config = config;
        config.max_memory = config.max_memory.min(MAX_MEMORY);
        let mut table = Table::default();
        for device in &config.devices {
            devices::check(device)?;
            let id = table.next_id();
            table.insert(Device { id, config: device.clone() });
        }
        table.check(&config)?;
        let mut machine = self.shared.machine();
        machine.state.check(Operation::Prepare)?;
        machine.devices = table;
        machine.present = Resized { vcpus: config.vcpus, memory: config.memory };
        machine.config = Some(Arc::new(config));
        machine.state = VmState::Prepared;
        Ok(())
    }

    async fn start(&self) -> Result<(), HypervisorError> {
        let config = {
            let mut machine = self.shared.machine();
            let state = machine.state;
            state.check(Operation::Start)?;
            match machine.config.clone() {
                Some(config) if !machine.starting => {
                    machine.starting = true;
                    config
                }
                _ => return Err(HypervisorError::WrongState { operation: Operation::Start, state }),
            }
        };
        // A task of its own: a caller that gives up must not leave half a machine.
        match tokio::spawn(Arc::clone(&self.shared).start(config)).await {
            Ok(result) => result,
            Err(e) => {
                self.shared.end(ExitCause::NeverStarted);
                Err(HypervisorError::host(Operation::Start, "run the task that starts it", io::Error::other(e)))
            }
        }
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.run_vcpus(Operation::Pause, VmState::Paused).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.run_vcpus(Operation::Resume, VmState::Running).await
    }

    async fn stop(&self, deadlines: StopDeadlines) -> Result<VmExit, HypervisorError> {
        let shared = &self.shared;
        let (running, idle, paused) = {
            let machine = shared.machine();
            let idle = matches!(machine.state, VmState::New | VmState::Prepared);
            if idle {
                // Under the lock: a start that is ready looks here before it becomes a running machine.
                shared.cancel.cancel();
            }
            (machine.running.clone(), idle && !machine.starting, machine.state == VmState::Paused)
        };
        if idle {
            shared.end(ExitCause::NeverStarted);
        }
        if let Some(running) = running {
            exit::ladder(&running, deadlines, paused, shared.options.answer_limit).await;
        }
        Ok(VmExit { cause: shared.exited().await })
    }

    fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.shared.exit.subscribe()
    }

    async fn add_device(&self, device: DeviceConfig) -> Result<DeviceId, HypervisorError> {
        let operation = Operation::AddDevice;
        let shared = &self.shared;
        let _one = shared.operation.lock().await;
        shared.machine().state.check(operation)?;
        devices::check(&device)?;
        {
            let mut machine = shared.machine();
            if machine.state == VmState::Prepared {
                if machine.starting {
                    return Err(HypervisorError::WrongState { operation, state: machine.state });
                }
                if matches!(device, DeviceConfig::Share { .. }) && machine.devices.has_share() {
                    return Err(unsupported(operation, "it shares one directory"));
                }
                let id = machine.devices.next_id();
                machine.devices.insert(Device { id: id.clone(), config: device });
                return Ok(id);
            }
        }
        let running = shared.running(operation)?;
        shared.plug(&running, device).await
    }

    async fn remove_device(&self, id: &DeviceId) -> Result<(), HypervisorError> {
        let operation = Operation::RemoveDevice;
        let shared = &self.shared;
        let _one = shared.operation.lock().await;
        let device = {
            let mut machine = shared.machine();
            machine.state.check(operation)?;
            let device = machine.devices.get(id).ok_or_else(|| HypervisorError::NoSuchDevice(id.clone()))?;
            if machine.state == VmState::Prepared && !machine.starting {
                machine.devices.remove(id);
                return Ok(());
            }
            device
        };
        let running = shared.running(operation)?;
        if let DeviceConfig::Share { .. } = &device.config {
            return Err(unsupported(operation, "a share stays until the machine ends"));
        }
        shared.ask(&running, operation, Request::Remove { id: id.0.clone() }, &[]).await?;
        shared.machine().devices.remove(id);
        Ok(())
    }

    async fn resize(&self, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        let operation = Operation::Resize;
        let shared = &self.shared;
        let _one = shared.operation.lock().await;
        let running = shared.running(operation)?;
        shared.check_size(request)?;
        let present = shared.machine().present;
        let vcpus = request.vcpus.filter(|vcpus| *vcpus != present.vcpus);
        let memory = request.memory.filter(|memory| *memory != present.memory);
        if vcpus.is_none() && memory.is_none() {
            return Ok(present);
        }
        // Below the ceiling, which fits.
        let vcpus = vcpus.and_then(|vcpus| u8::try_from(vcpus).ok());
        match shared.ask(&running, operation, Request::Resize { vcpus, memory }, &[]).await? {
            Answer::Sized(size) => {
                let present = Resized { vcpus: size.vcpus.into(), memory: size.memory };
                shared.machine().present = present;
                Ok(present)
            }
            other => {
                let message = bounded(&format!("a new size was answered by {other:?}"));
                Err(HypervisorError::Refused { operation, message })
            }
        }
    }

    fn agent_channel(&self) -> Result<AgentChannel, HypervisorError> {
        let operation = Operation::AgentChannel;
        let machine = self.shared.machine();
        machine.state.check(operation)?;
        let config = machine.config.as_ref();
        let config = config.ok_or(HypervisorError::WrongState { operation, state: machine.state })?;
        Ok(AgentChannel::HybridVsock(config.run_dir.join(SOCKET)))
    }

    async fn metrics(&self) -> Result<VmMetrics, HypervisorError> {
        let operation = Operation::Metrics;
        let running = self.shared.running(operation)?;
        let present = self.shared.machine().present;
        let pid = running.process.pid();
        match usage::usage(pid) {
            Ok((cpu_ms, resident_bytes)) => {
                Ok(VmMetrics { resident_bytes, cpu_ms, vcpus: present.vcpus, memory_bytes: present.memory.bytes() })
            }
            Err(e) => match tokio::time::timeout(END_WAIT, self.shared.exited()).await {
                Ok(cause) => Err(HypervisorError::Exited { operation, cause }),
                Err(_) => Err(HypervisorError::host(operation, format!("read /proc/{pid}/stat"), e)),
            },
        }
    }

    fn processes(&self) -> Vec<VmProcess> {
        let running = self.shared.machine().running.clone();
        running
            .filter(|running| running.process.has_ended().is_none())
            .map(|running| running.process.describe())
            .into_iter()
            .collect()
    }
}
