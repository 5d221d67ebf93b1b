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

/// How many places of a huge page's worth of a file are looked at to tell whether it is mostly filler, and how many bytes each.
const SAMPLES: u64 = 16;
const SAMPLE: usize = 64;

/// A part of a file as a caller wants it in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePart {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Where it begins in the guest.
    pub(crate) address: u64,
    /// How long it is.
    pub(crate) len: u64,
    /// Copy it even where it could be mapped: the guest will write to most of its pages. Huge pages of it that are mostly
    /// filler are mapped all the same, since nobody writes there.
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

    /// Puts a part of `file` into the guest's memory. Whole pages are mapped privately where file and guest agree on their
    /// alignment, which reads nothing until the guest does; the rest is copied.
    ///
    /// Fails for a part that the file does not have: a page beyond its end could not be read later.
    pub(crate) fn load(&self, file: &File, part: FilePart) -> io::Result<()> {
        let FilePart { offset, address, len, copy } = part;
        if offset.checked_add(len).is_none_or(|end| file.metadata().map_or(true, |metadata| end > metadata.len())) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((mapping, base)) = self.locate(address, len) else {
            return Err(io::Error::other("a part of the file does not fit into the guest's memory"));
        };
        if copy {
            return self.load_copied(file, part);
        }
        let aligned = address % PAGE == offset % PAGE;
        let first = address.next_multiple_of(PAGE);
        let end = (address + len) / PAGE * PAGE;
        if !aligned || first >= end {
            return self.copy(file, part);
        }
        let head = first - address;
        self.copy(file, FilePart { len: head, ..part })?;
        mapping.map_file(base + head, file.as_fd(), offset + head, end - first)?;
        let done = end - address;
        self.copy(file, FilePart { offset: offset + done, address: end, len: len - done, copy })
    }

    /// Copies a part that is in the file and in memory, but for its huge pages that are mostly filler: pieces of a kernel's code
    /// are aligned to them, with nothing but breakpoints in between.
    fn load_copied(&self, file: &File, part: FilePart) -> io::Result<()> {
        let FilePart { offset, address, len, .. } = part;
        let end = address + len;
        let piece =
            |from, to, copy| FilePart { offset: offset + (from - address), address: from, len: to - from, copy };
        let mut copied = address;
        let mut huge = address.next_multiple_of(HUGE_PAGE);
        while huge + HUGE_PAGE <= end {
            if is_filler(file, offset + (huge - address))? {
                self.copy(file, piece(copied, huge, true))?;
                self.load(file, piece(huge, huge + HUGE_PAGE, false))?;
                copied = huge + HUGE_PAGE;
            }
            huge += HUGE_PAGE;
        }
        self.copy(file, piece(copied, end, true))
    }

    fn copy(&self, file: &File, part: FilePart) -> io::Result<()> {
        if part.len == 0 {
            return Ok(());
        }
        let Some((mapping, base)) = self.locate(part.address, part.len) else {
            return Err(io::Error::other("a part of the file does not fit into the guest's memory"));
        };
        mapping.read_file(base, file.as_fd(), part.offset, part.len)
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

/// Whether a huge page's worth of the file from `offset` on is one byte repeated in most places that are looked at.
fn is_filler(file: &File, offset: u64) -> io::Result<bool> {
    let mut same = 0;
    let mut sample = [0; SAMPLE];
    for number in 0..SAMPLES {
        file.read_exact_at(&mut sample, offset + number * (HUGE_PAGE / SAMPLES))?;
        same += u64::from(sample.iter().all(|byte| *byte == sample[0]));
    }
    Ok(same > SAMPLES * 3 / 4)
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

    #[test]
    fn filler_between_pieces_of_code_is_not_copied() {
        let huge = HUGE_PAGE as usize;
        let mut bytes = vec![0xcc; 4 * huge];
        for range in [0..huge + 5000, 2 * huge..2 * huge + 5000, 3 * huge..4 * huge] {
            let pattern = pattern(range.len());
            bytes[range].copy_from_slice(&pattern);
        }
        let mut file = file_of(&bytes);
        assert_eq!(
            [0, 1, 2, 3].map(|number| is_filler(&file, number * HUGE_PAGE).unwrap()),
            [false, true, true, false]
        );
        let memory = Memory::reserve(&[0..8 * HUGE_PAGE]).unwrap();
        let (address, len) = (HUGE_PAGE - PAGE, 3 * HUGE_PAGE + PAGE);
        memory.load(&file, FilePart { offset: HUGE_PAGE - PAGE, address, len, copy: true }).unwrap();
        let mut seen = vec![0; len as usize];
        memory.guest().read_slice(&mut seen, GuestAddress(address)).unwrap();
        assert!(seen == bytes[address as usize..(address + len) as usize]);
        memory.guest().write_slice(&[7], GuestAddress(HUGE_PAGE)).unwrap();
        let mut now = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut now).unwrap();
        assert!(now == bytes);
    }

    #[test]
    fn what_the_guest_writes_does_not_reach_the_file() {
        let bytes = pattern(8192);
        let mut file = file_of(&bytes);
        let memory = Memory::reserve(&[0..65536]).unwrap();
        memory.load(&file, FilePart { offset: 0, address: 4096, len: 8192, copy: false }).unwrap();
        memory.guest().write_slice(&[0; 8192], GuestAddress(4096)).unwrap();
        let mut now = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut now).unwrap();
        assert_eq!(now, bytes);
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
