//! The zero page: what the kernel is told about its memory.

use std::ops::Range;

use super::bzimage::{HEADER, HEADER_LIMIT};
use crate::memory::PAGE;
use crate::memory::layout::{ACPI_TABLES, COMMAND_LINE};

/// A range of the memory map (e820).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryMapEntry {
    /// The addresses.
    pub(crate) range: Range<u64>,
    /// Whether the kernel may use it as it likes.
    pub(crate) usable: bool,
}

/// What the zero page says.
#[derive(Debug)]
pub(crate) struct BootParams<'a> {
    /// A bzImage's own header, which is passed back to it.
    pub(crate) header: Option<&'a [u8]>,
    /// The initial RAM disk; empty for none.
    pub(crate) initrd: Range<u64>,
    /// The length of the command line at [`COMMAND_LINE`], without its end.
    pub(crate) command_line_len: usize,
    /// The memory map, at most 128 entries.
    pub(crate) memory_map: &'a [MemoryMapEntry],
}

const RSDP: usize = 0x70;
const EXT_RAMDISK_IMAGE: usize = 0xc0;
const EXT_RAMDISK_SIZE: usize = 0xc4;
const MAP_COUNT: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const COMMAND_LINE_ADDRESS: usize = 0x228;
const COMMAND_LINE_SIZE: usize = 0x238;
const MAP: usize = 0x2d0;
const MAP_LIMIT: usize = 128;
const MAP_ENTRY: usize = 20;
/// A boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
/// The version whose fields are filled in for a kernel that brings no header.
const PROTOCOL: u16 = 0x20f;
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;

impl BootParams<'_> {
    /// The page's bytes.
    pub(crate) fn to_page(&self) -> [u8; PAGE as usize] {
        let mut page = [0; PAGE as usize];
        let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
        match self.header {
            Some(header) => put(HEADER, &header[..header.len().min(HEADER_LIMIT)]),
            None => {
                put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
                put(MAGIC, b"HdrS");
                put(VERSION, &PROTOCOL.to_le_bytes());
            }
        }
        put(LOADER, &[LOADER_UNKNOWN]);
        put(RSDP, &ACPI_TABLES.to_le_bytes());
        put(COMMAND_LINE_ADDRESS, &low(COMMAND_LINE));
        put(COMMAND_LINE_SIZE, &low(self.command_line_len as u64));
        if !self.initrd.is_empty() {
            let (start, len) = (self.initrd.start, self.initrd.end - self.initrd.start);
            put(RAMDISK_IMAGE, &low(start));
            put(RAMDISK_SIZE, &low(len));
            put(EXT_RAMDISK_IMAGE, &low(start >> 32));
            put(EXT_RAMDISK_SIZE, &low(len >> 32));
        }
        let entries = self.memory_map.iter().take(MAP_LIMIT);
        for (index, MemoryMapEntry { range, usable }) in entries.clone().enumerate() {
            let at = MAP + index * MAP_ENTRY;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &(range.end - range.start).to_le_bytes());
            put(at + 16, &if *usable { TYPE_RAM } else { TYPE_RESERVED }.to_le_bytes());
        }
        put(MAP_COUNT, &[u8::try_from(entries.count()).unwrap_or(0)]);
        page
    }
}

/// The lower half of a number.
fn low(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}
