//! Machines of the built-in monitor for the contract suite.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stockade_contract_guest::machines::small;
use stockade_hypervisor::KernelImage;
use stockade_hypervisor::contract::{Fixture, Machine, slowness};
use stockade_kvm::backend::{KvmBackend, KvmOptions};
use stockade_machine_process::probe::{KvmProbe, kvm_probe};

/// A fixture of this backend.
pub(crate) struct Monitor;

pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_stockade-kvm-test-helper");

/// The kernel of the guest's files: an ELF file needs no unpacking.
const KERNEL: &str = "vmlinux";

/// These tests run where they are told to: a host whose KVM cannot run stock guests fails them.
fn need_kvm() {
    static PROBE: OnceLock<KvmProbe> = OnceLock::new();
    let probe = PROBE.get_or_init(kvm_probe);
    assert!(probe.usable, "{}; `cargo xtask lab` runs these tests on a host where it does", probe.reason);
}

impl Monitor {
    pub(crate) fn options() -> KvmOptions {
        KvmOptions {
            stockade_exe: HELPER.into(),
            debug: true,
            start_limit: Duration::from_secs(20) * slowness(),
            answer_limit: Duration::from_secs(5) * slowness(),
            ..KvmOptions::default()
        }
    }

    pub(crate) fn with_options(options: KvmOptions) -> Machine {
        need_kvm();
        let (config, keep) = small(KERNEL, Path::new(HELPER)).unwrap();
        let hypervisor = Arc::new(KvmBackend::new(options).machine());
        Machine { hypervisor, config, keep }
    }
}

impl Fixture for Monitor {
    fn machine(&self) -> Machine {
        Self::with_options(Self::options())
    }

    fn has_processes(&self) -> bool {
        true
    }

    fn break_start(&self, machine: &mut Machine) -> bool {
        // The process has begun, and is in its jail, when it finds that it cannot use the kernel.
        let kernel = machine.config.run_dir.join("not-a-kernel");
        std::fs::write(&kernel, "x").unwrap();
        machine.config.kernel = KernelImage(kernel);
        true
    }

    fn boot_limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}
