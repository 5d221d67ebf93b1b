//! One virtual machine that is a QEMU process: the trait, and the task that sees its end.

use crate::command_line::MMIO_SLOTS;
use crate::devices::{self, Device, Plug, Table};
use crate::exit::{self, Processes, Stopping};
use crate::launch::{self, Host, Launched, SOCKET};
use crate::options::{Acceleration, MachineType, QemuOptions};
use crate::qmp::Client;
use crate::resize::{self, Added};
use crate::tsc::TscSample;
use crate::{NAME, stop};
use qapi::qmp;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stockade_hypervisor::{
    AgentChannel, BootSource, Capabilities, DeviceConfig, DeviceId, ExitCause, Hypervisor, HypervisorError, MiB,
    Operation, ResizeRequest, Resized, StopDeadlines, VmConfig, VmExit, VmMetrics, VmProcess, VmState,
};
use stockade_machine_process::usage;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the end of a machine whose monitor broke off is waited for, to name it.
const END_WAIT: Duration = Duration::from_secs(2);
/// How long the rest of the console is read after the end.
const CONSOLE_WAIT: Duration = Duration::from_millis(500);

/// A machine of the QEMU backend. Dropping it kills what runs.
#[derive(Debug)]
pub struct Qemu {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Arc<QemuOptions>,
    binary: PathBuf,
    acceleration: Acceleration,
    tsc: Arc<TscSample>,
    capabilities: Capabilities,
    /// Never held across an await.
    machine: Mutex<Machine>,
    /// One operation at a time talks to the monitor; stopping does not wait for it.
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
    added: Added,
    running: Option<Arc<Running>>,
}

/// What there is from the start to the end.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) processes: Processes,
    pub(crate) qmp: Client,
    panicked: Arc<AtomicBool>,
    stopping: watch::Sender<Stopping>,
    /// Its closing ends the device process, should the signals be lost.
    _lifeline: std::os::unix::net::UnixStream,
}

impl Running {
    /// Notes that the end was asked for; a later note never weakens an earlier one.
    pub(crate) fn note_stopping(&self, to: Stopping) {
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

    /// Names the machine's end where that is why `error` came.
    async fn explain(&self, operation: Operation, error: HypervisorError) -> HypervisorError {
        if !matches!(error, HypervisorError::Host { .. } | HypervisorError::Timeout { .. }) {
            return error;
        }
        let wait = if matches!(error, HypervisorError::Host { .. }) { END_WAIT } else { Duration::ZERO };
        match tokio::time::timeout(wait, self.exited()).await {
            Ok(cause) => HypervisorError::Exited { operation, cause },
            Err(_) => error,
        }
    }

    /// The running machine, in a state that allows `operation`.
    fn running(&self, operation: Operation) -> Result<Arc<Running>, HypervisorError> {
        let machine = self.machine();
        machine.state.check(operation)?;
        machine.running.clone().ok_or(HypervisorError::WrongState { operation, state: machine.state })
    }

    fn unsupported(&self, operation: Operation, reason: impl Into<String>) -> HypervisorError {
        HypervisorError::Unsupported { operation, backend: NAME, reason: reason.into() }
    }

    fn check_devices(&self, config: &VmConfig, devices: &[Device]) -> Result<(), HypervisorError> {
        let shares = devices.iter().filter(|device| matches!(device.config, DeviceConfig::Share { .. })).count();
        if shares > 1 {
            return Err(HypervisorError::Config {
                option: "share",
                problem: "this backend shares one directory".to_owned(),
            });
        }
        // vsock and the random number generator are always there.
        let disks = usize::from(matches!(config.boot, BootSource::Image { .. }));
        let transports = devices.len() + disks + 2;
        if self.options.machine_type == MachineType::Microvm && transports > MMIO_SLOTS {
            return Err(HypervisorError::Config {
                option: "machine_type",
                problem: format!("microvm has {MMIO_SLOTS} places for devices, not {transports}: use pc or q35"),
            });
        }
        Ok(())
    }

    async fn start(self: Arc<Self>, config: Arc<VmConfig>) -> Result<(), HypervisorError> {
        let devices = self.machine().devices.all();
        let launched = match self.check_devices(&config, &devices) {
            Ok(()) => {
                let tsc_khz = match (self.acceleration, self.options.machine_type) {
                    (Acceleration::Tcg, MachineType::Microvm) => Some(self.tsc.khz().await),
                    // The hypervisor tells it, or the board has timers to measure it by.
                    _ => None,
                };
                let host = Host { acceleration: self.acceleration, tsc_khz };
                launch::launch(self.binary.clone(), &self.options, host, &config, &devices, &self.cancel).await
            }
            Err(e) => Err(e.into()),
        };
        let Launched { processes, qmp, console, panicked, lifeline } = match launched {
            Ok(launched) => launched,
            Err(failed) => {
                self.end(failed.cause);
                return Err(failed.error);
            }
        };
        let running = Arc::new(Running {
            processes,
            qmp,
            panicked,
            stopping: watch::Sender::new(Stopping::No),
            _lifeline: lifeline,
        });
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
            running.processes.kill();
            running.processes.ended(None).await;
            let cause = ExitCause::NeverStarted;
            self.end(cause.clone());
            return Err(HypervisorError::Exited { operation: Operation::Start, cause });
        }
        tokio::spawn(Arc::clone(&self).watch(running, console));
        Ok(())
    }

