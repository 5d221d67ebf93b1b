//! The Network actor owns the sandbox's network namespace and what is connected in it.
//!
//! ```text
//!   None ──Prepare──▶ Held (joined, or created and ours) ──Release──▶ None
//! ```
//! A namespace that we created has no name on the host: the actor's descriptor, the machine and the stand-in are all
//! that hold it, so releasing it is closing the descriptor, and a killed supervisor leaves none behind.

mod actor;
mod messages;

pub use actor::{NamespaceAhead, NetworkActor};
pub use messages::{
    AttachNetwork, AttachedEndpoint, DetachNetwork, PlannedNetwork, PrepareNetns, ReleaseNetns, SandboxNetns,
    ScanNetwork,
};
