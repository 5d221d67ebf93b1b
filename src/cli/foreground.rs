//! A process in the foreground: started, its signals passed on, its status returned.

use super::client::{Connection, LONG_CALL, answer};
use super::console::{RawMode, own_terminal};
use super::globals::Context;
use crate::stand_in::{Outcome, Signals, Subject, attend, resize};
use containerd_shim_protos::api::StartRequest;
use ttrpc::context::with_duration;

/// Starts `subject`.
pub(super) async fn start(connection: &Connection, subject: &Subject) -> anyhow::Result<()> {
    let request =
        StartRequest { id: subject.container.to_string(), exec_id: subject.exec_id(), ..StartRequest::default() };
    answer("Start", connection.task.start(with_duration(LONG_CALL), &request).await)?;
    Ok(())
}

/// Starts `subject` and waits for its end; its terminal, if it has one, is the caller's, raw meanwhile.
pub(super) fn start_and_attend(
    context: &Context,
    connection: &Connection,
    subject: &Subject,
    terminal: bool,
    signals: Signals,
) -> anyhow::Result<Outcome> {
    let (raw, own) = if terminal { (RawMode::enter()?, own_terminal()?) } else { (None, None) };
    let own_for_start = own.as_ref().map(|fd| fd.try_clone()).transpose()?;
    let outcome = context.runtime.block_on(async {
        let (attached, is_attached) = tokio::sync::oneshot::channel();
        let attending = attend(connection, subject, own, signals, attached);
        let starting = async {
            // When it fails, so will the start, and says why.
            let _ = is_attached.await;
            start(connection, subject).await?;
            // What has just been started may have been too young for the size before.
            if let Some(terminal) = &own_for_start {
                resize(connection, subject, terminal).await;
            }
            anyhow::Ok(())
        };
        tokio::pin!(attending, starting);
        let mut ended = None;
        tokio::select! {
            biased;
            started = &mut starting => started?,
            outcome = &mut attending => {
                ended = Some(outcome);
                // A process may end before the answer to its start is here; one that never started ends as well.
                starting.await?;
            }
        }
        match ended {
            Some(outcome) => anyhow::Ok(outcome),
            None => Ok(attending.await),
        }
    });
    drop(raw);
    outcome
}

/// The exit status for the shell: 137 when the machine was taken away.
pub(super) fn status_of(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Exited(status) => status,
        Outcome::Lost => 137,
    }
}
