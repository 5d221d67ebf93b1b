//! How a process ended.

use std::time::SystemTime;

/// The status of a process that was there when its machine or supervisor went: as if killed by SIGKILL.
const KILLED: u32 = 137;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n for signal n.
    pub status: u32,
    /// When it was known.
    pub at: SystemTime,
}

impl Exit {
    /// An exit now.
    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }

    /// The exit of what went down with its machine.
    pub fn killed() -> Self {
        Self::now(KILLED)
    }
}
