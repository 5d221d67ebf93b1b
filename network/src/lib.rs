//! A sandbox's network: the namespace is made or joined, scanned, wired to the virtual machine, and left as it was.
//!
//! ```text
//!   namespace ──scan──▶ Scan ──endpoints──▶ Endpoint ──plan──▶ Plan ──attach──▶ Attachment (descriptors, Undo)
//!                        │ └──GuestNetwork: what the guest's agent is told
//!                        └──diff with a later one──▶ Change: what to attach, detach and tell
//! ```
//! Scanning and attaching touch the host; all between is pure. A thread that changed its namespace is of no more use to
//! anyone, so each change happens on a thread that ends with it: never on the runtime's, never on a pool's.

mod attach;
mod endpoint;
mod guest;
mod link;
mod netlink;
mod netns;
mod rescan;
mod scan;
mod session;
mod sys;
mod tc;
mod watch;

pub use attach::{AttachOptions, Attachment, Mark, Model, Plan, PlanError, Undo, UndoAction, plan};
pub use endpoint::{Endpoint, EndpointError, EndpointId, Role, endpoints, roles};
pub use guest::{GuestAddress, GuestInterface, GuestNeighbour, GuestNetwork, GuestRoute, NotCarried};
pub use netlink::NetlinkError;
pub use netns::{NamespaceId, NetnsError, NetworkNamespace, ensure_loopback, run_in, run_in_async};
pub use rescan::{Change, diff};
pub use scan::{
    Address, IngressFilter, IpvlanMode, Link, LinkKind, MAIN_TABLE, Mac, Neighbour, NextHop, PROTOCOL_KERNEL, Prefix,
    Qdisc, Route, RouteAction, Rule, Scan,
};
pub use session::{Fault, FaultKind, Limits, NetworkError, StepError};
pub use watch::Watch;

use session::{Counts, Settings};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One namespace, and what can be asked of it. Each request has a thread and a netlink socket of its own.
#[derive(Debug, Clone)]
pub struct Network {
    id: NamespaceId,
    settings: Settings,
}

impl Network {
    /// The namespace that `netns` holds.
    ///
    /// # Errors
    /// The descriptor cannot be looked at.
    pub fn new(netns: Arc<OwnedFd>, limits: Limits) -> Result<Self, NetworkError> {
        let id = NamespaceId::of(netns.as_fd()).map_err(|source| NetnsError::Enter { source })?;
        let counts = Arc::new(Counts::default());
        Ok(Self { id, settings: Settings { netns, limits, faults: Vec::new(), counts } })
    }

    /// The same with faults on purpose; steps are counted from 0 again.
    #[must_use]
    pub fn with_faults(mut self, faults: Vec<Fault>) -> Self {
        self.settings.faults = faults;
        self.settings.counts = Arc::new(Counts::default());
        self
    }

    /// Which namespace it is.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// How many steps were begun.
    pub fn steps(&self) -> u64 {
        self.settings.counts.steps.load(Ordering::Relaxed)
    }

    /// How many netlink round trips were made.
    pub fn round_trips(&self) -> u64 {
        self.settings.counts.round_trips.load(Ordering::Relaxed)
    }

    /// Reads what the namespace holds.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel does not answer.
    pub async fn scan(&self) -> Result<Scan, NetworkError> {
        self.settings.run(|session| Ok(scan::scan(session)?), |_, _| ()).await
    }

    /// Carries out `plans`, all of them or none. Write their [`Plan::undo`] down before: when this process dies
    /// meanwhile, or the future is dropped at the wrong moment, it is what remains.
    ///
    /// # Errors
    /// A step failed, which is named; nothing is left but what the error lists.
    pub async fn attach(&self, plans: Vec<Plan>) -> Result<Vec<Attachment>, NetworkError> {
        let work = move |session: &mut _| attach::attach_all(session, &plans);
        self.settings
            .run(work, |session, attachments| {
                let undos: Vec<Undo> = attachments.into_iter().map(|attachment| attachment.undo).collect();
                if let Err(error) = attach::detach_all(session, &undos) {
                    tracing::warn!(%error, "a network that nobody waits for any more");
                }
            })
            .await
    }

    /// Undoes, the last one first. What is not there any more is no failure, so it may be done again.
    ///
    /// # Errors
    /// What could not be undone; all else was.
    pub async fn detach(&self, undos: Vec<Undo>) -> Result<(), NetworkError> {
        self.settings.run(move |session| attach::detach_all(session, &undos), |_, ()| ()).await
    }

    /// The same for callers that block, such as the cleaning up after another process. It waits as long as the kernel
    /// makes it.
    ///
    /// # Errors
    /// As [`Network::detach`].
    pub fn detach_blocking(&self, undos: &[Undo]) -> Result<(), NetworkError> {
        run_in(self.settings.netns.as_fd(), || {
            let mut session = self.settings.session()?;
            attach::detach_all(&mut session, undos)
        })?
    }

    /// Begins to watch for changes. Blocks for some ten microseconds; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no socket can be had.
    pub fn watch(&self) -> Result<Watch, NetworkError> {
        let failed =
            |source| StepError { step: "watch the namespace".to_owned(), source: NetlinkError::Socket(source) };
        let socket = run_in(self.settings.netns.as_fd(), Watch::socket)?;
        Ok(Watch::new(socket.map_err(failed)?).map_err(failed)?)
    }
}
