//! The guest's memory: regions of this process that KVM maps into the guest.

pub(crate) mod layout;
pub(crate) mod registers;
mod sys;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use sys::{MappedMemory, Mapping};

/// The guest's memory as devices see it. All that can ever be there (the part that is plugged later included) is mapped
/// from the start, so that it never changes under a device.
pub type GuestMemory = Arc<GuestMemoryMmap>;

/// The size of a page.
pub(crate) const PAGE: u64 = 4096;

/// The size of a huge page.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// How many places of a huge page's worth of a file are looked at to tell what it is filled with, and how many bytes each.
const SAMPLES: u64 = 16;
const SAMPLE: usize = 64;

/// A piece of a file is mapped if it has this much of a huge page. Of less, mapping would cost more than copying: memory
/// around it could not be a huge page any more.
const WORTH_MAPPING: u64 = HUGE_PAGE / 4 * 3;

/// A part of a file as a caller wants it in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePart {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Where it begins in the guest.
    pub(crate) address: u64,
    /// How long it is.
    pub(crate) len: u64,
    /// Copy it even where it could be mapped: the guest will write to most of its pages.
    pub(crate) copy: bool,
}

/// The owner of a machine's memory.
#[derive(Debug)]
pub(crate) struct Memory(MappedMemory);

impl Memory {
    /// Reserves memory for `ranges`, ascending; empty ones are left out. Nothing of the host's memory is used before it
    /// is touched.
    pub(crate) fn reserve(ranges: &[Range<u64>]) -> io::Result<Self> {
        MappedMemory::reserve(ranges).map(Self)
    }

    /// As devices see it.
    pub(crate) fn guest(&self) -> &GuestMemory {
        self.0.guest()
    }

    /// The regions by their guest-physical addresses, and where they are in this process.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        self.guest().iter().zip(self.0.mappings()).map(|(region, mapping)| {
            let start = region.start_addr().0;
            (start..start + region.len(), mapping.address())
        })
    }

    /// Asks the kernel for huge pages in `range`, or for none.
    pub(crate) fn advise_huge_pages(&self, range: Range<u64>, wanted: bool) {
        if let Some((mapping, offset)) = self.locate(range.start, range.end.saturating_sub(range.start)) {
            // Whichever it gets, the guest works.
            let _ = mapping.advise_huge(offset, range.end - range.start, wanted);
        }
    }

    /// Puts a part of `file` into the guest's memory, which nobody has written to yet. What fills most of a huge page is
    /// mapped privately, where file and guest agree on their alignment, which reads nothing until the guest does; the rest is
    /// copied.
    ///
    /// Fails for a part that the file does not have: a page beyond its end could not be read later.
    pub(crate) fn load(&self, file: &File, part: FilePart) -> io::Result<()> {
        let FilePart { offset, address, len, .. } = part;
        if offset.checked_add(len).is_none_or(|end| file.metadata().map_or(true, |metadata| end > metadata.len())) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((mapping, base)) = self.locate(address, len) else {
            return Err(io::Error::other("a part of the file does not fit into the guest's memory"));
        };
        for (how, piece) in pieces(file, part)? {
            let at = base + (piece.address - address);
            match how {
                How::Map => mapping.map_file(at, file.as_fd(), piece.offset, piece.len)?,
                How::Copy => mapping.copy_file(at, file.as_fd(), piece.offset, piece.len)?,
                How::Leave => {}
            }
        }
        Ok(())
    }

    /// Writes all memory to `file`, region after region, leaving out pages that hold only zeros.
    pub(crate) fn write_to(&self, file: &File) -> io::Result<()> {
        let total: u64 = self.guest().iter().map(GuestMemoryRegion::len).sum();
        file.set_len(total)?;
        let mut buffer = vec![0; CHUNK];
        let mut base = 0;
        for region in self.guest().iter() {
            let mut at = 0;
            while at < region.len() {
                let len = usize::try_from(region.len() - at).unwrap_or(CHUNK).min(CHUNK);
                let chunk = &mut buffer[..len];
                region.read_slice(chunk, MemoryRegionAddress(at)).map_err(io::Error::other)?;
                write_sparsely(file, chunk, base + at)?;
                at += len as u64;
            }
            base += region.len();
        }
        Ok(())
    }

    /// Takes on what [`Memory::write_to`] wrote, by mapping `file` privately.
    pub(crate) fn read_from(&self, file: &File) -> io::Result<()> {
        let total: u64 = self.guest().iter().map(GuestMemoryRegion::len).sum();
        let found = file.metadata()?.len();
        if found != total {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the memory file has {found} bytes, and the machine's memory {total}"),
            ));
        }
        let mut offset = 0;
        for (region, mapping) in self.guest().iter().zip(self.0.mappings()) {
            mapping.map_file(0, file.as_fd(), offset, region.len())?;
            offset += region.len();
        }
        Ok(())
    }

    /// The mapping that has all of `len` bytes from `address`, and the offset in it.
    fn locate(&self, address: u64, len: u64) -> Option<(&Mapping, u64)> {
        let end = address.checked_add(len)?;
        self.guest().iter().zip(self.0.mappings()).find_map(|(region, mapping)| {
            let start = region.start_addr().0;
            (address >= start && end <= start + region.len()).then(|| (mapping, address - start))
        })
    }
}

