//! The table: in which state may what be asked?

use crate::error::{ErrorKind, OpError};
use serde::Serialize;

/// The state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxState {
    /// Nothing was made yet.
    Empty,
    /// Its first container's pipeline runs.
    Creating,
    /// Its machine runs.
    Up,
    /// Its machine stands still.
    Paused,
    /// Its machine has ended; its containers can be inspected and deleted.
    Down,
    /// Its undo stack is being unwound.
    Leaving,
    /// Nothing is left.
    Gone,
}

/// What may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Make the machine and the first container.
    CreateSandbox,
    /// Make a further container.
    CreateContainer,
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Change vCPUs or memory; read the machine's counters.
    Machine,
    /// End the machine.
    Stop,
}

/// May `request` be done in `state`?
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] (or `AlreadyExists` for a second creation) with the reason.
pub fn allowed(state: SandboxState, request: Request) -> Result<(), OpError> {
    use Request as R;
    use SandboxState as S;
    let deny = |what: &str| Err(OpError::new(ErrorKind::FailedPrecondition, what));
    match (state, request) {
        (S::Empty, R::CreateSandbox) => Ok(()),
        (_, R::CreateSandbox) => Err(OpError::new(ErrorKind::AlreadyExists, "the sandbox has been created already")),
        (S::Empty, _) => deny("the sandbox has not been created"),
        (S::Up, R::Resume) => deny("the sandbox is not paused"),
        (S::Up, _) | (S::Paused, R::Resume | R::Machine | R::Stop | R::Pause) => Ok(()),
        (S::Paused, R::CreateContainer) => deny("the sandbox is paused; resume it first"),
        (S::Down, R::Stop) => Ok(()),
        (S::Creating, _) => deny("the sandbox is still being created"),
        (S::Down, _) => deny("the sandbox's virtual machine has ended"),
        (S::Leaving | S::Gone, _) => deny("the sandbox is being deleted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [SandboxState; 7] = [
        SandboxState::Empty,
        SandboxState::Creating,
        SandboxState::Up,
        SandboxState::Paused,
        SandboxState::Down,
        SandboxState::Leaving,
        SandboxState::Gone,
    ];

    #[test]
    fn a_sandbox_is_created_once() {
        for state in ALL {
            assert_eq!(allowed(state, Request::CreateSandbox).is_ok(), state == SandboxState::Empty, "{state:?}");
        }
    }

    #[test]
    fn a_further_container_needs_a_machine_that_runs() {
        for state in ALL {
            assert_eq!(allowed(state, Request::CreateContainer).is_ok(), state == SandboxState::Up, "{state:?}");
        }
    }

    #[test]
    fn a_machine_that_has_ended_may_be_stopped_again() {
        assert!(allowed(SandboxState::Down, Request::Stop).is_ok());
        assert!(allowed(SandboxState::Down, Request::Machine).is_err());
    }
}
