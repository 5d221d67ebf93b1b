//! Cases of the whole device: a driver of test code on one side, real Unix sockets on the other.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use stockade_devices::vsock::{HEADER_LEN, HOST_CID, Header, MuxerConfig, TYPE_STREAM, op};

use super::*;
use crate::devices::testing::{AnyRing, Buffers, any_ring};
use crate::memory::GuestMemory;
use crate::virtio::Event;
use crate::virtio::testing::{Activated, DriverQueue, Part, QUEUE_SPAN, Request, activate, guest_memory};

const GUEST_CID: u64 = 7;
const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;

/// A device with its socket in a directory of its own, and its driver.
struct Bench {
    device: Vsock,
    directory: tempfile::TempDir,
    memory: GuestMemory,
    queues: [DriverQueue; 3],
    running: Activated,
}

fn device(directory: &tempfile::TempDir) -> Vsock {
    let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
    let config = MuxerConfig { guest_cid: GUEST_CID, listener: listener.into(), host_sockets: None };
    Vsock::new(Muxer::new(config).unwrap())
}

fn driver(memory: &GuestMemory) -> [DriverQueue; 3] {
    [RX, TX, EVENTS].map(|index| DriverQueue::new(memory, index, QUEUE_SIZES[index]))
}

fn memory() -> GuestMemory {
    guest_memory(3 * QUEUE_SPAN as usize)
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(prepare: impl FnOnce(&mut Vsock)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut device = device(&directory);
        prepare(&mut device);
        let memory = memory();
        let queues = driver(&memory);
        let running = activate(&mut device, &memory, &queues.each_ref()).unwrap();
        Self { device, directory, memory, queues, running }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("vsock")).unwrap()
    }

    fn handle(&mut self) {
        self.running.worker.handle(Event::Source(0)).unwrap();
    }

    /// Gives the device a page to put a packet into.
    fn offer(&mut self) -> Request {
        self.queues[RX].request(&[Part::In(4096)])
    }

    /// The packet in `buffer`, if the device has put one there.
    fn received(&mut self, buffer: &Request) -> Option<(Header, Vec<u8>)> {
        self.handle();
        let (_, len) = *self.queues[RX].take_used().first()?;
        let bytes = self.queues[RX].read(buffer, 0);
        let header = Header::decode(&bytes[..HEADER_LEN].try_into().unwrap());
        Some((header, bytes[HEADER_LEN..len as usize].to_vec()))
    }

    /// Sends a packet of the guest that answers `to`.
    fn send(&mut self, to: &Header, op: u16, payload: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: to.dst_port,
            dst_port: to.src_port,
            len: payload.len() as u32,
            socket_type: TYPE_STREAM,
            op,
            buf_alloc: 65536,
            ..Header::default()
        };
        self.queues[TX].request(&[Part::Out(&header.encode()), Part::Out(payload)]);
        self.handle();
        assert_eq!(self.queues[TX].take_used().len(), 1);
    }

    /// A stream that a host client asked for and the guest accepted, and the header of the request.
    fn connected(&mut self) -> (UnixStream, Header) {
        let mut client = self.client();
        client.write_all(b"CONNECT 1024\n").unwrap();
        let buffer = self.offer();
        let (request, _) = self.received(&buffer).unwrap();
        assert_eq!((request.op, request.dst_cid, request.dst_port), (op::REQUEST, GUEST_CID, 1024));
        self.send(&request, op::RESPONSE, &[]);
        let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
        client.read_exact(&mut line).unwrap();
        (client, request)
    }
}

#[test]
fn the_configuration_space_holds_the_context_id_and_nothing_else() {
    let bench = Bench::new();
    assert_eq!(bench.device.config_space().bytes(), GUEST_CID.to_le_bytes());
}

#[test]
fn data_passes_both_ways_and_the_guest_is_told() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    client.write_all(b"to the guest").unwrap();
    bench.running.interrupt.take_queues();
    let buffer = bench.offer();
    let (header, payload) = bench.received(&buffer).unwrap();
    assert_eq!((header.op, &payload[..]), (op::RW, &b"to the guest"[..]));
    assert_eq!(bench.running.interrupt.take_queues(), [RX]);
    bench.send(&request, op::RW, b"to the host");
    assert_eq!(bench.running.interrupt.take_queues(), [TX]);
    let mut got = [0; 11];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the host");
}