/// How a piece of a file comes into the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Map,
    Copy,
    /// It is zeros, as fresh memory is.
    Leave,
}

/// Cuts a part at the guest's huge pages, and says how each piece comes into memory; neighbours of the same kind are one.
fn pieces(file: &File, part: FilePart) -> io::Result<Vec<(How, FilePart)>> {
    let mut pieces: Vec<(How, FilePart)> = Vec::new();
    let mut rest = part;
    while rest.len > 0 {
        let len = rest.len.min(HUGE_PAGE - rest.address % HUGE_PAGE);
        let piece = FilePart { len, ..rest };
        let how = how(file, piece)?;
        match pieces.last_mut() {
            Some((last, before)) if *last == how => before.len += len,
            _ => pieces.push((how, piece)),
        }
        rest = FilePart { offset: rest.offset + len, address: rest.address + len, len: rest.len - len, ..rest };
    }
    Ok(pieces)
}

/// What is best for a piece that lies in one huge page of the guest.
fn how(file: &File, piece: FilePart) -> io::Result<How> {
    let FilePart { offset, address, len, copy } = piece;
    if [offset, address, len].iter().any(|place| place % PAGE != 0) || len < WORTH_MAPPING {
        return Ok(How::Copy);
    }
    let (mut filler, mut zeros) = (0, 0);
    let mut sample = [0; SAMPLE];
    for seen in 1..=SAMPLES {
        file.read_exact_at(&mut sample, offset + (seen - 1) * (len / SAMPLES))?;
        filler += u64::from(sample.iter().all(|byte| *byte == sample[0]));
        zeros += u64::from(is_zero(&sample));
        // Pieces of code are aligned to huge pages, with nothing but breakpoints in between, where nobody writes.
        if copy && seen - filler > SAMPLES / 4 {
            return Ok(How::Copy);
        }
        if !copy && zeros < seen {
            return Ok(How::Map);
        }
    }
    if zeros == SAMPLES && sys::is_zero(file.as_fd(), offset, len)? { Ok(How::Leave) } else { Ok(How::Map) }
}

/// What is read and written at a time for a snapshot.
const CHUNK: usize = 1 << 20;

