//! Cases of the whole core: a guest of test code on one side, real Unix sockets on the other.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const GUEST_CID: u64 = 3;
const GUEST_PORT: u32 = 1024;
const GUEST_CREDIT: u32 = 65536;

/// A device with its sockets in a directory of its own, removed with it.
struct Bench {
    muxer: Muxer,
    directory: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Bench {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("vsock-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let listener = UnixListener::bind(directory.join("vsock")).unwrap();
        let opened = open(&directory, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let mut muxer = Muxer::new(MuxerConfig {
            guest_cid: GUEST_CID,
            listener: listener.into(),
            host_sockets: Some(HostSockets {
                directory: crate::sys::adopt_fd(opened).unwrap(),
                name: "vsock".to_owned(),
            }),
        })
        .unwrap();
        muxer.activate();
        Self { muxer, directory }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(self.directory.join("vsock")).unwrap()
    }

    /// A packet of the guest for the connection that `like` (from the host) belongs to.
    fn send(&mut self, like: &Header, op: u16, flags: u32, fwd_cnt: u32, payload: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: like.dst_port,
            dst_port: like.src_port,
            len: payload.len() as u32,
            socket_type: TYPE_STREAM,
            op,
            flags,
            buf_alloc: GUEST_CREDIT,
            fwd_cnt,
        };
        self.muxer.handle(&header, payload);
    }

    /// The next packet for the guest, after all events that are there.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        while self.muxer.poll() {}
        let mut buf = vec![0; MAX_PAYLOAD];
        let header = self.muxer.next_packet(&mut buf)?;
        buf.truncate(header.len as usize);
        Some((header, buf))
    }

    fn next_op(&mut self) -> Option<u16> {
        self.next().map(|(header, _)| header.op)
    }

    /// A stream that a host client asked for and the guest accepted.
    fn connected(&mut self) -> (UnixStream, Header) {
        let mut client = self.client();
        writeln!(client, "CONNECT {GUEST_PORT}").unwrap();
        let (request, _) = self.next().unwrap();
        assert_eq!(request.op, op::REQUEST);
        assert_eq!(request.dst_port, GUEST_PORT);
        self.send(&request, op::RESPONSE, 0, 0, &[]);
        let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
        client.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port).into_bytes());
        (client, request)
    }
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))
}

#[test]
fn a_client_connects_and_data_passes_both_ways() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    client.write_all(b"to the guest").unwrap();
    let (header, payload) = bench.next().unwrap();
    assert_eq!((header.op, &payload[..]), (op::RW, &b"to the guest"[..]));
    bench.send(&request, op::RW, 0, 12, b"to the host");
    let mut got = [0; 11];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the host");
    assert_eq!(bench.next(), None);
}

#[test]
fn data_written_with_the_connect_line_follows_the_response() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    client.write_all(b"connect 5\nearly").unwrap();
    let (request, _) = bench.next().unwrap();
    assert_eq!(bench.next(), None, "nothing before the guest has answered");
    bench.send(&request, op::RESPONSE, 0, 0, &[]);
    assert_eq!(bench.next().unwrap().1, b"early");
}

#[test]
fn a_client_that_the_guest_refuses_is_closed_without_a_word() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = bench.next().unwrap();
    bench.send(&request, op::RST, 0, 0, &[]);
    assert!(is_closed(&mut client));
    assert!(bench.muxer.is_empty());
}

#[test]
fn a_client_that_speaks_something_else_is_closed() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(bench.next(), None);
    assert!(is_closed(&mut client));
    assert_eq!(bench.muxer.counters().refused_clients, 1);
}

#[test]
fn a_client_that_leaves_before_the_guest_answers_is_forgotten() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    while bench.muxer.poll() {}
    drop(client);
    assert_eq!(bench.next(), None, "the guest never heard of it");
    assert!(bench.muxer.is_empty());

    let mut client = bench.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(bench.next_op(), Some(op::REQUEST));
    drop(client);
    assert_eq!(bench.next_op(), Some(op::RST));
    assert!(bench.muxer.is_empty());
}

