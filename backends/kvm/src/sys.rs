//! System calls of the machine's process that have no safe face in the crates used here.
#![expect(unsafe_code, reason = "descriptors given by number, and credentials of a single thread")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor that a message has just brought.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed it for the message that the caller received; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes `user` the real, effective and saved user and group of this thread, and of no other: the C library's functions
/// would change all threads.
///
/// # Errors
/// The thread may not, or the id means nothing in this user namespace.
pub(crate) fn become_user(user: u32) -> io::Result<()> {
    // The group first: without its user, the thread may change it no more.
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: the calls take numbers only.
        check(unsafe { libc::syscall(call, user, user, user) })?;
    }
    Ok(())
}

/// Empties the effective, permitted and inheritable capability sets of this thread.
///
/// # Errors
/// None that the kernel documents for an emptying.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Head {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two times three words.
    const VERSION_3: u32 = 0x2008_0522;
    let head = Head { version: VERSION_3, pid: 0 };
    let sets = [0_u32; 6];
    // SAFETY: version 3 reads a head and six words, which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const head, sets.as_ptr()) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
