//! A child process of the machine: spawned with its parent's death as its own, watched by a pidfd, always reaped.

use crate::sys::{self, ChildSetup, Stage};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;
use stockade_hypervisor::{ExitCause, ProcessRole, VmProcess};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

/// How much of a process's last words is kept, in bytes.
const TAIL_LIMIT: usize = 4096;
/// How long an ended process's output is waited for: a grandchild may hold the pipe.
const TAIL_WAIT: Duration = Duration::from_millis(200);

/// A process to start.
#[derive(Debug)]
pub struct Launch {
    /// What it is in the machine.
    pub role: ProcessRole,
    /// The program: an absolute path.
    pub program: PathBuf,
    /// What a process list calls it, where that is not the program's path.
    pub shown_as: Option<&'static str>,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Passed on under the same numbers, closed here after the spawn.
    pub keep: Vec<Arc<OwnedFd>>,
    /// The network namespace that it begins in; `None`: the caller's.
    pub netns: Option<Arc<OwnedFd>>,
    /// `cgroup.procs`, open for writing, of the control groups that it is put into while it starts; see
    /// [`VmConfig::memory_cgroups`](stockade_hypervisor::VmConfig::memory_cgroups). One that does not take it costs
    /// nothing but a line in the log.
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// Begins as process 1 of a PID namespace of its own. Signals that it has no handler for do nothing to it then, but
    /// for SIGKILL.
    pub pid_namespace: bool,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// This signal killed it.
    Signal(i32),
    /// It ended by itself with this status; and the end of its output, control characters replaced.
    Status(i32, String),
}

impl Ended {
    /// The same as a machine's exit.
    pub fn cause(&self, process: ProcessRole) -> ExitCause {
        match self {
            Self::Signal(signal) => ExitCause::Signal { process, signal: *signal },
            Self::Status(status, message) => ExitCause::Status { process, status: *status, message: message.clone() },
        }
    }
}

/// A process that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct SpawnError {
    /// The step that failed, with the program's name.
    pub what: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A running or ended child. Dropping it kills the child; it is reaped in any case.
#[derive(Debug)]
pub struct Process {
    role: ProcessRole,
    pid: i32,
    start_time: u64,
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<Option<Ended>>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on the thread that spawns every child. It lives as long as the process: the kernel's parent-death signal
/// is tied to the thread that forked.
fn on_spawner(job: Job) -> io::Result<()> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let sender = match SPAWNER.get() {
        Some(sender) => sender,
        None => {
            let (sender, jobs) = mpsc::channel::<Job>();
            let run = move || {
                while let Ok(job) = jobs.recv() {
                    job();
                }
            };
            // When two threads come here at once, the loser's channel closes and its thread ends without a job.
            std::thread::Builder::new().name("machine-spawn".to_owned()).spawn(run)?;
            SPAWNER.get_or_init(|| Mutex::new(sender))
        }
    };
    let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
    sender.send(job).map_err(|_| io::Error::other("the spawning thread has ended"))
}

struct Spawned {
    pid: i32,
    pidfd: OwnedFd,
    output: OwnedFd,
}

