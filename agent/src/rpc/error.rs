//! The one table from the agent's errors to the codes of its answers.

use std::error::Error;

use ttrpc::{Code, get_status};

use crate::cgroup::CgroupError;
use crate::container::ContainerError;
use crate::mounts::MountError;
use crate::network::NetworkError;
use crate::stdio::StreamError;

/// A failed call, on its way to the caller.
#[derive(Debug)]
pub(crate) struct RpcError {
    code: Code,
    text: String,
}

impl RpcError {
    /// A failure with a code and a text of its own.
    pub(crate) fn new(code: Code, text: impl Into<String>) -> RpcError {
        RpcError { code, text: text.into() }
    }

    fn of(code: Code, error: &dyn Error) -> RpcError {
        RpcError::new(code, crate::log::Causes(error).to_string())
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(get_status(error.code, error.text))
    }
}

impl From<ContainerError> for RpcError {
    fn from(error: ContainerError) -> RpcError {
        let code = match &error {
            ContainerError::NotFound { .. } => Code::NOT_FOUND,
            ContainerError::Exists { .. } => Code::ALREADY_EXISTS,
            ContainerError::BadId(_)
            | ContainerError::BadSpec { .. }
            | ContainerError::UnknownUser { .. }
            | ContainerError::Signal { source: nix::errno::Errno::EINVAL, .. } => Code::INVALID_ARGUMENT,
            ContainerError::BadState { .. } => Code::FAILED_PRECONDITION,
            ContainerError::Unkillable { .. } => Code::DEADLINE_EXCEEDED,
            ContainerError::Stream(stream) => stream_code(stream),
            ContainerError::Cgroup(cgroup) => cgroup_code(cgroup),
            _ => Code::INTERNAL,
        };
        RpcError::of(code, &error)
    }
}

impl From<StreamError> for RpcError {
    fn from(error: StreamError) -> RpcError {
        RpcError::of(stream_code(&error), &error)
    }
}

fn stream_code(error: &StreamError) -> Code {
    match error {
        StreamError::End => Code::OUT_OF_RANGE,
        StreamError::Closed(_) | StreamError::BrokenPipe => Code::FAILED_PRECONDITION,
        StreamError::EmptyRead => Code::INVALID_ARGUMENT,
        StreamError::Io { .. } => Code::INTERNAL,
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::Limits { .. } => Code::INVALID_ARGUMENT,
        CgroupError::Slow { .. } => Code::DEADLINE_EXCEEDED,
        CgroupError::File { .. } | CgroupError::Devices { .. } => Code::INTERNAL,
    }
}

impl From<CgroupError> for RpcError {
    fn from(error: CgroupError) -> RpcError {
        RpcError::of(cgroup_code(&error), &error)
    }
}

impl From<MountError> for RpcError {
    fn from(error: MountError) -> RpcError {
        let code = match &error {
            MountError::UnknownDriver { .. } | MountError::BadMountPoint(_) | MountError::BadOption(_) => {
                Code::INVALID_ARGUMENT
            }
            MountError::NoDevice { .. } => Code::DEADLINE_EXCEEDED,
            MountError::Mount { .. } | MountError::Path { .. } => Code::INTERNAL,
        };
        RpcError::of(code, &error)
    }
}

impl From<NetworkError> for RpcError {
    fn from(error: NetworkError) -> RpcError {
        let code = match &error {
            NetworkError::BadRequest { .. } => Code::INVALID_ARGUMENT,
            NetworkError::NoInterface(_) => Code::NOT_FOUND,
            NetworkError::Netlink { .. } | NetworkError::Socket(_) | NetworkError::Driver { .. } => Code::INTERNAL,
        };
        RpcError::of(code, &error)
    }
}

impl From<stockade_agent_protocol::oci_convert::ConvertError> for RpcError {
    fn from(error: stockade_agent_protocol::oci_convert::ConvertError) -> RpcError {
        RpcError::of(Code::INVALID_ARGUMENT, &error)
    }
}

/// For what concerns a file of the guest.
pub(crate) fn io_failure(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> RpcError {
    move |error| RpcError::new(Code::INTERNAL, format!("cannot {what}: {error}"))
}
