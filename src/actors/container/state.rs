//! The table: in which state may what be asked?

use crate::error::{ErrorKind, OpError};
use crate::oci::Status;
use serde::Serialize;

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Its pipeline runs.
    Creating,
    /// Its process waits to be started.
    Created,
    /// The guest has been asked to let its process run, and has not answered yet.
    Starting,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended.
    Stopped,
    /// Deleted, or its creation was rolled back.
    Gone,
}

impl ContainerState {
    /// The word of the OCI runtime specification (`paused` is runc's).
    pub fn status(self) -> Status {
        match self {
            Self::Creating => Status::Creating,
            Self::Created | Self::Starting => Status::Created,
            Self::Running => Status::Running,
            Self::Paused => Status::Paused,
            Self::Stopped | Self::Gone => Status::Stopped,
        }
    }
}

/// What may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Let the process run.
    Start,
    /// Start a further process.
    Exec,
    /// Send a signal to the first process, or all.
    Signal {
        /// `kill --all`: a container that has stopped is then no error.
        all: bool,
    },
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change limits.
    Update,
    /// Read counters, list processes.
    Inspect,
    /// Remove.
    Delete,
}

/// The table's answer.
#[derive(Debug)]
pub enum Verdict {
    /// Do it.
    Accept,
    /// There is nothing to do, and that is fine.
    Ignore,
    /// Cancel the creation instead.
    Cancel,
    /// No, for this reason.
    Deny(OpError),
}

/// May `request` be done in `state`? The container's name is for the message.
pub fn verdict(id: &str, state: ContainerState, request: Request) -> Verdict {
    use ContainerState as S;
    use Request as R;
    let deny =
        |what: &str| Verdict::Deny(OpError::new(ErrorKind::FailedPrecondition, format!("container {id} {what}")));
    match (state, request) {
        (S::Gone, _) => Verdict::Deny(OpError::new(ErrorKind::NotFound, format!("container {id} does not exist"))),

        (S::Creating, R::Signal { .. } | R::Delete) => Verdict::Cancel,
        (S::Creating, _) => deny("is still being created"),

        (S::Created, R::Start) => Verdict::Accept,
        (_, R::Start) => deny(match state {
            S::Stopped => "has stopped; it cannot be started again",
            S::Starting => "is being started already",
            _ => "is running already",
        }),

        (S::Running, R::Exec) => Verdict::Accept,
        (S::Paused, R::Exec) => deny("is paused; resume it first"),
        (S::Created, R::Exec) => deny("is not running yet; start it first"),
        (S::Starting, R::Exec) => deny("is not running yet; it is being started"),
        (S::Stopped, R::Exec) => deny("is not running"),

        (S::Stopped, R::Signal { all: true }) => Verdict::Ignore,
        // What containerd's clients take for done.
        (S::Stopped, R::Signal { all: false }) => {
            Verdict::Deny(OpError::new(ErrorKind::NotFound, format!("container {id} is not running")))
        }
        (_, R::Signal { .. }) => Verdict::Accept,

        (S::Running, R::Pause) | (S::Paused, R::Resume) => Verdict::Accept,
        (S::Paused, R::Pause) => deny("is paused already"),
        (_, R::Pause) => deny("is not running"),
        (_, R::Resume) => deny("is not paused"),

        (S::Stopped, R::Update | R::Inspect) => deny("is not running"),
        (_, R::Update | R::Inspect) => Verdict::Accept,

        (S::Stopped | S::Created, R::Delete) => Verdict::Accept,
        (S::Starting, R::Delete) => deny("that is not stopped cannot be deleted: it is being started"),
        (S::Running, R::Delete) => deny("that is not stopped cannot be deleted: running"),
        (S::Paused, R::Delete) => deny("that is not stopped cannot be deleted: paused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(state: ContainerState, request: Request) -> bool {
        matches!(verdict("c", state, request), Verdict::Accept)
    }

    #[test]
    fn a_container_is_started_once() {
        assert!(accepts(ContainerState::Created, Request::Start));
        for state in [
            ContainerState::Starting,
            ContainerState::Running,
            ContainerState::Paused,
            ContainerState::Stopped,
            ContainerState::Creating,
        ] {
            assert!(!accepts(state, Request::Start), "{state:?}");
        }
    }

    #[test]
    fn what_is_being_started_takes_signals_and_nothing_that_needs_it_running() {
        assert!(accepts(ContainerState::Starting, Request::Signal { all: false }));
        for request in [Request::Exec, Request::Pause, Request::Resume, Request::Delete] {
            assert!(!accepts(ContainerState::Starting, request), "{request:?}");
        }
        assert_eq!(ContainerState::Starting.status(), Status::Created);
    }

    #[test]
    fn kill_and_delete_cancel_a_creation_and_nothing_else_is_allowed_then() {
        for request in [Request::Signal { all: false }, Request::Delete] {
            assert!(matches!(verdict("c", ContainerState::Creating, request), Verdict::Cancel));
        }
        for request in [Request::Start, Request::Exec, Request::Pause, Request::Resume, Request::Update] {
            assert!(matches!(verdict("c", ContainerState::Creating, request), Verdict::Deny(_)));
        }
    }

    #[test]
    fn killing_all_of_a_stopped_container_is_fine_and_killing_it_is_not() {
        assert!(matches!(verdict("c", ContainerState::Stopped, Request::Signal { all: true }), Verdict::Ignore));
        let Verdict::Deny(error) = verdict("c", ContainerState::Stopped, Request::Signal { all: false }) else {
            panic!("a stopped container takes no signal");
        };
        assert_eq!(error.one_line(), "container c is not running");
    }

    #[test]
    fn what_runs_is_not_deleted() {
        assert!(accepts(ContainerState::Stopped, Request::Delete));
        assert!(accepts(ContainerState::Created, Request::Delete));
        assert!(!accepts(ContainerState::Running, Request::Delete));
        assert!(!accepts(ContainerState::Paused, Request::Delete));
    }

    #[test]
    fn nothing_is_possible_once_it_is_gone() {
        for request in [Request::Start, Request::Delete, Request::Signal { all: true }, Request::Inspect] {
            let Verdict::Deny(error) = verdict("c", ContainerState::Gone, request) else { panic!("{request:?}") };
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
    }
}
