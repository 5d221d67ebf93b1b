//! What a machine that is host processes keeps of itself, and the rules of its life, whichever monitor runs in it.
//!
//! ```text
//!   New ── prepare ─▶ Prepared ── begin_start … started ─▶ Running ◀── turn ──▶ Paused
//!    │                   │            │ not started            │                  │
//!    └───────────────────┴────────────┴──────── end ───────────┴──────────────────┘──▶ Stopped
//! ```
//! `R` is what there is from the start to the end, `P` where a device is plugged in.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stockade_hypervisor::{
    AgentChannel, DeviceConfig, DeviceId, ExitCause, HypervisorError, MiB, Operation, Resized, VmConfig, VmExit,
    VmState,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::devices::{Device, Table};

/// The agent's socket in the sandbox's directory.
pub const AGENT_SOCKET: &str = "vsock.sock";

/// How long the rest of the console is read after the end.
const CONSOLE_WAIT: Duration = Duration::from_millis(500);

/// What changes in a machine's life.
#[derive(Debug)]
pub struct Machine<R> {
    state: VmState,
    starting: bool,
    config: Option<Arc<VmConfig>>,
    running: Option<Arc<R>>,
    /// Its devices.
    pub devices: Table,
    /// Its size now.
    pub present: Resized,
}

/// A machine's life.
#[derive(Debug)]
pub struct Life<R> {
    backend: &'static str,
    /// How long the end of a machine that broke off is waited for, to name it.
    end_wait: Duration,
    /// Never held across an await.
    machine: Mutex<Machine<R>>,
    operation: tokio::sync::Mutex<()>,
    exit: watch::Sender<Option<VmExit>>,
    cancel: CancellationToken,
}

