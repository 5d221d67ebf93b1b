//! A stand-in, seen from `create`, `run` and `exec --detach`.

use super::{ATTACH, ATTACHED, COMMIT, FAILED, READY, sys};
use crate::ids::{ContainerId, ExecId, SandboxId};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// How long a stand-in may take to stand, or to reach the supervisor.
const LIMIT: Duration = Duration::from_secs(10);
/// The most bytes of its explanation that are read.
const MAX_WHY: u64 = 4096;

/// For whom it stands, and with what.
#[derive(Debug)]
pub(crate) struct StandInOptions<'a> {
    /// The state root, absolute.
    pub root: &'a Path,
    /// The sandbox whose supervisor it asks.
    pub sandbox: &'a SandboxId,
    /// The container.
    pub container: &'a ContainerId,
    /// A process of it; `None`: the first one.
    pub exec: Option<&'a ExecId>,
    /// The bundle whose files it takes as its own; for the first process.
    pub bundle: Option<&'a Path>,
    /// The network namespace that it stands in, where engines look for the container's.
    pub network: StandInNetwork<'a>,
    /// The terminal that becomes its descriptors 0, 1 and 2; `None`: those of the caller.
    pub terminal: Option<OwnedFd>,
}

/// The network namespace of a stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StandInNetwork<'a> {
    /// A new one, which is to be the sandbox's.
    New,
    /// The sandbox's, at this path.
    Join(&'a Path),
    /// That of its maker.
    Stay,
}

/// A stand-in that ends with its maker, until it is committed. Dropped before that, it ends.
#[derive(Debug)]
pub(crate) struct StandIn {
    child: Option<Child>,
    channel: UnixStream,
    pid: i32,
}

impl StandIn {
    /// Starts it. It is a child of the caller, and takes what it needs from the caller's descriptors at once.
    ///
    /// # Errors
    /// What the host refuses.
    pub(crate) fn spawn(options: StandInOptions<'_>) -> io::Result<Self> {
        let (channel, theirs) = UnixStream::pair()?;
        channel.set_read_timeout(Some(LIMIT))?;
        channel.set_write_timeout(Some(LIMIT))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("stockade").args(["stand-in", "--channel", &theirs.as_raw_fd().to_string()]);
        command.arg("--root").arg(options.root);
        command.args(["--sandbox", options.sandbox.as_str(), "--container", options.container.as_str()]);
        match options.network {
            StandInNetwork::New => {
                command.arg("--new-netns");
            }
            StandInNetwork::Join(path) => {
                command.arg("--netns").arg(path);
            }
            StandInNetwork::Stay => {}
        }
        if let Some(exec) = options.exec {
            command.args(["--exec", exec.as_str()]);
        }
        if let Some(bundle) = options.bundle {
            command.arg("--bundle").arg(bundle);
        }
        if let Some(terminal) = options.terminal {
            command.arg("--terminal");
            command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        }
        sys::set_inheritable(&theirs, true)?;
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        Ok(Self { child: Some(child), channel, pid })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it holds its descriptors and misses no signal. Blocks for at most ten seconds.
    ///
    /// # Errors
    /// It ended, or did not answer.
    pub(crate) fn wait_ready(&mut self) -> io::Result<()> {
        self.expect(READY)
    }

    /// Lets it connect to the supervisor, which knows the container by now, and take its files. Blocks for at most ten
    /// seconds.
    ///
    /// # Errors
    /// The supervisor or the container is gone, or the host refuses it the container's files.
    pub(crate) fn attach(&mut self) -> io::Result<()> {
        self.channel.write_all(&[ATTACH])?;
        self.expect(ATTACHED)
    }

    /// Lets it live on its own, and returns the child. When it has ended by now, its container has.
    pub(crate) fn commit(mut self) -> Option<Child> {
        let _ = self.channel.write_all(&[COMMIT]);
        self.child.take()
    }

    fn expect(&mut self, letter: u8) -> io::Result<()> {
        let mut read = [0];
        self.channel.read_exact(&mut read)?;
        if read == [letter] {
            return Ok(());
        }
        if read != [FAILED] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut why = String::new();
        (&self.channel).take(MAX_WHY).read_to_string(&mut why)?;
        Err(io::Error::other(why))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
