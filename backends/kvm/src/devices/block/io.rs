//! What a request does to the disk.

use super::disk::Disk;
use super::request::{Action, Range, Segment};
use super::{SECTOR, sys};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use virtio_bindings::virtio_blk as abi;
use vm_memory::{Bytes as _, GuestMemory as _, GuestMemoryMmap, VolatileSlice};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done; so many bytes of data were written into the guest's memory.
    Done(u32),
    /// It asks for what the disk does not have or must not do, or the host has failed.
    Failed,
    /// The disk cannot do that.
    Unsupported,
}

impl Outcome {
    /// As the driver reads it.
    pub(super) fn status(self) -> u8 {
        let status = match self {
            Self::Done(_) => abi::VIRTIO_BLK_S_OK,
            Self::Failed => abi::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => abi::VIRTIO_BLK_S_UNSUPP,
        };
        status as u8
    }
}

/// Performs `action` on the disk, however long it takes. With `through`, what is written is on the disk at the end.
pub(super) fn perform(action: &Action, disk: Option<&Disk>, memory: &GuestMemoryMmap, through: bool) -> Outcome {
    let Some(disk) = disk else { return Outcome::Failed };
    let outcome = match action {
        Action::Read { sector, data } => read(disk, memory, *sector, data),
        Action::Write { sector, data } => write(disk, memory, *sector, data, through),
        Action::Flush => flush(disk),
        Action::GetId { data } => get_id(disk, memory, data),
        Action::Discard(ranges) => discard(disk, ranges, through),
        Action::WriteZeroes { range, unmap } => write_zeroes(disk, *range, *unmap, through),
        Action::Unsupported => Ok(Outcome::Unsupported),
    };
    outcome.unwrap_or_else(|error: Failure| error.outcome(disk))
}

/// Tries to perform a read without waiting for the disk; `None` if it has to be waited for (some of the guest's buffers
/// may have been written), or is something else.
pub(super) fn perform_now(action: &Action, disk: Option<&Disk>, memory: &GuestMemoryMmap) -> Option<Outcome> {
    let (disk, Action::Read { sector, data }) = (disk?, action) else { return None };
    let (offset, buffers) = locate(disk, memory, *sector, data)?;
    match sys::read_at(disk.file(), &buffers, offset, true) {
        Ok(count) if count == length(&buffers) => u32::try_from(count).ok().map(Outcome::Done),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            disk.forget_nowait();
            None
        }
        _ => None,
    }
}

/// A call on the host that failed.
struct Failure {
    what: &'static str,
    error: io::Error,
}

impl Failure {
    fn of(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { what, error }
    }

    fn outcome(&self, disk: &Disk) -> Outcome {
        if self.error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            return Outcome::Unsupported;
        }
        disk.report(self.what, &self.error);
        Outcome::Failed
    }
}

/// Where the sectors are in the file, and the buffers in memory; `None` if the disk has not so many.
fn locate<'m>(
    disk: &Disk,
    memory: &'m GuestMemoryMmap,
    sector: u64,
    data: &[Segment],
) -> Option<(u64, Vec<VolatileSlice<'m>>)> {
    let bytes: usize = data.iter().map(|segment| segment.length).sum();
    let offset = disk.offset(sector, bytes as u64 / SECTOR)?;
    let mut buffers = Vec::with_capacity(data.len());
    for segment in data {
        for slice in memory.get_slices(segment.address, segment.length) {
            buffers.push(slice.ok()?);
        }
    }
    Some((offset, buffers))
}

