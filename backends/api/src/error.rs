//! What can go wrong with a machine, in terms that name no backend.

use crate::types::{DeviceId, ExitCause, VmState};
use std::io;
use std::time::Duration;

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`crate::Hypervisor::prepare`]
    Prepare,
    /// [`crate::Hypervisor::start`]
    Start,
    /// [`crate::Hypervisor::pause`]
    Pause,
    /// [`crate::Hypervisor::resume`]
    Resume,
    /// [`crate::Hypervisor::stop`]
    Stop,
    /// [`crate::Hypervisor::add_device`]
    AddDevice,
    /// [`crate::Hypervisor::remove_device`]
    RemoveDevice,
    /// [`crate::Hypervisor::resize`]
    Resize,
    /// [`crate::Hypervisor::metrics`]
    Metrics,
    /// [`crate::Hypervisor::agent_channel`]
    AgentChannel,
    /// [`crate::Snapshots::save`]
    Save,
    /// [`crate::Snapshots::restore`]
    Restore,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare the virtual machine",
            Self::Start => "start the virtual machine",
            Self::Pause => "pause the virtual machine",
            Self::Resume => "resume the virtual machine",
            Self::Stop => "stop the virtual machine",
            Self::AddDevice => "add a device",
            Self::RemoveDevice => "remove a device",
            Self::Resize => "resize the virtual machine",
            Self::Metrics => "read the virtual machine's counters",
            Self::AgentChannel => "find the agent's channel",
            Self::Save => "save the virtual machine",
            Self::Restore => "restore the virtual machine",
        })
    }
}

/// Why a hypervisor operation failed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The configuration is missing something or contradicts itself.
    #[error("cannot use the configuration of the virtual machine: {option}: {problem}")]
    Config {
        /// The option, by its name in the configuration.
        option: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The state forbids the operation.
    #[error("cannot {operation} while it is {state}")]
    WrongState {
        /// What was asked.
        operation: Operation,
        /// The state at that moment.
        state: VmState,
    },
    /// The backend does not have this ability here.
    #[error("cannot {operation}: the {backend} backend cannot do this here: {reason}")]
    Unsupported {
        /// What was asked.
        operation: Operation,
        /// The backend's name.
        backend: &'static str,
        /// Why not.
        reason: String,
    },
    /// No device by that id.
    #[error("no device {0}")]
    NoSuchDevice(DeviceId),
    /// A host call failed.
    #[error("cannot {operation}: {what}")]
    Host {
        /// What was asked.
        operation: Operation,
        /// What was tried, with paths.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The hypervisor process refused or answered nonsense.
    #[error("cannot {operation}: the hypervisor refused: {message}")]
    Refused {
        /// What was asked.
        operation: Operation,
        /// Its words, bounded in length.
        message: String,
    },
    /// The machine ended during the operation.
    #[error("cannot {operation}: the virtual machine ended: {cause}")]
    Exited {
        /// What was asked.
        operation: Operation,
        /// How it ended.
        cause: ExitCause,
    },
    /// No answer within the limit.
    #[error("cannot {operation}: no answer within {limit:?}")]
    Timeout {
        /// What was asked.
        operation: Operation,
        /// The limit.
        limit: Duration,
    },
}

impl HypervisorError {
    /// A [`HypervisorError::Host`] from an I/O error.
    pub fn host(operation: Operation, what: impl Into<String>, source: io::Error) -> Self {
        Self::Host { operation, what: what.into(), source }
    }
}
