//! The error of an operation, as it crosses actors and leaves by the front doors.

use std::error::Error;
use std::fmt;

/// What kind of failure it is; decides the ttrpc code and what a caller may do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong: a bad spec, option, id.
    InvalidArgument,
    /// What it names is not there.
    NotFound,
    /// What it names is there already.
    AlreadyExists,
    /// Right request, wrong moment: the state forbids it.
    FailedPrecondition,
    /// Somebody asked for the end of it.
    Cancelled,
    /// A time limit passed.
    DeadlineExceeded,
    /// This build, backend or guest cannot do it.
    Unimplemented,
    /// The connection to the guest's agent has broken: its machine has ended, or is ended for it.
    AgentGone,
    /// The host, the machine or the guest failed.
    Internal,
}

/// A failed operation: what was tried, and the chain of causes.
#[derive(Debug)]
pub struct OpError {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl OpError {
    /// An error without a further cause.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// An error with its cause, which the message of this one does not repeat.
    pub fn because(kind: ErrorKind, what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, what: what.into(), source: Some(source.into()) }
    }

    /// [`ErrorKind::Internal`] with a cause.
    pub fn internal(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::because(ErrorKind::Internal, what, source)
    }

    /// The same kind, one step further out.
    pub fn within(self, what: impl Into<String>) -> Self {
        Self { kind: self.kind, what: what.into(), source: Some(Box::new(self)) }
    }

    /// What kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The whole chain in one line, control characters replaced: what a person reads.
    pub fn one_line(&self) -> String {
        let mut line = self.what.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries print their source themselves.
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for OpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<crate::state::StateError> for OpError {
    fn from(error: crate::state::StateError) -> Self {
        use crate::state::StateError;
        let kind = match &error {
            StateError::Exists(_) => ErrorKind::AlreadyExists,
            StateError::NoSuchContainer(_) | StateError::NoSuchSandbox(_) => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        };
        let what = error.to_string();
        match std::error::Error::source(&error) {
            Some(source) => Self::because(kind, what, source.to_string()),
            None => Self::new(kind, what),
        }
    }
}

impl From<crate::ids::IdError> for OpError {
    fn from(error: crate::ids::IdError) -> Self {
        Self::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

impl From<stockade_hypervisor::HypervisorError> for OpError {
    fn from(error: stockade_hypervisor::HypervisorError) -> Self {
        use stockade_hypervisor::HypervisorError as E;
        let kind = match &error {
            E::Config { .. } => ErrorKind::InvalidArgument,
            E::WrongState { .. } => ErrorKind::FailedPrecondition,
            E::Unsupported { .. } => ErrorKind::Unimplemented,
            E::NoSuchDevice(_) => ErrorKind::NotFound,
            E::Timeout { .. } => ErrorKind::DeadlineExceeded,
            E::Host { .. } | E::Refused { .. } | E::Exited { .. } => ErrorKind::Internal,
        };
        let what = error.to_string();
        match std::error::Error::source(&error) {
            Some(source) => Self::because(kind, what, source.to_string()),
            None => Self::new(kind, what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_one_line_and_repeats_nothing() {
        let error = OpError::internal("cannot read /x", std::io::Error::other("no\nsuch thing")).within("step rootfs");
        assert_eq!(error.one_line(), "step rootfs: cannot read /x: no such thing");
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
}
