//! Being a container's process for a caller: its signals go in, its exit status comes out.

use super::sys;
use super::{Signals, signals::SignalReader};
use crate::cli::client::{Connection, SHORT_CALL};
use crate::ids::{ContainerId, ExecId};
use containerd_shim_protos::api::{KillRequest, ResizePtyRequest, StateRequest, WaitRequest};
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, OwnedFd};
use tokio::sync::oneshot;
use ttrpc::context;

/// A process of a container.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The container.
    pub container: ContainerId,
    /// Which process of it; `None`: its first one.
    pub exec: Option<ExecId>,
}

impl Subject {
    pub(crate) fn exec_id(&self) -> String {
        self.exec.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With this status, 0 to 255.
    Exited(u8),
    /// The supervisor is gone, and the process with it.
    Lost,
}

/// Waits for the end of `subject`; passes signals on meanwhile, and the sizes of `terminal`.
///
/// Sends on `attached` once the supervisor knows that somebody waits, so that the process cannot end, and be deleted,
/// unseen; drops it when there is no such process.
pub(crate) async fn attend(
    connection: &Connection,
    subject: &Subject,
    terminal: Option<OwnedFd>,
    signals: Signals,
    attached: oneshot::Sender<()>,
) -> Outcome {
    let waiting = async {
        let request =
            WaitRequest { id: subject.container.to_string(), exec_id: subject.exec_id(), ..WaitRequest::default() };
        match connection.task.wait(context::with_timeout(0), &request).await {
            Ok(response) => Outcome::Exited(u8::try_from(response.exit_status).unwrap_or(u8::MAX)),
            Err(_) => Outcome::Lost,
        }
    };
    let forwarding = async {
        if state_is_known(connection, subject).await {
            if let Some(terminal) = &terminal {
                resize(connection, subject, terminal).await;
            }
            // Nobody may be interested.
            let _ = attached.send(());
        }
        if let Ok(reader) = signals.reader() {
            forward(connection, subject, terminal.as_ref(), &reader).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        // In this order, so that the wait is sent before the question that confirms it.
        biased;
        outcome = waiting => outcome,
        outcome = forwarding => outcome,
    }
}

async fn state_is_known(connection: &Connection, subject: &Subject) -> bool {
    let request =
        StateRequest { id: subject.container.to_string(), exec_id: subject.exec_id(), ..StateRequest::default() };
    connection.task.state(context::with_duration(SHORT_CALL), &request).await.is_ok()
}

async fn forward(connection: &Connection, subject: &Subject, terminal: Option<&OwnedFd>, reader: &SignalReader<'_>) {
    while let Ok(signal) = reader.next().await {
        match Signal::try_from(signal) {
            Ok(Signal::SIGCHLD) => {}
            Ok(Signal::SIGWINCH) => {
                if let Some(terminal) = terminal {
                    resize(connection, subject, terminal).await;
                }
            }
            // Also real-time signals, which have no name.
            _ => kill(connection, subject, signal).await,
        }
    }
}

/// Whether it arrives is the container's affair: it may have ended meanwhile.
async fn kill(connection: &Connection, subject: &Subject, signal: i32) {
    let request = KillRequest {
        id: subject.container.to_string(),
        exec_id: subject.exec_id(),
        signal: signal.unsigned_abs(),
        ..KillRequest::default()
    };
    let _ = connection.task.kill(context::with_duration(SHORT_CALL), &request).await;
}

/// Tells the process the size of `terminal`. As [`kill`]; a size of 0 was never set.
pub(crate) async fn resize(connection: &Connection, subject: &Subject, terminal: &OwnedFd) {
    let Some((width, height)) = sys::window_size(terminal.as_fd()).filter(|size| *size != (0, 0)) else { return };
    let request = ResizePtyRequest {
        id: subject.container.to_string(),
        exec_id: subject.exec_id(),
        width: width.into(),
        height: height.into(),
        ..ResizePtyRequest::default()
    };
    let _ = connection.task.resize_pty(context::with_duration(SHORT_CALL), &request).await;
}
