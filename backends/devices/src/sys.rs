//! The system calls that no crate of ours wraps; all unsafe code of this crate.
#![expect(unsafe_code, reason = "raw system calls and descriptors given by number have no safe face")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Turns the result of a system call into a `Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of a descriptor that the process inherited under a known number.
///
/// # Errors
/// The number is negative or no descriptor is open under it.
pub(crate) fn adopt_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of the descriptor table and touches no memory of ours.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: the descriptor is open, as just seen, and was given to this process by number to be its owner: the caller
    // adopts each number once, at the start, before anything else could have opened it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes the descriptors `first..=last`.
///
/// # Errors
/// The kernel has no close_range (before 5.9).
pub(crate) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no pointers. The caller holds no owner of these descriptors: it closes what it inherited unasked.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// A detached copy of the mounts at and below `path`, or of the one mount that it is on.
///
/// # Errors
/// Those of `open_tree(2)`.
pub(crate) fn clone_tree(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: `path` ends with a NUL and outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel has just returned this descriptor, so that nobody else owns it; it fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Forbids devices, set-user-id and execution on a detached tree of mounts.
///
/// # Errors
/// Those of `mount_setattr(2)`.
pub(crate) fn restrict_tree(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is empty and static, and the structure is as long as said and outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Attaches a detached tree of mounts at `path`.
///
/// # Errors
/// Those of `move_mount(2)`.
pub(crate) fn attach_tree(tree: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: both paths end with a NUL and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Takes a capability out of the bounding set; `false` when the kernel knows no capability of that number.
///
/// # Errors
/// The process lacks CAP_SETPCAP.
pub(crate) fn drop_from_bounding_set(capability: u8) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_DROP takes a number only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) };
    match check(result.into()) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Empties the ambient capability set.
///
/// # Errors
/// The kernel has no ambient capabilities (before 4.3).
pub(crate) fn clear_ambient_set() -> io::Result<()> {
    // SAFETY: the operation takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into()).map(drop)
}

/// Makes `mask` (bit `n` is capability `n`) this thread's effective and permitted set, and its inheritable set empty.
///
/// # Errors
/// The permitted set would grow.
pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Head {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Set {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two sets of 32 each.
    const VERSION_3: u32 = 0x2008_0522;
    let head = Head { version: VERSION_3, pid: 0 };
    let halves = [mask & u64::from(u32::MAX), mask >> 32].map(|half| {
        let half = u32::try_from(half).unwrap_or(0);
        Set { effective: half, permitted: half, inheritable: 0 }
    });
    // SAFETY: version 3 reads a head and two sets, which both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const head, halves.as_ptr()) }).map(drop)
}
