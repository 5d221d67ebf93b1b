//! Ending a machine by a ladder: ask the guest, tell QEMU to quit, SIGTERM, SIGKILL.

use crate::exit::Stopping;
use crate::machine::Running;
use qapi::qmp;
use std::time::Duration;
use stockade_hypervisor::{Operation, StopDeadlines};
use tokio::time::timeout;

/// Goes down the ladder until both processes have ended, or are sure to end.
pub(crate) async fn ladder(running: &Running, deadlines: StopDeadlines, paused: bool) {
    // A guest that stands still can do nothing on its own.
    if !deadlines.guest.is_zero() && !paused {
        running.note_stopping(Stopping::Asked);
        let ask = async {
            // The power button. A guest that does not listen to it may have been asked by its agent.
            if let Err(e) = running.qmp.execute(Operation::Stop, qmp::system_powerdown {}).await {
                tracing::debug!(error = %e, "the power button could not be pressed");
            }
            std::future::pending::<()>().await;
        };
        if within(deadlines.guest, running, ask).await {
            return;
        }
    }
    running.note_stopping(Stopping::Forced);
    if !deadlines.quit.is_zero() {
        let quit = async {
            if let Err(e) = running.qmp.execute(Operation::Stop, qmp::quit {}).await {
                tracing::debug!(error = %e, "QEMU's monitor did not take the order to quit");
            }
            std::future::pending::<()>().await;
        };
        if within(deadlines.quit, running, quit).await {
            return;
        }
    }
    if !deadlines.term.is_zero() {
        running.processes.hypervisor.signal(libc::SIGTERM);
        if within(deadlines.term, running, std::future::pending()).await {
            return;
        }
    }
    running.processes.kill();
}

/// Whether QEMU ends within the limit, while `act` goes on beside.
async fn within(limit: Duration, running: &Running, act: impl Future<Output = ()>) -> bool {
    timeout(limit, async {
        tokio::select! {
            _ = running.processes.hypervisor.ended() => {}
            () = act => {}
        }
    })
    .await
    .is_ok()
}
