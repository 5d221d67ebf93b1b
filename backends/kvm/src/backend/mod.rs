//! The supervisor's side: each machine is a `stockade vmm` process, described and asked by the
//! [control protocol](crate::control).
//!
//! - `machine` is the [`Hypervisor`](stockade_hypervisor::Hypervisor); its states are those of
//!   [`life`](stockade_machine_process::life); `launch` starts it, `exit` says how it ended, `devices` which devices it can have,
//!   `snapshots` saves it.

mod devices;
mod exit;
mod launch;
mod machine;
mod snapshots;

pub use machine::Kvm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stockade_hypervisor::Capabilities;

use crate::machine::MAX_VCPUS;

/// The backend's name in the configuration.
pub const NAME: &str = "kvm";

/// How machines of this backend are made.
#[derive(Debug, Clone)]
pub struct KvmOptions {
    /// The `stockade` program.
    pub stockade_exe: PathBuf,
    /// Its arguments before the control socket's: the verb.
    pub verb: Vec<OsString>,
    /// The device of KVM.
    pub device: PathBuf,
    /// Threads of the process get system call filters.
    pub seccomp: bool,
    /// The guest gives memory back that it has freed.
    pub reclaim: bool,
    /// Lets the guest's kernel say more.
    pub debug: bool,
    /// The limit from the spawn until the machine is built, the kernel's loading included.
    pub start_limit: Duration,
    /// The limit for each later answer.
    pub answer_limit: Duration,
}

impl Default for KvmOptions {
    fn default() -> Self {
        Self {
            stockade_exe: "/proc/self/exe".into(),
            verb: vec!["vmm".into()],
            device: "/dev/kvm".into(),
            seccomp: true,
            reclaim: false,
            debug: false,
            start_limit: Duration::from_secs(10),
            answer_limit: Duration::from_secs(5),
        }
    }
}

/// Makes machines of one configuration.
#[derive(Debug, Clone)]
pub struct KvmBackend {
    options: Arc<KvmOptions>,
}

impl KvmBackend {
    /// A backend with these options. Whether KVM works here is for the
    /// [probe](stockade_machine_process::probe::kvm_probe) to say; a machine on one that does not fails to start or to boot.
    #[must_use]
    pub fn new(options: KvmOptions) -> Self {
        Self { options: Arc::new(options) }
    }

    /// A new machine, which takes nothing of the host before it starts.
    #[must_use]
    pub fn machine(&self) -> Kvm {
        Kvm::new(Arc::clone(&self.options))
    }
}

/// What machines of this backend can do, wherever KVM does.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities {
        acceleration: "KVM".to_owned(),
        share: true,
        block_hotplug: true,
        net_hotplug: true,
        vcpu_hotplug: true,
        memory_hotplug: true,
        snapshots: true,
        max_vcpus: u32::from(MAX_VCPUS),
    }
}
