//! The messages.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stockade_hypervisor::{MiB, ShareCache};

/// What the supervisor sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToVmm {
    /// The first message, and no other.
    Begin(Box<Begin>),
    /// A request; answered with the same number.
    Request {
        /// Its number, chosen by the supervisor.
        id: u64,
        /// What is asked.
        request: Request,
    },
}

/// What the process sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromVmm {
    /// The answer to the request of that number.
    Answer {
        /// The request's number.
        id: u64,
        /// What came of it.
        answer: Answer,
    },
    /// Something that nobody asked for.
    Event(Event),
}

/// The machine, and which descriptors the process was started with. Each number occurs once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// /dev/kvm.
    pub kvm: RawFd,
    /// The kernel, open for reading; none for a machine that was saved.
    pub kernel: Option<RawFd>,
    /// The initial RAM disk, open for reading.
    pub initrd: Option<RawFd>,
    /// The kernel's command line, whole.
    pub cmdline: String,
    /// The serial console's bytes are written there; a stream socket.
    pub console: RawFd,
    /// vCPUs at boot.
    pub vcpus: u8,
    /// The most vCPUs.
    pub max_vcpus: u8,
    /// Memory at boot.
    pub memory: MiB,
    /// How much more may be plugged.
    pub hotplug_memory: MiB,
    /// The guest's sockets.
    pub vsock: Vsock,
    /// The shared directory.
    pub share: Option<Share>,
    /// Disks from the boot on, the one that the guest boots from first.
    pub disks: Vec<(String, Disk, RawFd)>,
    /// Network interfaces from the boot on, each with a descriptor a queue.
    pub networks: Vec<(String, Network, Vec<RawFd>)>,
    /// The guest gives back memory that it has freed.
    pub reclaim: bool,
    /// Threads get system call filters.
    pub seccomp: bool,
    /// The user and group that threads run as which serve no files.
    pub user: u32,
    /// The saved machine to go on from, in place of a kernel: its state and its memory, open for reading.
    pub restore: Option<(RawFd, RawFd)>,
}

impl Begin {
    /// The numbers of all descriptors that the process was started with, but its standard ones and the control socket.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        let restore = self.restore.into_iter().flat_map(|(state, memory)| [state, memory]);
        [self.kvm, self.console, self.vsock.listener]
            .into_iter()
            .chain(self.kernel)
            .chain(self.initrd)
            .chain(restore)
            .chain(self.disks.iter().map(|(_, _, fd)| *fd))
            .chain(self.networks.iter().flat_map(|(_, _, queues)| queues.iter().copied()))
    }
}

/// The guest's sockets. Connections that the guest begins are refused: nothing on the host waits for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id.
    pub guest_cid: u32,
    /// The listening Unix socket for connections to the guest.
    pub listener: RawFd,
}

/// The shared directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The tag that the guest mounts.
    pub tag: String,
    /// The directory, which becomes the process's root.
    pub root: PathBuf,
    /// What the guest may remember.
    pub cache: ShareCache,
}

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Writes are refused; the descriptor is open for reading only.
    pub read_only: bool,
}

/// A network interface on tap queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The MTU in bytes that the guest is told.
    pub mtu: u16,
}

/// What is asked of a machine that is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Lets the vCPUs run for the first time, or stand, if the machine was saved. Answered by its size.
    Start,
    /// Stops all vCPUs.
    Pause,
    /// Lets them run on.
    Resume,
    /// Adds a device; its descriptors are with the message.
    Add {
        /// Its name in later requests and events.
        id: String,
        /// What it is.
        device: Added,
    },
    /// Removes a device.
    Remove {
        /// Its name.
        id: String,
    },
    /// Changes the number of vCPUs, the memory, or both.
    Resize {
        /// vCPUs in all.
        vcpus: Option<u8>,
        /// Memory in all.
        memory: Option<MiB>,
    },
    /// Asks the guest to give memory up or take it back.
    Balloon {
        /// How much it shall not have.
        size: MiB,
    },
    /// Asks for the counters.
    Counters,
    /// Saves the machine, which is paused. With the message come an empty file for its state and one for its memory.
    Save,
    /// Tells the guest that the power button was pressed.
    PowerButton,
    /// Ends the machine.
    Quit,
}

/// A device that is added while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Added {
    /// A disk; one descriptor.
    Disk(Disk),
    /// A network interface; a descriptor a queue.
    Network(Network),
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// It was done.
    Done,
    /// It was done, and this is the machine's size now.
    Sized(Sized),
    /// The counters.
    Counters(Box<Counters>),
    /// This machine cannot do it.
    Unsupported {
        /// Why.
        reason: String,
    },
    /// It failed.
    Failed {
        /// How.
        message: String,
    },
}

/// A machine's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sized {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory.
    pub memory: MiB,
}

/// What a machine has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Exits of vCPUs to this process since the start.
    pub exits: u64,
    /// Requests, errors and malformed requests of each device, by its name.
    pub devices: Vec<(String, [u64; 3])>,
}

/// What a machine tells by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The machine is built, in a process that is in its jail.
    Ready,
    /// The guest has said on its console that its kernel panics.
    Panicked,
    /// A device has failed; the machine goes on without it.
    DeviceFailed {
        /// Its name.
        device: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The machine has ended; the process is about to.
    Exited {
        /// Why.
        reason: ExitReason,
    },
}

/// Why a machine has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExitReason {
    /// The guest powered off.
    Shutdown,
    /// The guest wanted a reset.
    Reset,
    /// It was told to [quit](Request::Quit).
    Quit,
    /// The process was sent this signal and ends because of it.
    Signal(i32),
    /// The machine cannot go on.
    Failed {
        /// Why.
        message: String,
    },
}
