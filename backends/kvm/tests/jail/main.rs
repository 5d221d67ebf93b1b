//! The jail from inside: a test double of a machine's process whose guest has broken out tries each way out, on each kind of
//! thread, and is killed or refused; the supervisor reports the machine as failed and leaves nothing of it.
//!
//! None of this needs a KVM that works.

use std::any::Any;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

use stockade_contract_guest::machines::{die_with_supervisor, unbootable};
use stockade_hypervisor::{DeviceConfig, ExitCause, Hypervisor, ProcessRole, StopDeadlines, VmState};
use stockade_kvm::backend::{Kvm, KvmBackend, KvmOptions};

const HELPER: &str = env!("CARGO_BIN_EXE_stockade-kvm-test-helper");
const LIMIT: Duration = Duration::from_secs(20);

/// SIGSYS: the filter's.
const KILLED: ExitCause = ExitCause::Signal { process: ProcessRole::Hypervisor, signal: 31 };

/// A machine's process to break out of.
#[derive(Clone, Copy)]
struct Cell {
    thread: &'static str,
    share: bool,
    seccomp: bool,
}

impl Cell {
    const fn of(thread: &'static str) -> Self {
        Self { thread, share: false, seccomp: true }
    }

    /// Starts a machine whose process makes this attempt. With it come its directory, and what keeps that.
    async fn start(self, attempt: &str, target: &str) -> (Kvm, PathBuf, Box<dyn Any + Send>) {
        let options = KvmOptions {
            stockade_exe: HELPER.into(),
            verb: ["escape", self.thread, attempt, target].map(Into::into).to_vec(),
            // Any file does for a process that makes no machine.
            device: "/dev/null".into(),
            seccomp: self.seccomp,
            ..KvmOptions::default()
        };
        let (mut config, keep) = unbootable().unwrap();
        if !self.share {
            config.devices.retain(|device| !matches!(device, DeviceConfig::Share { .. }));
        }
        let run_dir = config.run_dir.clone();
        let machine = KvmBackend::new(options).machine();
        machine.prepare(config).await.unwrap();
        machine.start().await.unwrap();
        (machine, run_dir, keep)
    }

    /// Makes this attempt, and waits for the end.
    async fn attempt(self, attempt: &str, target: &str) -> ExitCause {
        let (machine, run_dir, _keep) = self.start(attempt, target).await;
        let mut exit = machine.exit();
        let exit = tokio::time::timeout(LIMIT, exit.wait_for(Option::is_some)).await.expect("it ends").unwrap().clone();
        assert_eq!(machine.state(), VmState::Stopped);
        assert!(machine.processes().is_empty());
        assert!(!run_dir.join("vsock.sock").exists(), "the agent's socket is left");
        exit.unwrap().cause
    }

    async fn is_killed_for(self, attempt: &str, target: &str) {
        let cause = self.attempt(attempt, target).await;
        assert_eq!(cause, KILLED, "{attempt} {target} on the thread {}", self.thread);
    }

    async fn is_refused(self, attempt: &str, target: &str, errno: i32) {
        let cause = self.attempt(attempt, target).await;
        let ExitCause::Status { message, .. } = &cause else { panic!("{attempt} {target}: {cause}") };
        let expected = format!("refused: {}", std::io::Error::from_raw_os_error(errno));
        assert_eq!(*message, expected, "{attempt} {target} on the thread {}", self.thread);
    }
}

fn own_pid() -> String {
    std::process::id().to_string()
}

/// What no thread may do.
async fn no_way_out(cell: Cell) {
    for (attempt, target) in [
        ("fork", ""),
        ("exec", "/bin/true"),
        ("ptrace", own_pid().as_str()),
        ("signal", own_pid().as_str()),
        ("mount", "/"),
        ("unshare", ""),
        ("inet", ""),
        ("executable-memory", ""),
        ("io-uring", ""),
        ("bpf", ""),
        ("open-by-handle", ""),
        ("pidfd-open", ""),
    ] {
        cell.is_killed_for(attempt, target).await;
    }
}

#[tokio::test]
async fn a_vcpu_thread_has_no_way_out() {
    let cell = Cell::of("vcpu");
    no_way_out(cell).await;
    cell.is_killed_for("open", "/etc/passwd").await;
    cell.is_killed_for("connect-abstract", "stockade-test").await;
    cell.is_killed_for("become-root", "").await;
    // It is what the thread is for, here without a vCPU.
    cell.is_refused("kvm-run", "", libc::ENOTTY).await;
}

#[tokio::test]
async fn the_main_thread_has_no_way_out() {
    let cell = Cell::of("main");
    no_way_out(cell).await;
    cell.is_killed_for("open", "/etc/passwd").await;
    cell.is_killed_for("connect-abstract", "stockade-test").await;
    cell.is_killed_for("become-root", "").await;
    cell.is_killed_for("kvm-run", "").await;
}

