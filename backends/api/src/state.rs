//! The state machine of every backend: which operation a state allows. The picture is in the crate's documentation.

use crate::{HypervisorError, Operation, VmState};

impl VmState {
    /// Whether `operation` may be asked for in this state. An answer of `true` says nothing of the backend's abilities:
    /// the state is looked at first, the [`crate::Capabilities`] after.
    pub const fn allows(self, operation: Operation) -> bool {
        use Operation as O;
        match operation {
            O::Prepare => matches!(self, Self::New),
            O::Start | O::Restore => matches!(self, Self::Prepared),
            O::Pause | O::Resume | O::AgentChannel | O::Metrics => {
                matches!(self, Self::Running | Self::Paused)
            }
            O::Resize => matches!(self, Self::Running),
            O::Save => matches!(self, Self::Paused),
            O::AddDevice | O::RemoveDevice => {
                matches!(self, Self::Prepared | Self::Running | Self::Paused)
            }
            O::Stop => true,
        }
    }

    /// [`VmState::allows`] as a result.
    ///
    /// # Errors
    /// [`HypervisorError::WrongState`] when the state forbids the operation.
    pub const fn check(self, operation: Operation) -> Result<(), HypervisorError> {
        if self.allows(operation) { Ok(()) } else { Err(HypervisorError::WrongState { operation, state: self }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_machine_allows_nothing_but_stop() {
        use Operation as O;
        for operation in [
            O::Prepare,
            O::Start,
            O::Pause,
            O::Resume,
            O::AddDevice,
            O::RemoveDevice,
            O::Resize,
            O::Metrics,
            O::AgentChannel,
            O::Save,
            O::Restore,
        ] {
            assert!(!VmState::Stopped.allows(operation), "{operation:?}");
        }
        assert!(VmState::Stopped.allows(O::Stop));
    }
}
