//! Talking to a supervisor.

use crate::api::SupervisorClient;
use crate::ids::SandboxId;
use crate::state::Store;
use containerd_shim_protos::shim_async::TaskClient;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

/// The deadline of a call that only asks or signals.
pub(crate) const SHORT_CALL: Duration = Duration::from_secs(10);
/// The deadline of a call that may run hooks, stop a machine or wait for the guest.
pub(crate) const LONG_CALL: Duration = Duration::from_secs(180);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A call that failed, or could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody listens.
    #[error("cannot reach the supervisor of sandbox {sandbox}")]
    Connect {
        /// Whose supervisor.
        sandbox: SandboxId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The supervisor says no. Its message is complete.
    #[error("{message}")]
    Refused {
        /// ttrpc's code.
        code: ttrpc::Code,
        /// One line.
        message: String,
    },
    /// The supervisor ended, or broke the protocol.
    #[error("the supervisor ended during the call {call}: {message}")]
    Lost {
        /// The call's name.
        call: &'static str,
        /// ttrpc's words.
        message: String,
    },
    /// No answer in time.
    #[error("the supervisor did not answer the call {call} in time")]
    Deadline {
        /// The call's name.
        call: &'static str,
    },
}

impl CallError {
    /// Whether the supervisor says that what was named is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: ttrpc::Code::NOT_FOUND, .. })
    }

    /// Whether there is no supervisor to talk to (any more), or it hangs.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Lost { .. } | Self::Deadline { .. })
    }
}

/// A connection to a supervisor, with both of its services.
pub(crate) struct Connection {
    /// containerd's Task service.
    pub task: TaskClient,
    /// stockade.v1.
    pub supervisor: SupervisorClient,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Connects to the supervisor of `sandbox`.
///
/// # Errors
/// [`CallError::Connect`].
pub(crate) async fn connect(store: &Store, sandbox: &SandboxId) -> Result<Connection, CallError> {
    let stream = connect_unix(&store.api_socket(sandbox))
        .await
        .map_err(|source| CallError::Connect { sandbox: sandbox.clone(), source })?;
    let client = Client::new(Socket::new(stream));
    Ok(Connection { task: TaskClient::new(client.clone()), supervisor: SupervisorClient::new(client) })
}

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let directory = directory_of(path)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let short = short_path(&directory, name);
    match tokio::time::timeout(CONNECT_LIMIT, UnixStream::connect(short)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Opens the directory of `path`, for [`short_path`].
pub(super) fn directory_of(path: &Path) -> io::Result<OwnedFd> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    Ok(File::options().read(true).custom_flags(flags).open(directory)?.into())
}

/// A name for `name` in `directory` that fits the 108 bytes of a socket address, whatever the directory's own name.
pub(super) fn short_path(directory: &OwnedFd, name: &std::ffi::OsStr) -> std::path::PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

/// Turns the result of a ttrpc call into ours; `call` names it in messages.
///
/// # Errors
/// The call's.
pub(crate) fn answer<T>(call: &'static str, result: ttrpc::Result<T>) -> Result<T, CallError> {
    result.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => {
            CallError::Refused { code: status.code(), message: one_line(&status.message) }
        }
        // ttrpc has no type for the end of its own clock.
        ttrpc::Error::Others(message) if message == "Request deadline elapsed" => CallError::Deadline { call },
        other => CallError::Lost { call, message: one_line(&other.to_string()) },
    })
}

/// `text` without control characters: messages come from another process, and partly from a guest.
pub(super) fn one_line(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: ttrpc::Code, message: &str) -> ttrpc::Result<()> {
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
    }

    #[test]
    fn a_supervisors_refusal_is_its_own_message_in_one_line() {
        let error = answer("Start", status(ttrpc::Code::NOT_FOUND, "container x\ndoes not exist\n")).unwrap_err();
        assert_eq!(error.to_string(), "container x does not exist");
        assert!(error.is_not_found() && !error.is_gone());
    }

    #[test]
    fn a_supervisor_that_ends_is_gone() {
        let error = answer::<()>("Kill", Err(ttrpc::Error::RemoteClosed)).unwrap_err();
        assert!(error.is_gone() && error.to_string().contains("Kill"));
    }

    #[test]
    fn a_socket_under_a_long_path_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("r".repeat(120)));
        let sandbox: SandboxId = "pod".parse().unwrap();
        store.make_sandbox_dir(&sandbox).unwrap();
        let path = store.api_socket(&sandbox);
        let directory = directory_of(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let error = connect(&store, &sandbox).await.unwrap_err();
            assert!(error.is_gone(), "{error}");
            let _listener = tokio::net::UnixListener::bind(short_path(&directory, "api.sock".as_ref())).unwrap();
            connect(&store, &sandbox).await.unwrap();
        });
    }
}
