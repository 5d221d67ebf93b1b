//! The Network actor owns the sandbox's network namespace and what is connected in it.
//!
//! ```text
//!   Nothing ──Prepare──▶ Netns (joined, or made for the sandbox) ──Release──▶ Released
//!                          │ Rescan{creation}: links are connected, the machine gets devices for them
//!                          │ ConnectGuest:     the machine runs; the guest is told
//!                          │ Rescan{start}:    what came since is plugged in; from here on changes are followed
//!                          │ Rescan{event}:    … and plugged in, told, or taken away
//!                          ▼ Detach:           all of it is undone
//! ```
//! A namespace that was made for the sandbox has no name on the host: the actor's descriptor, the machine and the
//! stand-in are all that hold it, so releasing it is closing the descriptor, and a killed supervisor leaves none behind.

mod actor;
mod messages;
mod wiring;

pub use actor::{NamespaceAhead, NetworkActor};
pub use messages::{
    ConnectGuest, ConnectedInterface, DescribeNetwork, DetachNetwork, LeftOut, NetworkDescription, NetworkOptions,
    PrepareNetns, Reason, ReleaseNetns, Rescan, Rescanned, SandboxNetns,
};
