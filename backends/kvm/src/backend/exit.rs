//! How a machine ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stockade_hypervisor::{ExitCause, ProcessRole};
use stockade_machine_process::process::{Ended, Process};
use stockade_machine_process::stop::Stopping;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::control::{ExitReason, Seen};

/// How long the process may take to end after it said that its machine has ended, or closed its control socket.
const END_WAIT: Duration = Duration::from_secs(3);
/// How long its last messages are read after its end.
const EVENTS_WAIT: Duration = Duration::from_millis(500);

/// Waits for the process's end and makes sure of it once its machine has ended or it has broken the connection.
pub(super) async fn ended(process: &Process, mut seen: watch::Receiver<Seen>) -> (Ended, Seen) {
    let over = async {
        // Without a sender nothing more will come either.
        drop(seen.wait_for(|seen| seen.exited.is_some() || seen.closed).await);
        tokio::time::sleep(END_WAIT).await;
    };
    let ended = tokio::select! {
        biased;
        ended = process.ended() => ended,
        () = over => {
            process.signal(libc::SIGKILL);
            process.ended().await
        }
    };
    if timeout(EVENTS_WAIT, seen.wait_for(|seen| seen.closed)).await.is_err() {
        tracing::debug!("the control socket stays open after the process's end");
    }
    let seen = seen.borrow().clone();
    (ended, seen)
}

/// What the end of the process and its messages come to. The process may be in a guest's hands: a lie costs nothing but
/// the truth of this answer.
pub(super) fn cause(ended: &Ended, seen: &Seen, console_panic: bool, stopping: Stopping) -> ExitCause {
    let process = ProcessRole::Hypervisor;
    match (&seen.exited, stopping) {
        (_, Stopping::Forced) | (Some(ExitReason::Quit), _) => ExitCause::Stopped,
        // The kernel resets after a panic, because it is told to.
        (Some(ExitReason::Reset), _) if seen.panicked || console_panic => ExitCause::GuestPanic,
        (Some(ExitReason::Shutdown | ExitReason::Reset), Stopping::Asked) => ExitCause::Stopped,
        (Some(ExitReason::Shutdown), Stopping::No) => ExitCause::GuestShutdown,
        (Some(ExitReason::Reset), Stopping::No) => ExitCause::GuestReset,
        (Some(ExitReason::Signal(signal)), _) => ExitCause::Signal { process, signal: *signal },
        (Some(ExitReason::Failed { message }), _) => {
            let status = match ended {
                Ended::Status(status, _) => *status,
                // Killed, because it did not end after it had said so.
                Ended::Signal(signal) => 128 + signal,
            };
            ExitCause::Status { process, status, message: message.clone() }
        }
        (None, _) => ended.cause(process),
    }
}

/// The guest's kernel has said on its console that it panics.
pub(super) fn has_panicked(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Ended = Ended::Status(0, String::new());
    const KILLED: Ended = Ended::Signal(31);
    const PROCESS: ProcessRole = ProcessRole::Hypervisor;

    fn seen(reason: ExitReason) -> Seen {
        Seen { ready: true, exited: Some(reason), ..Seen::default() }
    }

    #[test]
    fn the_guests_own_ends_are_told_apart() {
        let of = |reason, panic| cause(&CLEAN, &seen(reason), panic, Stopping::No);
        assert_eq!(of(ExitReason::Shutdown, false), ExitCause::GuestShutdown);
        assert_eq!(of(ExitReason::Shutdown, true), ExitCause::GuestShutdown);
        assert_eq!(of(ExitReason::Reset, false), ExitCause::GuestReset);
        assert_eq!(of(ExitReason::Reset, true), ExitCause::GuestPanic);
        let told = Seen { panicked: true, ..seen(ExitReason::Reset) };
        assert_eq!(cause(&CLEAN, &told, false, Stopping::Asked), ExitCause::GuestPanic);
    }

    #[test]
    fn an_end_that_was_asked_for_is_a_stop() {
        assert_eq!(cause(&CLEAN, &seen(ExitReason::Shutdown), false, Stopping::Asked), ExitCause::Stopped);
        assert_eq!(cause(&CLEAN, &seen(ExitReason::Quit), false, Stopping::No), ExitCause::Stopped);
        assert_eq!(cause(&KILLED, &Seen::default(), false, Stopping::Forced), ExitCause::Stopped);
    }

    #[test]
    fn a_process_that_dies_by_itself_is_named_with_its_signal_or_words() {
        for stopping in [Stopping::No, Stopping::Asked] {
            let expected = ExitCause::Signal { process: PROCESS, signal: 31 };
            assert_eq!(cause(&KILLED, &Seen::default(), false, stopping), expected);
        }
        let told = seen(ExitReason::Signal(15));
        assert_eq!(cause(&CLEAN, &told, false, Stopping::No), ExitCause::Signal { process: PROCESS, signal: 15 });
        let failed = seen(ExitReason::Failed { message: "no memory".to_owned() });
        let expected = ExitCause::Status { process: PROCESS, status: 1, message: "no memory".to_owned() };
        assert_eq!(cause(&Ended::Status(1, "other words".to_owned()), &failed, false, Stopping::No), expected);
    }
}
