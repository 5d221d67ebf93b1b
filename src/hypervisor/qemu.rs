//! From the configuration to the QEMU backend.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use stockade_config::{Accelerator, Config, MachineType};
use stockade_hypervisor::{Hypervisor, HypervisorError};
use stockade_qemu as qemu;

/// Where the header of a bzImage has "HdrS" (Linux's boot protocol for x86).
const BZIMAGE_MAGIC: usize = 0x202;

/// A machine that runs in a QEMU process.
pub(super) fn make(config: &Config, executable: &Path) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let options = &config.hypervisor.qemu;
    bootable(&options.machine.kernel)?;
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
        ..qemu::QemuOptions::default()
    })?;
    Ok(Arc::new(backend.machine()))
}

/// Refuses what is no kernel: QEMU's own words for it name neither the option nor the file. That it is there is checked
/// with the rest of the machine's configuration.
fn bootable(kernel: &Path) -> Result<(), HypervisorError> {
    let Ok(mut file) = File::open(kernel) else { return Ok(()) };
    let mut head = [0; BZIMAGE_MAGIC + 4];
    let read = file.read_exact(&mut head);
    if read.is_ok() && (head.starts_with(b"\x7fELF") || head[BZIMAGE_MAGIC..] == *b"HdrS") {
        return Ok(());
    }
    let problem = format!("{} is neither a bzImage nor an ELF file", kernel.display());
    Err(HypervisorError::Config { option: "kernel", problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_magic() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        let write = |at: usize, magic: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            std::fs::write(&path, bytes).unwrap();
        };
        write(0, b"\x7fELF");
        bootable(&path).unwrap();
        write(BZIMAGE_MAGIC, b"HdrS");
        bootable(&path).unwrap();
        write(0, b"root:x:0");
        assert!(bootable(&path).unwrap_err().to_string().contains("kernel"));
        std::fs::write(&path, "x").unwrap();
        bootable(&path).unwrap_err();
    }
}
