//! What can go wrong with containers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::State;
use crate::cgroup::CgroupError;
use crate::stdio::StreamError;

/// Why something could not be done with a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// No such container or process.
    #[error("no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    /// The id is taken.
    #[error("{what} {id:?} exists already")]
    Exists { what: &'static str, id: String },
    /// An id that could leave its directory.
    #[error("{0:?} is not a valid id")]
    BadId(String),
    /// The state forbids it.
    #[error("cannot {what} container {id:?}: it is {state}")]
    BadState { what: &'static str, id: String, state: State },
    /// The specification makes no sense here.
    #[error("the container's specification cannot be used: {reason}")]
    BadSpec { reason: String },
    /// A name that the container does not define.
    #[error("the container has no {what} {name:?}")]
    UnknownUser { what: &'static str, name: String },
    /// The program or the container could not be made.
    #[error("{0}")]
    Refused(String),
    /// Something around the launch failed.
    #[error("cannot {what}")]
    Launch {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// A file of the agent or the guest.
    #[error("cannot use {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A signal that the kernel does not take.
    #[error("cannot send signal {signal} to process {pid}")]
    Signal {
        signal: i32,
        pid: i32,
        #[source]
        source: nix::errno::Errno,
    },
    /// The container survived.
    #[error("container {id:?} did not end within {limit:?} of being killed")]
    Unkillable { id: String, limit: Duration },
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
}
