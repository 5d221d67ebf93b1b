//! Starting a supervisor: from the front door's side ([`launch`]) and from its own ([`enter`]).
//!
//! ```text
//! front door ── spawn ──> stockade supervise ── setsid, fork ──> the supervisor (child of nobody here)
//!     │      socket pair = standard input       └─ exits            │
//!     ├── Startup as JSON, then end of stream ─────────────────────>│ serves its socket
//!     │<───────────────────────────────────────── StartupAnswer ────┤
//! ```
//! The supervisor shares nothing with who started it: its own session, no descriptor, no directory.

mod sys;

use super::startup::{Startup, StartupAnswer};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a new supervisor may take until it listens.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The longest start-up document, in bytes.
const STARTUP_LIMIT: u64 = 4 << 20;

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The process could not be made.
    #[error("cannot start a supervisor")]
    Spawn(#[source] io::Error),
    /// It could not be told what to do.
    #[error("cannot tell the new supervisor what to do")]
    Tell(#[source] io::Error),
    /// It ended, or answered nonsense.
    #[error("the new supervisor died before it was ready")]
    Died(#[source] io::Error),
    /// It said nothing in time.
    #[error("the new supervisor was not ready within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    /// It says why.
    #[error("{0}")]
    Failed(String),
}

/// Starts a supervisor and returns when its socket listens. Blocks for at most ten seconds or so.
///
/// # Errors
/// When it could not start; then nothing is left of it.
pub fn launch(startup: &Startup) -> Result<(), LaunchError> {
    let document = serde_json::to_vec(startup).map_err(|error| LaunchError::Tell(error.into()))?;
    let (mut ours, theirs) = UnixStream::pair().map_err(LaunchError::Spawn)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("stockade")
        .arg("supervise")
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(LaunchError::Spawn)?;
    let answer = converse(&mut ours, &document);
    // The child itself has only forked. When it could not, it has ended all the same.
    child.wait().map_err(LaunchError::Spawn)?;
    match answer? {
        StartupAnswer::Ready => Ok(()),
        StartupAnswer::Failed { message } => Err(LaunchError::Failed(message)),
    }
}

fn converse(stream: &mut UnixStream, document: &[u8]) -> Result<StartupAnswer, LaunchError> {
    stream.set_write_timeout(Some(ANSWER_LIMIT)).map_err(LaunchError::Tell)?;
    stream.write_all(document).and_then(|()| stream.shutdown(Shutdown::Write)).map_err(LaunchError::Tell)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(LaunchError::Died)?;
    // Not up to the end of the stream: the panic hook keeps the other end open.
    let mut answers = serde_json::Deserializer::from_reader(stream.take(STARTUP_LIMIT)).into_iter::<StartupAnswer>();
    match answers.next() {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error)) => match error.io_error_kind() {
            Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(LaunchError::Silent),
            _ => Err(LaunchError::Died(error.into())),
        },
        None => Err(LaunchError::Died(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// The first thing that `stockade supervise` does: lets go of everything it got from its parent but the start-up socket
/// on standard input, becomes a session of its own and nobody's child, and reads what to do.
///
/// The answer is to be written to the returned descriptor. If that fails, nobody waits for the supervisor: it must end.
///
/// # Errors
/// When the host refuses one of these, or standard input is no start-up socket.
pub fn enter() -> io::Result<(Startup, OwnedFd)> {
    crate::stand_in::close_inherited(3)?;
    // Whoever creates a container has all signals blocked.
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2(null.as_raw_fd(), 0)?;
    sys::leave_parent()?;
    std::env::set_current_dir(Path::new("/"))?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // The kernel's name for it would be "exe", after the link that it was started by.
    nix::sys::prctl::set_name(c"stockade")?;
    let mut stream = UnixStream::from(socket);
    die_with_message(&stream)?;
    let mut document = Vec::new();
    (&mut stream).take(STARTUP_LIMIT).read_to_end(&mut document)?;
    let startup = serde_json::from_slice(&document)?;
    nix::fcntl::fcntl(stream.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((startup, stream.into()))
}

/// Crash-only: a panic anywhere ends the process at once, and what is on disk is cleaned up after it. Whoever still
/// waits for the start is told.
fn die_with_message(socket: &UnixStream) -> io::Result<()> {
    let socket = socket.try_clone()?;
    std::panic::set_hook(Box::new(move |panic| {
        let message = format!("the supervisor panicked: {}", panic.to_string().replace('\n', " "));
        // To stderr for whoever gave the supervisor one; both are the last words, so nobody hears of their failure.
        let _ = writeln!(io::stderr(), "stockade: {message}");
        if let Ok(answer) = serde_json::to_vec(&StartupAnswer::Failed { message }) {
            let _ = (&socket).write_all(&answer);
        }
        std::process::abort();
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(bytes: &'static [u8]) -> Result<StartupAnswer, LaunchError> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            let mut document = Vec::new();
            theirs.read_to_end(&mut document).unwrap();
            theirs.write_all(bytes).unwrap();
            document
        });
        let answer = converse(&mut ours, b"{}");
        assert_eq!(other.join().unwrap(), b"{}");
        answer
    }

    #[test]
    fn an_answer_is_taken_as_soon_as_it_is_whole() {
        assert!(matches!(answered(br#""ready""#), Ok(StartupAnswer::Ready)));
        let failed = answered(br#"{"failed":{"message":"no KVM"}}"#);
        assert!(matches!(failed, Ok(StartupAnswer::Failed { message }) if message == "no KVM"));
    }

    #[test]
    fn a_supervisor_that_dies_or_answers_nonsense_is_an_error() {
        for bytes in [&b""[..], b"{", b"42"] {
            assert!(matches!(answered(bytes), Err(LaunchError::Died(_))), "{bytes:?}");
        }
    }
}
