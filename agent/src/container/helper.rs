//! The helper's side: a process with one thread, a clone of the zygote, in which libcontainer may fork.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::Process;

use super::executor::ContainerExecutor;
use super::protocol::{Action, Answer, Request, Streams, receive, send};
use super::report::{ReportErrors, Reporter};

/// What a container gets when its specification sets no RLIMIT_NOFILE: soft, hard.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Serves one request that comes by the socket.
pub(super) fn run(mut socket: UnixStream) -> Result<std::convert::Infallible> {
    let (request, fds): (Request, _) = receive(&mut socket).context("no request")?;
    let answer = match perform(request, fds) {
        Ok(pid) => Answer::Pid(pid),
        Err(e) => Answer::Failed(format!("{e:#}")),
    };
    send(&mut socket, &answer, &[]).context("cannot answer")?;
    // The agent closes its end when it watches the new process.
    let _ = socket.read(&mut [0]);
    crate::sys::end_now(0)
}

fn perform(request: Request, fds: Vec<OwnedFd>) -> Result<i32> {
    let mut fds = fds.into_iter();
    let reporter = Reporter::new(fds.next().context("no report pipe")?);
    let Streams { stdin, stdout, stderr } = request.streams;
    let mut stream = |wanted: bool| wanted.then(|| fds.next()).flatten();
    let (stdin, stdout, stderr) = (stream(stdin), stream(stdout), stream(stderr));
    // Only fails when there is one already, and this process has just begun.
    let _ = tracing::subscriber::set_global_default(ReportErrors(reporter.clone()));

    umask(Mode::from_bits_truncate(0o022));
    nix::unistd::setgroups(&[]).context("cannot clear the supplementary groups")?;
    // Inherited by the container unless its specification says otherwise.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1);

    let mut builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(&request.state_dir)?
        .with_console_socket(request.console_socket)
        .with_executor(ContainerExecutor {
            reporter,
            execution: request.execution,
            id: request.id.clone(),
            bundle: match &request.action {
                Action::Create { bundle } => bundle.clone(),
                Action::Exec { .. } => PathBuf::new(),
            },
        });
    if let Some(fd) = stdin {
        builder = builder.with_stdin(fd);
    }
    if let Some(fd) = stdout {
        builder = builder.with_stdout(fd);
    }
    if let Some(fd) = stderr {
        builder = builder.with_stderr(fd);
    }
    match request.action {
        Action::Create { bundle } => {
            let container = builder.as_init(bundle).with_systemd(false).build()?;
            let pid = container.pid().context("the new container has no process")?;
            Ok(pid.as_raw())
        }
        Action::Exec { process } => {
            let text = std::fs::read(&process).context("cannot read the process")?;
            let wanted: Process = serde_json::from_slice(&text).context("cannot read the process")?;
            let mut container = Container::load(request.state_dir.join(&request.id))?;
            match container.status() {
                ContainerStatus::Stopped => bail!("the container is not running"),
                // The agent starts containers itself, so that the state on disk still says "created".
                _ => container.set_status(ContainerStatus::Running).save()?,
            }
            let pid = builder
                .as_tenant()
                .with_detach(wanted.terminal().unwrap_or(false))
                .with_process(Some(process))
                .build()?;
            Ok(pid.as_raw())
        }
    }
}
