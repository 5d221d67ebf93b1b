//! One virtual machine that is a QEMU process: the trait, and the task that sees its end.

use crate::NAME;
use crate::command_line::MMIO_SLOTS;
use crate::devices::{self, Plug};
use crate::exit::{self, Processes};
use crate::launch::{self, Host, Launched};
use crate::options::{Acceleration, MachineType, QemuOptions};
use crate::qmp::Client;
use crate::resize::{self, Added};
use crate::tsc::TscSample;
use qapi::qmp;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stockade_hypervisor::{
    AgentChannel, BootSource, Capabilities, DeviceConfig, DeviceId, Hypervisor, HypervisorError, MiB, Operation,
    ResizeRequest, Resized, StopDeadlines, VmConfig, VmExit, VmMetrics, VmProcess, VmState,
};
use stockade_machine_process::devices::{Device, Table};
use stockade_machine_process::life::Life;
use stockade_machine_process::stop::{StopNote, Stopping, ladder};
use stockade_machine_process::usage;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long the end of a machine whose monitor broke off is waited for, to name it.
const END_WAIT: Duration = Duration::from_secs(2);

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
    capabilities: Capabilities,
    life: Life<Running>,
}

/// What there is from the start to the end.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) processes: Processes,
    pub(crate) qmp: Client,
    /// What was added since the boot; never locked across an await.
    added: Mutex<Added>,
    panicked: Arc<AtomicBool>,
    stopping: StopNote,
    /// Its closing ends the device process, should the signals be lost.
    _lifeline: std::os::unix::net::UnixStream,
}

impl Running {
    fn added(&self) -> MutexGuard<'_, Added> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn check_devices(&self, config: &VmConfig, devices: &Table) -> Result<(), HypervisorError> {
        devices.check_shares()?;
        // vsock and the random number generator are always there.
        let disks = usize::from(matches!(config.boot, BootSource::Image { .. }));
        let transports = devices.all().len() + disks + 2;
        if self.options.machine_type == MachineType::Microvm && transports > MMIO_SLOTS {
            return Err(HypervisorError::Config {
                option: "machine_type",
                problem: format!("microvm has {MMIO_SLOTS} places for devices, not {transports}: use pc or q35"),
            });
        }
        Ok(())
    }

    async fn start(self: Arc<Self>, config: Arc<VmConfig>) -> Result<(), HypervisorError> {
        let (devices, checked) = {
            let machine = self.life.machine();
            (machine.devices.all().to_vec(), self.check_devices(&config, &machine.devices))
        };
        let launched = match checked {
            Ok(()) => {
                let tsc_khz = match self.acceleration {
                    Acceleration::Tcg => Some(TscSample::first().khz().await),
                    // The hypervisor tells it.
                    Acceleration::Kvm => None,
                };
                let host = Host { acceleration: self.acceleration, tsc_khz };
                let cancel = self.life.cancelled();
                launch::launch(self.binary.clone(), &self.options, host, &config, &devices, cancel).await
            }
            Err(e) => Err(e.into()),
        };
        let Launched { processes, qmp, console, panicked, lifeline } = match launched {
            Ok(launched) => launched,
            Err(failed) => {
                self.life.end(failed.cause);
                return Err(failed.error);
            }
        };
        let running = Arc::new(Running {
            processes,
            qmp,
            added: Mutex::default(),
            panicked,
            stopping: StopNote::default(),
            _lifeline: lifeline,
        });
        if !self.life.started(&running, VmState::Running) {
            running.processes.kill();
            running.processes.ended(None).await;
            return Err(self.life.given_up());
        }
        tokio::spawn(Arc::clone(&self).watch(running, console));
        Ok(())
    }

    /// Waits for the end and tells it.
    async fn watch(self: Arc<Self>, running: Arc<Running>, console: JoinHandle<()>) {
        let events = running.qmp.seen();
        let (hypervisor, devices) = running.processes.ended(Some(events.clone())).await;
        let seen = exit::all_events(events).await;
        self.life.read_console(console).await;
        let console_panic = running.panicked.load(Ordering::Acquire);
        let stopping = running.stopping.noted();
        drop(running);
        self.life.end(exit::cause(&hypervisor, devices.as_ref(), seen, console_panic, stopping));
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
            return Err(self.life.unsupported(operation, reason));
        }
        let device = {
            let mut machine = self.life.machine();
            Device { id: machine.devices.next_id(), config }
        };
        self.plugger(&running.qmp).add(&device).await?;
        let id = device.id.clone();
        self.life.machine().devices.insert(device);
        Ok(id)
    }

    fn plugger<'a>(&self, qmp: &'a Client) -> Plug<'a> {
        Plug { qmp, machine: self.options.machine_type, limit: self.options.answer_limit }
    }

    async fn grow(&self, running: &Running, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        let Some(config) = self.life.config() else { return Ok(self.life.machine().present) };
        let mut present = self.life.machine().present;
        let mut added = running.added().clone();
        let operation = Operation::Resize;
        let steps = match request.vcpus.filter(|vcpus| *vcpus != present.vcpus) {
            None => 0,
            Some(_) if !self.capabilities.vcpu_hotplug => {
                return Err(self.life.unsupported(operation, "microvm has the vCPUs of its boot"));
            }
            Some(vcpus) => resize::vcpu_steps(present, &added, &config, vcpus)?,
        };
        let memory = match request.memory.filter(|memory| *memory != present.memory) {
            None => None,
            Some(_) if !self.capabilities.memory_hotplug => {
                return Err(self.life.unsupported(operation, "microvm has the memory of its boot"));
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
            self.note_size(running, present, &added);
        }
        if let Some(size) = memory {
            resize::add_memory(&running.qmp, &mut added, size).await?;
            present.memory = MiB(present.memory.0.saturating_add(size.0));
            self.note_size(running, present, &added);
        }
        Ok(present)
    }

    fn note_size(&self, running: &Running, present: Resized, added: &Added) {
        self.life.machine().present = present;
        *running.added() = added.clone();
    }
}

