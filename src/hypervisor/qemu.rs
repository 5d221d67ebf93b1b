//! From the configuration to the QEMU backend.

use std::path::Path;
use std::sync::Arc;
use stockade_config::{Accelerator, Config, MachineType};
use stockade_hypervisor::{Hypervisor, HypervisorError};
use stockade_qemu as qemu;

/// A machine that runs in a QEMU process.
pub(super) fn make(config: &Config, executable: &Path) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let options = &config.hypervisor.qemu;
    super::bootable(&options.machine.kernel)?;
    let backend = qemu::QemuBackend::new(qemu::QemuOptions {
        binary: options.path.clone(),
        machine_type: match options.machine_type {
            MachineType::Q35 => qemu::MachineType::Q35,
            MachineType::Pc => qemu::MachineType::Pc,
            MachineType::Microvm => qemu::MachineType::Microvm,
        },
        machine_options: options.machine_accelerators.clone(),
        accelerator: match options.accelerator {
            Accelerator::Auto => qemu::Accelerator::Auto,
            Accelerator::Kvm => qemu::Accelerator::Kvm,
            Accelerator::Tcg => qemu::Accelerator::Tcg,
        },
        cpu_features: options.cpu_features.clone(),
        stockade_exe: executable.to_owned(),
        seccomp_sandbox: options.seccomp_sandbox.clone(),
        debug: options.machine.enable_debug,
        // A crowded host takes its time to start a process, too.
        start_limit: options.machine.boot_timeout,
        ..qemu::QemuOptions::default()
    })?;
    Ok(Arc::new(backend.machine()))
}
