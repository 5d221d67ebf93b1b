//! Ending a machine by a ladder: ask the guest, tell the monitor to quit, SIGTERM. The last rung, SIGKILL, is the caller's.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use stockade_hypervisor::StopDeadlines;
use tokio::time::timeout;

use crate::process::Process;

/// Whether somebody asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stopping {
    /// Nobody.
    #[default]
    No,
    /// The guest was asked to power off.
    Asked,
    /// The monitor was told to end, or killed.
    Forced,
}

/// What is noted of the end of a running machine.
#[derive(Debug, Default)]
pub struct StopNote(Mutex<Stopping>);

impl StopNote {
    /// Notes that the end was asked for; a later note never weakens an earlier one.
    pub fn note(&self, to: Stopping) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = to.max(*noted);
    }

    /// The strongest note.
    pub fn noted(&self) -> Stopping {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes down the ladder until `process` has ended. `false`: it did not, and must be killed.
///
/// `ask` presses the guest's power button and `quit` tells the monitor to end; each is polled when its rung is reached, and
/// its rung's time is waited out however it comes out.
pub async fn ladder(
    process: &Process,
    note: &StopNote,
    deadlines: StopDeadlines,
    paused: bool,
    ask: impl Future<Output = ()>,
    quit: impl Future<Output = ()>,
) -> bool {
    // A guest that stands still can do nothing on its own.
    if !deadlines.guest.is_zero() && !paused {
        note.note(Stopping::Asked);
        if ends_within(deadlines.guest, process, ask).await {
            return true;
        }
    }
    note.note(Stopping::Forced);
    if !deadlines.quit.is_zero() && ends_within(deadlines.quit, process, quit).await {
        return true;
    }
    if deadlines.term.is_zero() {
        return false;
    }
    process.signal(libc::SIGTERM);
    ends_within(deadlines.term, process, std::future::ready(())).await
}

/// Whether the process ends within the limit, while `act` goes on beside.
async fn ends_within(limit: Duration, process: &Process, act: impl Future<Output = ()>) -> bool {
    let acting = async {
        act.await;
        std::future::pending::<()>().await;
    };
    timeout(limit, async {
        tokio::select! {
            _ = process.ended() => {}
            () = acting => {}
        }
    })
    .await
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_note_never_weakens_an_earlier_one() {
        let note = StopNote::default();
        assert_eq!(note.noted(), Stopping::No);
        for (to, expected) in [
            (Stopping::Asked, Stopping::Asked),
            (Stopping::Forced, Stopping::Forced),
            (Stopping::Asked, Stopping::Forced),
            (Stopping::No, Stopping::Forced),
        ] {
            note.note(to);
            assert_eq!(note.noted(), expected);
        }
    }
}
