//! The QEMU backend: each machine is a `qemu-system-x86_64` process and a jailed `stockade vhost-user` process that
//! serves its virtio-fs and vsock devices.
//!
//! - [`QemuBackend`] finds QEMU, decides between KVM and emulation by the [probe](stockade_machine_process::probe), and makes machines;
//! - `machine` is the [`Hypervisor`](stockade_hypervisor::Hypervisor); its states are those of
//!   [`life`](stockade_machine_process::life); `launch` starts it, `exit` says how it ended, `devices` and `resize` change it
//!   while it runs;
//! - `command_line` is a pure function; `qmp` talks to the monitor; `sys` holds all unsafe code.

mod command_line;
mod devices;
mod exit;
mod launch;
mod machine;
mod options;
mod qmp;
mod resize;
mod sys;
mod tsc;

pub use machine::Qemu;
pub use options::{Accelerator, MachineType, QemuOptions};

use options::Acceleration;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stockade_hypervisor::{Capabilities, HypervisorError};
use stockade_machine_process::probe::KvmProbe;
use tsc::TscSample;

/// The backend's name in the configuration.
pub const NAME: &str = "qemu";

/// Makes machines of one configuration.
#[derive(Debug, Clone)]
pub struct QemuBackend {
    options: Arc<QemuOptions>,
    binary: PathBuf,
    acceleration: Acceleration,
    kvm: KvmProbe,
}

/// Begins to measure what an emulated guest is told of the host's clock; the longer before the first machine's start, the
/// less it waits for that.
pub fn look_ahead() {
    _ = TscSample::first();
}

impl QemuBackend {
    /// Finds QEMU and probes KVM, unless the configuration asks for emulation. Blocks for about a millisecond, at worst
    /// for [`LIMIT`](stockade_machine_process::probe::LIMIT).
    ///
    /// # Errors
    /// [`HypervisorError::Config`] when QEMU is missing, or KVM is asked for and cannot run stock guests.
    pub fn new(options: QemuOptions) -> Result<Self, HypervisorError> {
        look_ahead();
        let binary = options.find_binary()?;
        let kvm = options.probe();
        let acceleration = options.acceleration(&kvm)?;
        Ok(Self { options: Arc::new(options), binary, acceleration, kvm })
    }

    /// A new machine, which takes nothing of the host before it starts.
    pub fn machine(&self) -> Qemu {
        Qemu::new(Arc::clone(&self.options), self.binary.clone(), self.acceleration, self.capabilities())
    }

    /// QEMU's program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// What the probe of KVM found.
    pub fn kvm(&self) -> &KvmProbe {
        &self.kvm
    }

    /// What its machines can do on this host.
    pub fn capabilities(&self) -> Capabilities {
        let hot_plug = self.options.machine_type != MachineType::Microvm;
        Capabilities {
            acceleration: match self.acceleration {
                Acceleration::Kvm => "KVM".to_owned(),
                Acceleration::Tcg => "TCG (software emulation)".to_owned(),
            },
            share: true,
            block_hotplug: hot_plug,
            net_hotplug: hot_plug,
            vcpu_hotplug: hot_plug,
            memory_hotplug: hot_plug,
            snapshots: false,
            max_vcpus: 255,
        }
    }
}
