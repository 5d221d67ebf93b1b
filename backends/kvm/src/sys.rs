//! System calls of the machine's process that have no safe face in the crates used here.
#![expect(unsafe_code, reason = "descriptors given by number")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor that a message has just brought.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed it for the message that the caller received; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
