//! Kernels as ELF files (vmlinux).

use std::io;

use super::sections::Sections;
use super::{Kernel, LoadError, number};
use crate::memory::layout::COMMAND_LINE_LIMIT;
use crate::memory::{FilePart, HUGE_PAGE, PAGE};

pub(super) const MAGIC: &[u8] = b"\x7fELF";

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u64 = 62;
const SEGMENT_LOAD: u64 = 1;
const SEGMENT_SIZE: usize = 56;
/// Linux has five segments; more than these is no kernel.
const MAX_SEGMENTS: u64 = 64;

/// Reads the header, which `start` begins with, and the segments' table, which `read_at` reads from a file of `size` bytes.
pub(super) fn inspect(
    start: &[u8],
    size: u64,
    read_at: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> Result<Kernel, LoadError> {
    let wrong = |problem: &str| LoadError::Kernel(problem.to_owned());
    let short = || wrong("ELF header is cut short");
    if start.get(4) != Some(&CLASS_64) || start.get(5) != Some(&LITTLE_ENDIAN) {
        return Err(wrong("ELF file is not for 64 bits, little endian"));
    }
    if number::<2>(start, 18).ok_or_else(short)? != MACHINE_X86_64 {
        return Err(wrong("ELF file is not for x86-64"));
    }
    let entry = number::<8>(start, 24).ok_or_else(short)?;
    let table = number::<8>(start, 32).ok_or_else(short)?;
    let entry_size = number::<2>(start, 54).ok_or_else(short)?;
    let count = number::<2>(start, 56).ok_or_else(short)?;
    if entry_size != SEGMENT_SIZE as u64 || count == 0 || count > MAX_SEGMENTS {
        return Err(wrong("table of segments is none"));
    }

    let mut bytes = vec![0; SEGMENT_SIZE * usize::try_from(count).unwrap_or(0)];
    read_at(&mut bytes, table).map_err(|source| LoadError::Read { what: "the kernel's table of segments", source })?;
    let sections = Sections::read(start, &read_at);
    let mut parts: Vec<FilePart> = Vec::new();
    let (mut refined, mut hardly_used) = (Vec::new(), Vec::new());
    let (mut lowest, mut highest) = (u64::MAX, 0);
    for segment in bytes.chunks_exact(SEGMENT_SIZE) {
        let field = |offset| number::<8>(segment, offset).unwrap_or(0);
        if number::<4>(segment, 0) != Some(SEGMENT_LOAD) || field(40) == 0 {
            continue;
        }
        let (offset, address, in_file, in_memory) = (field(8), field(24), field(32), field(40));
        if in_file > in_memory || offset.checked_add(in_file).is_none_or(|end| end > size) {
            return Err(wrong("segment is longer than its file or its memory"));
        }
        let end = address.checked_add(in_memory).filter(|end| *end <= u64::MAX - PAGE);
        let end = end.ok_or_else(|| wrong("segment is at no address"))?;
        let overlaps = |part: &FilePart| address < part.address + part.len && part.address < address + in_file;
        if parts.iter().any(overlaps) {
            return Err(wrong("segments overlap"));
        }
        (lowest, highest) = (lowest.min(address), highest.max(end));
        let start = field(16);
        let in_guest = |at: u64| at.wrapping_sub(start).wrapping_add(address);
        let rooms = sections.hardly_used(start..start.saturating_add(in_memory));
        hardly_used.extend(rooms.into_iter().map(in_guest).filter(|at| at % HUGE_PAGE == 0));
        if in_file > 0 {
            let part = FilePart { offset, address, len: in_file, copy: false };
            parts.push(part);
            refined.extend(sections.refine(part, start));
        }
    }
    if !(lowest..highest).contains(&entry) {
        return Err(wrong("entry is in none of its segments"));
    }
    Ok(Kernel {
        parts: refined,
        hardly_used,
        extent: lowest..highest,
        entry,
        header: None,
        initrd_limit: u64::from(u32::MAX),
        command_line_limit: COMMAND_LINE_LIMIT,
    })
}