#[test]
fn clients_wait_until_the_driver_is_there() {
    let mut bench = Bench::new();
    bench.muxer.reset();
    let mut client = bench.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    assert!(!bench.muxer.poll());
    bench.muxer.activate();
    assert_eq!(bench.next_op(), Some(op::REQUEST));
}

#[test]
fn the_guest_reaches_sockets_named_by_port_and_no_others() {
    let mut bench = Bench::new();
    let listener = UnixListener::bind(bench.directory.join("vsock_77")).unwrap();
    let to = |port| Header { src_port: port, dst_port: 5000, ..Header::default() };
    bench.send(&to(77), op::REQUEST, 0, 0, &[]);
    assert_eq!(bench.next_op(), Some(op::RESPONSE));
    let (mut stream, _) = listener.accept().unwrap();
    bench.send(&to(77), op::RW, 0, 0, b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    bench.send(&to(78), op::REQUEST, 0, 0, &[]);
    assert_eq!(bench.next_op(), Some(op::RST));
    assert_eq!(bench.muxer.counters().refused_requests, 1);
}

#[test]
fn nothing_is_read_beyond_the_credit_of_the_guest() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    client.write_all(&vec![7; GUEST_CREDIT as usize + 10]).unwrap();
    let (first, payload) = bench.next().unwrap();
    assert_eq!((first.op, payload.len()), (op::RW, GUEST_CREDIT as usize));
    assert_eq!(bench.next_op(), Some(op::CREDIT_REQUEST), "asked once");
    assert_eq!(bench.next(), None);
    bench.send(&request, op::CREDIT_UPDATE, 0, 4, &[]);
    assert_eq!(bench.next().unwrap().1.len(), 4);
    bench.send(&request, op::CREDIT_UPDATE, 0, GUEST_CREDIT + 4, &[]);
    assert_eq!(bench.next().unwrap().1.len(), 6);
    assert_eq!(bench.next(), None);
}

#[test]
fn a_slow_client_fills_the_buffer_and_then_the_guest_has_no_credit() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    let chunk = vec![1; MAX_PAYLOAD];
    let mut sent: u32 = 0;
    let mut told = 0;
    while sent.wrapping_sub(told) + (chunk.len() as u32) <= CONNECTION_BUFFER {
        bench.send(&request, op::RW, 0, 0, &chunk);
        sent += chunk.len() as u32;
        while let Some((header, _)) = bench.next() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    // The client reads everything, and the guest hears of all the room but the last quarter.
    let mut received = vec![0; sent as usize];
    let mut have = 0;
    while have < received.len() {
        have += client.read(&mut received[have..]).unwrap();
        while let Some((header, _)) = bench.next() {
            told = header.fwd_cnt;
        }
    }
    assert!(sent - told < CONNECTION_BUFFER / 4, "{sent} {told}");
}

#[test]
fn a_guest_that_sends_beyond_its_credit_is_reset() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    let chunk = vec![1; MAX_PAYLOAD];
    let mut resets = 0;
    // No Unix socket buffers as much as this on its own.
    for _ in 0..1024 {
        bench.send(&request, op::RW, 0, 0, &chunk);
        while let Some(op) = bench.next_op() {
            resets += usize::from(op == op::RST);
        }
        if resets > 0 {
            break;
        }
    }
    assert_eq!(resets, 1);
    assert!(bench.muxer.is_empty());
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
}

#[test]
fn the_end_of_data_passes_each_way_on_its_own() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    client.write_all(b"last").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.next().unwrap().1, b"last");
    let (end, _) = bench.next().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    bench.send(&request, op::RW, 0, 4, b"answer");
    bench.send(&request, op::SHUTDOWN, SHUTDOWN_SEND, 4, &[]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    // The guest closes; it waits for the RST.
    bench.send(&request, op::SHUTDOWN, SHUTDOWN_BOTH, 4, &[]);
    assert_eq!(bench.next_op(), Some(op::RST));
    assert!(bench.muxer.is_empty());
}

