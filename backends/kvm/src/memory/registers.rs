//! Device registers as memory that the guest reads without an exit, and cannot write.
//!
//! KVM maps these pages read-only (KVM_MEM_READONLY, Documentation/virt/kvm/api.rst, section 4.35): the guest's reads are
//! its processor's own, and its writes exit (or go to an ioeventfd) as those to any device do.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::PAGE;
use super::layout::slot_registers;

/// The pages of all slots.
#[derive(Debug)]
pub(crate) struct RegisterPages {
    region: Arc<MmapRegion>,
    count: u8,
}

impl RegisterPages {
    /// Pages of zeros for `count` slots. They take memory once they are written.
    pub(crate) fn new(count: u8) -> io::Result<Self> {
        let len = usize::from(count) * PAGE as usize;
        Ok(Self { region: Arc::new(MmapRegion::new(len).map_err(io::Error::other)?), count })
    }

    /// The page of a slot; `None` beyond the last.
    pub(crate) fn page(&self, slot: u8) -> Option<RegisterPage> {
        let base = usize::from(slot) * PAGE as usize;
        (slot < self.count).then(|| RegisterPage { region: Arc::clone(&self.region), base })
    }

    /// Where the guest has them.
    pub(crate) fn range(&self) -> Range<u64> {
        let start = slot_registers(0).start;
        start..start + u64::from(self.count) * PAGE
    }

    /// Where they are in this process.
    pub(crate) fn address(&self) -> u64 {
        self.region.as_ptr() as u64
    }
}

/// The page of one slot. Reads and writes of what lies beyond its end do nothing.
#[derive(Debug, Clone)]
pub struct RegisterPage {
    region: Arc<MmapRegion>,
    base: usize,
}

impl RegisterPage {
    /// A page that no guest sees.
    ///
    /// # Errors
    /// There is no memory for it.
    #[cfg(test)]
    pub(crate) fn alone() -> io::Result<Self> {
        Ok(Self { region: RegisterPages::new(1)?.region, base: 0 })
    }

    /// Shows `value` at `offset`, a multiple of 4: in one piece, and not before what was shown before it.
    pub(crate) fn set(&self, offset: u64, value: u32) {
        if let Some(at) = self.place(offset, size_of::<u32>()) {
            // Cannot fail: the place is in the region, and aligned as the offset is.
            let _ = self.region.as_volatile_slice().store(value.to_le(), at, Ordering::SeqCst);
        }
    }

    /// Shows `bytes` from `offset` on, a multiple of 4, each four of them in one piece.
    pub(crate) fn set_bytes(&self, offset: u64, bytes: &[u8]) {
        for (at, part) in (offset..).step_by(size_of::<u32>()).zip(bytes.chunks(size_of::<u32>())) {
            let mut word = [0; size_of::<u32>()];
            word[..part.len()].copy_from_slice(part);
            self.set(at, u32::from_le_bytes(word));
        }
    }

    /// What the guest reads at `offset`.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = self.place(offset, data.len()) {
            // Cannot fail: the place is in the region.
            let _ = self.region.as_volatile_slice().read_slice(data, at);
        }
    }

    fn place(&self, offset: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        (end <= PAGE as usize).then_some(self.base + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(page: &RegisterPage, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        page.read(offset, &mut data);
        data
    }

    #[test]
    fn a_slot_has_a_page_of_its_own() {
        let pages = RegisterPages::new(2).unwrap();
        assert_eq!(pages.range(), slot_registers(0).start..slot_registers(1).end);
        let [first, second] = [0, 1].map(|slot| pages.page(slot).unwrap());
        assert!(pages.page(2).is_none());
        first.set(0, 1);
        second.set(PAGE - 4, 2);
        assert_eq!((read(&first, 0), read(&first, PAGE - 4)), ([1, 0, 0, 0], [0; 4]));
        assert_eq!((read(&second, 0), read(&second, PAGE - 4)), ([0; 4], [2, 0, 0, 0]));
    }

    #[test]
    fn what_does_not_fit_into_the_page_is_not_there() {
        let pages = RegisterPages::new(2).unwrap();
        let first = pages.page(0).unwrap();
        for offset in [PAGE - 2, PAGE, u64::MAX - 1] {
            first.set(offset, u32::MAX);
            assert_eq!(read(&first, offset), [0; 4]);
        }
        first.set_bytes(PAGE - 4, &[1; 9]);
        assert_eq!(read(&first, PAGE - 4), [1; 4]);
        assert_eq!(read(&pages.page(1).unwrap(), 0), [0; 8]);
    }

    #[test]
    fn bytes_are_shown_where_they_belong() {
        let page = RegisterPage::alone().unwrap();
        page.set_bytes(0x100, b"abcdef");
        assert_eq!(read(&page, 0xfe), *b"\0\0abcdef\0\0");
        assert_eq!(read(&page, 0x105), *b"f");
    }
}
