//! What an intruder would do that no safe function does.
#![expect(unsafe_code, reason = "raw system calls, to see them refused")]

use std::io;

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes another process, which ends at once.
pub(crate) fn fork() -> io::Result<()> {
    // SAFETY: the child does nothing but to end.
    match unsafe { libc::fork() } {
        // SAFETY: the function does not come back.
        0 => unsafe { libc::_exit(0) },
        pid => check(pid.into()),
    }
}

/// A system call whose arguments are all zero: one that is allowed would fail by itself.
pub(crate) fn bare(call: libc::c_long) -> io::Result<()> {
    // SAFETY: with null pointers and zeros, none of the calls that the tests name touches memory of this process.
    check(unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) })
}

/// Memory that can be written and executed.
pub(crate) fn executable_memory() -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: new memory, which nothing is done with.
    let memory =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// KVM_RUN, on a descriptor that is none of a vCPU.
pub(crate) fn kvm_run() -> io::Result<()> {
    // SAFETY: the request takes no pointer.
    check(unsafe { libc::ioctl(0, 0xae80, 0) }.into())
}

/// Becomes root again, this thread alone.
pub(crate) fn become_root() -> io::Result<()> {
    // SAFETY: the call takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) })
}

/// Traces another process.
pub(crate) fn trace(pid: libc::pid_t) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the request uses neither of its pointers.
    check(unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, none, none) })
}