#[test]
fn a_client_that_closes_ends_both_directions_after_its_data() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    client.write_all(b"bye").unwrap();
    drop(client);
    assert_eq!(bench.next().unwrap().1, b"bye");
    let (end, _) = bench.next().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    bench.send(&request, op::RST, 0, 3, &[]);
    assert!(bench.muxer.is_empty());
}

#[test]
fn data_still_buffered_reaches_the_client_after_the_guest_has_closed() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    let chunk = vec![9; MAX_PAYLOAD];
    // More than a Unix socket holds by default, and less than the credit on top of it.
    for _ in 0..4 {
        bench.send(&request, op::RW, 0, 0, &chunk);
    }
    bench.send(&request, op::SHUTDOWN, SHUTDOWN_BOTH, 0, &[]);
    let mut got = vec![0; 4 * MAX_PAYLOAD];
    let mut have = 0;
    while have < got.len() {
        have += client.read(&mut got[have..]).unwrap();
        while bench.muxer.poll() {}
    }
    assert!(is_closed(&mut client));
    let mut last = None;
    while let Some(op) = bench.next_op() {
        last = Some(op);
    }
    assert_eq!(last, Some(op::RST));
}

#[test]
fn packets_that_make_no_sense_are_reset_or_dropped_and_counted() {
    let mut bench = Bench::new();
    let (_client, request) = bench.connected();
    // Not for the host, not from this guest: dropped.
    let stranger = Header { src_cid: 9, dst_cid: HOST_CID, op: op::RW, ..Header::default() };
    bench.muxer.handle(&stranger, &[]);
    assert_eq!(bench.next(), None);
    // A length that is not the payload's: the stream has lost data.
    let short = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: request.dst_port,
        dst_port: request.src_port,
        len: 100,
        socket_type: TYPE_STREAM,
        op: op::RW,
        ..Header::default()
    };
    bench.muxer.handle(&short, &[]);
    assert_eq!(bench.next_op(), Some(op::RST));
    assert!(bench.muxer.is_empty());
    assert_eq!(bench.muxer.counters().malformed, 2);
    // An unknown connection, an unknown operation.
    bench.send(&request, op::RW, 0, 0, b"x");
    assert_eq!(bench.next_op(), Some(op::RST));
    let (_client, request) = bench.connected();
    bench.send(&request, 99, 0, 0, &[]);
    assert_eq!(bench.next_op(), Some(op::RST));
    // A reset is never answered by a reset.
    bench.send(&request, op::RST, 0, 0, &[]);
    assert_eq!(bench.next(), None);
}

#[test]
fn answers_to_unknown_connections_are_bounded() {
    let mut bench = Bench::new();
    for port in 0..2 * MAX_PENDING_RESETS as u32 {
        let like = Header { src_port: port, dst_port: 1, ..Header::default() };
        bench.send(&like, op::RW, 0, 0, b"x");
    }
    assert!(!bench.muxer.can_handle());
    let mut resets = 0;
    while bench.next_op() == Some(op::RST) {
        resets += 1;
    }
    assert_eq!(resets, MAX_PENDING_RESETS);
    assert!(bench.muxer.can_handle());
}

#[test]
fn connections_are_bounded_and_further_clients_wait_for_a_place() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let client = bench.client();
            while bench.muxer.poll() {}
            client
        })
        .collect();
    assert_eq!(bench.muxer.len(), MAX_CONNECTIONS);
    let mut late = bench.client();
    late.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(bench.next(), None);
    assert!(!bench.muxer.poll(), "a full device does not spin");
    bench.send(&Header::default(), op::REQUEST, 0, 0, &[]);
    assert_eq!(bench.next_op(), Some(op::RST));
    drop(clients.pop());
    assert_eq!(bench.next_op(), Some(op::REQUEST));
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new();
    let (mut first, _) = bench.connected();
    let (mut second, other) = bench.connected();
    first.write_all(&[1; 4096]).unwrap();
    second.write_all(&[2; 4096]).unwrap();
    while bench.muxer.poll() {}
    let mut order = Vec::new();
    let mut buf = [0; 1024];
    while let Some(header) = bench.muxer.next_packet(&mut buf) {
        order.push(header.src_port == other.src_port);
    }
    assert_eq!(order.len(), 8);
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
}

