//! How a machine ended: which of its processes went first, and what that means.

use crate::qmp::{Reason, Seen};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stockade_hypervisor::{ExitCause, ProcessRole};
use stockade_machine_process::process::{Ended, Process};
use stockade_machine_process::stop::Stopping;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long QEMU may take to end after it said that it shuts down.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);
/// How long the end of one process is taken for a part of the other's: a dying process closes its sockets first.
const CONSEQUENCE_WAIT: Duration = Duration::from_millis(50);
/// How long the rest of the monitor's events is waited for after QEMU's end.
const EVENTS_WAIT: Duration = Duration::from_millis(500);

/// The two processes of a machine.
#[derive(Debug)]
pub(crate) struct Processes {
    pub(crate) hypervisor: Process,
    pub(crate) devices: Process,
    killed: AtomicBool,
}

impl Processes {
    pub(crate) fn new(hypervisor: Process, devices: Process) -> Self {
        Self { hypervisor, devices, killed: AtomicBool::new(false) }
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.hypervisor.signal(libc::SIGKILL);
        self.devices.signal(libc::SIGKILL);
    }

    /// Whether [`Processes::kill`] was called: what the processes end of is then no news.
    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Waits for the machine's end and makes it complete: afterwards both processes are reaped.
    ///
    /// To be waited for to its end once the processes [are killed](Processes::is_killed): a second call would take what
    /// the first one killed for a cause.
    ///
    /// Answers how QEMU ended, and how the device process did when that was what ended the machine.
    pub(crate) async fn ended(&self, seen: Option<watch::Receiver<Seen>>) -> (Ended, Option<Ended>) {
        let shutting_down = async {
            if let Some(mut seen) = seen
                && seen.wait_for(|seen| seen.shutdown.is_some()).await.is_ok()
            {
                tokio::time::sleep(SHUTDOWN_WAIT).await;
            } else {
                std::future::pending().await
            }
        };
        let first = tokio::select! {
            biased;
            devices = self.devices.ended() => Some(devices),
            _ = self.hypervisor.ended() => None,
            () = shutting_down => None,
        };
        let culprit = match first {
            // QEMU closed its connections: it is ending, or let its devices go for a reason of its own.
            Some(devices @ Ended::Status(0, _)) => {
                timeout(SHUTDOWN_WAIT, self.hypervisor.ended()).await.is_err().then_some(devices)
            }
            Some(devices @ Ended::Status(..)) => {
                let killed = matches!(timeout(CONSEQUENCE_WAIT, self.hypervisor.ended()).await, Ok(Ended::Signal(_)));
                (!killed).then_some(devices)
            }
            Some(devices @ Ended::Signal(_)) => Some(devices),
            // QEMU gives up when its devices do not answer, and may be seen to end before they are.
            None => match timeout(CONSEQUENCE_WAIT, self.devices.ended()).await {
                Ok(devices) if self.failed() && !matches!(devices, Ended::Status(0, _)) => Some(devices),
                _ => None,
            },
        };
        self.kill();
        self.devices.ended().await;
        (self.hypervisor.ended().await, culprit)
    }

    /// Whether QEMU ended by itself with an error.
    fn failed(&self) -> bool {
        matches!(self.hypervisor.has_ended(), Some(Ended::Status(status, _)) if status != 0)
    }
}

/// The events seen after QEMU's end, none of them missing.
pub(crate) async fn all_events(mut seen: watch::Receiver<Seen>) -> Seen {
    let closed = async { while seen.changed().await.is_ok() {} };
    if timeout(EVENTS_WAIT, closed).await.is_err() {
        tracing::debug!("QEMU's monitor stays open after its end");
    }
    *seen.borrow()
}

