//! Mappings of memory that a guest runs in.
#![expect(unsafe_code, reason = "mmap, and files that are mapped over parts of it")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::{GuestMemory, PAGE};

/// Host addresses of the guest's memory are multiples of a huge page, as guest-physical ones are, so that huge pages can
/// be mapped into the guest.
const ALIGNMENT: usize = 2 << 20;

/// The guest's memory and the mappings that it lies in. Dropping it unmaps them, unless somebody still holds the memory.
#[derive(Debug)]
pub(super) struct MappedMemory {
    guest: GuestMemory,
    mappings: Vec<Mapping>,
}

impl MappedMemory {
    /// Reserves memory for the guest-physical `ranges`, ascending; empty ones are left out.
    pub(super) fn reserve(ranges: &[Range<u64>]) -> io::Result<Self> {
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            let mapping = Mapping::new(len)?;
            let region = GuestRegionMmap::new(mapping.region().map_err(io::Error::other)?, GuestAddress(range.start));
            mappings.push(mapping);
            regions.push(region.ok_or_else(|| io::Error::other("the address space has no room for the memory"))?);
        }
        let guest = GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)?;
        Ok(Self { guest: Arc::new(guest), mappings })
    }

    /// As devices see it.
    pub(super) fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// The mapping of each region, in the same order.
    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        // A device that outlives its machine keeps the memory, for as long as the process lives.
        if Arc::get_mut(&mut self.guest).is_none() {
            return;
        }
        for mapping in &self.mappings {
            // SAFETY: The whole mapping is this value's own, and the only holder of a region in it is `guest`, which goes
            // too. Guests that run in it are gone: `vm::Vm` owns the memory and its vCPUs own the `Vm`.
            unsafe { libc::munmap(mapping.start.as_ptr().cast(), mapping.len) };
        }
    }
}

/// Anonymous, private memory of this process, that [`MappedMemory`] unmaps.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: The memory is only ever accessed by volatile accesses through vm-memory's types and by the kernel, both of which
// any thread may do; the fields themselves never change.
unsafe impl Send for Mapping {}
// SAFETY: As for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes, a multiple of the page size and not 0.
    fn new(len: usize) -> io::Result<Self> {
        let reserved = len.checked_add(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = at.cast::<u8>();
        let head = at.align_offset(ALIGNMENT);
        let tail = reserved - head - len;
        // SAFETY: head is at most ALIGNMENT, so that all three parts lie in the mapping just made; the first and the last
        // are given back, and nothing uses them.
        let start = unsafe {
            let start = at.add(head);
            if head > 0 {
                libc::munmap(at.cast(), head);
            }
            if tail > 0 {
                libc::munmap(start.add(len).cast(), tail);
            }
            start
        };
        NonNull::new(start).map(|start| Self { start, len }).ok_or_else(io::Error::last_os_error)
    }

    /// The address in this process.
    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The mapping as vm-memory's type, which does not own it.
    fn region(&self) -> Result<MmapRegion, MmapRegionError> {
        // SAFETY: The memory is mapped with these protections and length, and stays so until `MappedMemory` is dropped and
        // no region is left.
        unsafe {
            MmapRegion::build_raw(
                self.start.as_ptr(),
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            )
        }
    }

    /// The address of `len` bytes at `offset`, if they are inside.
    fn part(&self, offset: u64, len: u64) -> io::Result<(*mut libc::c_void, usize)> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let (offset, len) =
            (usize::try_from(offset).map_err(|_| outside())?, usize::try_from(len).map_err(|_| outside())?);
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(outside());
        }
        // SAFETY: offset is not beyond the mapping's end.
        Ok((unsafe { self.start.as_ptr().add(offset) }.cast(), len))
    }

    /// Maps `len` bytes of `file` privately over `offset`; all three are multiples of the page size.
    pub(super) fn map_file(&self, offset: u64, file: BorrowedFd<'_>, from: u64, len: u64) -> io::Result<()> {
        let (at, len) = self.part(offset, len)?;
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: The pages that are replaced are all of this mapping (`part` has looked), and are accessed by volatile
        // accesses and the guest only, which cope with other contents.
        let mapped = unsafe {
            libc::mmap(
                at,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                from,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Copies `len` bytes of `file` at `from` to `offset`.
    pub(super) fn copy_file(&self, offset: u64, file: BorrowedFd<'_>, from: u64, len: u64) -> io::Result<()> {
        let (at, _) = self.part(offset, len)?;
        FileView::each(file, from, len, |done, bytes, len| {
            // SAFETY: `done + len` is at most the length that `part` has looked for, and `bytes` has `len` bytes, of another
            // mapping; nothing holds references to either.
            unsafe { libc::memcpy(at.byte_add(done), bytes, len) };
            true
        })
    }

    /// Asks for huge pages, or for none, in `len` bytes from `offset`.
    pub(super) fn advise_huge(&self, offset: u64, len: u64, wanted: bool) -> io::Result<()> {
        let (at, len) = self.part(offset, len)?;
        let advice = if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: Neither advice changes what the memory holds.
        if unsafe { libc::madvise(at, len, advice) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Whether `len` bytes of `file` at `from` are all zeros.
pub(super) fn is_zero(file: BorrowedFd<'_>, from: u64, len: u64) -> io::Result<bool> {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    let mut zero = true;
    FileView::each(file, from, len, |_, bytes, len| {
        // SAFETY: both have `len` bytes, and a comparison that another process's writing disturbs is one of either contents.
        zero = unsafe { libc::memcmp(bytes, ZEROS.as_ptr().cast(), len) } == 0;
        zero
    })?;
    Ok(zero)
}

/// What of a file is looked at at a time, in pieces.
const VIEW: u64 = 8 << 20;

/// What is copied or compared at a time: longer copies are made by an instruction that goes byte by byte on some processors.
const PIECE: usize = 2048;

/// A part of a file, mapped for reading. A file that gets shorter meanwhile ends the process, as it does later with what is
/// mapped into the guest.
struct FileView {
    start: *mut libc::c_void,
    len: usize,
}

impl FileView {
    fn new(file: BorrowedFd<'_>, from: u64, len: usize) -> io::Result<Self> {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), from) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, len }) }
    }

    /// Calls `see` with each piece of `len` bytes of the file, which must be there: how far it is from the first, where it is
    /// mapped, and its length. Ends early when that returns false.
    fn each(
        file: BorrowedFd<'_>,
        from: u64,
        len: u64,
        mut see: impl FnMut(usize, *const libc::c_void, usize) -> bool,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = from + done;
            let skipped = at % PAGE;
            let part = VIEW.min(len - done);
            let size = usize::try_from(skipped + part).map_err(io::Error::other)?;
            let view = Self::new(file, at - skipped, size)?;
            let (skipped, before) = (skipped as usize, done as usize);
            for begin in (skipped..view.len).step_by(PIECE) {
                let piece = PIECE.min(view.len - begin);
                // SAFETY: `begin` is inside of the mapping.
                let bytes = unsafe { view.start.byte_add(begin) };
                if !see(before + begin - skipped, bytes, piece) {
                    return Ok(());
                }
            }
            done += part;
        }
        Ok(())
    }
}

impl Drop for FileView {
    fn drop(&mut self) {
        // SAFETY: The mapping is this value's own, and what `each` lent is no longer used.
        unsafe { libc::munmap(self.start, self.len) };
    }
}
