//! What the Hook actor is asked.

use crate::actors::runtime::Request;
use crate::hooks::Phase;
use crate::oci::OciState;
use oci_spec::runtime::Hook;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Run the hooks of one phase, in order, until one fails.
#[derive(Debug)]
pub struct RunHooks {
    /// Which phase; for messages and the fatal-or-not rule.
    pub phase: Phase,
    /// The hooks.
    pub hooks: Vec<Hook>,
    /// What they read on their standard input.
    pub state: OciState,
    /// The namespace that they run in.
    pub netns: Option<Arc<OwnedFd>>,
    /// Kills the running hook's whole process group.
    pub cancel: CancellationToken,
}

impl Request for RunHooks {
    type Answer = ();
    const NAME: &'static str = "RunHooks";
}