fn spawn(launch: &Launch) -> Result<Spawned, SpawnError> {
    let program = launch.program.display();
    let fail = |what: &str| {
        let what = format!("{what} {program}");
        move |source: io::Error| SpawnError { what, source }
    };
    let (output, writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(fail("make a pipe for"))?;
    let (stages, stage) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(io::Error::from)
        .map_err(fail("make a pipe for"))?;
    let second = writer.try_clone().map_err(fail("make a pipe for"))?;
    let mut command = Command::new(&launch.program);
    if let Some(name) = launch.shown_as {
        command.arg0(name);
    }
    command.args(&launch.args).stdin(Stdio::null()).stdout(writer).stderr(second);
    // Nothing of the supervisor's environment is the child's business, LD_PRELOAD and friends least of all.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    let parent = sys::pidfd_open(nix::unistd::getpid().as_raw()).map_err(fail("open the parent's descriptor for"))?;
    ChildSetup {
        keep: launch.keep.iter().map(|fd| fd.as_raw_fd()).collect(),
        netns: launch.netns.as_ref().map(|fd| fd.as_raw_fd()),
        parent: parent.as_raw_fd(),
        stage: stage.as_raw_fd(),
    }
    .install(&mut command);
    let spawned = if launch.pid_namespace {
        in_new_pid_namespace(|| command.spawn()).map_err(fail("make a PID namespace for"))?
    } else {
        command.spawn()
    };
    let child = match spawned {
        Ok(child) => child,
        Err(source) => {
            let mut told = [0; 8];
            let count = File::from(stages).read(&mut told).unwrap_or(0);
            let stage = told.iter().take(count).next_back().and_then(|byte| Stage::from_byte(*byte));
            return Err(fail(match stage {
                None => "fork for",
                Some(Stage::Session) => "set up a session for",
                Some(Stage::Netns) => "enter the network namespace for",
                Some(Stage::Descriptors) => "pass the descriptors to",
                Some(Stage::Exec) => "execute",
            })(source));
        }
    };
    let pid = i32::try_from(child.id()).map_err(|e| fail("find the process id of")(io::Error::other(e)))?;
    // Not reaped before its descriptor exists, so the id still means this child.
    let pidfd = sys::pidfd_open(pid).map_err(fail("open a descriptor of the process"))?;
    for cgroup in &launch.cgroups {
        if let Err(error) = nix::unistd::write(cgroup, pid.to_string().as_bytes()) {
            tracing::debug!(%error, pid, role = %launch.role, "the process does not join a control group at its start");
        }
    }
    Ok(Spawned { pid, pidfd, output })
}

/// Calls `spawn` so that the child is the first of a PID namespace of its own. The calling thread has no child in another
/// namespace afterwards; nothing else may be created by it meanwhile.
fn in_new_pid_namespace<T>(spawn: impl FnOnce() -> T) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let spawned = spawn();
    // Cannot fail for the namespace that the thread itself is in; a child made in spite of that would be refused by the
    // kernel, since its namespace has lost its first process by then.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    Ok(spawned)
}

impl Process {
    /// Starts the process. Its output is read and its end awaited by tasks of the current runtime.
    pub async fn launch(launch: Launch) -> Result<Self, SpawnError> {
        let role = launch.role;
        let program = launch.program.clone();
        let (answer, spawned) = oneshot::channel();
        let lost = |source| SpawnError { what: format!("spawn {}", program.display()), source };
        on_spawner(Box::new(move || {
            if let Err(Ok(orphan)) = answer.send(spawn(&launch)) {
                // The caller gave up; nobody else knows the child.
                let _gone = sys::pidfd_send_signal(orphan.pidfd.as_fd(), libc::SIGKILL);
                let _reaped = waitid(Id::PIDFd(orphan.pidfd.as_fd()), WaitPidFlag::WEXITED);
            }
        }))
        .map_err(lost)?;
        let spawned = spawned.await.map_err(|e| lost(io::Error::other(e)))??;
        let start_time = crate::usage::start_time(spawned.pid).unwrap_or(0);
        let pidfd = Arc::new(spawned.pidfd);
        let (sender, ended) = watch::channel(None);
        let process = Self { role, pid: spawned.pid, start_time, pidfd: Arc::clone(&pidfd), ended };
        let output = pipe::Receiver::from_owned_fd(spawned.output).map_err(lost)?;
        let watched = sys::watch_readable(pidfd).map_err(lost)?;
        tokio::spawn(reap(role, spawned.pid, watched, output, sender));
        Ok(process)
    }

    /// Its process id, in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The process as the trait tells it.
    pub fn describe(&self) -> VmProcess {
        VmProcess { role: self.role, pid: self.pid, start_time: self.start_time }
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub fn signal(&self, signal: i32) {
        if let Err(e) = sys::pidfd_send_signal(self.pidfd.as_fd(), signal)
            && e.raw_os_error() != Some(libc::ESRCH)
        {
            tracing::warn!(pid = self.pid, signal, error = %e, "cannot signal {}", self.role);
        }
    }

    /// Waits until the process has ended and is reaped.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|ended| ended.clone()) {
            Ok(Some(ended)) => ended,
            // The reaping task goes only with its runtime, and the caller with it.
            _ => std::future::pending().await,
        }
    }

    /// How it ended, if it has.
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            self.signal(libc::SIGKILL);
        }
    }
}

/// The end of a process's output.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(TAIL_LIMIT);
        self.0.drain(..surplus);
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
        clean.trim().to_owned()
    }
}