/// What the ends of the processes and the events before them come to.
pub(crate) fn cause(
    hypervisor: &Ended,
    devices: Option<&Ended>,
    seen: Seen,
    console_panic: bool,
    stopping: Stopping,
) -> ExitCause {
    if stopping == Stopping::Forced {
        return ExitCause::Stopped;
    }
    // A device process whose connections QEMU closed, because its guest has ended, is no cause, however long QEMU then
    // takes to end itself.
    let follows = matches!(devices, Some(Ended::Status(0, _)))
        && matches!(seen.shutdown, Some(Reason::GuestShutdown | Reason::GuestReset | Reason::GuestPanic));
    if let Some(devices) = devices
        && !follows
    {
        return devices.cause(ProcessRole::Devices);
    }
    match seen.shutdown {
        Some(Reason::GuestPanic) => ExitCause::GuestPanic,
        // The kernel resets after a panic, because it is told to.
        Some(Reason::GuestReset) if seen.panicked || console_panic => ExitCause::GuestPanic,
        Some(Reason::GuestShutdown | Reason::GuestReset) if stopping == Stopping::Asked => ExitCause::Stopped,
        Some(Reason::GuestShutdown) => ExitCause::GuestShutdown,
        Some(Reason::GuestReset) => ExitCause::GuestReset,
        // QEMU's handler makes an orderly end of it and does not pass on which signal it was.
        Some(Reason::HostSignal) => ExitCause::Signal { process: ProcessRole::Hypervisor, signal: libc::SIGTERM },
        Some(Reason::HostQuit) => ExitCause::Stopped,
        Some(Reason::Other) | None => hypervisor.cause(ProcessRole::Hypervisor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Ended = Ended::Status(0, String::new());
    const KILLED: Ended = Ended::Signal(9);

    fn seen(shutdown: Reason) -> Seen {
        Seen { shutdown: Some(shutdown), panicked: false }
    }

    #[test]
    fn the_guests_own_ends_are_told_apart() {
        for (shutdown, expected) in [
            (Reason::GuestShutdown, ExitCause::GuestShutdown),
            (Reason::GuestReset, ExitCause::GuestReset),
            (Reason::GuestPanic, ExitCause::GuestPanic),
        ] {
            assert_eq!(cause(&CLEAN, None, seen(shutdown), false, Stopping::No), expected);
        }
    }

    #[test]
    fn devices_that_end_well_after_the_guest_are_no_cause_and_others_are() {
        let ended = seen(Reason::GuestReset);
        assert_eq!(cause(&KILLED, Some(&CLEAN), ended, false, Stopping::No), ExitCause::GuestReset);
        let devices = ExitCause::Signal { process: ProcessRole::Devices, signal: 9 };
        assert_eq!(cause(&KILLED, Some(&KILLED), ended, false, Stopping::No), devices);
        let devices = CLEAN.cause(ProcessRole::Devices);
        assert_eq!(cause(&KILLED, Some(&CLEAN), Seen::default(), false, Stopping::No), devices);
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic_and_a_shutdown_after_one_is_not() {
        assert_eq!(cause(&CLEAN, None, seen(Reason::GuestReset), true, Stopping::No), ExitCause::GuestPanic);
        let panicked = Seen { shutdown: Some(Reason::GuestReset), panicked: true };
        assert_eq!(cause(&CLEAN, None, panicked, false, Stopping::Asked), ExitCause::GuestPanic);
        assert_eq!(cause(&CLEAN, None, seen(Reason::GuestShutdown), true, Stopping::No), ExitCause::GuestShutdown);
    }

    #[test]
    fn an_end_that_was_asked_for_is_a_stop() {
        assert_eq!(cause(&CLEAN, None, seen(Reason::GuestShutdown), false, Stopping::Asked), ExitCause::Stopped);
        assert_eq!(cause(&KILLED, None, Seen::default(), false, Stopping::Forced), ExitCause::Stopped);
        assert_eq!(cause(&KILLED, Some(&KILLED), Seen::default(), false, Stopping::Forced), ExitCause::Stopped);
    }

    #[test]
    fn a_process_that_dies_is_named_even_while_the_guest_is_asked() {
        let hypervisor = ExitCause::Signal { process: ProcessRole::Hypervisor, signal: 9 };
        let devices = ExitCause::Signal { process: ProcessRole::Devices, signal: 9 };
        for stopping in [Stopping::No, Stopping::Asked] {
            assert_eq!(cause(&KILLED, None, Seen::default(), false, stopping), hypervisor);
            assert_eq!(cause(&KILLED, Some(&KILLED), Seen::default(), false, stopping), devices);
        }
    }

    #[test]
    fn an_error_of_qemu_carries_its_words() {
        let ended = Ended::Status(1, "no such machine".to_owned());
        let ExitCause::Status { status: 1, message, .. } = cause(&ended, None, Seen::default(), false, Stopping::No)
        else {
            panic!("not a status")
        };
        assert_eq!(message, "no such machine");
    }
}
