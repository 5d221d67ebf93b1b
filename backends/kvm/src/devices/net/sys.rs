//! Frames straight between a tap device and guest memory, and what is asked of a tap device.
#![expect(unsafe_code, reason = "vectored calls on guest memory and ioctls have no safe face")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestAddress, GuestMemory as _};

use crate::memory::GuestMemory;

/// `TUNGETIFF`, `TUNSETOFFLOAD` and `TUNSETVNETHDRSZ` of linux/if_tun.h.
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

/// Pieces of guest memory in the form that the kernel takes, which keep that memory mapped.
#[derive(Debug)]
pub(super) struct Pieces {
    memory: GuestMemory,
    /// Each lies within one region of `memory`.
    vectors: Vec<libc::iovec>,
}

// SAFETY: the pointers are into mappings that `memory` owns, which any thread may use; every access through them is made
// by the kernel, on behalf of one `&mut self` or `&self` call at a time, like the accesses that the guest itself makes.
unsafe impl Send for Pieces {}

impl Pieces {
    pub(super) fn new(memory: GuestMemory) -> Self {
        Self { memory, vectors: Vec::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Appends `len` bytes of guest memory; `false`, and nothing is appended, when they are not all memory.
    pub(super) fn push(&mut self, address: GuestAddress, len: usize) -> bool {
        let before = self.vectors.len();
        for slice in self.memory.get_slices(address, len) {
            let Ok(slice) = slice else {
                self.vectors.truncate(before);
                return false;
            };
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            self.vectors.push(libc::iovec { iov_base, iov_len: slice.len() });
        }
        true
    }

    /// Forgets all but the first `len`.
    pub(super) fn truncate(&mut self, len: usize) {
        self.vectors.truncate(len);
    }

    /// Forgets the first `count`.
    pub(super) fn remove_front(&mut self, count: usize) {
        self.vectors.drain(..count.min(self.vectors.len()));
    }

    /// Writes all of them as one frame. Returns as `writev(2)`.
    pub(super) fn write_to(&self, tap: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: each vector names memory that `self.memory` keeps mapped; the kernel only reads it.
        let written = unsafe { libc::writev(tap.as_raw_fd(), self.vectors.as_ptr(), count(&self.vectors)) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Reads one frame into the first `pieces`, and what they have no room for into `overflow`. Returns as `readv(2)`.
    pub(super) fn read_from(
        &mut self,
        tap: BorrowedFd<'_>,
        pieces: usize,
        overflow: &mut [u8],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        let vectors = &mut scratch.0;
        vectors.clear();
        vectors.extend_from_slice(&self.vectors[..pieces.min(self.vectors.len())]);
        vectors.push(libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: overflow.len() });
        // SAFETY: all vectors but the last name guest memory that `self.memory` keeps mapped, to which anybody may write at
        // any time; the last is the whole of a slice that is borrowed for the call.
        let read = unsafe { libc::readv(tap.as_raw_fd(), vectors.as_ptr(), count(vectors)) };
        vectors.clear();
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

/// Room for a list of vectors, kept between calls; empty outside of them.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<libc::iovec>);

// SAFETY: it is empty outside of `read_from`, so that no pointer goes to another thread.
unsafe impl Send for Scratch {}

fn count(vectors: &[libc::iovec]) -> libc::c_int {
    // The callers keep far below the kernel's limit of 1024; beyond it the kernel refuses.
    libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX)
}

/// `struct ifreq` as far as the tun driver writes it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// The `IFF_*` flags of a tap device.
///
/// # Errors
/// As ioctl(2): it is none, or has no network interface yet.
pub(super) fn interface_flags(tap: BorrowedFd<'_>) -> io::Result<u16> {
    let mut request = Request { name: [0; 16], flags: 0, rest: [0; 22] };
    // SAFETY: the driver writes a struct ifreq of 40 bytes, which is what this is; it lives over the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    Ok(request.flags)
}

/// Says how long the header before each frame is, in bytes.
///
/// # Errors
/// As ioctl(2).
pub(super) fn set_header_size(tap: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    // SAFETY: the driver reads one integer, which lives over the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })
}

/// Says which frames may be read as they are, unchecked or unsegmented: `TUN_F_*` flags.
///
/// # Errors
/// As ioctl(2): `EINVAL` when the driver does not know one of them.
pub(super) fn set_offload(tap: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the request takes its flags by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
