//! What of terminals, descriptors and processes has no safe wrapper.
#![expect(unsafe_code, reason = "ioctl, close_range, pidfd_open and adopting an inherited descriptor")]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Columns and rows of a terminal; `None` when `fd` is none.
pub(crate) fn window_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the pointer, which is a live local.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_col, size.ws_row))
}

/// Makes the terminal `fd` the controlling one of this session, whose leader the caller is.
pub(crate) fn take_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over the descriptors that a parent left open on purpose: `keep`, and nothing else above 2, stays open.
///
/// To be called first in a program, while it has opened nothing itself.
pub(crate) fn inherit_only(keep: RawFd) -> io::Result<OwnedFd> {
    let keep = u32::try_from(keep).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    if keep < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if keep > 3 {
        close_range(3, keep - 1)?;
    }
    close_range(keep + 1, u32::MAX)?;
    // SAFETY: the number comes from the parent that opened it for us, and nobody else in this program owns it; that it
    // is open is checked before anything relies on it.
    let fd = unsafe { OwnedFd::from_raw_fd(keep.cast_signed()) };
    // Fails when it is not open, and keeps our own children from inheriting it.
    let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    match nix::fcntl::fcntl(fd.as_raw_fd(), flags) {
        Ok(_) => Ok(fd),
        Err(error) => {
            std::mem::forget(fd);
            Err(error.into())
        }
    }
}

/// Closes descriptors `first` to `last`.
///
/// To be called first in a program, while it has opened nothing itself.
pub(crate) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the descriptors come from the parent; by contract no object of this program owns one of them yet.
    let result = unsafe { libc::close_range(first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor that becomes readable when process `pid` ends.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(result).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Watches `fd` for data to read, inside a runtime.
pub(crate) fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor stays open, and its number the same, for as long as the borrow that the watch holds.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// Lets children inherit `fd` (`true`) or not.
pub(crate) fn set_inheritable(fd: impl AsFd, inheritable: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flags = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd().as_raw_fd(), FcntlArg::F_SETFD(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_no_window_size_and_a_terminal_has() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert_eq!(window_size(reader.as_fd()), None);
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&size, None).unwrap();
        assert_eq!(window_size(pty.slave.as_fd()), Some((80, 24)));
    }

    #[test]
    fn a_pidfd_is_readable_once_its_process_has_ended() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let fd = pidfd_open(child.id().cast_signed()).unwrap();
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1);
        child.wait().unwrap();
    }
}
