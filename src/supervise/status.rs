//! The one mapping between our errors and ttrpc's statuses.

use crate::error::{ErrorKind, OpError};
use ttrpc::{Code, Error, get_status};

/// What the client gets: the code, and the whole chain in one line.
pub(super) fn to_ttrpc(error: OpError) -> Error {
    let code = match error.kind() {
        ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
        ErrorKind::NotFound => Code::NOT_FOUND,
        ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
        ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
        ErrorKind::Cancelled => Code::CANCELLED,
        ErrorKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        ErrorKind::Unimplemented => Code::UNIMPLEMENTED,
        ErrorKind::AgentGone => Code::UNAVAILABLE,
        ErrorKind::Internal => Code::INTERNAL,
    };
    Error::RpcStatus(get_status(code, error.one_line()))
}
