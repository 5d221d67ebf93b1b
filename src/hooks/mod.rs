//! OCI hooks: running them one after the other, and ending all that they started.
//!
//! ```text
//! supervisor ── keeper ── hook ── whatever it starts, also daemons: the keeper is their subreaper
//!     │           │ the hook ends: its status is written to the supervisor's pipe
//!     └───────────┘ the supervisor's end of the lifeline closes: kill the hook's group, exit
//! ```
//! The keeper is a fork that executes nothing. While it lives, no descendant of the hook can leave its tree, so that a
//! failed, late or cancelled hook is ended with all its descendants by walking that tree. After a hook that succeeded
//! the keeper just exits, and a daemon that the hook left lives on, as hooks of networks do on purpose. When the
//! supervisor dies, or drops the future, the keeper kills the hook's process group.

mod error;
mod output;
mod run;
mod sys;
mod tree;

pub use error::HookError;
pub use run::{run_hooks, run_poststop_blocking};

use std::fmt;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// At creation, in the sandbox's network namespace, before [`Self::CreateRuntime`]; deprecated, and in use.
    Prestart,
    /// At creation, in the sandbox's network namespace.
    CreateRuntime,
    /// At creation, in the guest.
    CreateContainer,
    /// At start, in the container.
    StartContainer,
    /// After the container's process has started.
    Poststart,
    /// After the container is gone.
    Poststop,
}

impl Phase {
    /// Whether a failure ends the creation or start. Others are logged, and life goes on.
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::Poststart | Self::Poststop)
    }

    /// The OCI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
