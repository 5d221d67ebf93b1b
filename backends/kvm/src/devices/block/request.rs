//! What a driver asks: descriptors become a checked request, or a mistake.

use super::{MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZERO_SECTORS, SECTOR};
use crate::virtio::queue::Chain;
use virtio_bindings::virtio_blk as abi;
use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap};

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a range to discard or to fill with zeros: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Header, buffers, status.
const MAX_DESCRIPTORS: usize = MAX_SEGMENTS as usize + 2;

/// A buffer in the guest's memory, checked to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    pub(super) length: usize,
}

/// A range of the disk; the disk may not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) count: u32,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// From the disk to `data`, a whole number of sectors.
    Read { sector: u64, data: Vec<Segment> },
    /// From `data`, a whole number of sectors, to the disk.
    Write { sector: u64, data: Vec<Segment> },
    /// What was written is to outlive the host.
    Flush,
    /// The disk's name, into the first 20 bytes of `data`.
    GetId { data: Vec<Segment> },
    /// The ranges' contents are of no interest any more.
    Discard(Vec<Range>),
    /// The range is to read as zeros, and may be deallocated if `unmap`.
    WriteZeroes { range: Range, unmap: bool },
    /// Something that this device has not offered.
    Unsupported,
}

/// A request that can be performed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) head: u16,
    /// Where its outcome is written, a byte.
    pub(super) status: GuestAddress,
    pub(super) action: Action,
}

/// A request that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) head: u16,
    /// Where that is written, if it could be found.
    pub(super) status: Option<GuestAddress>,
}

/// Reads a request. All its buffers are in guest memory, and not many; what it says of the disk is not checked.
pub(super) fn parse(chain: Chain<'_>) -> Result<Request, Malformed> {
    let head = chain.head_index();
    let memory = chain.memory();
    let malformed = |status| Malformed { head, status };
    let (mut readable, mut writable) = split(chain.clone()).ok_or_else(|| malformed(None))?;
    let status = take_last_byte(&mut writable).ok_or_else(|| malformed(None))?;
    let action = action(memory, &mut readable, writable).ok_or_else(|| malformed(Some(status)))?;
    Ok(Request { head, status, action })
}

/// The buffers that the device reads, and those that it writes, which come after them.
fn split(chain: Chain<'_>) -> Option<(Vec<Segment>, Vec<Segment>)> {
    let memory = chain.memory();
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    for (number, descriptor) in chain.clone().enumerate() {
        let length = usize::try_from(descriptor.len()).ok()?;
        if number >= MAX_DESCRIPTORS || !memory.check_range(descriptor.addr(), length) {
            return None;
        }
        let segment = Segment { address: descriptor.addr(), length };
        if descriptor.is_write_only() {
            writable.push(segment);
        } else if writable.is_empty() {
            readable.push(segment);
        } else {
            return None;
        }
    }
    Some((readable, writable))
}

fn take_last_byte(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    while let Some(last) = segments.last_mut() {
        if let Some(rest) = last.length.checked_sub(1) {
            last.length = rest;
            return last.address.checked_add(rest as u64);
        }
        segments.pop();
    }
    None
}

/// Copies `N` bytes out of the front of `segments`, which lose them.
fn take<const N: usize>(memory: &GuestMemoryMmap, segments: &mut Vec<Segment>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    let mut used = 0;
    for segment in segments.iter_mut() {
        let length = rest.len().min(segment.length);
        let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
        memory.read_slice(now, segment.address).ok()?;
        segment.address = segment.address.checked_add(length as u64)?;
        segment.length -= length;
        rest = later;
        if segment.length > 0 {
            break;
        }
        used += 1;
    }
    segments.drain(..used);
    rest.is_empty().then_some(bytes)
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.length as u64).sum()
}

/// What the header and the buffers beside it say; `None` if they do not fit each other.
fn action(memory: &GuestMemoryMmap, readable: &mut Vec<Segment>, writable: Vec<Segment>) -> Option<Action> {
    let header: [u8; HEADER] = take(memory, readable)?;
    let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
    let [_, _, _, _, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let (out, into) = (total(readable), total(&writable));
    // Nothing may be left over: who cannot say how much is meant may mean something else as well.
    let (takes_out, takes_in) = (out == 0, into == 0);
    match u32::from_le_bytes(kind) {
        abi::VIRTIO_BLK_T_IN => (takes_out && into % SECTOR == 0).then_some(Action::Read { sector, data: writable }),
        abi::VIRTIO_BLK_T_OUT => {
            (takes_in && out % SECTOR == 0).then(|| Action::Write { sector, data: std::mem::take(readable) })
        }
        abi::VIRTIO_BLK_T_FLUSH => (takes_out && takes_in).then_some(Action::Flush),
        abi::VIRTIO_BLK_T_GET_ID => {
            (takes_out && into >= u64::from(abi::VIRTIO_BLK_ID_BYTES)).then_some(Action::GetId { data: writable })
        }
        abi::VIRTIO_BLK_T_DISCARD => {
            let ranges = takes_in.then(|| ranges(memory, readable, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS))??;
            // The one flag there is, "unmap", is reserved for the other request.
            if ranges.iter().any(|(_, flags)| *flags != 0) {
                return Some(Action::Unsupported);
            }
            Some(Action::Discard(ranges.into_iter().map(|(range, _)| range).collect()))
        }
        abi::VIRTIO_BLK_T_WRITE_ZEROES => {
            let ranges = takes_in.then(|| ranges(memory, readable, 1, MAX_ZERO_SECTORS))??;
            let (range, flags) = ranges.into_iter().next()?;
            if flags & !abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Some(Action::Unsupported);
            }
            Some(Action::WriteZeroes { range, unmap: flags != 0 })
        }
        _ => Some(Action::Unsupported),
    }
}

/// The ranges that `readable` consists of, with their flags: at least one and at most `most`, none larger than was said.
fn ranges(memory: &GuestMemoryMmap, readable: &mut Vec<Segment>, most: u32, sectors: u32) -> Option<Vec<(Range, u32)>> {
    let bytes = total(readable);
    let count = bytes / RANGE as u64;
    if !bytes.is_multiple_of(RANGE as u64) || count == 0 || count > most.into() {
        return None;
    }
    (0..count)
        .map(|_| {
            let raw = u128::from_le_bytes(take::<RANGE>(memory, readable)?);
            let (sector, number, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
            (number <= sectors).then_some((Range { sector, count: number }, flags))
        })
        .collect()
}
