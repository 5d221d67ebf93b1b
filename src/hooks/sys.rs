//! The fork that keeps a hook, and what it does between fork and exec.
#![expect(unsafe_code, reason = "fork, prctl, poll and execve in a child that may not allocate have no safe wrappers")]

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What the hook's program is given, ready for execve.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: CString,
    pub(super) args: Vec<CString>,
    pub(super) env: Vec<CString>,
}

/// The descriptors that the keeper and the hook use; all owned by the caller until the spawn has returned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    /// The network namespace that the hook enters.
    pub(super) netns: Option<RawFd>,
    /// Readable or closed as soon as the supervisor has gone or is done.
    pub(super) lifeline: RawFd,
    /// Takes the hook's wait status: four bytes.
    pub(super) status: RawFd,
}

/// Makes `command`'s child a keeper, with the hook as its child. The command's own program, arguments and environment
/// are not used: the hook's environment is handed over byte for byte, which [`Command`] cannot.
pub(super) fn keep(command: &mut Command, program: Program, descriptors: Descriptors) {
    let mut args = pointers(&program.args);
    let mut env = pointers(&program.env);
    args.shrink_to_fit();
    env.shrink_to_fit();
    let vectors = Vectors { program, args, env };
    let child = move || {
        // The whole struct moves into the closure, not its fields, because only the struct is Send.
        let vectors = &vectors;
        become_keeper(vectors, descriptors)
    };
    // SAFETY: the closure makes system calls and reads memory prepared here; it neither allocates nor takes locks. The
    // keeper, which is a fork that never returns into Rust's caller, leaves by _exit only.
    unsafe { command.pre_exec(child) };
}

struct Vectors {
    program: Program,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
}

// SAFETY: the pointers are into heap blocks of `program`, which moves with them and is never changed.
unsafe impl Send for Vectors {}
// SAFETY: as above; nothing is ever written through them.
unsafe impl Sync for Vectors {}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Runs in the child of the supervisor. Only a failure comes back, and only in the hook's process.
fn become_keeper(vectors: &Vectors, descriptors: Descriptors) -> io::Result<()> {
    // SAFETY: system calls without memory of ours. The process has one thread, for it was just forked.
    unsafe {
        // The supervisor's handlers would run here, and what it ignores the hook would ignore. Two cannot be set.
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        if libc::setsid() < 0 || libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: as above.
    let keeper = unsafe { libc::getpid() };
    // SAFETY: the process has one thread; the child goes on with async-signal-safe calls only.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let error = become_hook(vectors, descriptors);
            // The supervisor waits for the keeper when the start failed, and the keeper for the supervisor.
            // SAFETY: system calls without memory of ours; the parent is the keeper for certain.
            unsafe {
                // The keeper's end would be ours too, before std has told the error.
                libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0);
                if libc::getppid() == keeper {
                    libc::kill(keeper, libc::SIGKILL);
                }
            }
            Err(error)
        }
        hook => watch(hook, descriptors),
    }
}

/// Runs in the hook's process; comes back only on failure.
fn become_hook(vectors: &Vectors, descriptors: Descriptors) -> io::Error {
    // SAFETY: system calls on numbers; the vectors end in null and point to strings that live in `vectors`.
    unsafe {
        // Should somebody kill the keeper, nobody would watch the hook any more.
        if libc::setpgid(0, 0) < 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) < 0 {
            return io::Error::last_os_error();
        }
        if let Some(netns) = descriptors.netns
            && libc::setns(netns, libc::CLONE_NEWNET) < 0
        {
            return io::Error::last_os_error();
        }
        // Descriptors that somebody handed us without close-on-exec are not the hook's. Kernels before 5.11 do not
        // know it, and there the hook gets them.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::execve(vectors.program.path.as_ptr(), vectors.args.as_ptr(), vectors.env.as_ptr());
    }
    io::Error::last_os_error()
}

/// Waits until the hook has ended, tells its status, then waits for the supervisor's leave.
fn watch(hook: libc::pid_t, descriptors: Descriptors) -> ! {
    let Descriptors { lifeline, status, .. } = descriptors;
    close_all_but(lifeline, status);
    // SAFETY: pidfd_open takes two numbers, and `hook` is our child, not reaped yet.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, hook, 0) };
    let Ok(pidfd) = c_int::try_from(pidfd) else { exit(1) };
    let poll_for = |fd: c_int| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut waited = [poll_for(lifeline), poll_for(pidfd)];
    loop {
        // SAFETY: the array lives until the call returns, and its length is given.
        let count = unsafe { libc::poll(waited.as_mut_ptr(), 2, -1) };
        if count > 0 && waited[0].revents != 0 {
            // SAFETY: a signal to the group of our child, whose number cannot be another's before it is reaped.
            unsafe { libc::kill(-hook, libc::SIGKILL) };
            exit(0);
        }
        if count > 0 && waited[1].revents != 0 {
            break;
        }
    }
    let mut how: c_int = 0;
    // SAFETY: `how` lives until the call returns.
    while unsafe { libc::waitpid(hook, &raw mut how, 0) } < 0 {}
    let bytes = how.to_ne_bytes();
    // SAFETY: the bytes live until the call returns. The supervisor's end may be closed: then SIGPIPE ends us, rightly.
    unsafe { libc::write(status, bytes.as_ptr().cast(), bytes.len()) };
    let mut leave = [poll_for(lifeline)];
    // SAFETY: as above.
    while unsafe { libc::poll(leave.as_mut_ptr(), 1, -1) } < 1 {}
    exit(0)
}

/// Closes what the keeper does not use: other pipes' ends would stay open as long as it lives.
fn close_all_but(first: RawFd, second: RawFd) {
    let (low, high) = if first < second { (first, second) } else { (second, first) };
    let gaps = [(0, low - 1), (low + 1, high - 1), (high + 1, c_int::MAX)];
    for (from, to) in gaps {
        if from > to {
            continue;
        }
        // SAFETY: the descriptors belong to this process alone, which uses none of them.
        let done = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        if done < 0 {
            // A kernel before 5.9: as many as a process has by default.
            for fd in from..=to.min(1023) {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    }
}

fn exit(status: c_int) -> ! {
    // SAFETY: ends this process without running anything of the one it was forked from.
    unsafe { libc::_exit(status) }
}

/// A process, held so that its number cannot become another's.
#[derive(Debug)]
pub(super) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid`; `None` when it has gone.
    pub(super) fn open(pid: i32) -> Option<Self> {
        // SAFETY: pidfd_open takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just given it to us.
        Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Kills it. One that has ended meanwhile is what we want.
    pub(super) fn kill(&self) {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is a process's; no information is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    }
}
