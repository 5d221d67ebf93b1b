//! Cases of the whole device: a driver of test code on one side, a real tap interface in a network namespace of its own on
//! the other, and a packet socket at that interface.

mod interface;

use proptest::prelude::*;
use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use self::interface::Interface;
use super::*;
use crate::devices::testing::{AnyRing, Buffers, any_ring};
use crate::memory::GuestMemory;
use crate::virtio::testing::{DriverQueue, Part, QUEUE_SPAN, RecordingInterrupt, Request, guest_memory, wait_for};
use crate::virtio::{Counters, Event};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
/// An EtherType that no protocol of the kernel takes.
const TEST_TYPE: [u8; 2] = [0x88, 0xb5];
const RX: usize = 0;
const TX: usize = 1;

struct Bench {
    device: Net,
    interface: Interface,
    memory: GuestMemory,
    queues: Vec<DriverQueue>,
    worker: Box<dyn Worker>,
    interrupt: Arc<RecordingInterrupt>,
    counters: Arc<Counters>,
}

fn config(taps: Vec<OwnedFd>) -> NetConfig {
    NetConfig { taps, mac: MAC, mtu: None }
}

impl Bench {
    fn new() -> Self {
        Self::with(1, u64::MAX)
    }

    /// A device with so many pairs, whose driver takes these features.
    fn with(pairs: usize, wanted: u64) -> Self {
        let (interface, taps) = Interface::new(pairs);
        let mut device = Net::new(config(taps)).unwrap();
        let memory = guest_memory(device.queue_sizes.len() * QUEUE_SPAN as usize);
        let sizes = device.queue_sizes.iter().enumerate();
        let queues: Vec<_> = sizes.map(|(index, size)| DriverQueue::new(&memory, index, *size)).collect();
        let features = device.features() & wanted;
        let interrupt = Arc::new(RecordingInterrupt::default());
        let counters = Arc::new(Counters::default());
        device.attached(interrupt.clone());
        let worker = device
            .activate(Activation {
                memory: Arc::clone(&memory),
                features,
                queues: queues.iter().map(|queue| queue.live(features)).collect(),
                interrupt: interrupt.clone(),
                counters: counters.clone(),
            })
            .unwrap();
        let mut bench = Self { device, interface, memory, queues, worker, interrupt, counters };
        for index in 0..bench.queues.len() {
            bench.worker.handle(Event::Queue(index)).unwrap();
        }
        bench
    }

    /// Gives the device `count` buffers of `size` bytes.
    fn offer(&mut self, queue: usize, count: usize, size: usize) -> Vec<Request> {
        let buffers = (0..count).map(|_| self.queues[queue].request(&[Part::In(size)])).collect();
        self.worker.handle(Event::Queue(queue)).unwrap();
        buffers
    }

    /// What the device has given back on a queue, once there is something.
    fn received(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let (worker, queues) = (&mut self.worker, &mut self.queues);
        wait_for("a frame", || {
            for source in worker.sources() {
                if source.read {
                    worker.handle(Event::Source(source.token)).unwrap();
                }
            }
            let used = queues[queue].take_used();
            (!used.is_empty()).then_some(used)
        })
    }

    /// Sends a frame of the guest behind an empty header, and returns whether it was given back.
    fn send(&mut self, header: &[u8], frame: &[u8]) -> usize {
        self.queues[TX].request(&[Part::Out(header), Part::Out(frame)]);
        self.worker.handle(Event::Queue(TX)).unwrap();
        self.queues[TX].take_used().len()
    }

    fn reads(&self) -> bool {
        self.worker.sources().iter().all(|source| source.read)
    }
}

/// A broadcast frame of `len` bytes with a pattern in it.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend(BROADCAST);
    frame.extend([2, 0, 0, 0, 0, 2]);
    frame.extend(TEST_TYPE);
    frame.extend((0..).map(|number: u32| number.to_le_bytes()[0]).take(len - 14));
    frame
}

