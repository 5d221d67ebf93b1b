//! Cases of the whole device: a driver of test code on one side, real memory on the other.

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::{AnyRing, any_ring};
use crate::memory::GuestMemory;
use crate::virtio::Event;
use crate::virtio::testing::{Activated, DriverQueue, Part, QUEUE_SPAN, activate, guest_memory};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTS: usize = 3;
/// Where the guest's other memory begins, beyond the queues.
const FREE: u64 = 4 * QUEUE_SPAN;
const FREE_SIZE: u64 = 0x10_0000;

struct Bench {
    device: Balloon,
    memory: GuestMemory,
    queues: [DriverQueue; 4],
    running: Activated,
}

impl Bench {
    fn new() -> Self {
        let mut device = Balloon::new().unwrap();
        let memory = guest_memory((FREE + FREE_SIZE) as usize);
        memory.write_slice(&vec![7; FREE_SIZE as usize], GuestAddress(FREE)).unwrap();
        let queues = [0, 1, 2, 3].map(|index| DriverQueue::new(&memory, index, QUEUE_SIZES[index]));
        let running = activate(&mut device, &memory, &queues.each_ref()).unwrap();
        Self { device, memory, queues, running }
    }

    fn request(&mut self, queue: usize, parts: &[Part<'_>]) {
        let request = self.queues[queue].request(parts);
        self.running.worker.handle(Event::Queue(queue)).unwrap();
        assert_eq!(self.queues[queue].take_used(), [(request.head, 0)]);
    }

    /// Asks for pages of the free memory by their numbers in it, and for others by their own.
    fn inflate(&mut self, pages: &[u64]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| (*page as u32).to_le_bytes()).collect();
        self.request(INFLATE, &[Part::Out(&bytes)]);
    }

    fn is_discarded(&self, page: u64) -> bool {
        self.memory.read_obj::<u64>(GuestAddress(page << 12)).unwrap() == 0
    }

    fn malformed(&self) -> u64 {
        self.running.counters.counts().malformed
    }
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn the_target_is_in_the_configuration_space_and_the_driver_hears_of_it() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    handle.set_target(MiB(3));
    assert_eq!(bench.running.interrupt.configs(), 1);
    handle.set_target(MiB(3));
    assert_eq!(bench.running.interrupt.configs(), 1, "nothing has changed");
    bench.device.write_config(4, &512_u32.to_le_bytes());
    assert_eq!(bench.device.config_space().bytes(), [0, 3, 0, 0, 0, 2, 0, 0]);
    assert_eq!(handle.actual_bytes(), 2 << 20);
    for (offset, data) in [(0, &[1, 1, 1, 1][..]), (4, &[1]), (5, &[1, 1, 1, 1]), (u64::MAX, &[1, 1, 1, 1])] {
        bench.device.write_config(offset, data);
    }
    assert_eq!(handle.actual_bytes(), 2 << 20, "other writes are ignored");
    handle.set_target(MiB(u32::MAX));
}

#[test]
fn pages_in_the_balloon_go_back_to_the_host() {
    let mut bench = Bench::new();
    let page = FREE >> 12;
    bench.inflate(&[page + 5, page + 1, page + 2, page + 1]);
    let discarded: Vec<u64> = (0..8).filter(|number| bench.is_discarded(page + number)).collect();
    assert_eq!(discarded, [1, 2, 5]);
    assert_eq!(bench.malformed(), 0);
    assert_eq!(bench.running.interrupt.take_queues(), [INFLATE]);
    bench.request(DEFLATE, &[Part::Out(&[0; 8])]);
}