/// Writes the pages of `chunk` that hold anything.
fn write_sparsely(file: &File, chunk: &[u8], offset: u64) -> io::Result<()> {
    let mut pages = chunk.chunks(PAGE as usize).enumerate().peekable();
    while let Some((first, page)) = pages.next() {
        if is_zero(page) {
            continue;
        }
        let start = first * PAGE as usize;
        let mut end = start + page.len();
        while let Some((_, page)) = pages.next_if(|(_, page)| !is_zero(page)) {
            end += page.len();
        }
        file.write_all_at(&chunk[start..end], offset + start as u64)?;
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    // Compared as wide as the compiler makes it; most pages that are not zero differ early.
    page.chunks(64).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use vm_memory::GuestAddress;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 + i) as u8).collect()
    }

    proptest! {
        #[test]
        fn a_part_of_a_file_arrives_whatever_its_alignment(
            offset in 0u64..9000, address in 0u64..9000, len in 0u64..20000, agree in any::<bool>(),
            copy in any::<bool>()
        ) {
            let address = if agree { address / PAGE * PAGE + offset % PAGE } else { address };
            let bytes = pattern(40000);
            let memory = Memory::reserve(&[0..65536]).unwrap();
            memory.load(&file_of(&bytes), FilePart { offset, address, len, copy }).unwrap();
            let mut seen = vec![0; 65536];
            memory.guest().read_slice(&mut seen, GuestAddress(0)).unwrap();
            let (start, end) = (address as usize, (address + len) as usize);
            prop_assert_eq!(&seen[start..end], &bytes[offset as usize..(offset + len) as usize]);
            prop_assert!(seen[..start].iter().chain(&seen[end..]).all(|byte| *byte == 0));
        }

        #[test]
        fn a_part_that_does_not_fit_is_refused(address in any::<u64>(), len in 1u64..) {
            let memory = Memory::reserve(&[0..65536]).unwrap();
            prop_assume!(address.checked_add(len).is_none_or(|end| end > 65536));
            memory.load(&file_of(&[1; 100]), FilePart { offset: 0, address, len, copy: false }).unwrap_err();
        }
    }

    /// Five huge pages of a file: content, content and filler, filler, zeros, and zeros but for one byte.
    fn kernel() -> Vec<u8> {
        let huge = HUGE_PAGE as usize;
        let mut bytes = [vec![0xcc; 3 * huge], vec![0; 2 * huge]].concat();
        for range in [0..huge + 5000, 2 * huge..2 * huge + 5000] {
            bytes[range.clone()].copy_from_slice(&pattern(range.len()));
        }
        *bytes.last_mut().unwrap() = 1;
        bytes
    }

    #[test]
    fn what_fills_a_huge_page_is_mapped_unless_it_will_be_written_or_is_zeros() {
        let file = file_of(&kernel());
        let kinds = |part| -> Vec<(How, u64)> {
            pieces(&file, part).unwrap().into_iter().map(|(how, piece)| (how, piece.len / PAGE)).collect()
        };
        let all = FilePart { offset: 0, address: 16 * HUGE_PAGE, len: 5 * HUGE_PAGE, copy: false };
        assert_eq!(kinds(all), [(How::Map, 3 * 512), (How::Leave, 512), (How::Map, 512)]);
        let code = FilePart { copy: true, ..all };
        assert_eq!(kinds(code), [(How::Copy, 512), (How::Map, 2 * 512), (How::Leave, 512), (How::Map, 512)]);
        // An end that fills most of a huge page, and one that does not.
        let part = FilePart { len: HUGE_PAGE + WORTH_MAPPING, ..all };
        assert_eq!(kinds(part), [(How::Map, 512 + 384)]);
        let part = FilePart { len: HUGE_PAGE + WORTH_MAPPING - PAGE, ..all };
        assert_eq!(kinds(part), [(How::Map, 512), (How::Copy, 383)]);
        let part = FilePart { offset: 100 * PAGE, address: all.address + 400 * PAGE, len: 212 * PAGE, copy: false };
        assert_eq!(kinds(part), [(How::Copy, 212)]);
        // Not to be mapped, for the pages are not the same.
        let part = FilePart { offset: 16, len: HUGE_PAGE, ..all };
        assert_eq!(kinds(part), [(How::Copy, 512)]);
    }

    #[test]
    fn however_a_part_comes_into_memory_it_is_the_files_and_writing_does_not_reach_the_file() {
        let bytes = kernel();
        let mut file = file_of(&bytes);
        for copy in [false, true] {
            for (offset, address, len) in [
                (0, HUGE_PAGE, 5 * HUGE_PAGE),
                (HUGE_PAGE - PAGE, 2 * HUGE_PAGE - PAGE, 3 * HUGE_PAGE + 2 * PAGE),
                (PAGE, HUGE_PAGE, 4 * HUGE_PAGE),
                (7, HUGE_PAGE + 3, 4 * HUGE_PAGE + 11),
            ] {
                let memory = Memory::reserve(&[0..8 * HUGE_PAGE]).unwrap();
                memory.load(&file, FilePart { offset, address, len, copy }).unwrap();
                let mut seen = vec![0; 8 * HUGE_PAGE as usize];
                memory.guest().read_slice(&mut seen, GuestAddress(0)).unwrap();
                let part = address as usize..(address + len) as usize;
                assert!(seen[part.clone()] == bytes[offset as usize..(offset + len) as usize]);
                assert!(is_zero(&seen[..part.start]) && is_zero(&seen[part.end..]));

                memory.guest().write_slice(&vec![7; len as usize], GuestAddress(address)).unwrap();
                let mut now = Vec::new();
                io::Seek::rewind(&mut file).unwrap();
                io::Read::read_to_end(&mut file, &mut now).unwrap();
                assert!(now == bytes);
            }
        }
    }

    #[test]
    fn memory_that_was_written_to_a_file_comes_back_from_it() {
        let ranges = [0..0x40_0000, layout::ABOVE_4G..layout::ABOVE_4G + 0x20_0000];
        let memory = Memory::reserve(&ranges).unwrap();
        let places = [(5, 3), (0x10_0000, 5000), (0x3f_ffff, 1), (layout::ABOVE_4G + 0x1f_0000, 70)];
        for (address, len) in places {
            memory.guest().write_slice(&vec![0xa5; len], GuestAddress(address)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        memory.write_to(&file).unwrap();
        assert!(
            std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512 < 0x10_0000,
            "holes stay holes"
        );

        let second = Memory::reserve(&ranges).unwrap();
        second.read_from(&file).unwrap();
        for (address, len) in places {
            let mut seen = vec![0; len];
            second.guest().read_slice(&mut seen, GuestAddress(address)).unwrap();
            assert_eq!(seen, vec![0xa5; len]);
        }
        let third = Memory::reserve(&[0..0x40_0000]).unwrap();
        assert_eq!(third.read_from(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn memory_that_a_device_still_holds_outlives_its_machine() {
        let memory = Memory::reserve(&[0..65536]).unwrap();
        let held = Arc::clone(memory.guest());
        drop(memory);
        held.write_slice(&[1], GuestAddress(9)).unwrap();
    }
}