impl<R: Send + Sync + 'static> Life<R> {
    /// The life of a machine of the backend of that name. `end_wait`: how long the end of a machine that broke off is
    /// waited for, to name it as the reason.
    pub fn new(backend: &'static str, end_wait: Duration) -> Self {
        let machine = Machine {
            state: VmState::New,
            starting: false,
            config: None,
            running: None,
            devices: Table::default(),
            present: Resized { vcpus: 0, memory: MiB(0) },
        };
        Self {
            backend,
            end_wait,
            machine: Mutex::new(machine),
            operation: tokio::sync::Mutex::new(()),
            exit: watch::Sender::new(None),
            cancel: CancellationToken::new(),
        }
    }

    /// What changes; not to be held across an await.
    pub fn machine(&self) -> MutexGuard<'_, Machine<R>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation at a time changes the machine; stopping does not wait for it.
    pub async fn one_operation(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.operation.lock().await
    }

    /// The present state.
    pub fn state(&self) -> VmState {
        self.machine().state
    }

    /// What runs, if anything does.
    pub fn current(&self) -> Option<Arc<R>> {
        self.machine().running.clone()
    }

    /// What runs, in a state that allows `operation`.
    ///
    /// # Errors
    /// The state does not.
    pub fn running(&self, operation: Operation) -> Result<Arc<R>, HypervisorError> {
        let machine = self.machine();
        machine.state.check(operation)?;
        machine.running.clone().ok_or(HypervisorError::WrongState { operation, state: machine.state })
    }

    /// The configuration, from the preparation to the end.
    pub fn config(&self) -> Option<Arc<VmConfig>> {
        self.machine().config.clone()
    }

    /// That the backend cannot do `operation`.
    pub fn unsupported(&self, operation: Operation, reason: impl Into<String>) -> HypervisorError {
        HypervisorError::Unsupported { operation, backend: self.backend, reason: reason.into() }
    }

    /// Takes the configuration, which has been checked, and its devices.
    ///
    /// # Errors
    /// The machine has one already, or has ended.
    pub fn prepare(&self, config: VmConfig, devices: Table) -> Result<(), HypervisorError> {
        let mut machine = self.machine();
        machine.state.check(Operation::Prepare)?;
        machine.devices = devices;
        machine.present = Resized { vcpus: config.vcpus, memory: config.memory };
        machine.config = Some(Arc::new(config));
        machine.state = VmState::Prepared;
        Ok(())
    }

    /// Begins the one start of a machine. [`Life::finish_start`] is to follow.
    ///
    /// # Errors
    /// It is not prepared, or starts already.
    pub fn begin_start(&self) -> Result<Arc<VmConfig>, HypervisorError> {
        let mut machine = self.machine();
        let state = machine.state;
        state.check(Operation::Start)?;
        match machine.config.clone() {
            Some(config) if !machine.starting => {
                machine.starting = true;
                Ok(config)
            }
            _ => Err(HypervisorError::WrongState { operation: Operation::Start, state }),
        }
    }

    /// Runs `work`, the rest of a start, as a task of its own: a caller that gives up must not leave half a machine.
    ///
    /// # Errors
    /// Its own.
    pub async fn finish_start(
        &self,
        work: impl Future<Output = Result<(), HypervisorError>> + Send + 'static,
    ) -> Result<(), HypervisorError> {
        match tokio::spawn(work).await {
            Ok(result) => result,
            Err(e) => {
                self.end(ExitCause::NeverStarted);
                Err(HypervisorError::host(Operation::Start, "run the task that starts it", io::Error::other(e)))
            }
        }
    }

    /// Ends a start that is under way.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// The processes have started, and the machine runs or is paused. `false`: somebody has stopped the machine
    /// meanwhile; then they must be ended, and [`Life::given_up`] told.
    #[must_use]
    pub fn started(&self, running: &Arc<R>, state: VmState) -> bool {
        let mut machine = self.machine();
        machine.starting = false;
        let wanted = !self.cancel.is_cancelled();
        if wanted {
            machine.state = state;
            machine.running = Some(Arc::clone(running));
        }
        wanted
    }

    /// Ends a machine whose start was given up; what the start's caller is told.
    pub fn given_up(&self) -> HypervisorError {
        let cause = ExitCause::NeverStarted;
        self.end(cause.clone());
        HypervisorError::Exited { operation: Operation::Start, cause }
    }

    /// Notes that the vCPUs run or stand now.
    ///
    /// # Errors
    /// The machine has ended meanwhile.
    pub fn turn(&self, operation: Operation, to: VmState) -> Result<(), HypervisorError> {
        let mut machine = self.machine();
        machine.state.check(operation)?;
        machine.state = to;
        Ok(())
    }

    /// Begins to stop. What runs is to be ended, and stands still if the second value says so; the exit tells when it has.
    pub fn begin_stop(&self) -> Option<(Arc<R>, bool)> {
        let (running, idle) = {
            let machine = self.machine();
            let idle = matches!(machine.state, VmState::New | VmState::Prepared);
            if idle {
                // Under the lock: a start that is ready looks here before it becomes a running machine.
                self.cancel.cancel();
            }
            let paused = machine.state == VmState::Paused;
            (machine.running.clone().map(|running| (running, paused)), idle && !machine.starting)
        };
        if idle {
            self.end(ExitCause::NeverStarted);
        }
        running
    }

    /// Reads the rest of the console after the end of the processes.
    pub async fn read_console(&self, console: JoinHandle<()>) {
        if tokio::time::timeout(CONSOLE_WAIT, console).await.is_err() {
            tracing::debug!("the console stays open after the machine's end");
        }
    }

    /// Ends the machine once. Everything of it is gone when the exit is told.
    pub fn end(&self, cause: ExitCause) {
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
            let socket = config.run_dir.join(AGENT_SOCKET);
            if let Err(e) = std::fs::remove_file(&socket)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %socket.display(), error = %e, "the agent's socket stays");
            }
        }
        tracing::debug!(%cause, "the virtual machine has ended");
        self.exit.send_replace(Some(VmExit { cause }));
    }

    /// The exit as an event.
    pub fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.exit.subscribe()
    }

    /// Waits for the exit.
    pub async fn exited(&self) -> ExitCause {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(VmExit { cause })) => cause,
            // The sender is in self.
            _ => std::future::pending().await,
        }
    }

    /// Names the machine's end where that is why `error` came.
    pub async fn explain(&self, operation: Operation, error: HypervisorError) -> HypervisorError {
        let wait = match error {
            HypervisorError::Host { .. } => self.end_wait,
            HypervisorError::Timeout { .. } => Duration::ZERO,
            other => return other,
        };
        match tokio::time::timeout(wait, self.exited()).await {
            Ok(cause) => HypervisorError::Exited { operation, cause },
            Err(_) => error,
        }
    }

    /// Adds a device, which has been checked, to a machine that has not begun to start. `None`: it runs, and the device is
    /// to be plugged.
    ///
    /// # Errors
    /// The state forbids it, or there is a share already.
    pub fn add_before_start(&self, device: &DeviceConfig) -> Result<Option<DeviceId>, HypervisorError> {
        let operation = Operation::AddDevice;
        let mut machine = self.machine();
        if machine.state != VmState::Prepared {
            return Ok(None);
        }
        if machine.starting {
            return Err(HypervisorError::WrongState { operation, state: machine.state });
        }
        if matches!(device, DeviceConfig::Share { .. }) && machine.devices.shares() > 0 {
            return Err(self.unsupported(operation, "it shares one directory"));
        }
        Ok(Some(machine.devices.add(device.clone())))
    }

    /// Removes a device of a machine that has not begun to start. `Some`: it runs, and this is the device to be unplugged.
    ///
    /// # Errors
    /// The state forbids it, or there is none of that name.
    pub fn remove_before_start(&self, id: &DeviceId) -> Result<Option<Device>, HypervisorError> {
        let mut machine = self.machine();
        machine.state.check(Operation::RemoveDevice)?;
        let device = machine.devices.get(id).ok_or_else(|| HypervisorError::NoSuchDevice(id.clone()))?;
        if machine.state == VmState::Prepared && !machine.starting {
            machine.devices.remove(id);
            return Ok(None);
        }
        Ok(Some(device))
    }

    /// Where the agent is reached.
    ///
    /// # Errors
    /// The machine has not started, or has ended.
    pub fn agent_channel(&self) -> Result<AgentChannel, HypervisorError> {
        let operation = Operation::AgentChannel;
        let machine = self.machine();
        machine.state.check(operation)?;
        let config = machine.config.as_ref();
        let config = config.ok_or(HypervisorError::WrongState { operation, state: machine.state })?;
        Ok(AgentChannel::HybridVsock(config.run_dir.join(AGENT_SOCKET)))
    }
}
