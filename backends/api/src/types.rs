//! The values that cross the trait. None names a backend.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Mebibytes (2^20 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MiB(pub u32);

impl MiB {
    /// The same in bytes.
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// What a backend can do on this host. What is `false` or `None` here is refused with
/// [`crate::HypervisorError::Unsupported`] when asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// How instructions run, in a person's words: `KVM`, `TCG (software emulation)`.
    pub acceleration: String,
    /// A directory can be shared as virtio-fs.
    pub share: bool,
    /// Block devices can be added while running.
    pub block_hotplug: bool,
    /// Network interfaces can be added while running.
    pub net_hotplug: bool,
    /// vCPUs can be added while running.
    pub vcpu_hotplug: bool,
    /// Memory can be added while running.
    pub memory_hotplug: bool,
    /// State can be saved and restored.
    pub snapshots: bool,
    /// The largest number of vCPUs.
    pub max_vcpus: u32,
}

/// The format of the kernel file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelImage(pub PathBuf);

/// What the guest boots from, beside its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootSource {
    /// An initial RAM disk whose /init is the agent.
    Initrd(PathBuf),
    /// A disk image with a systemd that starts the agent, and the initrd that mounts it, if the kernel needs one.
    Image {
        /// The raw disk image, attached read-only.
        image: PathBuf,
        /// The initrd with the drivers for the disk.
        initrd: Option<PathBuf>,
    },
}

/// Where the lines of the guest's console go.
#[derive(Clone)]
pub struct ConsoleSink(pub Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConsoleSink")
    }
}

/// How much of a share the guest may cache (Kata's `virtio_fs_cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareCache {
    /// Nothing: the guest asks the host each time.
    Never,
    /// Attributes only.
    Metadata,
    /// Attributes and data for a short time; changes on the host are seen on the next open.
    Auto,
    /// For ever: nothing else may change the directory.
    Always,
}

/// A machine to be prepared.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// The sandbox's id; shows in process arguments and logs.
    pub id: String,
    /// An existing directory of the sandbox's own, mode 0700, for sockets and logs. Removed by its owner, not by the backend.
    pub run_dir: PathBuf,
    /// The kernel (bzImage or ELF).
    pub kernel: KernelImage,
    /// What it boots from.
    pub boot: BootSource,
    /// The whole command line in order, without what the backend itself must add (console, panic).
    pub kernel_params: Vec<String>,
    /// vCPUs at boot, at least 1.
    pub vcpus: u32,
    /// The ceiling for hot-plug; at least `vcpus`.
    pub max_vcpus: u32,
    /// Memory at boot.
    pub memory: MiB,
    /// The ceiling for hot-plug; at least `memory`.
    pub max_memory: MiB,
    /// An open network namespace that the hypervisor process runs in; `None`: the caller's.
    pub netns: Option<Arc<OwnedFd>>,
    /// `cgroup.procs`, open for writing, of each control group that counts the processes' memory: they are put into them
    /// before they have a guest's, since what a process has is counted where it was when it got it.
    pub memory_cgroups: Vec<Arc<OwnedFd>>,
    /// The guest's vsock context id, 3 or more.
    pub guest_cid: u32,
    /// Devices there from the boot. A share is usually among them.
    pub devices: Vec<DeviceConfig>,
    /// The console's lines go here as they come, without line ends, control characters replaced, at most 4 KiB each.
    pub console: ConsoleSink,
    /// A file that receives the console's raw bytes as well, bounded by the backend to 1 MiB.
    pub console_log: Option<PathBuf>,
}

/// The queue descriptors of one network interface: one tap descriptor a queue pair.
#[derive(Debug, Clone)]
pub struct NetQueueFds(pub Vec<Arc<OwnedFd>>);

/// A device to add.
#[derive(Debug, Clone)]
pub enum DeviceConfig {
    /// A host directory, shared as virtio-fs. Mounts made under it later (in the supervisor's mount namespace, where
    /// it must be a shared mount) are seen by the guest.
    Share {
        /// The tag that the guest mounts.
        tag: String,
        /// The directory.
        source: PathBuf,
        /// How much the guest caches.
        cache: ShareCache,
    },
    /// A raw file or block device.
    Block {
        /// Its path.
        path: PathBuf,
        /// Refuse writes.
        read_only: bool,
    },
    /// A network interface on tap descriptors.
    Net {
        /// MAC address.
        mac: [u8; 6],
        /// The tap's queues.
        queues: NetQueueFds,
        /// MTU in bytes that the guest is told.
        mtu: u16,
    },
}

