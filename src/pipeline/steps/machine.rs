//! Step 7: the virtual machine.

use crate::error::OpError;
use crate::hypervisor::{Backends, ChosenBackend, machine_config};
use crate::ids::SandboxId;
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::{ProcessId, UndoRecord};
use crate::storage::SHARE_TAG;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use stockade_config::Config;
use stockade_hypervisor::{DeviceConfig, DeviceId, Hypervisor, StopDeadlines};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A machine that is being made, which takes nothing of the host yet: QEMU is looked for, KVM is probed. That may block
/// for a while, so it is begun early and waited for by [`StartMachine`].
#[derive(Debug)]
pub struct MachineBegun(JoinHandle<Result<Arc<dyn Hypervisor>, OpError>>);

impl MachineBegun {
    /// Begins, on a thread that may block.
    pub fn begin(backends: Arc<dyn Backends>, config: &Config, backend: &ChosenBackend) -> Self {
        let (config, backend) = (config.clone(), backend.clone());
        Self(tokio::task::spawn_blocking(move || backends.make(&config, &backend)))
    }
}

/// Prepares and starts it.
#[derive(Debug)]
pub struct StartMachine {
    /// The machine.
    pub begun: MachineBegun,
    /// The sandbox's configuration, annotations included.
    pub config: Config,
    /// Which backend runs it.
    pub backend: ChosenBackend,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Its directory.
    pub directory: PathBuf,
    /// The directory that the guest sees.
    pub share: PathBuf,
    /// Its network interfaces.
    pub interfaces: Vec<DeviceConfig>,
    /// The namespace of its processes.
    pub netns: Option<Arc<OwnedFd>>,
    /// `cgroup.procs` of each control group that counts their memory.
    pub memory_cgroups: Vec<File>,
}

/// A machine that runs.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The machine.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Which backend runs it.
    pub backend: ChosenBackend,
    /// Its network interfaces, in the order in which they were given.
    pub interfaces: Vec<DeviceId>,
    /// Told when the guest says that its agent serves calls.
    pub agent_ready: Arc<Notify>,
}

impl Step for StartMachine {
    type Output = Machine;
    const NAME: &'static str = "machine";

    async fn run(self, undo: &mut UndoStack) -> Result<Machine, OpError> {
        let options = self.config.machine(self.backend.backend).clone();
        let agent_ready = Arc::new(Notify::new());
        let mut config =
            machine_config(&self.config, &self.backend, &self.sandbox, &self.directory, agent_ready.clone())?;
        config.netns = self.netns;
        config.memory_cgroups = self.memory_cgroups.into_iter().map(|file| Arc::new(file.into())).collect();
        config.devices.push(DeviceConfig::Share {
            tag: SHARE_TAG.into(),
            source: self.share,
            cache: options.virtio_fs_cache,
        });
        let made = self.begun.0.await;
        let hypervisor = made.map_err(|error| OpError::internal("cannot make a virtual machine", error))??;
        hypervisor.prepare(config).await?;
        let mut interfaces = Vec::with_capacity(self.interfaces.len());
        for interface in self.interfaces {
            interfaces.push(hypervisor.add_device(interface).await?);
        }
        // Until their numbers are known, the processes die with their parent by PR_SET_PDEATHSIG.
        let record = UndoRecord::Live { what: "end the virtual machine".into() };
        let ladder = options.stop_deadlines();
        undo.push_live(record, Stop { hypervisor: hypervisor.clone(), ladder })?;
        hypervisor.start().await?;
        for process in hypervisor.processes() {
            let record = UndoRecord::KillProcess {
                process: ProcessId { pid: process.pid, start_time: process.start_time },
                role: process.role.to_string(),
            };
            // Live, stopping the machine ends it; the record is for whoever cleans up after us.
            undo.push_live(record, AlreadyStopped)?;
        }
        Ok(Machine { hypervisor, backend: self.backend, interfaces, agent_ready })
    }
}

struct Stop {
    hypervisor: Arc<dyn Hypervisor>,
    ladder: StopDeadlines,
}

#[async_trait::async_trait]
impl LiveUndo for Stop {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        // The guest was asked already where there was an agent to ask, so the ladder begins at its next rung.
        let ladder = StopDeadlines { guest: std::time::Duration::ZERO, ..self.ladder };
        let exit = self.hypervisor.stop(ladder).await?;
        tracing::debug!(cause = %exit.cause, "the virtual machine has ended");
        Ok(())
    }
}

struct AlreadyStopped;

#[async_trait::async_trait]
impl LiveUndo for AlreadyStopped {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        Ok(())
    }
}
