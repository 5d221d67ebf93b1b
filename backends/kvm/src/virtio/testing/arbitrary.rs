//! Arbitrary contents of a queue, and a guard that sees what a device has written.
//!
//! ```text
//!   0x1000 descriptor table   0x6000 available ring   0x8000 used ring
//!   0x1_0000 a table for indirect descriptors   0x1_1000 … buffers … 0x2_0000 end of memory
//! ```

use super::{DriverQueue, INDIRECT, NEXT, WRITE, guest_memory, write_descriptor};
use crate::memory::GuestMemory;
use proptest::prelude::*;
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress};

/// How much memory the guest of a property test has.
pub(crate) const MEMORY: u64 = 0x2_0000;

/// The size of its queue.
pub(crate) const SIZE: u16 = 16;

const INDIRECT_TABLE: u64 = 0x1_0000;
const INDIRECT_ENTRIES: u16 = 32;
const BUFFERS: u64 = 0x1_1000;

/// The configuration of a property test: as many cases as `PROPTEST_CASES` says, or `cases`.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

/// A descriptor, right or wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// What a hostile driver has put into its queue.
#[derive(Debug, Clone)]
pub(crate) struct QueueContents {
    table: Vec<Descriptor>,
    indirect: Vec<Descriptor>,
    available: Vec<u16>,
    /// What the available ring claims beyond `available`.
    claim: u16,
    /// Fills the buffers, over and over.
    data: Vec<u8>,
}

/// Where a descriptor may point: mostly at buffers, and at everything that can be wrong.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => BUFFERS..MEMORY,
        6 => (BUFFERS / 16..MEMORY / 16).prop_map(|place| place * 16),
        4 => (BUFFERS / 512..MEMORY / 512).prop_map(|sector| sector * 512),
        2 => MEMORY - 64..MEMORY + 64,
        1 => Just(MEMORY),
        1 => u64::MAX - 4096..=u64::MAX,
        1 => any::<u64>(),
    ]
}

/// Where a descriptor that the device may not write may point too.
fn readable_address() -> impl Strategy<Value = u64> {
    prop_oneof![8 => address(), 1 => 0..BUFFERS]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(0_u32),
        4 => Just(16_u32),
        4 => (1..9_u32).prop_map(|sectors| sectors * 512),
        6 => 1..40_u32,
        3 => 0..0x4000_u32,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ]
}

/// A descriptor of a table of `entries`. Mostly the next one follows, but also itself, an earlier one, or none there is.
fn descriptor(place: u16, entries: u16) -> impl Strategy<Value = Descriptor> {
    let next = prop_oneof![6 => Just(place.wrapping_add(1)), 2 => 0..entries + 2, 1 => any::<u16>()];
    let flags = prop_oneof![
        3 => Just(0),
        4 => Just(NEXT),
        3 => Just(WRITE),
        5 => Just(NEXT | WRITE),
        1 => any::<u16>().prop_map(|bits| bits & !INDIRECT),
    ];
    let buffer = (flags, next.clone(), length()).prop_flat_map(|(flags, next, length)| {
        let address = if flags & WRITE == 0 { readable_address().boxed() } else { address().boxed() };
        address.prop_map(move |address| Descriptor { address, length, flags, next })
    });
    // A table within a table is one of the mistakes. None reaches into the buffers: what a device writes there must not
    // become a descriptor, or no one could tell which writes are right.
    let table = (
        prop_oneof![
            6 => Just(INDIRECT_TABLE),
            1 => INDIRECT_TABLE..INDIRECT_TABLE + 64,
            1 => any::<u64>().prop_map(|address| address | MEMORY),
        ],
        prop_oneof![
            6 => (0..=INDIRECT_ENTRIES).prop_map(|entries| u32::from(entries) * 16),
            1 => any::<u32>().prop_map(|length| length | 8),
            1 => (0x1_0000_u32..0x1000_0000).prop_map(|entries| entries * 16),
        ],
        prop_oneof![4 => Just(INDIRECT), 1 => Just(INDIRECT | NEXT), 1 => Just(INDIRECT | WRITE)],
        next,
    )
        .prop_map(|(address, length, flags, next)| Descriptor { address, length, flags, next });
    prop_oneof![5 => buffer, 1 => table]
}

