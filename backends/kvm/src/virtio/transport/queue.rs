//! What the driver tells of a queue, and whether it can be used.

use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap};

use super::state::QueueRecord;

/// A queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSetup {
    /// The largest size that the device offers.
    pub(super) max_size: u16,
    /// The size that the driver wrote; any number until the queue is made ready.
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) ready: bool,
}

impl QueueSetup {
    /// As it is after a reset.
    pub(super) fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size.into(), descriptors: 0, available: 0, used: 0, ready: false }
    }

    /// The queue as the driver has described it, beginning at these entries; `None` if it cannot be used: its size is no
    /// power of two or more than is offered, or a ring is not aligned (virtio 1.2, section 2.7) or not all in guest memory.
    pub(super) fn queue(&self, memory: &GuestMemoryMmap, event_idx: bool, next: (u16, u16)) -> Option<Queue> {
        let size = u16::try_from(self.size).ok()?;
        let entries = usize::from(size);
        let rings = [
            (self.descriptors, 16 * entries),
            // Flags, index, a field an entry, used_event.
            (self.available, 6 + 2 * entries),
            // Flags, index, an element an entry, avail_event.
            (self.used, 6 + 8 * entries),
        ];
        // Address 0 is refused beside what is not memory: virtio-queue takes it for a ring that was never set.
        if rings.iter().any(|(address, length)| *address == 0 || !memory.check_range(GuestAddress(*address), *length)) {
            return None;
        }
        Queue::try_from(QueueState {
            max_size: self.max_size,
            next_avail: next.0,
            next_used: next.1,
            event_idx_enabled: event_idx,
            size,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        })
        .ok()
    }

    /// To be written down; `next` are the entries where a queue in use goes on.
    pub(super) fn record(&self, next: (u16, u16)) -> QueueRecord {
        QueueRecord {
            size: self.size,
            ready: self.ready,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            next_available: next.0,
            next_used: next.1,
        }
    }

    /// What [`record`](Self::record) gave, for a device that offers `max_size`.
    pub(super) fn from_record(record: &QueueRecord, max_size: u16) -> Self {
        let QueueRecord { size, ready, descriptors, available, used, .. } = *record;
        Self { max_size, size, descriptors, available, used, ready }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: usize = 0x1_0000;

    fn memory() -> GuestMemoryMmap {
        // Two regions with a hole between them.
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY), (GuestAddress(0x10_0000), MEMORY)]).unwrap()
    }

    fn setup() -> QueueSetup {
        QueueSetup { size: 8, descriptors: 0x1000, available: 0x2000, used: 0x3000, ..QueueSetup::new(16) }
    }

    #[test]
    fn rings_in_guest_memory_make_a_queue() {
        let queue = setup().queue(&memory(), true, (3, 2)).unwrap();
        let state = queue.state();
        assert_eq!((state.size, state.next_avail, state.next_used, state.event_idx_enabled), (8, 3, 2, true));
    }

    #[test]
    fn a_ring_may_end_where_the_memory_does() {
        let end = MEMORY as u64;
        assert!(QueueSetup { descriptors: end - 16 * 8, ..setup() }.queue(&memory(), true, (0, 0)).is_some());
        assert!(QueueSetup { descriptors: end - 16 * 7, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
        assert!(QueueSetup { used: end - (6 + 8 * 8) - 2, ..setup() }.queue(&memory(), true, (0, 0)).is_some());
        assert!(QueueSetup { available: 0x10_0000 + end - 2, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
    }

    #[test]
    fn sizes_that_are_no_power_of_two_or_too_large_are_refused() {
        for size in [0, 3, 17, 32, 0x1_0008, u32::MAX] {
            assert!(QueueSetup { size, ..setup() }.queue(&memory(), true, (0, 0)).is_none(), "{size}");
        }
    }

    #[test]
    fn rings_that_are_not_aligned_are_refused() {
        assert!(QueueSetup { descriptors: 0x1008, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
        assert!(QueueSetup { available: 0x2001, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
        assert!(QueueSetup { used: 0x3002, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
    }

    #[test]
    fn rings_outside_memory_or_beyond_the_last_address_are_refused() {
        for address in [0, 0x2_0000, 0xf_fff0, 0x20_0000, !0xf] {
            assert!(QueueSetup { descriptors: address, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
            assert!(QueueSetup { available: address, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
            assert!(QueueSetup { used: address, ..setup() }.queue(&memory(), true, (0, 0)).is_none());
        }
    }
}