/// A TCP segment of IPv4 whose payload is to be cut into pieces of `mss`, and the header that says so.
fn large_segment(payload: usize, mss: u16) -> (Vec<u8>, Vec<u8>) {
    let total = u16::try_from(40 + payload).unwrap();
    let mut frame = frame(14);
    frame[..6].copy_from_slice(&MAC);
    frame[12..].copy_from_slice(&[8, 0]);
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let checksum = |bytes: &[u8]| {
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        (sum & 0xffff) + (sum >> 16)
    };
    let sum = !u16::try_from(checksum(&ip)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(vec![0x5a; payload]);
    let mut header = vec![VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, VIRTIO_NET_HDR_GSO_TCPV4 as u8];
    for number in [54, mss, 34, 16] {
        header.extend(number.to_le_bytes());
    }
    (header, frame)
}

#[test]
fn the_configuration_space_tells_address_link_pairs_and_mtu() {
    let (_interface, taps) = Interface::new(2);
    let mut device = Net::new(NetConfig { mtu: Some(1400), ..config(taps) }).unwrap();
    let bytes = device.config_space().bytes();
    assert_eq!(bytes.len(), 12);
    assert_eq!(bytes[..6], MAC);
    assert_eq!(bytes[6..], [1, 0, 2, 0, 0x78, 0x05]);
    let interrupt = Arc::new(RecordingInterrupt::default());
    device.attached(interrupt.clone());
    let link = device.link();
    link.set(true);
    assert_eq!(interrupt.configs(), 0, "nothing has changed");
    link.set(false);
    assert_eq!(interrupt.configs(), 1);
    assert_eq!(device.config_space().bytes()[6..8], [0, 0]);
}

#[test]
fn what_is_out_of_range_is_refused() {
    let taps = || Interface::new(1).1;
    assert!(matches!(Net::new(config(Vec::new())), Err(NetError::Pairs(0))));
    assert!(matches!(Net::new(NetConfig { mac: BROADCAST, ..config(taps()) }), Err(NetError::Mac(_))));
    assert!(matches!(Net::new(NetConfig { mtu: Some(67), ..config(taps()) }), Err(NetError::Mtu(67))));
    let file = tempfile::tempfile().unwrap();
    let error = Net::new(config(vec![file.into()])).unwrap_err();
    assert!(matches!(error, NetError::Tap { number: 0, source: TapError::NotTap(_) }));
    let without_header = Interface::without_header();
    let error = Net::new(config(vec![without_header])).unwrap_err();
    assert!(matches!(error, NetError::Tap { source: TapError::Flags(_), .. }));
}

#[test]
fn frames_pass_both_ways() {
    let mut bench = Bench::new();
    let buffers = bench.offer(RX, 64, 2048);
    bench.interface.send(&frame(100));
    let used = bench.received(RX);
    assert_eq!(used, [(buffers[0].head, 112)]);
    let bytes = bench.queues[RX].read(&buffers[0], 0);
    assert_eq!(bytes[10..12], [1, 0], "one buffer");
    assert_eq!(bytes[12..112], frame(100));
    assert!(bench.interrupt.take_queues().contains(&RX));

    assert_eq!(bench.send(&[0; 12], &frame(300)), 1);
    assert!(bench.interrupt.take_queues().contains(&TX));
    assert_eq!(bench.interface.receive(), frame(300));
    assert_eq!(bench.counters.counts().malformed, 0);
}

#[test]
fn a_large_frame_fills_several_buffers_that_appear_at_once() {
    let mut bench = Bench::new();
    let buffers = bench.offer(RX, 64, 1536);
    let (header, frame) = large_segment(20_000, 1448);
    bench.interface.send_with_header(&header, &frame);
    let used = bench.received(RX);
    let count = (12 + frame.len()).div_ceil(1536);
    assert_eq!(used.len(), count, "one piece of the kernel's, not segments");
    let mut bytes = Vec::<u8>::new();
    for ((head, len), buffer) in used.iter().zip(&buffers) {
        assert_eq!(*head, buffer.head);
        bytes.extend(&bench.queues[RX].read(buffer, 0)[..*len as usize]);
    }
    assert_eq!(bytes[..2], header[..2], "the offload is passed on");
    assert_eq!(usize::from(bytes[10]), count);
    assert_eq!(bytes[12..26], frame[..14]);
    assert_eq!(bytes[66..], frame[54..]);
}

#[test]
fn a_guest_that_cannot_take_large_frames_gets_segments() {
    let mut bench = Bench::with(1, !(1 << VIRTIO_NET_F_GUEST_TSO4));
    bench.offer(RX, 64, 2048);
    let (header, frame) = large_segment(5000, 1448);
    bench.interface.send_with_header(&header, &frame);
    let mut used = bench.received(RX);
    wait_for("all segments", || {
        let _ = bench.worker.handle(Event::Source(0));
        used.extend(bench.queues[RX].take_used());
        (used.len() >= 4).then_some(())
    });
    assert!(used.iter().all(|(_, len)| *len <= 12 + 54 + 1448));
}

#[test]
fn a_large_frame_of_the_guest_reaches_the_host_in_one_piece() {
    let mut bench = Bench::new();
    let (mut header, frame) = large_segment(30_000, 1448);
    header.extend([0, 0]);
    assert_eq!(bench.send(&header, &frame), 1);
    assert_eq!(bench.interface.receive().len(), frame.len());
}

#[test]
fn nothing_is_read_while_the_guest_gives_no_buffers() {
    let mut bench = Bench::new();
    assert!(!bench.reads(), "no buffers yet");
    bench.interface.send(&frame(60));
    bench.worker.handle(Event::Source(0)).unwrap();
    let buffers = bench.offer(RX, 1, 2048);
    assert!(bench.reads());
    assert_eq!(bench.received(RX), [(buffers[0].head, 72)]);
    assert!(!bench.reads(), "the one buffer is used");
}

#[test]
fn frames_wait_for_as_much_room_as_the_guest_has_given_before() {
    let mut bench = Bench::new();
    bench.offer(RX, 64, 2048);
    for _ in 0..32 {
        bench.interface.send(&frame(60));
    }
    let mut used = 0;
    while bench.reads() {
        used += bench.received(RX).len();
    }
    assert_eq!(used, 32, "less than the largest frame needs is left");
    bench.interface.send(&frame(60));
    bench.offer(RX, 1, 2048);
    assert!(bench.reads());
    assert_eq!(bench.received(RX).len(), 1);
}

#[test]
fn the_guest_is_asked_for_more_buffers_when_a_batch_ends_with_the_last_one() {
    let mut bench = Bench::with(1, !(1 << VIRTIO_NET_F_MRG_RXBUF));
    bench.offer(RX, 256, 2048);
    for _ in 0..257 {
        bench.interface.send(&frame(60));
    }
    assert_eq!(bench.received(RX).len(), 256, "as many as a batch has");
    assert!(!bench.reads());
    // Where the driver looks which buffer shall be announced: behind the used ring's entries.
    let wish: u16 = bench.memory.read_obj(GuestAddress(bench.queues[RX].used_ring() + 4 + 8 * 256)).unwrap();
    assert_eq!(wish, 256);
    bench.offer(RX, 1, 2048);
    assert_eq!(bench.received(RX).len(), 1);
}

#[test]
fn a_frame_that_is_larger_than_the_only_buffer_is_dropped() {
    let mut bench = Bench::with(1, !(1 << VIRTIO_NET_F_MRG_RXBUF));
    let buffers = bench.offer(RX, 2, 200);
    bench.interface.send(&frame(500));
    bench.interface.send(&frame(100));
    assert_eq!(bench.received(RX), [(buffers[0].head, 112)]);
    assert_eq!(bench.queues[RX].read(&buffers[0], 0)[12..112], frame(100));
    assert_eq!(bench.counters.counts().errors, 1);
}

#[test]
fn buffers_that_hold_no_frame_are_back_in_the_queue_after_a_pause() {
    let mut bench = Bench::new();
    let buffers = bench.offer(RX, 64, 2048);
    bench.interface.send(&frame(60));
    bench.received(RX);
    let features = bench.device.features();
    let queues = bench.worker.stop();
    assert_eq!(queues[RX].queue.next_avail(), 1);
    bench.worker = bench
        .device
        .activate(Activation {
            memory: Arc::clone(&bench.memory),
            features,
            queues,
            interrupt: bench.interrupt.clone(),
            counters: bench.counters.clone(),
        })
        .unwrap();
    bench.worker.handle(Event::Queue(RX)).unwrap();
    bench.interface.send(&frame(80));
    assert_eq!(bench.received(RX), [(buffers[1].head, 92)]);
}

#[test]
fn buffers_and_frames_that_make_no_sense_are_given_back_and_counted() {
    let mut bench = Bench::new();
    bench.offer(RX, 1, 11);
    assert_eq!(bench.queues[RX].take_used().len(), 1);
    assert!(bench.interrupt.take_queues().contains(&RX));
    let mut wrong_offload = [0; 12];
    wrong_offload[1] = 0x7f;
    for (header, len) in [(&[0; 12][..], 13), (&wrong_offload, 100), (&[0; 4], 4), (&[0; 12], 65535 + 14 + 8 + 1)] {
        let bytes = vec![1; len];
        bench.queues[TX].request(&[Part::Out(header), Part::Out(&bytes)]);
        bench.worker.handle(Event::Queue(TX)).unwrap();
        assert_eq!(bench.queues[TX].take_used().len(), 1);
    }
    assert_eq!(bench.counters.counts().malformed, 5);
}

#[test]
fn a_frame_in_more_pieces_than_any_driver_makes_is_refused() {
    let mut bench = Bench::new();
    bench.queues[TX].indirect_request(&vec![Part::Out(&[0]); MAX_PIECES + 1]);
    bench.worker.handle(Event::Queue(TX)).unwrap();
    assert_eq!(bench.counters.counts().malformed, 1);
    bench.queues[RX].indirect_request(&vec![Part::In(1); MAX_PIECES + 1]);
    bench.worker.handle(Event::Queue(RX)).unwrap();
    assert_eq!(bench.counters.counts().malformed, 2);
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let mut bench = Bench::with(2, u64::MAX);
    let control = 4;
    let mut command = |bytes: &[u8], room| {
        let request = bench.queues[control].request(&[Part::Out(bytes), Part::In(room)]);
        bench.worker.handle(Event::Queue(control)).unwrap();
        assert_eq!(bench.queues[control].take_used(), [(request.head, u32::from(room > 0))]);
        (bench.queues[control].read(&request, 1), bench.device.save()["active_pairs"].clone())
    };
    assert_eq!(command(&[4, 0, 2, 0], 1), (vec![0], 2.into()));
    assert_eq!(command(&[4, 0, 3, 0], 1), (vec![1], 2.into()), "more than there are");
    assert_eq!(command(&[4, 0, 0, 0], 1), (vec![1], 2.into()), "none");
    assert_eq!(command(&[4, 0, 1], 1), (vec![1], 2.into()), "too short");
    assert_eq!(command(&[4, 0, 1, 0, 0], 1), (vec![1], 2.into()), "too long");
    assert_eq!(command(&[0, 0, 1, 0], 1), (vec![1], 2.into()), "another command");
    assert_eq!(command(&[4, 0, 1, 0], 0), (vec![], 2.into()), "no room for the answer");
    assert_eq!(bench.counters.counts().malformed, 6);
    bench.device.reset();
    assert_eq!(bench.device.save()["active_pairs"], 1);
}

#[test]
fn a_guest_with_one_pair_gets_the_frames_of_all_taps() {
    let mut bench = Bench::with(2, u64::MAX);
    bench.offer(RX, 64, 2048);
    bench.interface.send(&frame(60));
    assert_eq!(bench.received(RX).len(), 1);
    let sources = bench.worker.sources();
    assert_eq!(sources.iter().filter(|source| source.read).count(), 2);
}

#[test]
fn an_interface_that_is_removed_is_no_longer_watched() {
    let mut bench = Bench::new();
    bench.offer(RX, 64, 2048);
    bench.interface.remove();
    bench.worker.handle(Event::Source(0)).unwrap();
    assert!(!bench.reads());
    assert_eq!(bench.send(&[0; 12], &frame(60)), 1);
    assert_eq!(bench.counters.counts().errors, 2);
}

#[test]
fn states_of_other_versions_and_sizes_are_refused() {
    let (_interface, taps) = Interface::new(1);
    let mut device = Net::new(config(taps)).unwrap();
    device.link().set(false);
    let saved = device.save();
    let (_interface, taps) = Interface::new(1);
    let mut other = Net::new(config(taps)).unwrap();
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    for (field, value) in [("version", 2), ("active_pairs", 2), ("active_pairs", 0)] {
        let mut wrong = saved.clone();
        wrong[field] = value.into();
        assert!(device.restore(&wrong).is_err(), "{field}");
    }
    assert!(device.restore(&serde_json::Value::Null).is_err());
}

fn rings() -> impl Strategy<Value = [AnyRing; 2]> {
    let memory = guest_memory(2 * QUEUE_SPAN as usize);
    [RX, TX].map(|index| any_ring(&DriverQueue::new(&memory, index, QUEUE_SIZE), 64))
}

proptest! {
    #![proptest_config(crate::virtio::testing::arbitrary::config(96))]

    #[test]
    fn no_rings_make_the_device_panic_or_write_elsewhere(any in rings(), mergeable in any::<bool>()) {
        let mut bench = Bench::with(1, if mergeable { u64::MAX } else { !(1 << VIRTIO_NET_F_MRG_RXBUF) });
        let buffers: Vec<_> = bench.queues.iter().map(|queue| Buffers::of(&bench.memory, queue)).collect();
        for (queue, any) in bench.queues.iter_mut().zip(&any) {
            any.write(queue);
        }
        for len in [60, 1514, 900] {
            bench.interface.send(&frame(len));
        }
        for event in [Event::Queue(RX), Event::Queue(TX), Event::Source(0), Event::Queue(TX), Event::Source(0)] {
            let _ = bench.worker.handle(event);
        }
        buffers.iter().for_each(|buffers| buffers.check_writes(&any));
        let queues = bench.worker.stop();
        prop_assert_eq!(queues.len(), 2);
    }

    #[test]
    fn no_header_or_frame_makes_the_device_fail(
        header in prop::collection::vec(prop_oneof![3 => 0..5_u8, 1 => any::<u8>()], 12),
        len in prop_oneof![14..200_usize, 14..70_000_usize],
    ) {
        let mut bench = Bench::new();
        prop_assert_eq!(bench.send(&header, &frame(len)), 1);
    }

    #[test]
    fn every_command_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..12), room in 0..3_usize) {
        let mut bench = Bench::with(2, u64::MAX);
        let request = bench.queues[4].request(&[Part::Out(&bytes), Part::In(room)]);
        bench.worker.handle(Event::Queue(4)).unwrap();
        prop_assert_eq!(bench.queues[4].take_used(), [(request.head, u32::from(room > 0))]);
        let active = bench.device.save()["active_pairs"].as_u64().unwrap();
        prop_assert!((1..=2).contains(&active));
    }
}
