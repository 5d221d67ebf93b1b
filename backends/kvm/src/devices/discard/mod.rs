//! Giving memory of the guest back to the host. The guest still sees memory there, with unspecified content of its own:
//! zeros, or what a file had that the machine was restored from.

mod sys;

use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion};

/// The host's pages, which only whole ones of are given back.
pub(super) const PAGE: u64 = 4096;

/// Why memory was not given back.
#[derive(Debug)]
pub(super) enum DiscardError {
    /// The range is not all in guest memory.
    Outside,
    /// The host refuses; why is in the log.
    Host,
}

/// Gives back all whole pages of `len` bytes at `start`. Fewer bytes than a page are nothing.
pub(super) fn discard(memory: &GuestMemoryMmap, start: GuestAddress, len: u64) -> Result<(), DiscardError> {
    let end = start.0.checked_add(len).ok_or(DiscardError::Outside)?;
    let mut at = start.0.checked_next_multiple_of(PAGE).ok_or(DiscardError::Outside)?;
    let end_of_pages = end - end % PAGE;
    // The edges belong to the range, too.
    for edge in [start.0, end.saturating_sub(1)] {
        if len > 0 && !memory.address_in_range(GuestAddress(edge)) {
            return Err(DiscardError::Outside);
        }
    }
    while at < end_of_pages {
        let region = memory.find_region(GuestAddress(at)).ok_or(DiscardError::Outside)?;
        let offset = at - region.start_addr().0;
        let part = (region.len() - offset).min(end_of_pages - at);
        sys::discard(region, offset, part).map_err(|error| {
            tracing::debug!(%error, address = at, len = part, "cannot give memory back to the host");
            DiscardError::Host
        })?;
        at += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        let regions = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000), (GuestAddress(0x2_0000), 0x4000)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        for (start, len) in regions {
            memory.write_slice(&vec![7; len], start).unwrap();
        }
        memory
    }

    fn bytes(memory: &GuestMemoryMmap, start: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        bytes
    }

    #[test]
    fn whole_pages_become_zero_and_their_neighbours_stay() {
        let memory = memory();
        discard(&memory, GuestAddress(0x1800), 0x2000).unwrap();
        assert_eq!(bytes(&memory, 0x1000, 0x1000), [7; 0x1000]);
        assert_eq!(bytes(&memory, 0x2000, 0x1000), [0; 0x1000]);
        assert_eq!(bytes(&memory, 0x3000, 0x1000), [7; 0x1000]);
        discard(&memory, GuestAddress(0x4800), 0x100).unwrap();
        discard(&memory, GuestAddress(0x4000), 0).unwrap();
        assert_eq!(bytes(&memory, 0x4000, 0x1000), [7; 0x1000]);
    }

    #[test]
    fn a_range_over_two_regions_is_given_back_in_both() {
        let memory = memory();
        discard(&memory, GuestAddress(0x7000), 0x2000).unwrap();
        assert_eq!(bytes(&memory, 0x7000, 0x2000), [0; 0x2000]);
    }

    #[test]
    fn what_is_not_memory_is_refused() {
        let memory = memory();
        for (start, len) in [(0xf000, 0x2000), (0x1_0000, 0x1000), (0x1_f800, 0x1000), (u64::MAX - 4095, 4096)] {
            let refused = discard(&memory, GuestAddress(start), len);
            assert!(matches!(refused, Err(DiscardError::Outside)), "{start:#x}");
        }
        assert!(discard(&memory, GuestAddress(u64::MAX - 0xfff), 0xfff).is_err());
    }

    #[test]
    fn memory_that_is_shared_is_given_back_too() {
        use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let mapping = MmapRegion::from_file(FileOffset::new(file, 0), 0x4000).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        memory.write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
        discard(&memory, GuestAddress(0x1000), 0x1000).unwrap();
        assert_eq!(bytes(&memory, 0x1000, 0x1000), [0; 0x1000]);
        assert_eq!(bytes(&memory, 0x2000, 0x1000), [7; 0x1000]);
    }
}
