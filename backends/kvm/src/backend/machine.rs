//! One virtual machine that is a `stockade vmm` process: the trait, and the task that sees its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use stockade_hypervisor::{
    AgentChannel, Capabilities, DeviceConfig, DeviceId, DeviceMetrics, Hypervisor, HypervisorError, MiB, Operation,
    ResizeRequest, Resized, Snapshots, StopDeadlines, VmConfig, VmExit, VmMetrics, VmProcess, VmState,
};
use stockade_machine_process::devices::{Device, Table};
use stockade_machine_process::life::Life;
use stockade_machine_process::process::Process;
use stockade_machine_process::stop::{StopNote, Stopping, ladder};
use stockade_machine_process::usage;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::launch::{self, Launched, Source, hotplug_memory};
use super::{KvmOptions, NAME, capabilities, devices, exit};
use crate::control::{Added, Answer, Client, ClientError, Disk, Network, Request, bounded};
use crate::machine::{MAX_MEMORY, MAX_VCPUS, SLOTS};

/// How long the end of a machine whose process broke off is waited for, to name it.
const END_WAIT: Duration = Duration::from_secs(4);

/// A machine of the KVM backend. Dropping it kills what runs.
#[derive(Debug)]
pub struct Kvm {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Arc<KvmOptions>,
    pub(super) life: Life<Running>,
}

/// What there is from the start to the end.
#[derive(Debug)]
pub(super) struct Running {
    process: Process,
    client: Client,
    panicked: Arc<AtomicBool>,
    stopping: StopNote,
}

impl Shared {
    /// Asks the process. A machine that has ended meanwhile is named as the reason for having no answer.
    async fn ask(
        &self,
        running: &Running,
        operation: Operation,
        request: Request,
        descriptors: &[Arc<OwnedFd>],
    ) -> Result<Answer, HypervisorError> {
        self.ask_within(running, operation, request, descriptors, self.options.answer_limit).await
    }

    /// [`Shared::ask`] with a time limit of its own.
    pub(super) async fn ask_within(
        &self,
        running: &Running,
        operation: Operation,
        request: Request,
        descriptors: &[Arc<OwnedFd>],
        limit: Duration,
    ) -> Result<Answer, HypervisorError> {
        let error = match running.client.ask(request, descriptors, limit).await {
            Ok(Answer::Failed { message }) => {
                return Err(HypervisorError::Refused { operation, message: bounded(&message) });
            }
            Ok(Answer::Unsupported { reason }) => return Err(self.life.unsupported(operation, bounded(&reason))),
            Ok(answer) => return Ok(answer),
            Err(ClientError::Timeout(limit)) => HypervisorError::Timeout { operation, limit },
            Err(error) => HypervisorError::host(operation, "ask the machine's process", io::Error::other(error)),
        };
        Err(self.life.explain(operation, error).await)
    }

    /// Starts the machine; one that was saved stands still then.
    pub(super) async fn start(self: Arc<Self>, config: Arc<VmConfig>, source: Source) -> Result<(), HypervisorError> {
        let state = source.state();
        let (devices, checked) = {
            let machine = self.life.machine();
            (machine.devices.all().to_vec(), devices::check_all(&machine.devices, &config))
        };
        let launched = match checked {
            Ok(()) => launch::launch(&self.options, &config, &devices, source, self.life.cancelled()).await,
            Err(e) => Err(e.into()),
        };
        let Launched { process, client, console, panicked, size } = match launched {
            Ok(launched) => launched,
            Err(failed) => {
                self.life.end(failed.cause);
                return Err(failed.error);
            }
        };
        let running = Arc::new(Running { process, client, panicked, stopping: StopNote::default() });
        self.life.machine().present = Resized { vcpus: size.vcpus.into(), memory: size.memory };
        if !self.life.started(&running, state) {
            running.process.signal(libc::SIGKILL);
            running.process.ended().await;
            return Err(self.life.given_up());
        }
        tokio::spawn(Arc::clone(&self).watch(running, console));
        Ok(())
    }

    /// Waits for the end and tells it.
    async fn watch(self: Arc<Self>, running: Arc<Running>, console: JoinHandle<()>) {
        let (ended, seen) = exit::ended(&running.process, running.client.seen()).await;
        self.life.read_console(console).await;
        let cause = exit::cause(&ended, &seen, exit::has_panicked(&running.panicked), running.stopping.noted());
        drop(running);
        self.life.end(cause);
    }

    async fn plug(&self, running: &Running, config: DeviceConfig) -> Result<DeviceId, HypervisorError> {
        let operation = Operation::AddDevice;
        let (device, descriptors) = match &config {
            DeviceConfig::Share { .. } => {
                return Err(self
                    .life
                    .unsupported(operation, "a share must be there from the boot: the process is confined to it"));
            }
            DeviceConfig::Block { path, read_only } => {
                let fd = launch::open(path, !read_only, operation)?;
                (Added::Disk(Disk { read_only: *read_only }), vec![Arc::new(fd)])
            }
            DeviceConfig::Net { mac, queues, mtu } => {
                (Added::Network(Network { mac: *mac, mtu: *mtu }), queues.0.clone())
            }
        };
        let id = self.life.machine().devices.next_id();
        let request = Request::Add { id: id.0.clone(), device };
        self.ask(running, operation, request, &descriptors).await?;
        self.life.machine().devices.insert(Device { id: id.clone(), config });
        Ok(id)
    }

