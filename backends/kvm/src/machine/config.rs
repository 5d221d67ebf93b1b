//! What a machine is made of.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use stockade_hypervisor::MiB;

use crate::virtio::Threads;

/// The most vCPUs a machine can have: APIC identifiers of eight bits, and one of them is everyone's.
pub const MAX_VCPUS: u8 = 254;

/// The least memory that a stock kernel can be unpacked and run in.
pub const MIN_MEMORY: MiB = MiB(32);

/// The most memory, what is plugged later included: it ends below 2^39, which every processor with 64 bits can address.
pub const MAX_MEMORY: MiB = MiB(500 << 10);

/// Runs at the beginning of each vCPU's thread, before the first guest instruction; installs its system call filter.
#[derive(Clone)]
pub struct VcpuHook(Arc<dyn Fn() -> io::Result<()> + Send + Sync>);

impl VcpuHook {
    /// A hook that calls `hook`. An error ends the start of the machine.
    pub fn new(hook: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(crate) fn run(&self) -> io::Result<()> {
        (self.0)()
    }
}

impl Default for VcpuHook {
    /// Does nothing.
    fn default() -> Self {
        Self::new(|| Ok(()))
    }
}

impl fmt::Debug for VcpuHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VcpuHook")
    }
}

/// Where the bytes of the guest's serial console go. Written by vCPU threads, so it must not block for long.
pub struct Console(pub Box<dyn Write + Send>);

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

/// The size of a machine; what a saved machine and the one that takes its state on must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Memory at boot, from [`MIN_MEMORY`].
    pub memory: MiB,
    /// How much more a virtio-mem device may plug; 0 for none.
    pub hotplug_memory: MiB,
    /// vCPUs at boot, at least one.
    pub vcpus: u8,
    /// How many may be there at most, [`MAX_VCPUS`] at most.
    pub max_vcpus: u8,
}

/// A machine that boots a kernel. All files are open already: the process that runs it can open none.
#[derive(Debug)]
pub struct MachineConfig {
    /// How large it is.
    pub size: Size,
    /// The kernel: an ELF file (vmlinux, the quicker one) or a bzImage. Its pages may be mapped into the guest, privately:
    /// the file must not change as long as the machine runs.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The kernel's command line; see [`COMMAND_LINE`](super::COMMAND_LINE) for what fits this machine.
    pub cmdline: String,
    /// The serial console.
    pub console: Console,
    /// Runs first on each vCPU's thread.
    pub vcpu_hook: VcpuHook,
    /// Starts the threads of devices.
    pub threads: Threads,
}

/// A machine that goes on where another was saved.
#[derive(Debug)]
pub struct RestoreConfig {
    /// What [`Machine::save`](super::Machine::save) gave.
    pub state: super::MachineState,
    /// The file that it wrote the memory to. It is mapped privately, so it must not change as long as the machine runs,
    /// and any number of machines can go on from it.
    pub memory: File,
    /// The serial console.
    pub console: Console,
    /// Runs first on each vCPU's thread.
    pub vcpu_hook: VcpuHook,
    /// Starts the threads of devices.
    pub threads: Threads,
}