    /// Waits for the end and tells it.
    async fn watch(self: Arc<Self>, running: Arc<Running>, console: JoinHandle<()>) {
        let events = running.qmp.seen();
        let (hypervisor, devices) = running.processes.ended(Some(events.clone())).await;
        let seen = exit::all_events(events).await;
        if tokio::time::timeout(CONSOLE_WAIT, console).await.is_err() {
            tracing::debug!("the console stays open after QEMU's end");
        }
        let console_panic = running.panicked.load(Ordering::Acquire);
        let stopping = *running.stopping.borrow();
        drop(running);
        self.end(exit::cause(&hypervisor, devices.as_ref(), seen, console_panic, stopping));
    }

    async fn plug(&self, running: &Running, config: DeviceConfig) -> Result<DeviceId, HypervisorError> {
        let operation = Operation::AddDevice;
        let (can, what) = match &config {
            DeviceConfig::Share { .. } => (false, "a share that was not there at the boot"),
            DeviceConfig::Block { .. } => (self.capabilities.block_hotplug, "a block device"),
            DeviceConfig::Net { .. } => (self.capabilities.net_hotplug, "a network interface"),
        };
        let machine_type = self.options.machine_type;
        if !can {
            let reason = format!("{} does not take {what} while it runs", machine_type.as_str());
            return Err(self.unsupported(operation, reason));
        }
        let device = {
            let mut machine = self.machine();
            let port = match machine_type {
                MachineType::Q35 => Some(
                    machine
                        .devices
                        .free_port()
                        .ok_or_else(|| self.unsupported(operation, "all root ports of q35 are taken"))?,
                ),
                MachineType::Pc | MachineType::Microvm => None,
            };
            Device { id: machine.devices.next_id(), config, port }
        };
        self.plugger(&running.qmp).add(&device).await?;
        let id = device.id.clone();
        self.machine().devices.insert(device);
        Ok(id)
    }

    fn plugger<'a>(&self, qmp: &'a Client) -> Plug<'a> {
        Plug { qmp, machine: self.options.machine_type, limit: self.options.answer_limit }
    }

    async fn grow(&self, running: &Running, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        let (mut present, mut added, config) = {
            let machine = self.machine();
            (machine.present, machine.added.clone(), machine.config.clone())
        };
        let Some(config) = config else { return Ok(present) };
        let operation = Operation::Resize;
        let steps = match request.vcpus.filter(|vcpus| *vcpus != present.vcpus) {
            None => 0,
            Some(_) if !self.capabilities.vcpu_hotplug => {
                return Err(self.unsupported(operation, "microvm has the vCPUs of its boot"));
            }
            Some(vcpus) => resize::vcpu_steps(present, &added, &config, vcpus)?,
        };
        let memory = match request.memory.filter(|memory| *memory != present.memory) {
            None => None,
            Some(_) if !self.capabilities.memory_hotplug => {
                return Err(self.unsupported(operation, "microvm has the memory of its boot"));
            }
            Some(memory) => resize::memory_step(present, &config, memory)?,
        };
        // Each step is noted as it is done, so that an error later leaves true numbers.
        let plug = self.plugger(&running.qmp);
        for _ in 0..steps.unsigned_abs() {
            if steps > 0 {
                resize::add_vcpu(&running.qmp, &mut added).await?;
                present.vcpus = present.vcpus.saturating_add(1);
            } else {
                resize::remove_vcpu(&plug, &mut added).await?;
                present.vcpus = present.vcpus.saturating_sub(1);
            }
            self.note_size(present, &added);
        }
        if let Some(size) = memory {
            resize::add_memory(&running.qmp, &mut added, size).await?;
            present.memory = MiB(present.memory.0.saturating_add(size.0));
            self.note_size(present, &added);
        }
        Ok(present)
    }

    fn note_size(&self, present: Resized, added: &Added) {
        let mut machine = self.machine();
        machine.present = present;
        machine.added = added.clone();
    }
}

