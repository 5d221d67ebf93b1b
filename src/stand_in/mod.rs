//! The host process that stands in for a container, or for a detached `exec`.
//!
//! Callers such as conmon wait for the pid in --pid-file, signal it, and read its exit status. A container in a virtual
//! machine has no process here, so it gets this one: it holds the descriptors 0, 1 and 2 of `create`, passes signals on,
//! and ends with the container's status, or with 137 when the supervisor is gone. A container's, not that of an `exec`,
//! also has the container's files as its own ([`files`]), and is in the sandbox's control group.
//!
//! ```text
//!            spawn             'a'                        'c'
//! create ──────────> ready ──────────> attached ──────────────────> alone (create has ended)
//!                │ 'r' to create   │ Wait is under way,  │
//!                │                 │ 'a' to create,      │
//!                │                 │ or 'f' and why not  │
//!                └─────────────────┴─────────────────────┴──> exit, when create ends before 'c'
//! ```
//! The letters travel over a socket pair that `create` made ([`StandIn`] is its end of it).

mod attend;
mod files;
mod handle;
mod signals;
pub(crate) mod sys;

pub(crate) use attend::{Outcome, Subject, attend, resize};
pub(crate) use handle::{StandIn, StandInNetwork, StandInOptions};
pub(crate) use signals::Signals;

use crate::api::InspectRequest;
use crate::cli::client::{self, Connection, SHORT_CALL, answer};
use crate::error::OpError;
use crate::ids::{ContainerId, ExecId, SandboxId};
use crate::network::NetworkNamespace;
use crate::state::Store;
use clap::Parser;
use files::Files;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::context::with_duration;

/// What each side says on the channel.
const READY: u8 = b'r';
const ATTACH: u8 = b'a';
const ATTACHED: u8 = b'a';
const FAILED: u8 = b'f';
const COMMIT: u8 = b'c';

/// 128 + SIGKILL: what a process reports whose machine was taken away.
const LOST: u8 = 137;

/// The command line of `stockade stand-in`, which [`StandIn::spawn`] writes.
#[derive(Debug, Parser)]
#[command(name = "stockade stand-in")]
struct Arguments {
    /// The descriptor of the channel.
    #[arg(long)]
    channel: RawFd,
    /// The state root.
    #[arg(long)]
    root: PathBuf,
    /// The sandbox that the container is in.
    #[arg(long)]
    sandbox: SandboxId,
    /// The container.
    #[arg(long)]
    container: ContainerId,
    /// The process of the container; without it, its first one.
    #[arg(long)]
    exec: Option<ExecId>,
    /// The container's bundle, whose files it shall have as its own.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Stand in a new network namespace, which is to be the sandbox's.
    #[arg(long, conflicts_with = "netns")]
    new_netns: bool,
    /// Stand in this network namespace.
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Standard input is a terminal of its own.
    #[arg(long)]
    terminal: bool,
}

/// Closes what the caller inherited from its parent, from descriptor `first` on. To be called first in a program.
///
/// # Errors
/// The kernel has no close_range(2).
pub(crate) fn close_inherited(first: u32) -> io::Result<()> {
    sys::close_range(first, u32::MAX)
}

/// The program `stockade stand-in`, from its arguments after the verb. To be called first in a program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Arguments::try_parse_from(std::iter::once(OsString::from("stand-in")).chain(arguments));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    // Standard error is the container's: nothing but its output may go there. Its end tells `create` enough.
    ExitCode::from(stand(&arguments).unwrap_or(LOST))
}

fn stand(arguments: &Arguments) -> io::Result<u8> {
    // Before this program opens anything. Signals are blocked all along: they were so in its parent.
    let mut channel = UnixStream::from(sys::inherit_only(arguments.channel)?);
    let signals = Signals::block()?;
    nix::unistd::setsid()?;
    if arguments.terminal {
        sys::take_controlling_terminal(io::stdin().as_fd())?;
    }
    std::env::set_current_dir("/")?;
    nix::sys::prctl::set_name(c"stockade-stand")?;
    enter_network(arguments);
    channel.write_all(&[READY])?;
    // While the guest boots there is time for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut letter = [0];
    channel.read_exact(&mut letter)?;
    if letter != [ATTACH] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let status = runtime.block_on(stand_for(arguments, signals, channel));
    // A read of standard input must not keep the process.
    runtime.shutdown_background();
    status
}

/// Engines such as Docker find a container's network namespace by its pid, to put interfaces there. A failure here is
/// one of the creation too, which tells of it: the supervisor joins or makes the namespace itself.
fn enter_network(arguments: &Arguments) {
    let _ = match &arguments.netns {
        Some(path) => NetworkNamespace::join(path).and_then(|netns| netns.enter()),
        None if arguments.new_netns => NetworkNamespace::enter_new(),
        None => Ok(()),
    };
}

async fn stand_for(arguments: &Arguments, signals: Signals, channel: UnixStream) -> io::Result<u8> {
    channel.set_nonblocking(true)?;
    let (mut reader, mut writer) = tokio::net::UnixStream::from_std(channel)?.into_split();
    let store = Store::new(&arguments.root);
    let connection = client::connect(&store, &arguments.sandbox).await.map_err(io::Error::other)?;
    let subject = Subject { container: arguments.container.clone(), exec: arguments.exec.clone() };
    let terminal = if arguments.terminal { Some(io::stdin().as_fd().try_clone_to_owned()?) } else { None };
    let (attached, is_attached) = tokio::sync::oneshot::channel();
    let attending = attend(&connection, &subject, terminal, signals, attached);
    let committing = async {
        if is_attached.await.is_err() {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        if let Some(bundle) = &arguments.bundle
            && let Err(error) = settle(&connection, &arguments.container, bundle).await
        {
            writer.write_all(&[FAILED]).await?;
            writer.write_all(error.one_line().as_bytes()).await?;
            return Err(io::Error::other(error.one_line()));
        }
        writer.write_all(&[ATTACHED]).await?;
        let letter = reader.read_u8().await?;
        if letter == COMMIT { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    tokio::pin!(attending, committing);
    let outcome = tokio::select! {
        outcome = &mut attending => outcome,
        committed = &mut committing => {
            committed?;
            attending.await
        }
    };
    Ok(match outcome {
        Outcome::Exited(status) => status,
        Outcome::Lost => LOST,
    })
}

/// Joins the sandbox's control group where it is not in it, and takes the container's files as its own. This process has
/// one thread.
async fn settle(connection: &Connection, container: &ContainerId, bundle: &Path) -> Result<(), OpError> {
    let response = connection.supervisor.inspect(with_duration(SHORT_CALL), &InspectRequest::default()).await;
    let response = answer("Inspect", response)
        .map_err(|error| OpError::internal("cannot ask for the sandbox's control group", error))?;
    let document: serde_json::Value = serde_json::from_str(&response.json)
        .map_err(|error| OpError::internal("cannot read what the supervisor says of its sandbox", error))?;
    let files = Files::of(container, bundle)?;
    let groups = document.pointer("/machine/control_group").and_then(|groups| groups.as_array());
    let leaves: Vec<&str> = groups.into_iter().flatten().filter_map(|group| group.as_str()).collect();
    // The creation of a sandbox has put it there; not that of a further container. A host may refuse it.
    let _ = crate::cgroup::join(&leaves, std::process::id().cast_signed());
    files.enter()
}
