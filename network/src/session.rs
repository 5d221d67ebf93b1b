//! Work in one namespace: a thread that enters it, takes named steps there, and ends.
//!
//! ```text
//!   asked ──▶ thread enters the namespace ──▶ step, step, … ──▶ answer taken
//!     │                                         │ fails: what was done is undone, the step is named
//!     └── time is up, or nobody asks any more ──┴─▶ the answer is not taken: what was done is undone
//! ```
//! Netlink requests are performed within the system call that sends them, under a lock of the whole kernel. So a time
//! limit cannot end one; it ends the waiting for it, and the thread undoes by itself what it did in vain.

use crate::netlink::{Netlink, NetlinkError};
use crate::netns::{self, NetnsError};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long work in a namespace may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// One netlink call.
    pub call: Duration,
    /// All of one request, for example one attachment.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { call: Duration::from_secs(5), request: Duration::from_secs(10) }
    }
}

/// A fault on purpose, to prove that each step can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which step, from 0, as [`crate::Network::steps`] counts them.
    pub at: u64,
    /// What goes wrong.
    pub kind: FaultKind,
}

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// It fails, and nothing was done.
    Refused,
    /// It fails, and was done all the same: its answer was lost.
    Lost,
    /// It is done, but only after this time.
    Late(Duration),
}

/// One step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct StepError {
    /// What was tried.
    pub step: String,
    /// Why it failed.
    #[source]
    pub source: NetlinkError,
}

/// Why work in a namespace failed. What it had done has been undone, but for what an error names.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// A step failed.
    #[error("cannot {step}{}", remains(.leftover))]
    Step {
        /// What was tried.
        step: String,
        /// Why it failed.
        #[source]
        source: NetlinkError,
        /// What could not be undone after it.
        leftover: Vec<StepError>,
    },
    /// Undoing failed, in part.
    #[error("the network is not as it was{}", remains(.0))]
    NotUndone(Vec<StepError>),
    /// The time was up; what is done is undone when the kernel lets it.
    #[error("after {limit:?} the network is not ready: still trying to {step}")]
    Late {
        /// The step at which it was.
        step: String,
        /// The time given.
        limit: Duration,
    },
}

fn remains(leftover: &[StepError]) -> String {
    leftover.iter().map(|error| format!("; {error}: {}", error.source)).collect()
}

impl From<StepError> for NetworkError {
    fn from(error: StepError) -> Self {
        Self::Step { step: error.step, source: error.source, leftover: Vec::new() }
    }
}

/// What all requests about one namespace share.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) steps: AtomicU64,
    pub(crate) round_trips: AtomicU64,
}

/// The inside of the thread.
#[derive(Debug)]
pub(crate) struct Session {
    netlink: Netlink,
    faults: Vec<Fault>,
    counts: Arc<Counts>,
    /// The step under way. Shared with whoever waits, so that it can say at what it stopped waiting; held only to be
    /// written or read.
    current: Arc<Mutex<String>>,
}

impl Session {
    /// Performs a step, which fails where a fault is wanted.
    pub(crate) fn step<T>(
        &mut self,
        step: impl Into<String>,
        action: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError>,
    ) -> Result<T, StepError> {
        let step = step.into();
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&step);
        let number = self.counts.steps.fetch_add(1, Ordering::Relaxed);
        let fault = self.faults.iter().find(|fault| fault.at == number).map(|fault| fault.kind);
        if fault == Some(FaultKind::Refused) {
            return Err(StepError { step, source: NetlinkError::Injected { done: false } });
        }
        let result = action(&mut self.netlink);
        match fault {
            Some(FaultKind::Late(time)) => thread::sleep(time),
            Some(FaultKind::Lost) if result.is_ok() => {
                return Err(StepError { step, source: NetlinkError::Injected { done: true } });
            }
            _ => {}
        }
        result.map_err(|source| StepError { step, source })
    }

    /// Adds the round trips since the last time to those of the namespace.
    fn publish(&mut self) {
        self.counts.round_trips.fetch_add(self.netlink.take_round_trips(), Ordering::Relaxed);
    }
}

/// How a [`Session`] is to be.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) limits: Limits,
    pub(crate) faults: Vec<Fault>,
    pub(crate) counts: Arc<Counts>,
}

impl Settings {
    /// Runs `work` in the namespace and gives its answer. When nobody takes the answer (the time is up, or the caller
    /// has gone), `unheard` gets it, in the namespace, to undo what was done.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, NetworkError> + Send + 'static,
        unheard: impl FnOnce(&mut Session, T) + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let current = Arc::new(Mutex::new("enter the network namespace".to_owned()));
        let settings = self.clone();
        let seen = Arc::clone(&current);
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let mut session = match settings.enter(seen) {
                    Ok(session) => session,
                    Err(error) => {
                        // Nobody is there to hear it when the caller has gone.
                        _ = sender.send(Err(error));
                        return;
                    }
                };
                let answer = work(&mut session);
                // The caller may look at the counts as soon as it has the answer.
                session.publish();
                if let Err(Ok(answer)) = sender.send(answer) {
                    unheard(&mut session, answer);
                }
            })
            .map_err(|source| NetnsError::Enter { source })?;
        match tokio::time::timeout(self.limits.request, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NetnsError::Panicked.into()),
            Err(_) => {
                let step = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(NetworkError::Late { step, limit: self.limits.request })
            }
        }
    }

    /// A session of the calling thread, which is in the namespace.
    pub(crate) fn session(&self) -> Result<Session, NetworkError> {
        self.clone().open(Arc::default())
    }

    fn enter(self, current: Arc<Mutex<String>>) -> Result<Session, NetworkError> {
        netns::enter(self.netns.as_fd())?;
        self.open(current)
    }

    fn open(self, current: Arc<Mutex<String>>) -> Result<Session, NetworkError> {
        let netlink = Netlink::open(self.limits.call)
            .map_err(|source| StepError { step: "open a netlink socket".to_owned(), source })?;
        Ok(Session { netlink, faults: self.faults, counts: self.counts, current })
    }
}
