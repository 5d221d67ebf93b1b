//! Reads and writes between a file and the guest's memory.
#![expect(unsafe_code, reason = "the buffers are memory of the guest, to which there are no references")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use vm_memory::VolatileSlice;

/// The most buffers of one call (the kernel's UIO_MAXIOV).
const MAX_BUFFERS: usize = 1024;

/// Reads from `offset` of the file into `buffers`, one after the other. With `nowait`, only what need not be waited for.
/// Returns the number of bytes, which may be fewer than there is room for.
///
/// # Errors
/// The kernel's answer; with `nowait`, EAGAIN if all must be waited for.
pub(super) fn read_at(file: &File, buffers: &[VolatileSlice<'_>], offset: u64, nowait: bool) -> io::Result<usize> {
    let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
    let (offset, guards) = (position(offset)?, guards(buffers));
    let vectors = vectors(&guards);
    // SAFETY: each vector is a `VolatileSlice`, a mapping of this process that `buffers` keeps alive and that may be
    // written; nobody has references into it, so that it may change at any time. The kernel checks all the rest.
    let count =
        unsafe { libc::preadv2(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset, flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes `buffers`, one after the other, to the file at `offset`; with `through`, to the disk as well. Returns the number
/// of bytes, which may be fewer than there are.
///
/// # Errors
/// The kernel's answer.
pub(super) fn write_at(file: &File, buffers: &[VolatileSlice<'_>], offset: u64, through: bool) -> io::Result<usize> {
    let flags = if through { libc::RWF_DSYNC } else { 0 };
    let (offset, guards) = (position(offset)?, guards(buffers));
    let vectors = vectors(&guards);
    // SAFETY: as for reading; the kernel only reads the memory here.
    let count =
        unsafe { libc::pwritev2(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset, flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn guards<'a>(buffers: &[VolatileSlice<'a>]) -> Vec<vm_memory::volatile_memory::PtrGuardMut> {
    buffers.iter().take(MAX_BUFFERS).map(VolatileSlice::ptr_guard_mut).collect()
}

fn vectors(guards: &[vm_memory::volatile_memory::PtrGuardMut]) -> Vec<libc::iovec> {
    guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect()
}
