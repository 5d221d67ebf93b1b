//! Machines of the QEMU backend for the contract suite.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stockade_contract_guest::machines::small;
use stockade_hypervisor::KernelImage;
use stockade_hypervisor::contract::{Fixture, Machine, slowness};
use stockade_qemu::{MachineType, QemuBackend, QemuOptions};

/// A fixture whose machines have this board.
pub(crate) struct Board(pub(crate) MachineType);

/// The kernel of the guest's files: QEMU takes a bzImage.
pub(crate) const KERNEL: &str = "vmlinuz";

pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_stockade-contract-helper");

/// What executes the guest's instructions: by STOCKADE_TEST_BACKEND, "qemu-tcg", which it is without, or "qemu-kvm".
pub(crate) fn accelerator() -> &'static str {
    match std::env::var("STOCKADE_TEST_BACKEND").as_deref() {
        Err(_) | Ok("qemu-tcg") => "tcg",
        Ok("qemu-kvm") => "kvm",
        Ok(other) => panic!("STOCKADE_TEST_BACKEND is {other:?}, not one of qemu-tcg, qemu-kvm"),
    }
}

impl Board {
    pub(crate) fn options(&self) -> QemuOptions {
        QemuOptions {
            machine_type: self.0,
            accelerator: accelerator().parse().unwrap(),
            stockade_exe: HELPER.into(),
            debug: true,
            start_limit: Duration::from_secs(20) * slowness(),
            answer_limit: Duration::from_secs(5) * slowness(),
            ..QemuOptions::default()
        }
    }

    pub(crate) fn with_options(&self, options: QemuOptions) -> Machine {
        let (config, keep) = small(KERNEL, Path::new(HELPER)).unwrap();
        let hypervisor = Arc::new(QemuBackend::new(options).unwrap().machine());
        Machine { hypervisor, config, keep }
    }
}

impl Fixture for Board {
    fn machine(&self) -> Machine {
        self.with_options(self.options())
    }

    fn has_processes(&self) -> bool {
        true
    }

    fn break_start(&self, machine: &mut Machine) -> bool {
        // QEMU and the device process have both begun when QEMU finds that it cannot use the kernel.
        let kernel = machine.config.run_dir.join("not-a-kernel");
        std::fs::write(&kernel, "x").unwrap();
        machine.config.kernel = KernelImage(kernel);
        true
    }

    fn boot_limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}
