//! The system calls that have no safe face in the crates used here: the hooks between fork and exec, and pidfds.
#![expect(unsafe_code, reason = "hooks that run between fork and exec, and the pidfd calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a new process does between fork and exec. Holds descriptors by number because nothing may be freed there; the
/// caller keeps them open over the spawn.
#[derive(Debug, Clone)]
pub(crate) struct ChildSetup {
    /// Descriptors that stay open in the new program, under their numbers.
    pub(crate) keep: Vec<RawFd>,
    /// The network namespace to enter.
    pub(crate) netns: Option<RawFd>,
    /// A pidfd of the process that forks; the child ends if that is gone already. (Its id would say nothing to a child
    /// in another PID namespace.)
    pub(crate) parent: RawFd,
    /// The writing end of a pipe that is told each step's [`Stage`] before it is done.
    pub(crate) stage: RawFd,
}

/// The step that a failed spawn stood at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Own session and death signal.
    Session = 1,
    /// Entering the network namespace.
    Netns = 2,
    /// Passing the descriptors on.
    Descriptors = 3,
    /// Executing the program.
    Exec = 4,
}

impl Stage {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Session, Self::Netns, Self::Descriptors, Self::Exec].into_iter().find(|stage| *stage as u8 == byte)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl ChildSetup {
    /// Registers the steps with `command`.
    pub(crate) fn install(self, command: &mut Command) {
        // SAFETY: the hook only makes system calls and reads memory that exists since before the fork; it neither
        // allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || self.run());
        }
    }

    /// Runs in the child, between fork and exec.
    fn run(&self) -> io::Result<()> {
        self.tell(Stage::Session);
        // SAFETY: plain system calls; the one pointer is to a local that lives over its call.
        unsafe {
            check(libc::setsid())?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // A parent that died before the line above sends no signal any more.
            let mut parent = libc::pollfd { fd: self.parent, events: libc::POLLIN, revents: 0 };
            if check(libc::poll(&raw mut parent, 1, 0))? != 0 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        if let Some(netns) = self.netns {
            self.tell(Stage::Netns);
            // SAFETY: a plain system call; the descriptor is open in the parent over the spawn.
            check(unsafe { libc::setns(netns, libc::CLONE_NEWNET) })?;
        }
        self.tell(Stage::Descriptors);
        for fd in &self.keep {
            // SAFETY: a plain system call on a number; a closed one is answered by an error.
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
        }
        self.tell(Stage::Exec);
        Ok(())
    }

    fn tell(&self, stage: Stage) {
        let byte = [stage as u8];
        // SAFETY: the buffer is one byte long. A failure costs only the message's precision.
        let _written = unsafe { libc::write(self.stage, byte.as_ptr().cast(), 1) };
    }
}

/// A descriptor of the process `pid`, which must be the caller's child and not reaped yet.
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: a system call on numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    check(fd)?;
    // SAFETY: the call just made this descriptor, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind `pidfd`; one that has ended is `ESRCH`.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no siginfo is passed, so no memory is read.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Watches a descriptor for being readable, on the current runtime.
pub(crate) fn watch_readable(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the Arc keeps the descriptor open, and its number the same, for as long as the AsyncFd has it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}