#[test]
fn numbers_that_are_no_pages_are_counted_and_the_others_served() {
    let mut bench = Bench::new();
    let page = FREE >> 12;
    let end = (FREE + FREE_SIZE) >> 12;
    bench.inflate(&[page, end, u64::from(u32::MAX), page + 3]);
    assert!(bench.is_discarded(page) && bench.is_discarded(page + 3));
    assert_eq!(bench.malformed(), 2);
    bench.request(INFLATE, &[Part::Out(&[0xff; 3])]);
    assert_eq!(bench.malformed(), 3, "no number at all");
    bench.request(INFLATE, &[Part::Out(&vec![0xff; 4 * 1024 + 4])]);
    assert_eq!(bench.malformed(), 5, "too many, and none of them memory");
}

#[test]
fn free_pages_that_are_reported_go_back_to_the_host() {
    let mut bench = Bench::new();
    let page = FREE >> 12;
    let head = 0;
    bench.queues[REPORTS].set_descriptor(head, FREE, 0x4000, 2, 0);
    bench.queues[REPORTS].make_available(head);
    bench.running.worker.handle(Event::Queue(REPORTS)).unwrap();
    assert_eq!(bench.queues[REPORTS].take_used(), [(head, 0)]);
    assert!((0..4).all(|number| bench.is_discarded(page + number)));
    assert!(!bench.is_discarded(page + 4));
    assert_eq!(bench.malformed(), 0);
}

#[test]
fn reports_of_what_is_no_free_memory_are_counted() {
    let mut bench = Bench::new();
    for (address, flags) in [(FREE, 0), (FREE + FREE_SIZE, 2), (u64::MAX - 100, 2)] {
        bench.queues[REPORTS].set_descriptor(0, address, 0x2000, flags, 0);
        bench.queues[REPORTS].make_available(0);
        bench.running.worker.handle(Event::Queue(REPORTS)).unwrap();
    }
    assert_eq!(bench.queues[REPORTS].take_used().len(), 3);
    assert_eq!(bench.malformed(), 3);
    assert!(!bench.is_discarded(FREE >> 12));
}

#[test]
fn a_driver_without_statistics_has_its_reports_in_the_third_queue() {
    let mut device = Balloon::new().unwrap();
    let memory = guest_memory((FREE + FREE_SIZE) as usize);
    memory.write_slice(&[7; 0x1000], GuestAddress(FREE)).unwrap();
    let mut queues = [0, 1, 2].map(|index| DriverQueue::new(&memory, index, 32));
    let features = device.features() & !(1 << F_STATS_VQ);
    let mut worker = device
        .activate(Activation {
            memory: Arc::clone(&memory),
            features,
            queues: queues.iter().map(|queue| queue.live(features)).collect(),
            interrupt: Arc::new(crate::virtio::testing::RecordingInterrupt::default()),
            counters: Arc::default(),
        })
        .unwrap();
    queues[2].set_descriptor(0, FREE, 0x1000, 2, 0);
    queues[2].make_available(0);
    worker.handle(Event::Queue(2)).unwrap();
    assert_eq!(memory.read_obj::<u64>(GuestAddress(FREE)).unwrap(), 0);
    assert_eq!(worker.stop().len(), 3);
}

#[test]
fn statistics_are_asked_for_by_giving_their_buffer_back() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    assert_eq!(handle.statistics(), None);
    handle.refresh_statistics();
    assert!(!bench.running.worker.sources()[0].read, "there is no buffer yet");
    let bytes = [entry(4, 1000), entry(5, 2000), entry(77, 1)].concat();
    let first = bench.queues[STATISTICS].request(&[Part::Out(&bytes)]);
    bench.running.worker.handle(Event::Queue(STATISTICS)).unwrap();
    assert_eq!(bench.queues[STATISTICS].take_used(), [], "it is held");
    assert_eq!(handle.statistics(), Some(Statistics { free: 1000, total: 2000, ..Statistics::default() }));
    assert!(bench.running.worker.sources()[0].read);
    bench.running.worker.handle(Event::Source(0)).unwrap();
    assert_eq!(bench.queues[STATISTICS].take_used(), [(first.head, 0)]);
    assert_eq!(bench.running.interrupt.take_queues(), [STATISTICS]);
    bench.queues[STATISTICS].request(&[Part::Out(&entry(4, 500))]);
    bench.running.worker.handle(Event::Queue(STATISTICS)).unwrap();
    assert_eq!(handle.statistics().unwrap().free, 500);
    bench.device.reset();
    assert_eq!(handle.statistics(), None);
}

