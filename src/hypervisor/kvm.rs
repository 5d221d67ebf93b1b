//! From the configuration to the built-in monitor.

use std::path::Path;
use std::sync::Arc;
use stockade_config::Config;
use stockade_hypervisor::{Hypervisor, HypervisorError};
use stockade_kvm::backend::{KvmBackend, KvmOptions};
use stockade_machine_process::probe::KvmProbe;

/// A machine of the built-in monitor, in a process of `executable`.
pub(super) fn make(config: &Config, executable: &Path) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let options = &config.hypervisor.kvm;
    super::bootable(&options.machine.kernel)?;
    let backend = KvmBackend::new(KvmOptions {
        stockade_exe: executable.to_owned(),
        seccomp: !options.disable_seccomp,
        reclaim: options.machine.reclaim_guest_freed_memory,
        debug: options.machine.enable_debug,
        start_limit: options.machine.boot_timeout,
        ..KvmOptions::default()
    });
    Ok(Arc::new(backend.machine()))
}

/// Why the built-in monitor cannot be had, and what else can.
pub(super) fn refusal(probe: &KvmProbe) -> String {
    format!("[runtime] hypervisor = \"kvm\": {}; use \"qemu\" or \"auto\"", probe.reason)
}