impl Qemu {
    pub(crate) fn new(
        options: Arc<QemuOptions>,
        binary: PathBuf,
        acceleration: Acceleration,
        capabilities: Capabilities,
    ) -> Self {
        let life = Life::new(NAME, END_WAIT);
        Self { shared: Arc::new(Shared { options, binary, acceleration, capabilities, life }) }
    }

    /// Pauses or resumes.
    async fn run_vcpus(&self, operation: Operation, to: VmState) -> Result<(), HypervisorError> {
        let life = &self.shared.life;
        let _one = life.one_operation().await;
        let running = life.running(operation)?;
        if life.state() == to {
            return Ok(());
        }
        let done = if to == VmState::Paused {
            running.qmp.execute(operation, qmp::stop {}).await
        } else {
            running.qmp.execute(operation, qmp::cont {}).await
        };
        if let Err(e) = done {
            return Err(life.explain(operation, e).await);
        }
        life.turn(operation, to)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.shared.life.cancelled().cancel();
        // The watching task reaps.
        if let Some(running) = self.shared.life.current() {
            running.stopping.note(Stopping::Forced);
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
        self.shared.life.state()
    }

    async fn prepare(&self, config: VmConfig) -> Result<(), HypervisorError> {
        self.shared.life.state().check(Operation::Prepare)?;
        config.validate()?;
        let max = self.shared.capabilities.max_vcpus;
        if config.vcpus > max || (self.shared.capabilities.vcpu_hotplug && config.max_vcpus > max) {
            let problem = format!("at most {max} vCPUs are possible");
            return Err(HypervisorError::Config { option: "default_maxvcpus", problem });
        }
        if let BootSource::Image { image, .. } = &config.boot {
            devices::utf8("image", image)?;
        }
        for device in &config.devices {
            devices::check(device)?;
        }
        let devices = Table::of(&config.devices);
        self.shared.check_devices(&config, &devices)?;
        self.shared.life.prepare(config, devices)
    }

    async fn start(&self) -> Result<(), HypervisorError> {
        let config = self.shared.life.begin_start()?;
        self.shared.life.finish_start(Arc::clone(&self.shared).start(config)).await
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.run_vcpus(Operation::Pause, VmState::Paused).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.run_vcpus(Operation::Resume, VmState::Running).await
    }

    async fn stop(&self, deadlines: StopDeadlines) -> Result<VmExit, HypervisorError> {
        let life = &self.shared.life;
        if let Some((running, paused)) = life.begin_stop() {
            let ask = async {
                // The power button. A guest that does not listen to it may have been asked by its agent.
                if let Err(e) = running.qmp.execute(Operation::Stop, qmp::system_powerdown {}).await {
                    tracing::debug!(error = %e, "the power button could not be pressed");
                }
            };
            let quit = async {
                if let Err(e) = running.qmp.execute(Operation::Stop, qmp::quit {}).await {
                    tracing::debug!(error = %e, "QEMU's monitor did not take the order to quit");
                }
            };
            let process = &running.processes.hypervisor;
            if !ladder(process, &running.stopping, deadlines, paused, ask, quit).await {
                running.processes.kill();
            }
        }
        Ok(VmExit { cause: life.exited().await })
    }

    fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.shared.life.exit()
    }