async fn reap(
    role: ProcessRole,
    pid: i32,
    pidfd: AsyncFd<Arc<OwnedFd>>,
    mut output: pipe::Receiver,
    sender: watch::Sender<Option<Ended>>,
) {
    let tail = Arc::new(Mutex::new(Tail::default()));
    let reader = tokio::spawn({
        let tail = Arc::clone(&tail);
        async move {
            let mut buffer = vec![0; TAIL_LIMIT];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                let bytes = buffer.get(..count).unwrap_or_default();
                tracing::debug!(pid, output = %String::from_utf8_lossy(bytes).trim_end(), "{role} says");
                tail.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
            }
        }
    });
    let status = loop {
        match waitid(Id::PIDFd(pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, status)) => break Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => break Err(signal as i32),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => {
                tracing::error!(pid, error = %e, "cannot wait for {role}; it is taken for dead");
                break Err(libc::SIGKILL);
            }
        }
        match pidfd.readable().await {
            // Readable for good once it has ended, so that a wrong wake-up costs one more wait.
            Ok(mut guard) => guard.clear_ready(),
            Err(e) => tracing::error!(pid, error = %e, "cannot watch {role}"),
        }
    };
    let mut reader = reader;
    if tokio::time::timeout(TAIL_WAIT, &mut reader).await.is_err() {
        reader.abort();
    }
    let ended = match status {
        Ok(status) => Ended::Status(status, tail.lock().unwrap_or_else(PoisonError::into_inner).text()),
        Err(signal) => Ended::Signal(signal),
    };
    sender.send_replace(Some(ended));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            role: ProcessRole::Hypervisor,
            program: "/bin/sh".into(),
            shown_as: None,
            args: vec!["-c".into(), script.into()],
            keep: Vec::new(),
            netns: None,
            cgroups: Vec::new(),
            pid_namespace: false,
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_is_reaped_with_its_status_and_last_words() {
        let process =
            Process::launch(shell("head -c 9000 /dev/zero | tr '\\0' x; echo last words >&2; exit 3")).await.unwrap();
        let Ended::Status(3, message) = process.ended().await else { panic!("{:?}", process.has_ended()) };
        assert!(message.ends_with("last words"), "{message}");
        assert!(message.len() <= TAIL_LIMIT);
        assert!(!std::path::Path::new(&format!("/proc/{}", process.pid())).exists());
    }

    #[tokio::test]
    async fn a_killed_process_is_reported_with_its_signal() {
        let process = Process::launch(shell("sleep 100")).await.unwrap();
        process.signal(libc::SIGKILL);
        assert_eq!(process.ended().await, Ended::Signal(libc::SIGKILL));
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_output_delays_nothing() {
        let process = Process::launch(shell("sleep 5 & exit 0")).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(2), process.ended()).await.unwrap();
        assert_eq!(ended, Ended::Status(0, String::new()));
    }

    #[tokio::test]
    async fn a_process_of_its_own_pid_namespace_is_the_first_and_dies_by_sigkill_alone() {
        let launch = |script| Launch { pid_namespace: true, ..shell(script) };
        let first = Process::launch(launch("exit $$")).await.unwrap();
        assert_eq!(first.ended().await, Ended::Status(1, String::new()));
        // The next one has a namespace of its own again, and one without is among the others.
        let second = Process::launch(launch("sleep 100 & wait")).await.unwrap();
        second.signal(libc::SIGTERM);
        tokio::time::timeout(Duration::from_millis(100), second.ended()).await.unwrap_err();
        second.signal(libc::SIGKILL);
        assert_eq!(second.ended().await, Ended::Signal(libc::SIGKILL));
        let other = Process::launch(shell("test $$ -ne 1")).await.unwrap();
        assert_eq!(other.ended().await, Ended::Status(0, String::new()));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let mut launch = shell("");
        launch.program = "/nonexistent/qemu".into();
        let error = Process::launch(launch).await.unwrap_err();
        assert_eq!(error.what, "execute /nonexistent/qemu");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_descriptor_that_is_no_namespace_fails_the_spawn() {
        let mut launch = shell("true");
        launch.netns = Some(Arc::new(File::open("/dev/null").unwrap().into()));
        let error = Process::launch(launch).await.unwrap_err();
        assert_eq!(error.what, "enter the network namespace for /bin/sh");
    }

    #[tokio::test]
    async fn descriptors_are_passed_by_number_and_others_are_not() {
        let passed: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        let other = File::open("/dev/null").unwrap();
        let mut launch = shell(&format!(
            "test -e /proc/self/fd/{} && ! test -e /proc/self/fd/{}",
            passed.as_raw_fd(),
            other.as_raw_fd()
        ));
        launch.keep.push(passed);
        let process = Process::launch(launch).await.unwrap();
        assert_eq!(process.ended().await, Ended::Status(0, String::new()));
    }
}
