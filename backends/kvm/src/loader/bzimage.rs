//! Kernels that unpack themselves (bzImage).

use super::{Kernel, LoadError, number};
use crate::memory::FilePart;

/// Where the setup header begins in the file, as in the zero page.
pub(super) const HEADER: usize = 0x1f1;
/// The most that the zero page has room for.
pub(super) const HEADER_LIMIT: usize = 0x290 - HEADER;
const MAGIC: &[u8] = b"HdrS";
const SECTOR: u64 = 512;
/// The first version with `init_size`, `pref_address` and the 64-bit entry's flag (2.12).
const OLDEST: u64 = 0x20c;
/// xloadflags: it has the 64-bit entry.
const HAS_64_BIT_ENTRY: u64 = 1;
/// Where that is.
const ENTRY_OFFSET: u64 = 0x200;

/// Reads the setup header out of `start`, the beginning of a file of `size` bytes.
pub(super) fn inspect(start: &[u8], size: u64) -> Result<Kernel, LoadError> {
    if start.get(0x202..0x206) != Some(MAGIC) {
        return Err(LoadError::UnknownFormat);
    }
    let wrong = |problem: &str| LoadError::Kernel(problem.to_owned());
    let short = || wrong("setup header is cut short");
    if number::<2>(start, 0x206).ok_or_else(short)? < OLDEST {
        return Err(wrong("boot protocol is older than 2.12"));
    }
    if number::<2>(start, 0x236).ok_or_else(short)? & HAS_64_BIT_ENTRY == 0 {
        return Err(wrong("setup header tells of no 64-bit entry"));
    }
    // 0 stands for 4, as it did in the first version.
    let setup = match number::<1>(start, HEADER).ok_or_else(short)? {
        0 => 4,
        sectors => sectors,
    };
    let offset = (setup + 1) * SECTOR;
    let len = size.checked_sub(offset).filter(|len| *len > ENTRY_OFFSET);
    let len = len.ok_or_else(|| wrong("setup is longer than its file"))?;
    let address = number::<8>(start, 0x258).ok_or_else(short)?;
    let needs = number::<4>(start, 0x260).ok_or_else(short)?.max(len);
    let end = address.checked_add(needs).ok_or_else(|| wrong("preferred address is none"))?;
    // The jump at 0x200 tells where the header ends.
    let header_end = 0x202 + usize::from(*start.get(0x201).ok_or_else(short)?);
    let header_end = header_end.clamp(HEADER, HEADER + HEADER_LIMIT);
    let command_line = number::<4>(start, 0x238).ok_or_else(short)?;
    Ok(Kernel {
        hardly_used: Vec::new(),
        parts: vec![FilePart { offset, address, len, copy: false }],
        extent: address..end,
        entry: address + ENTRY_OFFSET,
        header: Some(start.get(HEADER..header_end).ok_or_else(short)?.to_vec()),
        initrd_limit: number::<4>(start, 0x22c).ok_or_else(short)?,
        command_line_limit: usize::try_from(command_line).unwrap_or(usize::MAX).saturating_add(1),
    })
}