fn table(entries: u16) -> impl Strategy<Value = Vec<Descriptor>> {
    (0..entries).map(|place| descriptor(place, entries)).collect::<Vec<_>>()
}

/// Any contents of a queue of [`SIZE`] entries, with `data` in its buffers.
pub(crate) fn queue_contents(data: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = QueueContents> {
    let head = prop_oneof![20 => 0..SIZE, 1 => SIZE..SIZE + 2, 1 => any::<u16>()];
    let claim = prop_oneof![20 => Just(0), 1 => 0..2 * SIZE, 1 => any::<u16>()];
    (table(SIZE), table(INDIRECT_ENTRIES), prop::collection::vec(head, 0..=usize::from(SIZE)), claim, data)
        .prop_map(|(table, indirect, available, claim, data)| QueueContents { table, indirect, available, claim, data })
}

/// A guest with such a queue.
#[derive(Debug)]
pub(crate) struct HostileGuest {
    pub(crate) memory: GuestMemory,
    pub(crate) driver: DriverQueue,
    before: Vec<u8>,
    /// What a device may write.
    writable: Vec<Range<u64>>,
}

impl HostileGuest {
    pub(crate) fn new(contents: &QueueContents) -> Self {
        let memory = guest_memory(MEMORY as usize);
        let mut driver = DriverQueue::new(&memory, 0, SIZE);
        let data = if contents.data.is_empty() { &[0] } else { contents.data.as_slice() };
        let buffers: Vec<u8> = data.iter().copied().cycle().take((MEMORY - BUFFERS) as usize).collect();
        memory.write_slice(&buffers, GuestAddress(BUFFERS)).unwrap();
        let tables = [(driver.descriptor_table(), &contents.table), (INDIRECT_TABLE, &contents.indirect)];
        for (table, descriptors) in tables {
            for (place, descriptor) in (0_u16..).zip(descriptors) {
                let Descriptor { address, length, flags, next } = *descriptor;
                write_descriptor(&memory, table, place, (address, length, flags, next));
            }
        }
        for head in &contents.available {
            driver.make_available(*head);
        }
        if contents.claim != 0 {
            driver.set_available_index(contents.claim);
        }
        let used = driver.used_ring()..driver.used_ring() + 6 + 8 * u64::from(SIZE);
        let mut writable: Vec<Range<u64>> = contents
            .table
            .iter()
            .chain(&contents.indirect)
            .filter(|descriptor| descriptor.flags & WRITE != 0)
            .map(|descriptor| descriptor.address..descriptor.address.saturating_add(descriptor.length.into()))
            .collect();
        writable.push(used);
        let mut before = vec![0; MEMORY as usize];
        memory.read_slice(&mut before, GuestAddress(0)).unwrap();
        for descriptor in contents.table.iter().filter(|descriptor| descriptor.flags & INDIRECT != 0) {
            writable.extend(named_by_table(&before, descriptor));
        }
        Self { memory, driver, before, writable }
    }

    /// Panics if anything else in memory has changed than what a device may write: its used ring and the buffers that
    /// were given for that.
    pub(crate) fn check_writes(&self) {
        let mut after = vec![0; MEMORY as usize];
        self.memory.read_slice(&mut after, GuestAddress(0)).unwrap();
        for (address, (before, after)) in (0_u64..).zip(self.before.iter().zip(&after)) {
            if before != after && !self.writable.iter().any(|range| range.contains(&address)) {
                panic!("the device has written {after:#x} over {before:#x} at {address:#x}, which was not given to it");
            }
        }
    }
}

/// The writable buffers that an indirect table names; one at an odd place reads other descriptors than were written.
fn named_by_table(memory: &[u8], table: &Descriptor) -> Vec<Range<u64>> {
    let entries = (0..u64::from(table.length / 16)).take(usize::from(u16::MAX));
    entries
        .map_while(|entry| {
            let start = usize::try_from(table.address.checked_add(16 * entry)?).ok()?;
            let raw: &[u8; 16] = memory.get(start..start.checked_add(16)?)?.try_into().ok()?;
            let raw = u128::from_le_bytes(*raw);
            let (address, length, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u16);
            let end = if flags & WRITE == 0 { address } else { address.saturating_add(length.into()) };
            Some(address..end)
        })
        .collect()
}
