//! Cases of the whole device: a driver of test code on one side, real memory on the other.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::testing::{Buffers, any_ring};
use crate::virtio::testing::{Activated, DriverQueue, Part, QUEUE_SPAN, activate};

const BLOCK: u64 = 0x4000;
const ADDRESS: u64 = 0x100_0000;
const BLOCKS: u64 = 16;
const CONFIG: MemConfig = MemConfig { address: ADDRESS, size: BLOCKS * BLOCK, block_size: BLOCK };

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

struct Bench {
    device: Mem,
    handle: MemHandle,
    memory: GuestMemory,
    queue: DriverQueue,
    running: Activated,
}

fn request(kind: u16, address: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

impl Bench {
    fn new() -> Self {
        Self::with(Mem::new(CONFIG).unwrap())
    }

    fn with(mut device: Mem) -> Self {
        let regions = [(GuestAddress(0), QUEUE_SPAN as usize), (GuestAddress(ADDRESS), CONFIG.size as usize)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let queue = DriverQueue::new(&memory, 0, QUEUE_SIZES[0]);
        let running = activate(&mut device, &memory, &[&queue]).unwrap();
        let handle = device.handle();
        Self { device, handle, memory, queue, running }
    }

    /// The numbers of the configuration space.
    fn shown(&self) -> Vec<u64> {
        let bytes = self.device.config_space().bytes();
        bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
    }

    /// The answer to a request about blocks by their number, and the state in it.
    fn ask(&mut self, kind: u16, block: u64, blocks: u16) -> (u16, u16) {
        self.ask_at(kind, ADDRESS + block * BLOCK, blocks)
    }

    fn ask_at(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let request = self.queue.request(&[Part::Out(&request(kind, address, blocks)), Part::In(10)]);
        self.running.worker.handle(Event::Queue(0)).unwrap();
        assert_eq!(self.queue.take_used(), [(request.head, 10)]);
        let answer = self.queue.read(&request, 1);
        (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
    }

    fn write(&self, block: u64) {
        self.memory.write_obj(7_u64, GuestAddress(ADDRESS + block * BLOCK)).unwrap();
    }

    fn read(&self, block: u64) -> u64 {
        self.memory.read_obj(GuestAddress(ADDRESS + block * BLOCK)).unwrap()
    }
}

#[test]
fn the_driver_hears_what_is_requested() {
    let bench = Bench::new();
    bench.handle.request(3 * BLOCK).unwrap();
    bench.handle.request(3 * BLOCK).unwrap();
    assert_eq!(bench.running.interrupt.configs(), 1, "the second changed nothing");
    assert_eq!(bench.shown(), [BLOCK, 0, ADDRESS, CONFIG.size, CONFIG.size, 0, 3 * BLOCK]);
}

#[test]
fn sizes_that_are_not_blocks_of_the_region_are_refused() {
    let bench = Bench::new();
    assert!(bench.handle.request(BLOCK + 1).is_err());
    assert!(bench.handle.request(CONFIG.size + BLOCK).is_err());
    assert_eq!(bench.handle.requested_bytes(), 0);
    for config in [
        MemConfig { block_size: 0, ..CONFIG },
        MemConfig { block_size: 2048, ..CONFIG },
        MemConfig { block_size: 3 * BLOCK, ..CONFIG },
        MemConfig { size: 0, ..CONFIG },
        MemConfig { size: BLOCK + 4096, ..CONFIG },
        MemConfig { address: ADDRESS + 4096, ..CONFIG },
        MemConfig { address: u64::MAX - BLOCK + 1, size: 2 * BLOCK, ..CONFIG },
    ] {
        assert!(Mem::new(config).is_err(), "{config:?}");
    }
}

#[test]
fn blocks_are_plugged_up_to_the_requested_size() {
    let mut bench = Bench::new();
    assert_eq!(bench.ask(PLUG, 0, 1), (NACK, 0), "nothing is requested");
    bench.handle.request(3 * BLOCK).unwrap();
    assert_eq!(bench.ask(PLUG, 0, 2), (ACK, 0));
    assert_eq!((bench.shown()[5], bench.running.interrupt.configs_by_driver()), (2 * BLOCK, 1));
    assert_eq!(bench.ask(PLUG, 2, 2), (NACK, 0));
    assert_eq!(bench.running.interrupt.configs_by_driver(), 1);
    assert_eq!(bench.ask(PLUG, 5, 1), (ACK, 0));
    assert_eq!(bench.handle.plugged_bytes(), 3 * BLOCK);
    assert_eq!(bench.ask(STATE, 0, 2), (ACK, 0));
    assert_eq!(bench.ask(STATE, 2, 3), (ACK, 1));
    assert_eq!(bench.ask(STATE, 0, 16), (ACK, 2));
    assert_eq!(bench.running.counters.counts().malformed, 0);
}

#[test]
fn unplugged_blocks_lose_their_content() {
    let mut bench = Bench::new();
    bench.handle.request(4 * BLOCK).unwrap();
    bench.ask(PLUG, 0, 4);
    (0..4).for_each(|block| bench.write(block));
    bench.handle.request(2 * BLOCK).unwrap();
    assert_eq!(bench.ask(UNPLUG, 1, 2), (ACK, 0));
    assert_eq!([0, 1, 2, 3].map(|block| bench.read(block)), [7, 0, 0, 7]);
    assert_eq!(bench.handle.plugged_bytes(), 2 * BLOCK);
    assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!([0, 3].map(|block| bench.read(block)), [0, 0]);
    assert_eq!(bench.handle.plugged_bytes(), 0);
}

#[test]
fn requests_that_make_no_sense_are_refused_and_counted() {
    let mut bench = Bench::new();
    bench.handle.request(CONFIG.size).unwrap();
    bench.ask(PLUG, 1, 1);
    for (kind, address, blocks) in [
        (PLUG, ADDRESS, 0),
        (PLUG, ADDRESS, 2),
        (PLUG, ADDRESS + 4096, 1),
        (PLUG, ADDRESS - BLOCK, 1),
        (PLUG, ADDRESS + CONFIG.size, 1),
        (PLUG, ADDRESS + 2 * BLOCK, u16::MAX),
        (PLUG, u64::MAX - BLOCK + 1, 1),
        (UNPLUG, ADDRESS, 2),
        (UNPLUG, ADDRESS, 1),
        (STATE, 0, 1),
        (4, ADDRESS, 1),
        (u16::MAX, ADDRESS, 1),
    ] {
        assert_eq!(bench.ask_at(kind, address, blocks), (ERROR, 0), "{kind} {address:#x} {blocks}");
    }
    assert_eq!(bench.running.counters.counts().malformed, 12);
    assert_eq!(bench.handle.plugged_bytes(), BLOCK);
}

#[test]
fn requests_without_room_for_an_answer_change_nothing() {
    let mut bench = Bench::new();
    bench.handle.request(CONFIG.size).unwrap();
    bench.queue.request(&[Part::Out(&request(PLUG, ADDRESS, 1)), Part::In(9)]);
    bench.queue.request(&[Part::Out(&request(PLUG, ADDRESS, 1)[..23]), Part::In(10)]);
    bench.running.worker.handle(Event::Queue(0)).unwrap();
    assert!(bench.queue.take_used().iter().all(|(_, written)| *written == 0));
    assert_eq!(bench.handle.plugged_bytes(), 0);
    assert_eq!(bench.running.counters.counts().malformed, 2);
}

#[test]
fn a_driver_that_resets_the_device_finds_its_blocks_again() {
    let mut bench = Bench::new();
    bench.handle.request(BLOCK).unwrap();
    bench.ask(PLUG, 0, 1);
    bench.device.reset();
    assert_eq!(bench.handle.plugged_bytes(), BLOCK);
}

#[test]
fn plugged_blocks_are_found_again_after_a_restore() {
    let mut bench = Bench::new();
    bench.handle.request(5 * BLOCK).unwrap();
    bench.ask(PLUG, 0, 2);
    bench.ask(PLUG, 13, 3);
    let saved = bench.device.save();
    let mut device = Mem::new(CONFIG).unwrap();
    device.restore(&saved).unwrap();
    assert_eq!(device.save(), saved);
    let mut bench = Bench::with(device);
    assert_eq!(bench.ask(STATE, 13, 3), (ACK, 0));
    assert_eq!(bench.ask(STATE, 2, 11), (ACK, 1));
    assert_eq!(bench.handle.plugged_bytes(), 5 * BLOCK);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let mut device = Mem::new(CONFIG).unwrap();
    let saved = device.save();
    let wrong = |field: &str, value: serde_json::Value| {
        let mut wrong = saved.clone();
        wrong[field] = value;
        wrong
    };
    let other = MemConfig { size: 32 * BLOCK, ..CONFIG };
    for state in [
        wrong("version", 2.into()),
        wrong("config", serde_json::json!(other)),
        wrong("requested", 1.into()),
        wrong("requested", (CONFIG.size + BLOCK).into()),
        wrong("plugged", serde_json::json!([[0, 17]])),
        wrong("plugged", serde_json::json!([[3, 3]])),
        wrong("plugged", serde_json::json!([[4, 6], [5, 8]])),
        serde_json::Value::Null,
    ] {
        assert!(device.restore(&state).is_err(), "{state}");
    }
    device.restore(&saved).unwrap();
}

proptest! {
    #[test]
    fn no_ring_makes_the_device_panic_or_write_elsewhere(
        any in any_ring(&Bench::new().queue, QUEUE_SIZES[0]),
        kinds in prop::collection::vec((0..5_u16, 0..20_u64, 0..4_u16), 1..16),
    ) {
        let mut bench = Bench::new();
        bench.handle.request(CONFIG.size).unwrap();
        let data = bench.queue.data();
        for (place, (kind, block, blocks)) in kinds.into_iter().enumerate() {
            let bytes = request(kind, ADDRESS + block * BLOCK, blocks);
            bench.memory.write_slice(&bytes, GuestAddress(data.start + 0x8000 * place as u64)).unwrap();
        }
        let buffers = Buffers::of(&bench.memory, &bench.queue);
        any.write(&mut bench.queue);
        let _ = bench.running.worker.handle(Event::Queue(0));
        buffers.check_writes(std::slice::from_ref(&any));
        prop_assert!(bench.handle.plugged_bytes() <= CONFIG.size);
    }

    #[test]
    fn no_requests_plug_more_than_the_host_wants(
        steps in prop::collection::vec((0..4_u16, 0..18_u64, 0..6_u16, 0..=BLOCKS), 1..40)
    ) {
        let mut bench = Bench::new();
        for (kind, block, blocks, wanted) in steps {
            bench.handle.request(wanted * BLOCK).unwrap();
            let before = bench.handle.plugged_bytes();
            bench.ask(kind, block, blocks);
            let after = bench.handle.plugged_bytes();
            prop_assert!(after <= before || after <= wanted * BLOCK);
        }
    }
}