    async fn add_device(&self, device: DeviceConfig) -> Result<DeviceId, HypervisorError> {
        let operation = Operation::AddDevice;
        let shared = &self.shared;
        let _one = shared.life.one_operation().await;
        shared.life.state().check(operation)?;
        devices::check(&device)?;
        if let Some(id) = shared.life.add_before_start(&device)? {
            return Ok(id);
        }
        let running = shared.life.running(operation)?;
        match shared.plug(&running, device).await {
            Ok(id) => Ok(id),
            Err(e) => Err(shared.life.explain(operation, e).await),
        }
    }

    async fn remove_device(&self, id: &DeviceId) -> Result<(), HypervisorError> {
        let operation = Operation::RemoveDevice;
        let shared = &self.shared;
        let _one = shared.life.one_operation().await;
        let Some(device) = shared.life.remove_before_start(id)? else { return Ok(()) };
        let running = shared.life.running(operation)?;
        let can = match &device.config {
            DeviceConfig::Share { .. } => false,
            DeviceConfig::Block { .. } => shared.capabilities.block_hotplug,
            DeviceConfig::Net { .. } => shared.capabilities.net_hotplug,
        };
        if !can {
            let reason = format!("a {} stays until the machine ends", device.config.kind());
            return Err(shared.life.unsupported(operation, reason));
        }
        if let Err(e) = shared.plugger(&running.qmp).remove(&device).await {
            return Err(shared.life.explain(operation, e).await);
        }
        shared.life.machine().devices.remove(id);
        Ok(())
    }

    async fn resize(&self, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        let shared = &self.shared;
        let _one = shared.life.one_operation().await;
        let running = shared.life.running(Operation::Resize)?;
        match shared.grow(&running, request).await {
            Ok(present) => Ok(present),
            Err(e) => Err(shared.life.explain(Operation::Resize, e).await),
        }
    }

    fn agent_channel(&self) -> Result<AgentChannel, HypervisorError> {
        self.shared.life.agent_channel()
    }

    async fn metrics(&self) -> Result<VmMetrics, HypervisorError> {
        let operation = Operation::Metrics;
        let running = self.shared.life.running(operation)?;
        let present = self.shared.life.machine().present;
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
                Err(e) => return Err(self.shared.life.explain(operation, e).await),
            }
        }
        Ok(metrics)
    }

    fn processes(&self) -> Vec<VmProcess> {
        let Some(running) = self.shared.life.current() else { return Vec::new() };
        [&running.processes.hypervisor, &running.processes.devices]
            .into_iter()
            .filter(|process| process.has_ended().is_none())
            .map(|process| process.describe())
            .collect()
    }
}