// --- virtqueues --------------------------------------------------------------------------------------------------

const MEMORY: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x1_0000;

/// A driver's side of one split virtqueue.
struct Ring<'a> {
    memory: &'a GuestMemoryMmap,
    queue: Queue,
    next: u16,
    heads: u16,
}

/// One descriptor of a chain: address, length, writable by the device.
type Piece = (u64, u32, bool);

impl<'a> Ring<'a> {
    fn new(memory: &'a GuestMemoryMmap) -> Self {
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        Self { memory, queue, next: 0, heads: 0 }
    }

    fn add(&mut self, pieces: &[Piece]) {
        let head = self.next;
        for (at, (address, len, writable)) in pieces.iter().enumerate() {
            let more = at + 1 < pieces.len();
            let flags = u16::from(more) | u16::from(*writable) << 1;
            let slot = GuestAddress(DESCRIPTORS + 16 * u64::from(self.next));
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&(self.next + 1).to_le_bytes());
            self.memory.write_slice(&bytes, slot).unwrap();
            self.next += 1;
        }
        let slot = GuestAddress(AVAIL + 4 + 2 * u64::from(self.heads));
        self.memory.write_obj(head, slot).unwrap();
        self.heads += 1;
        let index = GuestAddress(AVAIL + 2);
        self.memory.write_obj(self.heads, index).unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }
}

fn guest_memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

#[test]
fn packets_pass_through_virtqueues_in_one_descriptor_or_many() {
    let mut bench = Bench::new();
    let (mut client, request) = bench.connected();
    let data = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: request.dst_port,
        dst_port: request.src_port,
        len: 6,
        socket_type: TYPE_STREAM,
        op: op::RW,
        buf_alloc: GUEST_CREDIT,
        ..Header::default()
    };
    let mut bytes = data.encode().to_vec();
    bytes.extend_from_slice(b"abcdef");
    let memory = guest_memory();
    memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
    let mut tx = Ring::new(&memory);
    tx.add(&[(BUFFERS, 50, false)]);
    tx.add(&[(BUFFERS, 44, false), (BUFFERS + 44, 6, false)]);
    tx.add(&[(BUFFERS, 10, false), (BUFFERS + 10, 36, false), (BUFFERS + 46, 4, false)]);
    let batch = process_tx(&mut bench.muxer, &mut tx.queue, &memory).unwrap();
    assert_eq!((batch.used, batch.more, tx.used()), (true, false, 3));
    let mut got = [0; 18];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abcdefabcdefabcdef");

    client.write_all(b"0123456789").unwrap();
    while bench.muxer.poll() {}
    let memory = guest_memory();
    let mut rx = Ring::new(&memory);
    rx.add(&[(BUFFERS, 44 + 4, true)]);
    rx.add(&[(BUFFERS + 100, 44, true), (BUFFERS + 144, 4096, true)]);
    rx.add(&[(BUFFERS + 200, 4096, true)]);
    let batch = process_rx(&mut bench.muxer, &mut rx.queue, &memory).unwrap();
    assert!(batch.used);
    assert_eq!(rx.used(), 2, "the third buffer stays the guest's");
    let mut got = [0; 10];
    memory.read_slice(&mut got[..4], GuestAddress(BUFFERS + 44)).unwrap();
    memory.read_slice(&mut got[4..], GuestAddress(BUFFERS + 144)).unwrap();
    assert_eq!(&got, b"0123456789");
    assert_eq!(rx.queue.next_avail(), 2);
}

#[test]
fn buffers_that_hold_no_packet_are_returned_and_counted() {
    let mut bench = Bench::new();
    let memory = guest_memory();
    let mut tx = Ring::new(&memory);
    tx.add(&[(BUFFERS, 43, false)]);
    tx.add(&[(BUFFERS, 44, true)]);
    tx.add(&[(u64::MAX - 8, 44, false)]);
    tx.add(&[(MEMORY as u64 - 4, 44, false)]);
    process_tx(&mut bench.muxer, &mut tx.queue, &memory).unwrap();
    assert_eq!(tx.used(), 4);
    assert_eq!(bench.muxer.counters().malformed, 4);
}

