//! The fork.
#![expect(unsafe_code, reason = "fork(2) is unsafe in a program with threads")]

use nix::unistd::{ForkResult, fork, setsid};
use std::io;

/// Makes this process the leader of a new session, then goes on as a child of it that nobody here waits for: its parent
/// exits at once. To be called while the program has one thread.
pub(super) fn leave_parent() -> io::Result<()> {
    setsid()?;
    // SAFETY: the program has one thread, so that no lock is held by another one at this moment.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => std::process::exit(0),
        ForkResult::Child => Ok(()),
    }
}