impl Qemu {
    pub(crate) fn new(
        options: Arc<QemuOptions>,
        binary: PathBuf,
        acceleration: Acceleration,
        tsc: Arc<TscSample>,
        capabilities: Capabilities,
    ) -> Self {
        let machine = Machine {
            state: VmState::New,
            starting: false,
            config: None,
            devices: Table::default(),
            present: Resized { vcpus: 0, memory: MiB(0) },
            added: Added::default(),
            running: None,
        };
        Self {
            shared: Arc::new(Shared {
                options,
                binary,
                acceleration,
                tsc,
                capabilities,
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
        let done = if to == VmState::Paused {
            running.qmp.execute(operation, qmp::stop {}).await
        } else {
            running.qmp.execute(operation, qmp::cont {}).await
        };
        if let Err(e) = done {
            return Err(shared.explain(operation, e).await);
        }
        let mut machine = shared.machine();
        machine.state.check(operation)?;
        machine.state = to;
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        // The watching task reaps.
        if let Some(running) = self.shared.machine().running.clone() {
            running.note_stopping(Stopping::Forced);
            running.processes.kill();
        }
    }
}

#[async_trait::async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities.clone()
    }

    fn state(&self) -> VmState {
        self.shared.machine().state
    }

    async fn prepare(&self, config: VmConfig) -> Result<(), HypervisorError> {
        self.shared.machine().state.check(Operation::Prepare)?;
        config.validate()?;
        let max = self.shared.capabilities.max_vcpus;
        if config.vcpus > max || (self.shared.capabilities.vcpu_hotplug && config.max_vcpus > max) {
            let problem = format!("at most {max} vCPUs are possible");
            return Err(HypervisorError::Config { option: "default_maxvcpus", problem });
        }
        if let BootSource::Image { image, .. } = &config.boot {
            devices::utf8("image", image)?;
        }
        let mut table = Table::default();
        for device in &config.devices {
            devices::check(device)?;
            let id = table.next_id();
            table.insert(Device { id, config: device.clone(), port: None });
        }
        self.shared.check_devices(&config, &table.all())?;
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
            stop::ladder(&running, deadlines, paused).await;
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
                    return Err(shared.unsupported(operation, "it shares one directory"));
                }
                let id = machine.devices.next_id();
                machine.devices.insert(Device { id: id.clone(), config: device, port: None });
                return Ok(id);
            }
        }
        let running = shared.running(operation)?;
        match shared.plug(&running, device).await {
            Ok(id) => Ok(id),
            Err(e) => Err(shared.explain(operation, e).await),
        }
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
        let can = match &device.config {
            DeviceConfig::Share { .. } => false,
            DeviceConfig::Block { .. } => shared.capabilities.block_hotplug,
            DeviceConfig::Net { .. } => shared.capabilities.net_hotplug,
        };
        if !can {
            let reason = format!("a {} stays until the machine ends", device.config.kind());
            return Err(shared.unsupported(operation, reason));
        }
        if let Err(e) = shared.plugger(&running.qmp).remove(&device).await {
            return Err(shared.explain(operation, e).await);
        }
        shared.machine().devices.remove(id);
        Ok(())
    }

    async fn resize(&self, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        let shared = &self.shared;
        let _one = shared.operation.lock().await;
        let running = shared.running(Operation::Resize)?;
        match shared.grow(&running, request).await {
            Ok(present) => Ok(present),
            Err(e) => Err(shared.explain(Operation::Resize, e).await),
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
        let mut metrics =
            VmMetrics { vcpus: present.vcpus, memory_bytes: present.memory.bytes(), ..VmMetrics::default() };
        for process in [&running.processes.hypervisor, &running.processes.devices] {
            let pid = process.pid();
            let used =
                usage::usage(pid).map_err(|e| HypervisorError::host(operation, format!("read /proc/{pid}/stat"), e));
            match used {
                Ok((cpu_ms, resident)) => {
                    metrics.cpu_ms = metrics.cpu_ms.saturating_add(cpu_ms);
                    metrics.resident_bytes = metrics.resident_bytes.saturating_add(resident);
                }
                Err(e) => return Err(self.shared.explain(operation, e).await),
            }
        }
        Ok(metrics)
    }

    fn processes(&self) -> Vec<VmProcess> {
        let running = self.shared.machine().running.clone();
        let Some(running) = running else { return Vec::new() };
        [&running.processes.hypervisor, &running.processes.devices]
            .into_iter()
            .filter(|process| process.has_ended().is_none())
            .map(|process| process.describe())
            .collect()
    }
}
