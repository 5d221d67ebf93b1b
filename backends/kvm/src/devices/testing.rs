//! Queues as an ill-willed guest would fill them, for property tests.

use std::ops::Range;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;
use crate::virtio::testing::{DriverQueue, INDIRECT, WRITE};

/// Descriptors in the largest queue of a device under test.
const TABLE: u16 = 512;

/// A table of descriptors, the requests that it claims to have made available, and the available ring's index.
#[derive(Debug, Clone)]
pub(crate) struct AnyRing {
    table: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
    index: u16,
}

/// Any ring of up to `size` descriptors for the queue `queue` of the test double; most make some sense.
pub(crate) fn any_ring(queue: &DriverQueue, size: u16) -> impl Strategy<Value = AnyRing> + use<> {
    let data = queue.data();
    let end = data.end;
    let address = prop_oneof![16 => data, 1 => end - 64..end + 64, 1 => any::<u64>()];
    let len = prop_oneof![6 => 0..256_u32, 3 => 0..70_000_u32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4_u16, 1 => Just(INDIRECT), 1 => any::<u16>()];
    let descriptor = (address, len, flags, prop_oneof![8 => 0..size, 1 => any::<u16>()]);
    (
        prop::collection::vec(descriptor, 1..=usize::from(size)),
        prop::collection::vec(prop_oneof![16 => 0..size, 1 => any::<u16>()], 1..=usize::from(size)),
        prop_oneof![8 => 0..=size, 1 => any::<u16>()],
    )
        .prop_map(|(table, heads, index)| AnyRing { table, heads, index })
}

impl AnyRing {
    /// Writes it where the driver has its rings.
    pub(crate) fn write(&self, queue: &mut DriverQueue) {
        // What earlier requests have left there would be part of it.
        for number in 0..TABLE {
            queue.set_descriptor(number, 0, 0, 0, 0);
        }
        for (number, (address, len, flags, next)) in self.table.iter().enumerate() {
            queue.set_descriptor(u16::try_from(number).unwrap(), *address, *len, *flags, *next);
        }
        for head in &self.heads {
            queue.make_available(*head);
        }
        queue.set_available_index(self.index);
    }

    /// Whether it lets a device write to this address. What an indirect table says is not looked at.
    pub(crate) fn may_write(&self, address: u64) -> bool {
        self.table.iter().any(|(start, len, flags, _)| {
            flags & INDIRECT != 0 || (flags & WRITE != 0 && address >= *start && address - *start < u64::from(*len))
        })
    }
}

/// The buffers of a queue as they were before a device had its rings.
#[derive(Debug)]
pub(crate) struct Buffers {
    memory: GuestMemory,
    place: Range<u64>,
    before: Vec<u8>,
}

impl Buffers {
    pub(crate) fn of(memory: &GuestMemory, queue: &DriverQueue) -> Self {
        let mut buffers = Self { memory: memory.clone(), place: queue.data(), before: Vec::new() };
        buffers.before = buffers.now();
        buffers
    }

    fn now(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.place.end - self.place.start) as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(self.place.start)).unwrap();
        bytes
    }

    /// Panics if a byte has changed that none of the rings lets a device write to.
    pub(crate) fn check_writes(&self, rings: &[AnyRing]) {
        for (address, (old, new)) in self.place.clone().zip(self.before.iter().zip(&self.now())) {
            assert!(old == new || rings.iter().any(|ring| ring.may_write(address)), "written at {address:#x}");
        }
    }
}