#[test]
fn connections_outlive_a_pause() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    client.write_all(b"while paused").unwrap();
    let Activated { worker, interrupt, counters } = bench.running;
    let again = Activation {
        memory: Arc::clone(&bench.memory),
        features: bench.device.features(),
        queues: worker.stop(),
        interrupt: interrupt.clone(),
        counters: Arc::clone(&counters),
    };
    let worker = bench.device.activate(again).unwrap();
    bench.running = Activated { worker, interrupt, counters };
    let buffer = bench.offer();
    assert_eq!(bench.received(&buffer).unwrap().1, b"while paused");
    bench.send(&request, op::RW, b"x");
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_reset_by_the_driver_closes_all_connections() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.connected();
    bench.device.reset();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_driver_that_leaves_a_queue_out_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut device = device(&directory);
    let memory = memory();
    let queues = driver(&memory);
    let refused = activate(&mut device, &memory, &[&queues[RX], &queues[EVENTS]]);
    assert!(matches!(refused, Err(DeviceError::Queue { queue: TX, .. })));
}

#[test]
fn a_restored_guest_hears_of_the_reset_before_anybody_reaches_it() {
    let saved = Bench::new().device.save();
    let mut bench = Bench::with(|device| device.restore(&saved).unwrap());
    let mut client = bench.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let buffer = bench.offer();
    assert_eq!(bench.received(&buffer), None, "no buffer for the event yet");
    let event = bench.queues[EVENTS].request(&[Part::In(4)]);
    assert_eq!(bench.received(&buffer), None, "the guest has not dealt with the event yet");
    assert_eq!(bench.queues[EVENTS].take_used(), [(event.head, 4)]);
    assert_eq!(bench.queues[EVENTS].read(&event, 0), [0; 4]);
    assert!(bench.running.interrupt.take_queues().contains(&EVENTS));
    bench.queues[EVENTS].request(&[Part::In(4)]);
    assert_eq!(bench.received(&buffer).unwrap().0.op, op::REQUEST);
}

#[test]
fn a_guest_with_more_buffers_for_events_is_asked_to_tell_when_it_has_dealt_with_the_reset() {
    let saved = Bench::new().device.save();
    let mut bench = Bench::with(|device| device.restore(&saved).unwrap());
    // As Linux does, which adds one for each that it has read.
    for _ in 0..8 {
        bench.queues[EVENTS].request(&[Part::In(4)]);
    }
    bench.handle();
    assert_eq!(bench.queues[EVENTS].take_used().len(), 1);
    bench.queues[EVENTS].request(&[Part::In(4)]);
    assert!(bench.queues[EVENTS].must_kick(F_RING));
}

#[test]
fn a_guest_that_had_no_driver_needs_no_reset() {
    let directory = tempfile::tempdir().unwrap();
    let saved = device(&directory).save();
    let mut bench = Bench::with(|device| device.restore(&saved).unwrap());
    bench.connected();
}

#[test]
fn states_of_other_versions_and_devices_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut device = device(&directory);
    assert!(device.restore(&serde_json::json!({"version": VERSION + 1, "had_driver": true})).is_err());
    assert!(device.restore(&serde_json::Value::Null).is_err());
}

#[test]
fn a_ring_with_an_impossible_index_breaks_the_device() {
    for ring in [RX, TX] {
        let mut bench = Bench::new();
        bench.queues[ring].set_available_index(QUEUE_SIZES[ring] + 1);
        let broken = bench.running.worker.handle(Event::Queue(ring));
        assert!(matches!(broken, Err(DeviceError::Queue { queue, .. }) if queue == ring));
    }
}

#[test]
fn packets_without_a_header_are_given_back_and_counted() {
    let mut bench = Bench::new();
    bench.queues[TX].request(&[Part::Out(&[0; HEADER_LEN - 1])]);
    bench.queues[TX].request(&[Part::In(HEADER_LEN)]);
    bench.handle();
    assert_eq!(bench.queues[TX].take_used().len(), 2);
    assert_eq!(bench.running.counters.counts().malformed, 2);
}

fn rings() -> impl Strategy<Value = [AnyRing; 3]> {
    let queues = driver(&memory());
    [any_ring(&queues[RX], 64), any_ring(&queues[TX], 64), any_ring(&queues[EVENTS], 16)]
}

proptest! {
    #[test]
    fn no_rings_make_the_device_panic_or_write_elsewhere(any in rings(), restored in any::<bool>()) {
        let saved = serde_json::json!(Saved { version: VERSION, had_driver: restored });
        let mut bench = Bench::with(|device| device.restore(&saved).unwrap());
        let mut client = bench.client();
        let _ = client.write_all(b"CONNECT 1\nhello");
        let buffers: Vec<_> = bench.queues.iter().map(|queue| Buffers::of(&bench.memory, queue)).collect();
        for (queue, any) in bench.queues.iter_mut().zip(&any) {
            any.write(queue);
        }
        for event in [Event::Queue(EVENTS), Event::Queue(TX), Event::Queue(RX), Event::Source(0)] {
            let _ = bench.running.worker.handle(event);
        }
        buffers.iter().for_each(|buffers| buffers.check_writes(&any));
    }
}
