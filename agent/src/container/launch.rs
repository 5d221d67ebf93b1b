//! The agent's side of the helper: makes pipes or a terminal, and starts a process with libcontainer.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::protocol::{Action, Answer, Conversation, Execution, Request, Streams};
use super::report::Report;
use super::zygote::Zygote;
use super::{ContainerError, Process};
use crate::reaper::{ExitWatch, Reaper};
use crate::stdio::{Channel, Input, Output};

/// Longest time that making a container may take, hooks included.
const LAUNCH_LIMIT: Duration = Duration::from_secs(120);
/// Most that is read of a report.
const MAX_REPORT: usize = 64 << 10;

/// What to start.
pub(crate) struct Launch<'a> {
    pub(crate) id: &'a str,
    pub(crate) state_dir: &'a Path,
    pub(crate) action: Action,
    pub(crate) execution: Execution,
    pub(crate) terminal: bool,
    /// Owner of the streams, so that the process can open them again by name.
    pub(crate) uid: u32,
    pub(crate) pipe_size: Option<usize>,
}

/// The reading end of a report pipe.
pub(crate) struct ReportReader(AsyncFd<OwnedFd>);

impl ReportReader {
    /// Reads until every process on the way to the program has closed its end.
    pub(crate) async fn to_end(&self) -> io::Result<Report> {
        let mut text = Vec::new();
        loop {
            let mut ready = self.0.readable().await?;
            let mut chunk = [0; 4096];
            match nix::unistd::read(self.0.as_raw_fd(), &mut chunk) {
                Ok(0) => break,
                Ok(count) if text.len() < MAX_REPORT => {
                    text.extend_from_slice(chunk.get(..count).unwrap_or_default());
                }
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Report::parse(&String::from_utf8_lossy(&text)))
    }

    /// Reads what is there.
    fn so_far(&self) -> Report {
        let mut text = vec![0; MAX_REPORT];
        let count = nix::unistd::read(self.0.as_raw_fd(), &mut text).unwrap_or(0);
        text.truncate(count);
        Report::parse(&String::from_utf8_lossy(&text))
    }
}

/// The process's ends of its streams, and the agent's.
struct Wiring {
    theirs: Vec<OwnedFd>,
    streams: Streams,
    console: Option<Console>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Where libcontainer sends the terminal that it makes inside the container.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Console {
    fn drop(&mut self) {
        // Gone already, or removed with its directory at the end.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn broken(what: &'static str) -> impl FnOnce(io::Error) -> ContainerError {
    move |source| ContainerError::Launch { what, source }
}

fn wire(launch: &Launch<'_>) -> Result<Wiring, ContainerError> {
    let mut wiring = Wiring {
        theirs: Vec::new(),
        streams: Streams::default(),
        console: None,
        stdin: None,
        stdout: None,
        stderr: None,
    };
    if launch.terminal {
        wiring.console = Some(Console::listen(launch.state_dir)?);
        return Ok(wiring);
    }
    let pipe = || {
        let (read, write) = io::pipe().map_err(broken("make a pipe"))?;
        if let Some(size) = launch.pipe_size.and_then(|size| i32::try_from(size).ok()) {
            // A guest short of memory refuses; the default size works as well.
            let _ = fcntl(write.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(size));
        }
        nix::unistd::fchown(write.as_raw_fd(), Some(launch.uid.into()), None)
            .map_err(|errno| broken("give a pipe to its user")(errno.into()))?;
        Ok::<(OwnedFd, OwnedFd), ContainerError>((read.into(), write.into()))
    };
    let (stdin_read, stdin_write) = pipe()?;
    let (stdout_read, stdout_write) = pipe()?;
    let (stderr_read, stderr_write) = pipe()?;
    wiring.theirs = vec![stdin_read, stdout_write, stderr_write];
    wiring.streams = Streams { stdin: true, stdout: true, stderr: true };
    wiring.stdin = Some(stdin_write);
    wiring.stdout = Some(stdout_read);
    wiring.stderr = Some(stderr_read);
    Ok(wiring)
}

impl Console {
    fn listen(dir: &Path) -> Result<Console, ContainerError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("console-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let listener = UnixListener::bind(&path).map_err(broken("listen for the terminal"))?;
        listener.set_nonblocking(true).map_err(broken("listen for the terminal"))?;
        Ok(Console { listener, path })
    }

    /// Takes the terminal, which was sent before the helper answered.
    fn take(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut byte = [0; 64];
        let mut iov = [io::IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(i32);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        let mut terminal = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // Of several, all are adopted and so closed, and the first is used.
                for fd in numbers.into_iter().map(crate::sys::adopt) {
                    terminal.get_or_insert(fd);
                }
            }
        }
        terminal.ok_or_else(|| io::Error::other("no terminal in the message"))
    }
}

/// Starts the processes of containers. Clones share one zygote.
#[derive(Clone)]
pub(crate) struct Launcher {
    reaper: Reaper,
    zygote: Arc<Zygote>,
}

impl Launcher {
    /// Starts them by the zygote at the other end of the socket. To be called on the runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub(crate) fn new(reaper: Reaper, zygote: UnixStream) -> io::Result<Launcher> {
        Ok(Launcher { reaper, zygote: Arc::new(Zygote::new(zygote)?) })
    }

