//! The few things that need `unsafe`, behind safe faces.
#![expect(unsafe_code, reason = "descriptors arrive as bare numbers, and ioctls and signals have no safe form")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use nix::unistd::ForkResult;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes ownership of a descriptor that the kernel has just handed to this process.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a number that a system call returned to them as new; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Watches a descriptor with the runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and always the same, for as long as the `AsyncFd` owns it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// Watches a file of the kernel's for changes, which it tells as urgent data; see "poll" in its cgroup-v2.rst.
pub(crate) fn watch_changes(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `watch`.
    unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }.map_err(Into::into)
}

/// The standard input that an executed zygote was given.
pub(crate) fn borrow_stdin() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 is open for as long as the process does not close it, which it never does.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Opens `path` below `root` as if `root` were the root directory: no symbolic link leads outside.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    mode: Mode,
    resolve: ResolveFlag,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    openat2(root.as_raw_fd(), relative, how).map(adopt)
}

mod ioctls {
    nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_none_bad!(rndreseedcrng, 0x5207);
    nix::ioctl_write_int_bad!(tiocgptpeer, libc::TIOCGPTPEER);
}

/// Sets the size of a terminal, in characters.
pub(crate) fn set_window_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and `size` outlives the call, which only reads it.
    unsafe { ioctls::tiocswinsz(fd.as_raw_fd(), &raw const size) }.map(drop)
}

/// The other end of the pseudo-terminal whose controlling end is `master`.
pub(crate) fn terminal_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is open; the request takes flags by value and returns a new descriptor.
    unsafe { ioctls::tiocgptpeer(master.as_raw_fd(), flags) }.map(adopt)
}

/// Makes the kernel take new entropy into its generator at once.
pub(crate) fn reseed_generator(random: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open and the request has no argument.
    unsafe { ioctls::rndreseedcrng(random.as_raw_fd()) }.map(drop)
}

/// Gives every signal its default action and blocks none, as a new program expects it.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: `SIG_DFL` installs no code; numbers that cannot be changed are refused.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero signal set is a valid empty set, and the call only reads it.
    unsafe {
        let empty: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Whether the calling process may execute the file.
pub(crate) fn may_execute(path: &Path) -> io::Result<()> {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).map_err(io::Error::from)
}

/// Forks. To be called while the process has one thread: then the child may do what its parent may.
pub(crate) fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: with one thread no lock can be held by another one, which the child would lack.
    unsafe { nix::unistd::fork() }
}

/// Where [`clone_sibling`] returns.
pub(crate) enum Cloned {
    /// In the caller: the new process's pidfd.
    Parent(OwnedFd),
    /// In the new process.
    Child,
}

/// As [`fork`], but the new process is a child of the caller's parent. See clone(2), `CLONE_PARENT` and `CLONE_PIDFD`.
pub(crate) fn clone_sibling() -> Result<Cloned, Errno> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD);
    let mut pidfd: RawFd = -1;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and without a stack of its own the child goes on in a copy of this one's memory; with one
    // thread it may do all that its parent may. The kernel writes the descriptor to `pidfd`, which outlives the call.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut pidfd, none, none) } {
        -1 => Err(Errno::last()),
        0 => Ok(Cloned::Child),
        _ => Ok(Cloned::Parent(adopt(pidfd))),
    }
}

/// Kills a process by its pidfd; one that has ended takes it without effect.
pub(crate) fn kill_by_descriptor(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; a null pointer means the information that kill(2) would give.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) } {
        -1 if Errno::last() != Errno::ESRCH => Err(Errno::last()),
        _ => Ok(()),
    }
}

/// Ends the process at once: nothing is freed one by one, and no function runs at the exit.
pub(crate) fn end_now(status: i32) -> ! {
    // SAFETY: the call does not return, and nothing of this process is seen by anybody afterwards.
    unsafe { libc::_exit(status) }
}

/// Removes all variables from the environment; to be called while the process has one thread.
pub(crate) fn clear_environment() {
    // SAFETY: with one thread nobody reads the environment meanwhile. The call cannot fail in glibc.
    let _ = unsafe { libc::clearenv() };
}

/// Replaces the program of this process; returns only on failure.
pub(crate) fn execute(program: &Path, args: &[CString], env: &[CString]) -> Errno {
    use std::os::unix::ffi::OsStrExt;
    let Ok(program) = CString::new(program.as_os_str().as_bytes()) else {
        return Errno::EINVAL;
    };
    match nix::unistd::execve(&program, args, env) {
        Err(errno) => errno,
        Ok(never) => match never {},
    }
}

/// Collects one ended child, if there is one: its number, and its exit code or 128 + signal number.
pub(crate) fn reap_child() -> Option<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the kernel to write to.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid == -1 && Errno::last() == Errno::EINTR {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        if libc::WIFEXITED(status) {
            return Some((pid, libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Some((pid, 128 + libc::WTERMSIG(status)));
        }
    }
}

/// Sends a signal by its number, real-time signals included.
pub(crate) fn send_signal(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes plain numbers. Callers pass the positive number of one process.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}