#[test]
fn the_transport_reset_event_needs_a_buffer() {
    let memory = guest_memory();
    let mut events = Ring::new(&memory);
    assert!(!write_transport_reset(&mut events.queue, &memory).unwrap());
    events.add(&[(BUFFERS, 4, true)]);
    assert!(write_transport_reset(&mut events.queue, &memory).unwrap());
}

#[test]
fn reserved_context_ids_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        let (listener, _) = UnixStream::pair().unwrap();
        let config = MuxerConfig { guest_cid: cid, listener: listener.into(), host_sockets: None };
        assert!(matches!(Muxer::new(config), Err(MuxerError::GuestCid(_))));
    }
}

fn any_header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![Just(GUEST_CID), Just(HOST_CID), any::<u64>()];
    let port = prop_oneof![
        4 => Just(GUEST_PORT),
        4 => (1_u32 << 30)..(1 << 30) + 3,
        1 => any::<u32>()
    ];
    let numbers = prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    (
        prop_oneof![8 => Just(GUEST_CID), 1 => cid],
        prop_oneof![8 => Just(HOST_CID), 1 => any::<u64>()],
        (port.clone(), port),
        prop_oneof![8 => 0..64_u32, 1 => any::<u32>()],
        prop_oneof![8 => Just(TYPE_STREAM), 1 => any::<u16>()],
        0..10_u16,
        0..4_u32,
        (numbers.clone(), numbers),
    )
        .prop_map(|(src_cid, dst_cid, ports, len, socket_type, op, flags, credit)| Header {
            src_cid,
            dst_cid,
            src_port: ports.0,
            dst_port: ports.1,
            len,
            socket_type,
            op,
            flags,
            buf_alloc: credit.0,
            fwd_cnt: credit.1,
        })
}

proptest! {
    #[test]
    fn no_sequence_of_packets_panics_or_breaks_a_bound(
        packets in prop::collection::vec((any_header(), any::<bool>()), 0..60)
    ) {
        let mut bench = Bench::new();
        let mut clients = Vec::new();
        for (header, host_acts) in packets {
            if host_acts {
                let mut client = bench.client();
                let _ = writeln!(client, "CONNECT {GUEST_PORT}\ndata");
                clients.push(client);
            }
            let payload = vec![0; header.len.min(64) as usize];
            bench.muxer.handle(&header, &payload);
            let packet = bench.next();
            if let Some((answer, _)) = packet {
                prop_assert_eq!(answer.src_cid, HOST_CID);
                prop_assert_eq!(answer.dst_cid, GUEST_CID);
            }
            prop_assert!(bench.muxer.len() <= MAX_CONNECTIONS);
        }
    }

    #[test]
    fn no_ring_makes_the_device_panic_or_run_on(
        seed in prop::collection::vec(any::<u8>(), 2048),
        pieces in prop::collection::vec(
            (prop_oneof![0..MEMORY as u64, any::<u64>()], any::<u16>(), any::<bool>()), 1..15),
        avail in any::<u16>(),
        raw_table in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        let memory = guest_memory();
        memory.write_slice(&seed, GuestAddress(BUFFERS)).unwrap();
        let mut ring = Ring::new(&memory);
        for (address, len, writable) in pieces {
            ring.add(&[(address, len.into(), writable)]);
        }
        if raw_table {
            memory.write_slice(&seed[..16 * usize::from(QUEUE_SIZE)], GuestAddress(DESCRIPTORS)).unwrap();
        }
        memory.write_obj(avail, GuestAddress(AVAIL + 2)).unwrap();
        let mut client = bench.client();
        let _ = writeln!(client, "CONNECT 1");
        while bench.muxer.poll() {}
        let _ = process_tx(&mut bench.muxer, &mut ring.queue, &memory);
        let _ = process_rx(&mut bench.muxer, &mut ring.queue, &memory);
        let _ = write_transport_reset(&mut ring.queue, &memory);
    }
}