fn length(buffers: &[VolatileSlice<'_>]) -> usize {
    buffers.iter().map(VolatileSlice::len).sum()
}

/// Takes the first `count` bytes away.
fn advance(buffers: &mut Vec<VolatileSlice<'_>>, mut count: usize) {
    let mut done = 0;
    for buffer in buffers.iter_mut() {
        if count < buffer.len() {
            if let Ok(rest) = buffer.offset(count) {
                *buffer = rest;
            }
            break;
        }
        count -= buffer.len();
        done += 1;
    }
    buffers.drain(..done);
}

/// Calls `transfer` with what is left at that offset until nothing is.
fn transfer_all(
    mut buffers: Vec<VolatileSlice<'_>>,
    mut offset: u64,
    mut transfer: impl FnMut(&[VolatileSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let total = length(&buffers);
    while length(&buffers) > 0 {
        match transfer(&buffers, offset) {
            // The file has become shorter than the disk.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                advance(&mut buffers, count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

fn read(disk: &Disk, memory: &GuestMemoryMmap, sector: u64, data: &[Segment]) -> Result<Outcome, Failure> {
    let Some((offset, buffers)) = locate(disk, memory, sector, data) else { return Ok(Outcome::Failed) };
    let count = transfer_all(buffers, offset, |buffers, offset| sys::read_at(disk.file(), buffers, offset, false));
    let count = count.map_err(Failure::of("read"))?;
    Ok(u32::try_from(count).map_or(Outcome::Failed, Outcome::Done))
}

fn write(
    disk: &Disk,
    memory: &GuestMemoryMmap,
    sector: u64,
    data: &[Segment],
    through: bool,
) -> Result<Outcome, Failure> {
    let Some((offset, buffers)) = locate(disk, memory, sector, data) else { return Ok(Outcome::Failed) };
    if disk.is_read_only() {
        return Ok(Outcome::Failed);
    }
    transfer_all(buffers, offset, |buffers, offset| sys::write_at(disk.file(), buffers, offset, through))
        .map_err(Failure::of("write"))?;
    Ok(Outcome::Done(0))
}

fn flush(disk: &Disk) -> Result<Outcome, Failure> {
    if !disk.is_read_only() {
        disk.file().sync_data().map_err(Failure::of("flush"))?;
    }
    Ok(Outcome::Done(0))
}

fn get_id(disk: &Disk, memory: &GuestMemoryMmap, data: &[Segment]) -> Result<Outcome, Failure> {
    let mut rest = disk.serial().as_slice();
    for segment in data {
        let (now, later) = rest.split_at(segment.length.min(rest.len()));
        if memory.write_slice(now, segment.address).is_err() {
            return Ok(Outcome::Failed);
        }
        rest = later;
    }
    Ok(Outcome::Done(abi::VIRTIO_BLK_ID_BYTES))
}

/// Where a range is in the file, in bytes; `None` if the disk does not have it or must not change.
fn place(disk: &Disk, range: Range) -> Option<(u64, u64)> {
    let offset = disk.offset(range.sector, range.count.into())?;
    (!disk.is_read_only()).then_some((offset, u64::from(range.count) * SECTOR))
}

fn discard(disk: &Disk, ranges: &[Range], through: bool) -> Result<Outcome, Failure> {
    for range in ranges {
        let Some((offset, bytes)) = place(disk, *range) else { return Ok(Outcome::Failed) };
        allocate(disk.file(), FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes)
            .map_err(Failure::of("discard on"))?;
    }
    finish(disk, through)
}

fn write_zeroes(disk: &Disk, range: Range, unmap: bool, through: bool) -> Result<Outcome, Failure> {
    let Some((offset, bytes)) = place(disk, range) else { return Ok(Outcome::Failed) };
    let hole = unmap && allocate(disk.file(), FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes).is_ok();
    if !hole && allocate(disk.file(), FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, bytes).is_err() {
        // Not every file system can do these; every one can write.
        write_zero_bytes(disk.file(), offset, bytes).map_err(Failure::of("write zeros to"))?;
    }
    finish(disk, through)
}

fn finish(disk: &Disk, through: bool) -> Result<Outcome, Failure> {
    if through { flush(disk) } else { Ok(Outcome::Done(0)) }
}

/// Changes how a range of the file is stored. The same call does it for block devices.
fn allocate(file: &File, mode: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
    let limits = (libc::off_t::try_from(offset), libc::off_t::try_from(bytes));
    let (Ok(offset), Ok(bytes)) = limits else { return Err(io::Error::from_raw_os_error(libc::EFBIG)) };
    if bytes == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file.as_raw_fd(), mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map_err(io::Error::from),
        }
    }
}

fn write_zero_bytes(file: &File, mut offset: u64, mut bytes: u64) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while bytes > 0 {
        let (piece, _) = ZEROS.split_at(ZEROS.len().min(usize::try_from(bytes).unwrap_or(usize::MAX)));
        file.write_all_at(piece, offset)?;
        offset += piece.len() as u64;
        bytes -= piece.len() as u64;
    }
    Ok(())
}
