//! `madvise(2)` on guest memory.
#![expect(unsafe_code, reason = "the call takes addresses")]

use std::io;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// Frees the pages of `len` bytes from `offset` on of a region: those of this process if it is private, those of the file
/// behind it if it is shared.
///
/// # Errors
/// As madvise(2); `EINVAL` when the range is not in the region.
pub(super) fn discard(region: &GuestRegionMmap, offset: u64, len: u64) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    if offset.checked_add(len).is_none_or(|end| end > region.len()) {
        return Err(invalid());
    }
    let (offset, len) = (usize::try_from(offset), usize::try_from(len));
    let (Ok(offset), Ok(len)) = (offset, len) else {
        return Err(invalid());
    };
    let advice = if region.flags() & libc::MAP_SHARED == 0 { libc::MADV_DONTNEED } else { libc::MADV_REMOVE };
    // SAFETY: the range lies in the region's mapping, as checked, so that the sum stays within one allocation.
    let start = unsafe { region.as_ptr().add(offset) };
    // SAFETY: the range is mapped. What changes is the content of guest memory, which the guest may change at any time, and
    // which is accessed as volatile for that reason.
    let result = unsafe { libc::madvise(start.cast(), len, advice) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
