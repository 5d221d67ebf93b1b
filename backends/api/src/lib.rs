//! The hypervisor trait: what a backend must do to run a sandbox's virtual machine.
//!
//! ```text
//!             prepare            start              pause
//!   (new) ───────────▶ Prepared ───────▶ Running ◀────────▶ Paused
//!                          │                │      resume      │
//!                          │ stop           │ stop, exit       │ stop, exit
//!                          ▼                ▼                  ▼
//!                        Stopped ◀──────────┴──────────────────┘   (final; stop again is fine)
//! ```
//!
//! A value of [`Hypervisor`] is one virtual machine. Every backend runs the same [contract suite](contract); the
//! [fake backend](fake) passes it too and serves the actors' tests.

#[cfg(feature = "contract")]
pub mod contract;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod hybrid_vsock;
mod state;
mod types;
mod validate;

pub use error::{HypervisorError, Operation};
pub use types::{
    AgentChannel, BootSource, Capabilities, ConsoleSink, DeviceConfig, DeviceId, DeviceMetrics, ExitCause, KernelImage,
    MiB, NetQueueFds, ProcessRole, ResizeRequest, Resized, ShareCache, StopDeadlines, VmConfig, VmExit, VmMetrics,
    VmProcess, VmState,
};

use std::fmt;
use std::path::Path;
use tokio::sync::watch;

/// One virtual machine of some backend.
///
/// All methods may be called from any task, concurrently. A call in a state that forbids it is
/// [`HypervisorError::WrongState`]; an ability that [`Capabilities`] denies is [`HypervisorError::Unsupported`]. A call
/// that fails leaves nothing behind: in particular a failed [`start`](Hypervisor::start) has no process running, and
/// the machine is [`VmState::Stopped`].
#[async_trait::async_trait]
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// The backend's name as the configuration writes it: `qemu`, `kvm`, `fake`.
    fn name(&self) -> &'static str;

    /// What this backend can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// The machine's present state.
    fn state(&self) -> VmState;

    /// Checks `config` and takes it. Touches nothing of the host but files that it opens for reading.
    ///
    /// # Errors
    /// [`HypervisorError::Config`] for what is missing or contradictory, with the option's name.
    async fn prepare(&self, config: VmConfig) -> Result<(), HypervisorError>;

    /// Starts the machine and its helper processes. Returns when the first vCPU may run; the guest still boots.
    async fn start(&self) -> Result<(), HypervisorError>;

    /// Stops all vCPUs; no effect when paused already.
    async fn pause(&self) -> Result<(), HypervisorError>;

    /// Lets the vCPUs run on; no effect when running already.
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Ends the machine by a ladder of deadlines (ask the guest, ask the monitor, SIGTERM, SIGKILL) and returns when
    /// every process is reaped. Idempotent: a stopped machine answers with its first exit. A machine that never
    /// started answers [`ExitCause::NeverStarted`].
    async fn stop(&self, deadlines: StopDeadlines) -> Result<VmExit, HypervisorError>;

    /// The exit as an event: `None` while the machine may still run, then the exit, once and for good. A guest's reset
    /// is an exit; so is the death of a helper process that the machine cannot live without.
    fn exit(&self) -> watch::Receiver<Option<VmExit>>;

    /// Adds a device; before [`start`](Hypervisor::start) it is there from the boot, later it is hot-plugged.
    async fn add_device(&self, device: DeviceConfig) -> Result<DeviceId, HypervisorError>;

    /// Removes a device that was added; unknown ids are [`HypervisorError::NoSuchDevice`].
    async fn remove_device(&self, id: &DeviceId) -> Result<(), HypervisorError>;

    /// Changes the number of vCPUs and the memory of a running machine; answers with what is now there.
    async fn resize(&self, request: ResizeRequest) -> Result<Resized, HypervisorError>;

    /// Where the agent is reached. Valid from [`start`](Hypervisor::start) on.
    fn agent_channel(&self) -> Result<AgentChannel, HypervisorError>;

    /// Counters of the machine's processes and devices.
    async fn metrics(&self) -> Result<VmMetrics, HypervisorError>;

    /// The host processes of the machine, the hypervisor first. Empty before the start and after the end.
    fn processes(&self) -> Vec<VmProcess>;

    /// Saving to and restoring from files, where the backend can.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
}

/// Saving a machine's state and starting another from it (templates and checkpoints).
#[async_trait::async_trait]
pub trait Snapshots: Send + Sync {
    /// Writes the state of a paused machine into the directory `into`, which exists and is empty.
    async fn save(&self, into: &Path) -> Result<(), HypervisorError>;

    /// Starts a prepared machine from what [`save`](Snapshots::save) wrote; it is then paused.
    async fn restore(&self, from: &Path) -> Result<(), HypervisorError>;
}
