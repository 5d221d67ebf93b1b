//! Puts kernel, RAM disk and command line into the guest's memory as the 64-bit boot protocol wants it
//! (Linux, Documentation/arch/x86/boot.rst).
//!
//! Both kinds of kernel are entered by that protocol, so that one way needs testing: an ELF file at its entry, a bzImage at
//! 0x200 beyond its start. The other way into an ELF file, PVH, begins in 32-bit mode and costs the guest the same.

mod boot_params;
mod bzimage;
mod elf;
mod sections;

pub(crate) use boot_params::{BootParams, MemoryMapEntry};

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::layout::{COMMAND_LINE, COMMAND_LINE_LIMIT, HIGH_MEMORY};
use crate::memory::{FilePart, HUGE_PAGE, Memory, PAGE};

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is in neither format.
    #[error("the kernel is neither an ELF file nor a bzImage")]
    UnknownFormat,
    /// It is one of them, and wrong.
    #[error("the kernel's {0}")]
    Kernel(String),
    /// It does not fit.
    #[error("{what} of {need} bytes does not fit into the {have} bytes of memory that it may be in")]
    TooLarge {
        /// The kernel or the RAM disk.
        what: &'static str,
        /// Its size.
        need: u64,
        /// The room for it.
        have: u64,
    },
    /// The command line cannot be given to it.
    #[error("the command line {0}")]
    CommandLine(String),
    /// Reading failed.
    #[error("cannot read {what}")]
    Read {
        /// What was read.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A kernel as it will be in the guest's memory; nothing is there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The parts of its file.
    parts: Vec<FilePart>,
    /// Huge pages of its memory of which it will use little.
    hardly_used: Vec<u64>,
    /// All that it occupies from its start, what it makes itself at once included.
    extent: Range<u64>,
    /// The first instruction.
    pub(crate) entry: u64,
    /// The header that a bzImage brings, as bytes; its length is that of the file's.
    header: Option<Vec<u8>>,
    /// The last address that the initial RAM disk may be at.
    initrd_limit: u64,
    /// The longest command line, with its end.
    command_line_limit: usize,
}

/// What was put into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// The first instruction.
    pub(crate) entry: u64,
    /// What the kernel occupies.
    pub(crate) extent: Range<u64>,
    /// Where the initial RAM disk is, empty without one.
    pub(crate) initrd: Range<u64>,
    /// The bzImage's header.
    pub(crate) header: Option<Vec<u8>>,
}

/// Reads what the file's beginning says of the kernel.
pub(crate) fn inspect(file: &File) -> Result<Kernel, LoadError> {
    let read = |source| LoadError::Read { what: "the kernel", source };
    let size = file.metadata().map_err(read)?.len();
    let mut start = [0; 4096];
    let len = read_up_to(file, &mut start, 0).map_err(read)?;
    let start = &start[..len];
    if start.starts_with(elf::MAGIC) {
        elf::inspect(start, size, |buffer, offset| file.read_exact_at(buffer, offset))
    } else {
        bzimage::inspect(start, size)
    }
}

/// Puts everything into `memory`, whose part below 4 GiB ends at `low_end`.
pub(crate) fn load(
    memory: &Memory,
    low_end: u64,
    kernel_file: &File,
    initrd_file: Option<&File>,
    command_line: &str,
) -> Result<Loaded, LoadError> {
    let kernel = inspect(kernel_file)?;
    if kernel.extent.start < HIGH_MEMORY {
        return Err(LoadError::Kernel(format!("address {:#x} is below 1 MiB", kernel.extent.start)));
    }
    if kernel.extent.end > low_end {
        let have = low_end.saturating_sub(kernel.extent.start);
        return Err(LoadError::TooLarge { what: "the kernel", need: kernel.extent.end - kernel.extent.start, have });
    }
    write_command_line(memory, command_line, kernel.command_line_limit)?;
    for page in &kernel.hardly_used {
        memory.advise_huge_pages(*page..page.saturating_add(HUGE_PAGE), false);
    }
    for part in &kernel.parts {
        memory.load(kernel_file, *part).map_err(|source| LoadError::Read { what: "the kernel", source })?;
    }
    let initrd = match initrd_file {
        None => 0..0,
        Some(file) => load_initrd(memory, file, kernel.extent.end, low_end.min(kernel.initrd_limit.saturating_add(1)))?,
    };
    Ok(Loaded { entry: kernel.entry, extent: kernel.extent, initrd, header: kernel.header })
}

/// The RAM disk goes to the end of what is below `limit`, on whole pages, so that it can be mapped.
fn load_initrd(memory: &Memory, file: &File, start: u64, limit: u64) -> Result<Range<u64>, LoadError> {
    let read = |source| LoadError::Read { what: "the initial RAM disk", source };
    let len = file.metadata().map_err(read)?.len();
    let start = start.next_multiple_of(PAGE);
    let have = (limit / PAGE * PAGE).saturating_sub(start);
    // A RAM disk may be followed by nothing in its last page.
    let pages = len.checked_next_multiple_of(PAGE).filter(|pages| *pages <= have && len <= u64::from(u32::MAX));
    let Some(pages) = pages else {
        return Err(LoadError::TooLarge { what: "the initial RAM disk", need: len, have });
    };
    let address = limit / PAGE * PAGE - pages;
    memory.load(file, FilePart { offset: 0, address, len, copy: false }).map_err(read)?;
    Ok(address..address + len)
}

fn write_command_line(memory: &Memory, line: &str, limit: usize) -> Result<(), LoadError> {
    if line.bytes().any(|byte| byte == 0 || byte == b'\n') {
        return Err(LoadError::CommandLine("contains a zero byte or a line's end".to_owned()));
    }
    let limit = limit.min(COMMAND_LINE_LIMIT);
    if line.len() >= limit {
        return Err(LoadError::CommandLine(format!(
            "has {} bytes, and the kernel takes {}",
            line.len(),
            limit.saturating_sub(1)
        )));
    }
    let bytes = [line.as_bytes(), &[0]].concat();
    memory
        .guest()
        .write_slice(&bytes, GuestAddress(COMMAND_LINE))
        .map_err(|error| LoadError::CommandLine(format!("cannot be written to the guest's memory: {error}")))
}

/// Reads as much as there is.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A little-endian number at `offset` of a header, if the header is that long.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(N)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests;
