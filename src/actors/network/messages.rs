//! What the Network actor is asked.

use crate::actors::runtime::Request;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The namespace that the sandbox's processes and hooks run in.
#[derive(Debug, Clone)]
pub struct SandboxNetns {
    /// The open namespace; `None` when the sandbox has none of its own (`disable_new_netns`).
    pub descriptor: Option<Arc<OwnedFd>>,
    /// Whether we made it.
    pub ours: bool,
}

/// Join the namespace that the spec names, or create one.
#[derive(Debug)]
pub struct PrepareNetns {
    /// The path in the spec's network namespace entry; `None` or empty: create one.
    pub path: Option<PathBuf>,
}

impl Request for PrepareNetns {
    type Answer = SandboxNetns;
    const NAME: &'static str = "PrepareNetns";
}

/// Let go of it. Idempotent.
#[derive(Debug)]
pub struct ReleaseNetns;

impl Request for ReleaseNetns {
    type Answer = ();
    const NAME: &'static str = "ReleaseNetns";
}
