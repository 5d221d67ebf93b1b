//! What starting a machine's processes needs, whichever they are.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use stockade_hypervisor::{ExitCause, HypervisorError, Operation, VmConfig};
use tokio::net::UnixStream;

use crate::console::create_log;
use crate::process::SpawnError;

/// A start that failed and left nothing behind.
#[derive(Debug)]
pub struct StartError {
    /// What the caller is told.
    pub error: HypervisorError,
    /// How the machine ended, for those who ask later.
    pub cause: ExitCause,
}

impl StartError {
    /// The machine ended, for this cause, before it had started.
    pub fn ended(cause: ExitCause) -> Self {
        Self { error: HypervisorError::Exited { operation: Operation::Start, cause: cause.clone() }, cause }
    }
}

impl From<HypervisorError> for StartError {
    fn from(error: HypervisorError) -> Self {
        Self { error, cause: ExitCause::NeverStarted }
    }
}

impl From<SpawnError> for StartError {
    fn from(error: SpawnError) -> Self {
        HypervisorError::host(Operation::Start, error.what, error.source).into()
    }
}

/// Names what failed on the host at the start.
pub fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> HypervisorError {
    let what = what.into();
    move |source| HypervisorError::host(Operation::Start, what, source)
}

/// Descriptors that a child inherits under their numbers.
#[derive(Debug, Default)]
pub struct Passed(Vec<Arc<OwnedFd>>);

impl Passed {
    /// Passes one on; answers with its number.
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        self.share(&Arc::new(fd.into()))
    }

    /// Passes one on that the caller keeps too.
    pub fn share(&mut self, fd: &Arc<OwnedFd>) -> RawFd {
        self.0.push(Arc::clone(fd));
        fd.as_raw_fd()
    }

    /// For [`Launch::keep`](crate::process::Launch::keep).
    pub fn into_keep(self) -> Vec<Arc<OwnedFd>> {
        self.0
    }
}

/// A pair of connected sockets for `what`.
///
/// # Errors
/// The host has no more descriptors.
pub fn pair(what: &str) -> Result<(StdStream, StdStream), HypervisorError> {
    StdStream::pair().map_err(host(format!("make a socket pair for {what}")))
}

/// The socket of `what`, watched by the current runtime.
///
/// # Errors
/// It cannot be watched.
pub fn asynchronous(stream: StdStream, what: &str) -> Result<UnixStream, HypervisorError> {
    let what = format!("watch the socket of {what}");
    stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)).map_err(host(what))
}

/// The file that the console's bytes are to go to, if there is to be one.
///
/// # Errors
/// It cannot be made.
pub fn console_log(config: &VmConfig) -> Result<Option<File>, HypervisorError> {
    let Some(path) = &config.console_log else { return Ok(None) };
    create_log(path).map(Some).map_err(host(format!("make the console's log {}", path.display())))
}
