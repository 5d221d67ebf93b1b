//! The one place that waits for processes.
//!
//! The agent is init, or a subreaper: every orphan in the guest becomes its child. Whoever wants to know
//! how a process ends registers its number while that process cannot have been reaped yet: right after
//! spawning it (nothing is reaped between, since both happen on the runtime's one thread), or while its
//! parent still lives and has not waited for it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended: its exit code, or 128 + the signal's number.
pub(crate) type ExitStatus = i32;

/// Told once when the process ends.
pub(crate) type ExitWatch = watch::Receiver<Option<ExitStatus>>;

/// Hands out exit statuses. Clones share the same registrations.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    // Shared by a lock only because the call handlers must be `Send`; all run on one thread.
    waiting: Arc<Mutex<HashMap<i32, watch::Sender<Option<ExitStatus>>>>>,
}

impl Reaper {
    /// Begins to watch a process that has not been reaped yet.
    pub(crate) fn register(&self, pid: i32) -> ExitWatch {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(pid, sender);
        receiver
    }

    /// Reaps until the process ends; to be spawned once.
    pub(crate) async fn run(self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap(&self) {
        while let Some((pid, status)) = crate::sys::reap_child() {
            if let Some(sender) = self.lock().remove(&pid) {
                // Nobody waits for a process whose registration was given up.
                let _ = sender.send(Some(status));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, watch::Sender<Option<ExitStatus>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of a registered process.
pub(crate) async fn wait(watch: &mut ExitWatch) -> ExitStatus {
    match watch.wait_for(Option::is_some).await {
        Ok(status) => status.unwrap_or(UNKNOWN_STATUS),
        Err(_) => UNKNOWN_STATUS,
    }
}

/// What is reported when the status was lost, which happens only while the agent ends.
const UNKNOWN_STATUS: ExitStatus = 255;