#[tokio::test]
async fn device_threads_have_no_way_out() {
    for thread in ["devices", "block", "net"] {
        let cell = Cell::of(thread);
        no_way_out(cell).await;
        cell.is_killed_for("open", "/etc/passwd").await;
        cell.is_killed_for("connect-abstract", "stockade-test").await;
        cell.is_killed_for("become-root", "").await;
        cell.is_killed_for("kvm-run", "").await;
    }
}

#[tokio::test]
async fn the_vsock_thread_reaches_no_socket_of_the_host() {
    let cell = Cell::of("vsock");
    no_way_out(cell).await;
    cell.is_killed_for("open", "/etc/passwd").await;
    cell.is_killed_for("become-root", "").await;
    cell.is_killed_for("kvm-run", "").await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    cell.is_refused("connect", path.to_str().unwrap(), libc::ENOENT).await;
    let name = format!("stockade-test-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    cell.is_refused("connect-abstract", &name, libc::ECONNREFUSED).await;
}

#[tokio::test]
async fn the_file_server_sees_the_share_and_nothing_else() {
    let cell = Cell { share: true, ..Cell::of("fs") };
    no_way_out(cell).await;
    cell.is_killed_for("connect-abstract", "stockade-test").await;
    cell.is_killed_for("kvm-run", "").await;
    for outside in ["/etc/passwd", "/../../../../etc/passwd", "/proc/1/root/etc/passwd", "/proc/self/fd/0", "/dev/kvm"]
    {
        cell.is_refused("open", outside, libc::ENOENT).await;
    }
    let ExitCause::Status { message, .. } = cell.attempt("open", "/hello").await else { panic!("it was killed") };
    assert_eq!(message, "escaped", "the share itself is there");
}

/// The namespaces, the user and the missing capabilities hold on their own, should a filter have a hole.
#[tokio::test]
async fn without_filters_there_is_still_nothing_to_reach() {
    let pid = own_pid();
    for share in [false, true] {
        let cell = Cell { share, seccomp: false, ..Cell::of("vcpu") };
        cell.is_refused("open", "/etc/passwd", libc::ENOENT).await;
        cell.is_refused("open", "/../../etc/passwd", libc::ENOENT).await;
        cell.is_refused("exec", "/bin/true", libc::ENOENT).await;
        cell.is_refused("signal", &pid, libc::ESRCH).await;
        cell.is_refused("ptrace", &pid, libc::ESRCH).await;
        cell.is_refused("mount", "/", libc::EPERM).await;
        cell.is_refused("become-root", "", libc::EPERM).await;
        let name = format!("stockade-test-{pid}-{share}");
        let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        cell.is_refused("connect-abstract", &name, libc::ECONNREFUSED).await;
    }
}

#[tokio::test]
async fn descriptors_that_were_not_passed_are_not_there() {
    // Inheritable, as one that a careless library has left open.
    let open: OwnedFd = std::fs::File::open("/etc/passwd").unwrap().into();
    let number = open.as_raw_fd() + 200;
    nix::unistd::dup2(open.as_raw_fd(), number).unwrap();
    Cell::of("main").is_refused("descriptor", &number.to_string(), libc::EBADF).await;
}

/// What /proc says of the process, seen from the host.
#[tokio::test]
async fn the_process_is_unprivileged_and_in_namespaces_of_its_own() {
    let (machine, _run_dir, _keep) = Cell::of("vcpu").start("wait", "").await;
    let pid = machine.processes().first().unwrap().pid;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let field = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {status}"));
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        for name in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(name), ["0000000000000000"], "{name}");
        }
        for name in ["Uid:", "Gid:"] {
            let ids: Vec<u32> = field(name).iter().map(|id| id.parse().unwrap()).collect();
            assert!(ids.iter().all(|id| *id >= 0x7000_0000), "{name} {ids:?}");
        }
        assert!(field("Groups:").is_empty());
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        assert_eq!(field("NSpid:").len(), 2, "it is in a PID namespace of its own");
        for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
            let of = |path: std::path::PathBuf| std::fs::read_link(path).unwrap();
            let own = of(format!("/proc/self/ns/{namespace}").into());
            assert_ne!(of(task.join("ns").join(namespace)), own, "{namespace}");
        }
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0, "the root is not empty");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for name in ["Max core file size", "Max locked memory"] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line[name.len()..].split_whitespace().take(2).all(|limit| limit == "0"), "{line}");
    }
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"), "the supervisor's environment was passed on");
    machine.stop(StopDeadlines::NOW).await.unwrap();
}

#[test]
fn a_killed_supervisor_takes_the_process_along() {
    let directory = tempfile::tempdir().unwrap();
    let mut supervisor = std::process::Command::new(HELPER);
    supervisor.arg("supervise").arg(directory.path()).args([HELPER, "escape", "vcpu", "wait", ""]);
    die_with_supervisor(&mut supervisor, 1, LIMIT);
}
