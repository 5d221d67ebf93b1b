//! The zygote: a process with one thread, from which every helper is cloned.
//!
//! libcontainer forks, which the agent with its threads must not. A fork of a process that was made when the agent still
//! had one thread costs a fraction of the agent's start anew: nothing is relocated, and what is not written to is shared.
//!
//! ```text
//!   agent ──socket──▶ zygote ──clone──▶ helper, the agent's child
//!     ▲                 │                  │
//!     └──────pidfd──────┘      request, answer over the socket
//! ```
//! A zygote that was killed is replaced: by the agent's program, executed anew.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::protocol::{Conversation, receive, send};
use super::spec::SELF;
use crate::sys::Cloned;

/// Argument by which the agent, re-executed, is a zygote whose standard input is its socket.
pub(crate) const ZYGOTE: &str = "zygote";
/// What a process list calls a zygote, and a helper.
const NAME: &CStr = c"stockade-zygote";
const HELPER: &CStr = c"stockade-helper";
/// Longest time that one clone may take.
const CLONE_LIMIT: Duration = Duration::from_secs(20);

/// Asks for one helper; comes with the helper's end of its socket.
#[derive(Serialize, Deserialize)]
struct Order;

/// What came of it; comes with the helper's pidfd if there is a helper.
#[derive(Serialize, Deserialize)]
enum Made {
    Helper,
    Failed(String),
}

/// Forks a zygote off, and returns the agent's end of its socket; in the zygote, when it has no more to do, nothing.
///
/// Must be called while the process has one thread.
///
/// # Errors
/// The system has no process or descriptor left.
pub(crate) fn fork() -> Result<Option<UnixStream>> {
    let (ours, theirs) = UnixStream::pair().context("cannot make the zygote's socket")?;
    match crate::sys::fork().context("cannot fork the zygote")? {
        ForkResult::Parent { .. } => Ok(Some(ours)),
        ForkResult::Child => {
            drop(ours);
            run(theirs)?;
            Ok(None)
        }
    }
}

/// The agent's connection to its zygote.
#[derive(Debug)]
pub(super) struct Zygote {
    /// Nothing, when the zygote must be replaced.
    conversation: Mutex<Option<Conversation>>,
}

impl Zygote {
    /// The zygote at the other end of `socket`. To be called on the runtime.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub(super) fn new(socket: UnixStream) -> io::Result<Zygote> {
        Ok(Zygote { conversation: Mutex::new(Some(Conversation::new(socket)?)) })
    }

    /// A new helper, which waits for its request: the agent's end of its socket, and its pidfd.
    ///
    /// # Errors
    /// No helper could be cloned, and no new zygote be started.
    pub(super) async fn helper(&self) -> io::Result<(Conversation, OwnedFd)> {
        let mut conversation = self.conversation.lock().await;
        // Taken, so that who gives up in between leaves none that waits for an answer. Its end is the zygote's, too.
        if let Some(mut old) = conversation.take() {
            match ask(&mut old).await {
                Ok(made) => {
                    *conversation = Some(old);
                    return made;
                }
                Err(e) => crate::log::warning!("the zygote is replaced: {e}"),
            }
        }
        let mut new = Conversation::new(execute()?)?;
        let made = ask(&mut new).await?;
        *conversation = Some(new);
        made
    }
}

/// The outer error: the zygote is of no use. The inner one: it could not clone.
async fn ask(zygote: &mut Conversation) -> io::Result<io::Result<(Conversation, OwnedFd)>> {
    // Of its own for each try: no two helpers shall listen at one.
    let (ours, theirs) = UnixStream::pair()?;
    let ours = Conversation::new(ours)?;
    let (made, fds): (Made, Vec<OwnedFd>) = timeout(CLONE_LIMIT, async {
        zygote.send(&Order, &[theirs.as_fd()]).await?;
        zygote.receive().await
    })
    .await??;
    let missing = || io::Error::other("the zygote sent no descriptor");
    Ok(match made {
        Made::Helper => fds.into_iter().next().map(|pidfd| (ours, pidfd)).ok_or_else(missing),
        Made::Failed(text) => Err(io::Error::other(text)),
    })
}

fn execute() -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    // Waited for by the reaper, as every child.
    Command::new(SELF).arg0("stockade-agent").arg(ZYGOTE).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    Ok(ours)
}

/// The role of a zygote that was executed.
pub(crate) fn run_executed() -> Result<()> {
    let socket = crate::sys::borrow_stdin().try_clone_to_owned().context("no standard input")?;
    run(UnixStream::from(socket))
}

/// The zygote's life, and in each helper the helper's.
fn run(mut socket: UnixStream) -> Result<()> {
    // A process that gets no standard input or output must not inherit the agent's. Errors go where the agent's go.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    for stream in [0, 1] {
        nix::unistd::dup2(null.as_raw_fd(), stream).context("cannot replace a standard stream")?;
    }
    drop(null);
    crate::sys::clear_environment();
    nix::unistd::chdir("/").context("cannot enter the root directory")?;
    let _ = nix::sys::prctl::set_name(NAME);
    loop {
        let (Order, fds) = match receive(&mut socket) {
            Ok(order) => order,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e).context("cannot receive an order"),
        };
        let helper = fds.into_iter().next().context("an order without a socket")?;
        let (made, pidfd) = match crate::sys::clone_sibling() {
            Ok(Cloned::Child) => {
                drop(socket);
                let _ = nix::sys::prctl::set_name(HELPER);
                return super::helper::run(UnixStream::from(helper)).map(|never| match never {});
            }
            Ok(Cloned::Parent(pidfd)) => (Made::Helper, Some(pidfd)),
            Err(errno) => (Made::Failed(format!("cannot clone a helper: {errno}")), None),
        };
        drop(helper);
        let fds: Vec<BorrowedFd<'_>> = pidfd.iter().map(|fd| fd.as_fd()).collect();
        send(&mut socket, &made, &fds).context("cannot answer")?;
    }
}