    /// Checks a new size against the machine's ceilings.
    fn check_size(&self, request: ResizeRequest) -> Result<(), HypervisorError> {
        let Some(config) = self.life.config() else { return Ok(()) };
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

impl Kvm {
    pub(super) fn new(options: Arc<KvmOptions>) -> Self {
        Self { shared: Arc::new(Shared { options, life: Life::new(NAME, END_WAIT) }) }
    }

    /// Pauses or resumes.
    async fn run_vcpus(&self, operation: Operation, to: VmState) -> Result<(), HypervisorError> {
        let life = &self.shared.life;
        let _one = life.one_operation().await;
        let running = life.running(operation)?;
        if life.state() == to {
            return Ok(());
        }
        let request = if to == VmState::Paused { Request::Pause } else { Request::Resume };
        self.shared.ask(&running, operation, request, &[]).await?;
        life.turn(operation, to)
    }
}

impl Drop for Kvm {
    fn drop(&mut self) {
        self.shared.life.cancelled().cancel();
        // The watching task reaps.
        if let Some(running) = self.shared.life.current() {
            running.stopping.note(Stopping::Forced);
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
        self.shared.life.state()
    }

    async fn prepare(&self, config: VmConfig) -> Result<(), HypervisorError> {
        self.shared.life.state().check(Operation::Prepare)?;
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
        for device in &config.devices {
            devices::check(device)?;
        }
        let devices = Table::of(&config.devices);
        devices::check_all(&devices, &config)?;
        self.shared.life.prepare(config, devices)
    }

    async fn start(&self) -> Result<(), HypervisorError> {
        let config = self.shared.life.begin_start()?;
        self.shared.life.finish_start(Arc::clone(&self.shared).start(config, Source::Boot)).await
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
            let limit = self.shared.options.answer_limit;
            let ask = async {
                // A guest that does not listen to a power button may have been asked by its agent.
                match running.client.ask(Request::PowerButton, &[], limit).await {
                    Ok(Answer::Done) => {}
                    other => tracing::debug!(?other, "the power button could not be pressed"),
                }
            };
            let quit = async {
                if let Err(error) = running.client.ask(Request::Quit, &[], limit).await {
                    tracing::debug!(%error, "the machine's process did not take the order to quit");
                }
            };
            if !ladder(&running.process, &running.stopping, deadlines, paused, ask, quit).await {
                running.process.signal(libc::SIGKILL);
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
        shared.plug(&running, device).await
    }

    async fn remove_device(&self, id: &DeviceId) -> Result<(), HypervisorError> {
        let operation = Operation::RemoveDevice;
        let shared = &self.shared;
        let _one = shared.life.one_operation().await;
        let Some(device) = shared.life.remove_before_start(id)? else { return Ok(()) };
        let running = shared.life.running(operation)?;
        if let DeviceConfig::Share { .. } = &device.config {
            return Err(shared.life.unsupported(operation, "a share stays until the machine ends"));
        }
        shared.ask(&running, operation, Request::Remove { id: id.0.clone() }, &[]).await?;
        shared.life.machine().devices.remove(id);
        Ok(())
    }

    async fn resize(&self, request: ResizeRequest) -> Result<Resized, HypervisorError> {
        let operation = Operation::Resize;
        let shared = &self.shared;
        let _one = shared.life.one_operation().await;
        let running = shared.life.running(operation)?;
        shared.check_size(request)?;
        let present = shared.life.machine().present;
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
                shared.life.machine().present = present;
                Ok(present)
            }
            other => {
                let message = bounded(&format!("a new size was answered by {other:?}"));
                Err(HypervisorError::Refused { operation, message })
            }
        }
    }

    fn agent_channel(&self) -> Result<AgentChannel, HypervisorError> {
        self.shared.life.agent_channel()
    }

    async fn metrics(&self) -> Result<VmMetrics, HypervisorError> {
        let operation = Operation::Metrics;
        let life = &self.shared.life;
        let running = life.running(operation)?;
        let present = life.machine().present;
        let pid = running.process.pid();
        let (cpu_ms, resident_bytes) = match usage::usage(pid) {
            Ok(usage) => usage,
            Err(e) => {
                let error = HypervisorError::host(operation, format!("read /proc/{pid}/stat"), e);
                return Err(life.explain(operation, error).await);
            }
        };
        let counters = match self.shared.ask(&running, operation, Request::Counters, &[]).await? {
            Answer::Counters(counters) => *counters,
            other => {
                let message = bounded(&format!("a question for counters was answered by {other:?}"));
                return Err(HypervisorError::Refused { operation, message });
            }
        };
        // The process is not trusted with what is kept of its answer.
        let of_device = |(device, [requests, errors, malformed]): (String, [u64; 3])| DeviceMetrics {
            device: bounded(&device),
            requests,
            errors,
            malformed,
        };
        Ok(VmMetrics {
            resident_bytes,
            cpu_ms,
            vcpus: present.vcpus,
            memory_bytes: present.memory.bytes(),
            exits: Some(counters.exits),
            devices: counters.devices.into_iter().take(SLOTS).map(of_device).collect(),
        })
    }

    fn processes(&self) -> Vec<VmProcess> {
        let running = self.shared.life.current();
        running
            .filter(|running| running.process.has_ended().is_none())
            .map(|running| running.process.describe())
            .into_iter()
            .collect()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
}
