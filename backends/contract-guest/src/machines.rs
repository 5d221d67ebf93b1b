//! What a machine that boots the contract's guest is made of.

use std::any::Any;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stockade_hypervisor::{BootSource, ConsoleSink, DeviceConfig, KernelImage, MiB, ShareCache, VmConfig};

/// The directory with the guest's files, among them the kernel `kernel` and initrd.img.
///
/// # Panics
/// One of them is not there.
#[must_use]
pub fn guest(kernel: &str) -> PathBuf {
    let directory = std::env::var_os("STOCKADE_TEST_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/guest"), PathBuf::from);
    for name in [kernel, "initrd.img"] {
        let path = directory.join(name);
        assert!(
            path.is_file(),
            "there is no {}: these tests boot a guest. `cargo xtask test` makes it; STOCKADE_TEST_GUEST names another \
             directory with {kernel} and initrd.img",
            path.display()
        );
    }
    directory
}

/// One file of a cpio archive as the kernel reads it (`newc`).
fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
    let size = |length: usize| u32::try_from(length).map_err(io::Error::other);
    let numbers = [0, mode, 0, 0, 1, 0, size(data.len())?, 0, 0, 0, 0, size(name.len() + 1)?, 0];
    write!(archive, "070701")?;
    for number in numbers {
        write!(archive, "{number:08x}")?;
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}

/// The guest's initrd with `init` after it as /contract-init: the kernel unpacks one archive over the other.
fn initrd(guest: &Path, init: &Path, at: &Path) -> io::Result<()> {
    let mut archive = std::fs::read(guest.join("initrd.img"))?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    cpio_entry(&mut archive, "contract-init", 0o100_755, &std::fs::read(init)?)?;
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[])?;
    std::fs::write(at, archive)
}

/// Shows the console of a test that fails: dropped with the machine while the test panics.
struct Keep {
    _directory: tempfile::TempDir,
    console: Arc<Mutex<Vec<String>>>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.console.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                eprintln!("console: {line}");
            }
        }
    }
}

/// The configuration of a small machine with the contract's share that boots `kernel` of the guest's directory and runs
/// the program `init`; and what is to be kept as long as the machine.
///
/// # Errors
/// A file of it cannot be made.
///
/// # Panics
/// There is no guest to boot.
pub fn small(kernel: &str, init: &Path) -> io::Result<(VmConfig, Box<dyn Any + Send>)> {
    let guest = guest(kernel);
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let initrd_path = path.join("initrd.img");
    initrd(&guest, init, &initrd_path)?;
    let boot = BootSource::Initrd(initrd_path);
    with_files(directory, KernelImage(guest.join(kernel)), boot)
}

/// As [`small`], of files that no machine could boot.
///
/// # Errors
/// A file of it cannot be made.
pub fn unbootable() -> io::Result<(VmConfig, Box<dyn Any + Send>)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    std::fs::write(&file, "x")?;
    with_files(directory, KernelImage(file.clone()), BootSource::Initrd(file))
}

fn with_files(
    directory: tempfile::TempDir,
    kernel: KernelImage,
    boot: BootSource,
) -> io::Result<(VmConfig, Box<dyn Any + Send>)> {
    let path = directory.path();
    let run_dir = path.join("d".repeat(120));
    let share = path.join("share");
    std::fs::create_dir(&run_dir)?;
    std::fs::create_dir(&share)?;
    std::fs::write(share.join("hello"), "hello from the host\n")?;
    let console: Arc<Mutex<Vec<String>>> = Arc::default();
    let lines = Arc::clone(&console);
    let sink = move |line: &str| lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    let config = VmConfig {
        id: "contract".to_owned(),
        console_log: Some(run_dir.join("console.log")),
        run_dir,
        kernel,
        boot,
        kernel_params: vec!["rdinit=/contract-init".to_owned()],
        vcpus: 1,
        max_vcpus: 1,
        memory: MiB(192),
        max_memory: MiB(192),
        netns: None,
        memory_cgroups: Vec::new(),
        guest_cid: 3,
        devices: vec![DeviceConfig::Share { tag: "contract".to_owned(), source: share, cache: ShareCache::Auto }],
        console: ConsoleSink(Arc::new(sink)),
    };
    Ok((config, Box::new(Keep { _directory: directory, console })))
}

/// Kills a supervisor of machines, and waits until none of its machine's processes runs any more. `supervisor` is a program
/// of the tests that starts a machine, prints the number of each process and then `started`.
///
/// # Panics
/// The machine has not `count` processes, or one of them outlives the limit.
pub fn die_with_supervisor(supervisor: &mut Command, count: usize, limit: Duration) {
    let mut supervisor = supervisor.stdout(Stdio::piped()).spawn().expect("the supervisor starts");
    let output = supervisor.stdout.take().expect("it was asked for");
    let lines = BufReader::new(output).lines().map(|line| line.expect("the supervisor writes lines"));
    let pids: Vec<String> = lines.take_while(|line| line != "started").collect();
    assert_eq!(pids.len(), count, "{pids:?}");
    supervisor.kill().expect("it can be killed");
    supervisor.wait().expect("it ends");
    // Whoever inherits them may leave them as zombies; what counts is that they run no more.
    let runs = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    let end = Instant::now() + limit;
    while pids.iter().any(runs) {
        assert!(Instant::now() < end, "one of {pids:?} still runs");
        std::thread::sleep(Duration::from_millis(1));
    }
}
