//! Kernels that are wrong in every way that bytes can be.

use super::*;
use proptest::prelude::*;
use std::io::Write;

const LOW_END: u64 = 64 << 20;

fn memory() -> Memory {
    Memory::reserve(&[0..LOW_END]).unwrap()
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[derive(Debug, Clone)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

fn elf_of(entry: u64, segments: &[Segment], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
    for segment in segments {
        bytes.extend(segment.kind.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        for field in [segment.offset, segment.address, segment.address, segment.in_file, segment.in_memory, 0x20_0000] {
            bytes.extend(field.to_le_bytes());
        }
    }
    bytes.resize(bytes.len().max(4096), 0);
    bytes.extend(body);
    bytes
}

fn bzimage_of(setup_sectors: u8, address: u64, init_size: u32, body: &[u8]) -> Vec<u8> {
    let sectors = if setup_sectors == 0 { 4 } else { usize::from(setup_sectors) };
    let mut bytes = vec![0; (sectors + 1) * 512];
    bytes[HEADER_START] = setup_sectors;
    bytes[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    bytes[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
    bytes[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    bytes[0x258..0x260].copy_from_slice(&address.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    bytes.extend(body);
    bytes
}

const HEADER_START: usize = 0x1f1;

fn seen(memory: &Memory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.guest().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[test]
fn an_elf_kernel_is_where_its_segments_say_and_its_bss_is_zero() {
    let body: Vec<u8> = (0..10000u32).map(|i| i as u8).collect();
    let segments = [
        Segment { kind: 1, offset: 4096, address: 0x100_0000, in_file: 8192, in_memory: 8192 },
        Segment { kind: 1, offset: 4096 + 8192, address: 0x110_0000, in_file: 1808, in_memory: 0x10000 },
        Segment { kind: 4, offset: 0, address: 0, in_file: 64, in_memory: 64 },
    ];
    let memory = memory();
    let kernel = file_of(&elf_of(0x100_0010, &segments, &body));
    let initrd = file_of(&[0x5a; 5000]);
    let loaded = load(&memory, LOW_END, &kernel, Some(&initrd), "quiet").unwrap();
    assert_eq!(loaded.entry, 0x100_0010);
    assert_eq!(loaded.extent, 0x100_0000..0x111_0000);
    assert_eq!(seen(&memory, 0x100_0000, 8192), body[..8192]);
    assert_eq!(seen(&memory, 0x110_0000, 1808), body[8192..]);
    assert!(seen(&memory, 0x110_0000 + 1808, 4096).iter().all(|byte| *byte == 0));
    assert_eq!(loaded.initrd, LOW_END - 8192..LOW_END - 8192 + 5000);
    assert_eq!(seen(&memory, loaded.initrd.start, 5000), [0x5a; 5000]);
    assert_eq!(seen(&memory, COMMAND_LINE, 6), *b"quiet\0");
}

/// A section's header: flags, address, offset, size, and whether it has bytes in the file.
fn section(flags: u64, address: u64, offset: u64, size: u64, in_file: bool) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[4..8].copy_from_slice(&if in_file { 1u32 } else { 8 }.to_le_bytes());
    for (at, field) in [(8, flags), (16, address), (24, offset), (32, size)] {
        header[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    header
}

/// Adds the table of sections to an ELF file.
fn add_sections(bytes: &mut Vec<u8>, sections: &[Vec<u8>]) {
    let table = bytes.len() as u64;
    bytes.extend(sections.concat());
    bytes[40..48].copy_from_slice(&table.to_le_bytes());
    bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
    bytes[60..62].copy_from_slice(&u16::try_from(sections.len()).unwrap().to_le_bytes());
}

#[test]
fn what_no_section_has_in_the_file_is_left_zero_and_code_is_copied() {
    let segments = [Segment { kind: 1, offset: 0x1000, address: 0x100_0000, in_file: 0x8000, in_memory: 0x8000 }];
    let mut bytes = elf_of(0x100_0000, &segments, &[9; 0x8000]);
    let sections = [
        section(6, 0x100_0000, 0x1000, 0x2800, true),
        section(3, 0x100_5000, 0x6000, 0x1000, false),
        section(3, 0x100_6000, 0x7000, 0x2000, true),
    ];
    add_sections(&mut bytes, &sections);
    let file = file_of(&bytes);
    let parts = inspect(&file).unwrap().parts;
    assert_eq!(
        parts,
        [
            FilePart { offset: 0x1000, address: 0x100_0000, len: 0x3000, copy: true },
            FilePart { offset: 0x7000, address: 0x100_6000, len: 0x2000, copy: false },
        ]
    );
    let memory = memory();
    load(&memory, LOW_END, &file, None, "").unwrap();
    assert!(seen(&memory, 0x100_3000, 0x3000).iter().all(|byte| *byte == 0));
    assert_eq!(seen(&memory, 0x100_6000, 0x2000), [9; 0x2000]);
}

#[test]
fn a_page_of_two_sections_comes_with_the_first() {
    let segments = [Segment { kind: 1, offset: 0x1000, address: 0x100_0000, in_file: 0x8000, in_memory: 0x8000 }];
    let mut bytes = elf_of(0x100_0000, &segments, &[9; 0x8000]);
    let sections = [
        section(6, 0x100_0000, 0x1000, 0x2800, true),
        section(2, 0x100_2800, 0x3800, 0x800, true),
        section(2, 0x100_3000, 0x4000, 0x2010, true),
        section(6, 0x100_5010, 0x6010, 0x10, true),
        section(6, 0x100_7000, 0x8000, 0x1000, true),
    ];
    add_sections(&mut bytes, &sections);
    assert_eq!(
        inspect(&file_of(&bytes)).unwrap().parts,
        [
            FilePart { offset: 0x1000, address: 0x100_0000, len: 0x3000, copy: true },
            FilePart { offset: 0x4000, address: 0x100_3000, len: 0x3000, copy: false },
            FilePart { offset: 0x8000, address: 0x100_7000, len: 0x1000, copy: true },
        ]
    );
}

#[test]
fn huge_pages_of_little_room_are_known() {
    // In memory: code, room of more than half a huge page, room next to code, and room alone.
    let segment = Segment { kind: 1, offset: 0x1000, address: 0x100_0000, in_file: 0x1000, in_memory: 0xa0_0000 };
    let mut bytes = elf_of(0x100_0000, &[segment], &[9; 0x1000]);
    let sections = [
        section(6, 0x100_0000, 0x1000, 0x1000, true),
        section(3, 0x120_0000, 0x2000, 0x12_0000, false),
        section(3, 0x100_1000, 0x2000, 0x1000, false),
        section(3, 0x160_0000, 0x2000, 0x3_0000, false),
        section(3, 0x200_0000, 0x2000, 0x3_0000, false),
    ];
    add_sections(&mut bytes, &sections);
    let file = file_of(&bytes);
    assert_eq!(inspect(&file).unwrap().hardly_used, [0x160_0000]);
    load(&memory(), LOW_END, &file, None, "").unwrap();
}

#[test]
fn a_bzimage_is_at_its_preferred_address_and_entered_beyond_its_start() {
    let memory = memory();
    let kernel = file_of(&bzimage_of(3, 0x100_0000, 0x20_0000, &[7; 3000]));
    let loaded = load(&memory, LOW_END, &kernel, None, "").unwrap();
    assert_eq!(loaded.entry, 0x100_0200);
    assert_eq!(loaded.extent, 0x100_0000..0x120_0000);
    assert_eq!(seen(&memory, 0x100_0000, 3000), [7; 3000]);
    assert_eq!(loaded.header.unwrap().len(), 0x202 + 0x6a - 0x1f1);
    assert!(loaded.initrd.is_empty());
}

#[test]
fn what_is_too_large_is_told_with_its_size() {
    let kernel = file_of(&bzimage_of(3, 0x100_0000, 0x20_0000, &[7; 3000]));
    let small = Memory::reserve(&[0..0x110_0000]).unwrap();
    let error = load(&small, 0x110_0000, &kernel, None, "").unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { what: "the kernel", need: 0x20_0000, have: 0x10_0000 }), "{error}");

    let initrd = file_of(&[]);
    initrd.set_len(LOW_END).unwrap();
    let error = load(&memory(), LOW_END, &kernel, Some(&initrd), "").unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { what: "the initial RAM disk", .. }), "{error}");
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let kernel = file_of(&bzimage_of(3, 0x100_0000, 0x20_0000, &[7; 3000]));
    load(&memory(), LOW_END, &kernel, None, &"x".repeat(2047)).unwrap();
    for line in ["x".repeat(2048), "a\nb".to_owned(), "a\0b".to_owned()] {
        let error = load(&memory(), LOW_END, &kernel, None, &line).unwrap_err();
        assert!(matches!(error, LoadError::CommandLine(_)), "{error}");
    }
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 5000]] {
        assert!(matches!(inspect(&file_of(bytes)), Err(LoadError::UnknownFormat)));
    }
}

#[test]
fn the_zero_page_tells_of_memory_command_line_and_ram_disk() {
    let map = [
        MemoryMapEntry { range: 0..0xa_0000, usable: true },
        MemoryMapEntry { range: 0xa_0000..0x10_0000, usable: false },
    ];
    let page =
        BootParams { header: None, initrd: 0x300_0000..0x300_1234, command_line_len: 17, memory_map: &map }.to_page();
    assert_eq!(number::<4>(&page, 0x228), Some(COMMAND_LINE));
    assert_eq!(number::<4>(&page, 0x238), Some(17));
    assert_eq!(number::<4>(&page, 0x218), Some(0x300_0000));
    assert_eq!(number::<4>(&page, 0x21c), Some(0x1234));
    assert_eq!(number::<1>(&page, 0x1e8), Some(2));
    assert_eq!(number::<8>(&page, 0x2d0 + 20), Some(0xa_0000));
    assert_eq!(number::<8>(&page, 0x2d0 + 28), Some(0x6_0000));
    assert_eq!(number::<4>(&page, 0x2d0 + 36), Some(2));
}

fn segment() -> impl Strategy<Value = Segment> {
    let numbers = || prop_oneof![0u64..0x2000, 0xf_0000u64..0x500_0000, any::<u64>()];
    (prop_oneof![Just(1u32), any::<u32>()], numbers(), numbers(), numbers(), numbers())
        .prop_map(|(kind, offset, address, in_file, in_memory)| Segment { kind, offset, address, in_file, in_memory })
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_loaded_inside_of_memory(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..6000), format in 0..3
    ) {
        match format {
            0 if bytes.len() > 8 => bytes[..6].copy_from_slice(b"\x7fELF\x02\x01"),
            1 if bytes.len() > 0x300 => bytes[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02"),
            _ => {}
        }
        let file = file_of(&bytes);
        if let Ok(loaded) = load(&memory(), LOW_END, &file, Some(&file), "") {
            prop_assert!(loaded.extent.end <= LOW_END && loaded.initrd.end <= LOW_END);
        }
    }

    #[test]
    fn arbitrary_segments_are_refused_or_loaded_inside_of_memory(
        entry in prop_oneof![0xf_0000u64..0x500_0000, any::<u64>()], segments in proptest::collection::vec(segment(), 0..5),
        sections in proptest::collection::vec(prop_oneof![any::<[u64; 4]>(), [0u64..8, 0u64..0x500_0000, 0u64..0x4000, 0u64..0x4000]], 0..5)
    ) {
        let mut bytes = elf_of(entry, &segments, &[3; 9000]);
        let header = |[flags, address, offset, size]: [u64; 4]| section(flags | 2, address, offset, size, flags % 3 > 0);
        let sections: Vec<_> = sections.into_iter().map(header).collect();
        add_sections(&mut bytes, &sections);
        let file = file_of(&bytes);
        if let Ok(loaded) = load(&memory(), LOW_END, &file, None, "") {
            prop_assert!(loaded.extent.start >= HIGH_MEMORY && loaded.extent.end <= LOW_END);
            prop_assert!(loaded.extent.contains(&loaded.entry));
        }
    }

    #[test]
    fn arbitrary_setup_headers_are_refused_or_loaded_inside_of_memory(
        sectors in any::<u8>(), address in prop_oneof![0xf_0000u64..0x500_0000, any::<u64>()], init_size in any::<u32>(),
        header in proptest::collection::vec((0x1f1usize..0x280, any::<u8>()), 0..6), len in 0usize..6000
    ) {
        let mut bytes = bzimage_of(sectors, address, init_size, &vec![1; len]);
        for (at, byte) in header {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(loaded) = load(&memory(), LOW_END, &file_of(&bytes), None, "") {
            prop_assert!(loaded.extent.start >= HIGH_MEMORY && loaded.extent.end <= LOW_END);
        }
    }
}
