//! System calls of the machine's process that have no safe face in the crates used here.
#![expect(unsafe_code, reason = "descriptors given by number, and credentials of a single thread")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor that a message has just brought.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed it for the message that the caller received; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ownership of a descriptor that the process inherited under a known number.
///
/// # Errors
/// No descriptor is open under it.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of the descriptor table and touches no memory of ours.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: the descriptor is open, as just seen, and was given to this process by number to be its owner: the caller
    // adopts each number once, at the start, before anything else could have opened it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Keeps the allocator small: one arena for all threads, and what is free at its end goes back to the kernel.
pub(crate) fn keep_memory_small() {
    // SAFETY: the function sets parameters of the allocator; before there are threads, as its caller sees to.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}

/// Unmaps the pages of code and constants that the start has touched, each with its neighbours, for most are never needed
/// again; one that is comes back from the page cache when it is touched. It is a hint: what cannot be unmapped stays.
pub(crate) fn unmap_start_up_code() {
    unsafe extern "C" fn each(object: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the C library passes a description that is valid during the call, and `dlpi_phnum` headers with it.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
        };
        /// `PF_W` of the ELF specification.
        const WRITABLE: u32 = 2;
        const PAGE: u64 = 4096;
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & WRITABLE == 0) {
            let begin = (base + header.p_vaddr) & !(PAGE - 1);
            let end = (base + header.p_vaddr + header.p_memsz).next_multiple_of(PAGE);
            // SAFETY: nobody can write to the segment, so that its pages are the file's, and the kernel reads them from
            // there again. The vDSO, whose segment has no file, refuses.
            unsafe { libc::madvise(begin as *mut libc::c_void, (end - begin) as usize, libc::MADV_DONTNEED) };
        }
        0
    }
    // SAFETY: the callback has the form that the C library calls, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(each), std::ptr::null_mut()) };
}

/// Ends the process at once with this status. Process 1 of a PID namespace cannot abort: signals of its own do nothing to it.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: the function takes a number and does not come back.
    unsafe { libc::_exit(status) }
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

/// Fills `bytes`, at most 256, from the kernel's random number generator. (The crates for this look the C library's function
/// up by name, find none in a static program, and open a file then, which is not allowed here.)
///
/// # Errors
/// The kernel has no such call.
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes no more than the length of the slice.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few bytes come whole, once the generator has begun, which it has long before there are guests.
    if usize::try_from(count) == Ok(bytes.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}
