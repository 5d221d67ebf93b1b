//! Cases of the entropy device, the queue's driver being test code.

use super::{Rng, *};
use crate::virtio::testing::arbitrary::{HostileGuest, config, queue_contents};
use crate::virtio::testing::{Activated, DriverQueue, Part, QUEUE_SPAN, activate, guest_memory};
use proptest::prelude::*;

fn bench() -> (GuestMemory, DriverQueue, Activated) {
    let memory = guest_memory(QUEUE_SPAN as usize);
    let driver = DriverQueue::new(&memory, 0, 16);
    let activated = activate(&mut Rng::new(), &memory, &[&driver]).unwrap();
    (memory, driver, activated)
}

#[test]
fn a_request_is_filled_with_bytes_that_differ_each_time() {
    let (_memory, mut driver, mut device) = bench();
    let first = driver.request(&[Part::In(64)]);
    let second = driver.indirect_request(&[Part::In(24), Part::In(40)]);
    device.worker.handle(Event::Queue(0)).unwrap();
    assert_eq!(driver.take_used(), [(first.head, 64), (second.head, 64)]);
    assert_ne!(driver.read(&first, 0)[..24], driver.read(&second, 0)[..]);
    assert_ne!(driver.read(&second, 1), [0xee; 40]);
    assert_eq!(device.interrupt.take_queues(), [0]);
    assert_eq!(device.counters.counts().requests, 2);
}

#[test]
fn a_request_gets_no_more_than_the_limit() {
    let (_memory, mut driver, mut device) = bench();
    let request = driver.request(&[Part::In(4000), Part::In(4000), Part::In(100)]);
    device.worker.handle(Event::Queue(0)).unwrap();
    assert_eq!(driver.take_used(), [(request.head, MAX_BYTES)]);
    assert!(driver.read(&request, 1)[96..].iter().all(|byte| *byte == 0xee), "beyond the limit");
    assert_eq!(device.counters.counts().malformed, 0);
}

#[test]
fn a_request_without_room_or_outside_memory_is_counted_and_given_back() {
    let (_memory, mut driver, mut device) = bench();
    let readable = driver.request(&[Part::Out(b"seed")]);
    driver.set_descriptor(9, QUEUE_SPAN - 8, 64, crate::virtio::testing::WRITE, 0);
    driver.make_available(9);
    device.worker.handle(Event::Queue(0)).unwrap();
    assert_eq!(driver.take_used(), [(readable.head, 0), (9, 0)]);
    assert_eq!(device.counters.counts().malformed, 2);
}

#[test]
fn the_queue_is_given_back_where_it_was_left() {
    let (_memory, mut driver, mut device) = bench();
    driver.request(&[Part::In(64)]);
    device.worker.handle(Event::Queue(0)).unwrap();
    let queues = device.worker.stop();
    assert_eq!((queues[0].queue.state().next_avail, queues[0].queue.state().next_used), (1, 1));
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn whatever_the_queue_contains_only_writable_buffers_are_written(
        contents in queue_contents(prop::collection::vec(any::<u8>(), 0..64)),
    ) {
        let guest = HostileGuest::new(&contents);
        let mut device = activate(&mut Rng::new(), &guest.memory, &[&guest.driver]).unwrap();
        // Twice, as a guest may notify as often as it likes; it may fail then, which is the transport's business.
        let _ = device.worker.handle(Event::Queue(0));
        let _ = device.worker.handle(Event::Queue(0));
        prop_assert_eq!(device.worker.stop().len(), 1);
        guest.check_writes();
    }
}
