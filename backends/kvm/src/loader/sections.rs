//! What an ELF file's sections tell beyond its segments: which parts of a segment hold nothing, which are code, and which
//! are room of which little will be used.
//!
//! Linux's segments contain as zeros in the file what is only room (.bss, gaps between code and data): left out, the guest
//! finds fresh memory there, which has huge pages and costs nothing before it is touched. Code is copied rather than mapped:
//! the kernel patches nearly each of its pages as it begins (alternatives, calls of the function tracer), and every page
//! mapped from the file would then be a fault for reading, another for writing, and a copy.

use std::io;
use std::ops::Range;

use super::number;
use crate::memory::{FilePart, HUGE_PAGE, PAGE};

const SECTION_SIZE: usize = 64;
/// Linux has about forty; more than these is no kernel.
const MAX_SECTIONS: u64 = 256;
const TYPE_NOBITS: u64 = 8;
const FLAG_ALLOC: u64 = 2;
const FLAG_CODE: u64 = 4;

/// A section that has a place in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    addresses: Range<u64>,
    code: bool,
    /// It has bytes in the file.
    in_file: bool,
}

/// The sections, by ascending address; none if the file does not tell, or tells nonsense.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sections(Vec<Section>);

impl Sections {
    /// Reads the table that the header, which `start` begins with, tells of.
    pub(super) fn read(start: &[u8], read_at: &impl Fn(&mut [u8], u64) -> io::Result<()>) -> Self {
        Self::try_read(start, read_at).unwrap_or_default()
    }

    fn try_read(start: &[u8], read_at: &impl Fn(&mut [u8], u64) -> io::Result<()>) -> Option<Self> {
        let table = number::<8>(start, 40)?;
        let count = number::<2>(start, 60)?;
        if number::<2>(start, 58)? != SECTION_SIZE as u64 || count == 0 || count > MAX_SECTIONS {
            return None;
        }
        let mut bytes = vec![0; SECTION_SIZE * usize::try_from(count).ok()?];
        read_at(&mut bytes, table).ok()?;
        let mut sections = Vec::new();
        for header in bytes.chunks_exact(SECTION_SIZE) {
            let (kind, flags) = (number::<4>(header, 4)?, number::<8>(header, 8)?);
            let (address, size) = (number::<8>(header, 16)?, number::<8>(header, 32)?);
            if flags & FLAG_ALLOC != 0 && size > 0 {
                let addresses = address..address.checked_add(size)?;
                sections.push(Section { addresses, code: flags & FLAG_CODE != 0, in_file: kind != TYPE_NOBITS });
            }
        }
        sections.sort_by_key(|section| section.addresses.start);
        Some(Self(sections))
    }

    /// The parts of `part`, a segment at the virtual address `start`, that are to be loaded: whole pages that have a byte of a
    /// section. All of it when there are no sections in it.
    pub(super) fn refine(&self, part: FilePart, start: u64) -> Vec<FilePart> {
        let Some(end) = start.checked_add(part.len) else { return vec![part] };
        // Only a segment whose pages are the same in all three places can be cut at pages.
        if start % PAGE != part.address % PAGE || start % PAGE != part.offset % PAGE {
            return vec![part];
        }
        let mut found: Vec<(Range<u64>, bool)> = Vec::new();
        for section in self.0.iter().filter(|section| section.in_file) {
            let addresses = &section.addresses;
            if addresses.start >= end || addresses.end <= start {
                continue;
            }
            let mut pages = addresses.start / PAGE * PAGE..addresses.end.saturating_add(PAGE - 1) / PAGE * PAGE;
            pages = pages.start.max(start)..pages.end.min(end);
            match found.last_mut() {
                Some((last, last_code)) if pages.start <= last.end && *last_code == section.code => {
                    last.end = last.end.max(pages.end);
                }
                last => {
                    // The page that two sections share comes with the first.
                    let from = pages.start.max(last.map_or(start, |(last, _)| last.end));
                    if from < pages.end {
                        found.push((from..pages.end, section.code));
                    }
                }
            }
        }
        if found.is_empty() {
            return vec![part];
        }
        let piece = |(pages, copy): (Range<u64>, bool)| {
            let skipped = pages.start - start;
            let (offset, address) = (part.offset + skipped, part.address + skipped);
            FilePart { offset, address, len: pages.end - pages.start, copy }
        };
        found.into_iter().map(piece).collect()
    }

    /// The huge pages of the virtual `addresses` that have nothing but some room, less than half of theirs: what the kernel
    /// does not need of it, it gives away untouched.
    pub(super) fn hardly_used(&self, addresses: Range<u64>) -> Vec<u64> {
        let within =
            |section: &&Section| addresses.start <= section.addresses.start && section.addresses.end <= addresses.end;
        let small = |section: &&Section| section.addresses.end - section.addresses.start < HUGE_PAGE / 2;
        let page_of = |section: &Section| section.addresses.start / HUGE_PAGE * HUGE_PAGE;
        let alone = |page: &u64| {
            let end = page.saturating_add(HUGE_PAGE);
            self.0.iter().filter(|section| section.addresses.start < end && *page < section.addresses.end).count() == 1
        };
        let rooms = self.0.iter().filter(|section| !section.in_file);
        rooms.filter(within).filter(small).map(page_of).filter(alone).collect()
    }
}