    /// Starts a process; it is known to the reaper before it can be reaped.
    pub(crate) async fn launch(&self, launch: Launch<'_>) -> Result<(Process, ReportReader), ContainerError> {
        let mut wiring = wire(&launch)?;
        let (report_read, report_write) = io::pipe().map_err(broken("make the report pipe"))?;
        let (report_read, report_write) = (OwnedFd::from(report_read), OwnedFd::from(report_write));
        for fd in [&report_read, &report_write] {
            fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(|errno| broken("make the report pipe")(errno.into()))?;
        }
        let report = ReportReader(crate::sys::watch(report_read).map_err(broken("watch the report pipe"))?);

        let request = Request {
            id: launch.id.to_owned(),
            state_dir: launch.state_dir.to_owned(),
            action: launch.action,
            console_socket: wiring.console.as_ref().map(|console| console.path.clone()),
            streams: wiring.streams,
            execution: launch.execution,
        };
        let mut fds = vec![report_write];
        fds.append(&mut wiring.theirs);
        let (mut conversation, helper) = self.zygote.helper().await.map_err(broken("start the helper"))?;
        let answer = match timeout(LAUNCH_LIMIT, exchange(&mut conversation, &request, fds)).await {
            Ok(answer) => answer,
            Err(e) => Err(e.into()),
        };
        let made = match answer {
            Ok(Answer::Pid(pid)) => Ok(pid),
            Ok(Answer::Failed(text)) => Err(text),
            Err(e) => {
                // It may hang in a hook.
                let _ = crate::sys::kill_by_descriptor(helper.as_fd());
                Err(format!("the helper gave no answer ({e})"))
            }
        };
        let pid = match made {
            Ok(pid) => pid,
            Err(text) => {
                drop(conversation);
                // Nothing of it shall be left when the caller hears of it.
                wait_for_end(helper).await;
                return Err(ContainerError::Refused(report.so_far().explain(&text)));
            }
        };
        let exit = self.reaper.register(pid);
        // Now the helper may end and leave the process to us.
        drop(conversation);
        finish(wiring, pid, exit, launch.uid).map(|process| (process, report))
    }
}

async fn exchange(helper: &mut Conversation, request: &Request, fds: Vec<OwnedFd>) -> io::Result<Answer> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    helper.send(request, &borrowed).await?;
    // The process's ends must be open in the process only.
    drop(fds);
    let (answer, _) = helper.receive().await?;
    Ok(answer)
}

/// Waits for the end of a process that was killed or is about to end.
async fn wait_for_end(pidfd: OwnedFd) {
    // One that cannot be watched is not waited for.
    if let Ok(ended) = crate::sys::watch(pidfd) {
        let _ = ended.readable().await;
    }
}

/// Puts the agent's side of a process together; kills the process when that fails.
fn finish(mut wiring: Wiring, pid: i32, exit: ExitWatch, uid: u32) -> Result<Process, ContainerError> {
    let stream = |fd: Option<OwnedFd>| fd.map(Channel::new).transpose();
    let built = (|| {
        let terminal = match &wiring.console {
            Some(console) => Some(take_terminal(console, uid)?),
            None => None,
        };
        let terminal = stream(terminal)?;
        let stdout = match &terminal {
            Some(terminal) => Some(Arc::clone(terminal)),
            None => stream(wiring.stdout.take())?,
        };
        let stdin = match &terminal {
            Some(terminal) => Some(Arc::clone(terminal)),
            None => stream(wiring.stdin.take())?,
        };
        Ok::<_, ContainerError>(Process {
            pid,
            exit,
            stdin: Input::new(stdin),
            stdout: stdout.map(Output::new),
            stderr: stream(wiring.stderr.take())?.map(Output::new),
            terminal,
        })
    })();
    built.inspect_err(|_| {
        // Registered and not reaped: the number is still its own.
        let _ = crate::sys::send_signal(pid, libc::SIGKILL);
    })
}

fn take_terminal(console: &Console, uid: u32) -> Result<OwnedFd, ContainerError> {
    let terminal = console.take().map_err(broken("receive the terminal"))?;
    // The user must be able to open its own terminal again.
    if let Ok(peer) = crate::sys::terminal_peer(terminal.as_fd()) {
        let _ = nix::unistd::fchown(peer.as_raw_fd(), Some(uid.into()), None);
    }
    Ok(terminal)
}