impl DeviceConfig {
    /// The kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Share { .. } => "share",
            Self::Block { .. } => "block device",
            Self::Net { .. } => "network interface",
        }
    }
}

/// The name of an added device, unique within its machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceId(pub String);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What [`crate::Hypervisor::resize`] shall reach. `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResizeRequest {
    /// Total vCPUs.
    pub vcpus: Option<u32>,
    /// Total memory.
    pub memory: Option<MiB>,
}

/// What is there after a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// vCPUs now.
    pub vcpus: u32,
    /// Memory now.
    pub memory: MiB,
}

/// Where the agent is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentChannel {
    /// A Unix socket that takes `CONNECT <port>\n` and answers `OK <n>\n` (hybrid vsock).
    HybridVsock(PathBuf),
}

/// The state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Made, nothing known yet.
    New,
    /// Has its configuration.
    Prepared,
    /// Its vCPUs may run.
    Running,
    /// Its vCPUs stand.
    Paused,
    /// Ended for good.
    Stopped,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Prepared => "prepared",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCause {
    /// It never ran.
    NeverStarted,
    /// [`crate::Hypervisor::stop`] ended it.
    Stopped,
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset, which counts as an exit.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// A process of the machine was killed by a signal.
    Signal {
        /// Which process.
        process: ProcessRole,
        /// The signal's number.
        signal: i32,
    },
    /// A process of the machine ended by itself with this status, and its last words.
    Status {
        /// Which process.
        process: ProcessRole,
        /// The exit status.
        status: i32,
        /// The end of its standard error, bounded.
        message: String,
    },
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverStarted => f.write_str("it was never started"),
            Self::Stopped => f.write_str("it was stopped"),
            Self::GuestShutdown => f.write_str("the guest powered off"),
            Self::GuestReset => f.write_str("the guest asked for a reset"),
            Self::GuestPanic => f.write_str("the guest's kernel panicked"),
            Self::Signal { process, signal } => {
                write!(f, "{process} was killed by signal {signal}")
            }
            Self::Status { process, status, message } if message.is_empty() => {
                write!(f, "{process} ended with status {status}")
            }
            Self::Status { process, status, message } => write!(f, "{process} ended with status {status}: {message}"),
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmExit {
    /// Why.
    pub cause: ExitCause,
}

/// What a host process of a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessRole {
    /// Runs the vCPUs.
    Hypervisor,
    /// Serves vhost-user devices.
    Devices,
}

impl fmt::Display for ProcessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hypervisor => "the hypervisor process",
            Self::Devices => "the device process",
        })
    }
}

/// A host process of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmProcess {
    /// What it does.
    pub role: ProcessRole,
    /// Its process id in the supervisor's PID namespace.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat (clock ticks since boot): tells this process from a later one with the same id.
    pub start_time: u64,
}

/// Counters of a machine's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmMetrics {
    /// Resident memory of all its processes in bytes, guest memory included where it is touched.
    pub resident_bytes: u64,
    /// CPU time of all its processes in milliseconds.
    pub cpu_ms: u64,
    /// Present vCPUs.
    pub vcpus: u32,
    /// Present guest memory in bytes.
    pub memory_bytes: u64,
    /// How often vCPUs have left the guest for the monitor, where it tells.
    pub exits: Option<u64>,
    /// What each device has done, where the monitor tells; else empty.
    pub devices: Vec<DeviceMetrics>,
}

/// What a device of a machine has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMetrics {
    /// The device, by the backend's name.
    pub device: String,
    /// Requests of the guest.
    pub requests: u64,
    /// Requests that failed on the host, or that the device does not support.
    pub errors: u64,
    /// Requests that make no sense: no driver sends any.
    pub malformed: u64,
}

/// The time that each rung of the stop ladder gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopDeadlines {
    /// For the guest to power off after it was asked (or has been asked by its agent).
    pub guest: Duration,
    /// For the monitor to end after it was told to quit.
    pub quit: Duration,
    /// After SIGTERM; then comes SIGKILL, which cannot be refused.
    pub term: Duration,
}

impl StopDeadlines {
    /// Straight to SIGKILL.
    pub const NOW: Self = Self { guest: Duration::ZERO, quit: Duration::ZERO, term: Duration::ZERO };
}

impl Default for StopDeadlines {
    fn default() -> Self {
        Self { guest: Duration::from_secs(3), quit: Duration::from_secs(2), term: Duration::from_secs(2) }
    }
}
