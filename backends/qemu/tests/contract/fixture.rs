//! Machines of the QEMU backend for the contract suite.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stockade_hypervisor::contract::{Fixture, Machine, slowness};
use stockade_hypervisor::{BootSource, ConsoleSink, DeviceConfig, KernelImage, MiB, ShareCache, VmConfig};
use stockade_qemu::{MachineType, QemuBackend, QemuOptions};

/// A fixture whose machines have this board.
pub(crate) struct Board(pub(crate) MachineType);

pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_stockade-contract-helper");

/// What executes the guest's instructions: by STOCKADE_TEST_BACKEND, "qemu-tcg", which it is without, or "qemu-kvm".
pub(crate) fn accelerator() -> &'static str {
    match std::env::var("STOCKADE_TEST_BACKEND").as_deref() {
        Err(_) | Ok("qemu-tcg") => "tcg",
        Ok("qemu-kvm") => "kvm",
        Ok(other) => panic!("STOCKADE_TEST_BACKEND is {other:?}, not one of qemu-tcg, qemu-kvm"),
    }
}

/// Where the kernel and the initrd are.
pub(crate) fn guest() -> PathBuf {
    let directory = std::env::var_os("STOCKADE_TEST_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/guest"), PathBuf::from);
    for name in ["vmlinuz", "initrd.img"] {
        let path = directory.join(name);
        assert!(
            path.is_file(),
            "there is no {}: these tests boot a guest. `cargo xtask test` makes it; STOCKADE_TEST_GUEST names another \
             directory with vmlinuz and initrd.img",
            path.display()
        );
    }
    directory
}

/// One file of a cpio archive as the kernel reads it (`newc`).
fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let numbers = [0, mode, 0, 0, 1, 0, u32::try_from(data.len()).unwrap(), 0, 0, 0, 0, name.len() as u32 + 1, 0];
    write!(archive, "070701").unwrap();
    for number in numbers {
        write!(archive, "{number:08x}").unwrap();
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The guest's initrd with the contract's /init after it: the kernel unpacks one archive over the other.
fn initrd(at: &Path) {
    let mut archive = std::fs::read(guest().join("initrd.img")).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    cpio_entry(&mut archive, "contract-init", 0o100_755, &std::fs::read(HELPER).unwrap());
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[]);
    std::fs::write(at, archive).unwrap();
}

/// Shows the console of a test that fails: dropped with the machine while the test panics.
struct Keep {
    _directory: tempfile::TempDir,
    console: Arc<Mutex<Vec<String>>>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.console.lock().unwrap().iter() {
                eprintln!("console: {line}");
            }
        }
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
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let run_dir = path.join("d".repeat(120));
        let share = path.join("share");
        std::fs::create_dir(&run_dir).unwrap();
        std::fs::create_dir(&share).unwrap();
        std::fs::write(share.join("hello"), "hello from the host\n").unwrap();
        let initrd_path = path.join("initrd.img");
        initrd(&initrd_path);
        let console: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&console);
        let config = VmConfig {
            id: "contract".to_owned(),
            console_log: Some(run_dir.join("console.log")),
            run_dir,
            kernel: KernelImage(guest().join("vmlinuz")),
            boot: BootSource::Initrd(initrd_path),
            kernel_params: vec!["rdinit=/contract-init".to_owned()],
            vcpus: 1,
            max_vcpus: 1,
            memory: MiB(192),
            max_memory: MiB(192),
            netns: None,
            guest_cid: 3,
            devices: vec![DeviceConfig::Share { tag: "contract".to_owned(), source: share, cache: ShareCache::Auto }],
            console: ConsoleSink(Arc::new(move |line| lines.lock().unwrap().push(line.to_owned()))),
        };
        let hypervisor = Arc::new(QemuBackend::new(options).unwrap().machine());
        Machine { hypervisor, config, keep: Box::new(Keep { _directory: directory, console }) }
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