#[test]
fn a_second_buffer_of_statistics_frees_the_first() {
    let mut bench = Bench::new();
    let first = bench.queues[STATISTICS].request(&[Part::Out(&entry(4, 1))]);
    bench.queues[STATISTICS].request(&[Part::Out(&entry(4, 2))]);
    bench.running.worker.handle(Event::Queue(STATISTICS)).unwrap();
    assert_eq!(bench.queues[STATISTICS].take_used(), [(first.head, 0)]);
    assert_eq!(bench.device.handle().statistics().unwrap().free, 2);
}

#[test]
fn the_buffer_that_is_held_is_back_in_the_queue_after_a_pause() {
    let mut bench = Bench::new();
    bench.queues[STATISTICS].request(&[Part::Out(&entry(4, 1))]);
    bench.running.worker.handle(Event::Queue(STATISTICS)).unwrap();
    let queues = bench.running.worker.stop();
    assert_eq!(queues[STATISTICS].queue.next_avail(), 0);
    assert_eq!(queues.len(), 4);
}

#[test]
fn states_of_other_versions_and_devices_are_refused() {
    let device = Balloon::new().unwrap();
    device.handle().set_target(MiB(64));
    let saved = device.save();
    let mut other = Balloon::new().unwrap();
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    let mut wrong = saved;
    wrong["version"] = 2.into();
    assert!(other.restore(&wrong).is_err());
    assert!(other.restore(&serde_json::Value::Null).is_err());
}

fn rings() -> impl Strategy<Value = [AnyRing; 4]> {
    let memory = guest_memory(FREE as usize);
    [0, 1, 2, 3].map(|index| any_ring(&DriverQueue::new(&memory, index, QUEUE_SIZES[index]), QUEUE_SIZES[index]))
}

proptest! {
    #[test]
    fn no_rings_make_the_device_panic_or_keep_a_queue(
        any in rings(),
        numbers in prop::collection::vec(prop_oneof![Just(0_u32), 0..0xa00_u32, any::<u32>()], 256),
    ) {
        let mut bench = Bench::new();
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        for (queue, any) in bench.queues.iter_mut().zip(&any) {
            bench.memory.write_slice(&numbers, GuestAddress(queue.data().start)).unwrap();
            any.write(queue);
        }
        bench.device.handle().refresh_statistics();
        for event in [0, 1, 2, 3].map(Event::Queue).into_iter().chain([Event::Source(0), Event::Queue(2)]) {
            let _ = bench.running.worker.handle(event);
        }
        prop_assert_eq!(bench.running.worker.stop().len(), 4);
    }

    #[test]
    fn only_pages_that_a_request_names_are_discarded(
        pages in prop::collection::vec(prop_oneof![4 => (FREE >> 12) as u32..((FREE + FREE_SIZE) >> 12) as u32 + 4, 1 => 0x10_0000_u32..], 0..300),
    ) {
        let mut bench = Bench::new();
        let pages: Vec<u64> = pages.into_iter().map(u64::from).collect();
        bench.inflate(&pages);
        for page in FREE >> 12..(FREE + FREE_SIZE) >> 12 {
            // A run that reaches beyond memory is refused as a whole.
            let whole = (page..).find(|next| !pages.contains(next)).unwrap() <= (FREE + FREE_SIZE) >> 12;
            prop_assert_eq!(bench.is_discarded(page), pages.contains(&page) && whole, "{}", page);
        }
    }

    #[test]
    fn any_bytes_are_some_statistics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Statistics::parse(&bytes);
    }
}
