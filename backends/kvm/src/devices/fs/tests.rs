//! Cases of the whole device: a driver of test code on one side, a real directory on the other.

use std::path::Path;

use proptest::prelude::*;
use stockade_devices::fs::{CachePolicy, FsConfig, file_system};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::{AnyRing, Buffers, any_ring};
use crate::memory::GuestMemory;
use crate::virtio::Event;
use crate::virtio::testing::{Activated, DriverQueue, Part, QUEUE_SPAN, activate, guest_memory};

const ROOT: u64 = 1;
const LOOKUP: u32 = 1;
const READ: u32 = 15;
const OPEN: u32 = 14;
const READDIR: u32 = 28;
const INIT: u32 = 26;
const FORGET: u32 = 2;

struct Bench {
    device: Fs,
    memory: GuestMemory,
    queues: [DriverQueue; 2],
    running: Activated,
    unique: u64,
}

fn device(share: &Path) -> Fs {
    let config = FsConfig {
        root: share.to_owned(),
        cache: CachePolicy::Auto,
        threads: 0,
        proc_self_fd: None,
        descriptor_limit: 4096,
    };
    Fs::new("share", file_system(config).unwrap(), 1).unwrap()
}

impl Bench {
    fn new(share: &Path) -> Self {
        Self::with(device(share))
    }

    fn with(mut device: Fs) -> Self {
        let memory = guest_memory(2 * QUEUE_SPAN as usize);
        let queues = [0, 1].map(|index| DriverQueue::new(&memory, index, device.queue_sizes[index]));
        let running = activate(&mut device, &memory, &queues.each_ref()).unwrap();
        Self { device, memory, queues, running, unique: 0 }
    }

    /// Sends a request; the error of the answer and what follows its header.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> (i32, Vec<u8>) {
        self.unique += 1;
        let header = header(opcode, self.unique, node, body.len());
        let request = self.queues[1].request(&[Part::Out(&header), Part::Out(body), Part::In(16), Part::In(room)]);
        self.running.worker.handle(Event::Queue(1)).unwrap();
        let (head, written) = self.queues[1].take_used()[0];
        assert_eq!(head, request.head);
        assert!(written >= 16, "an answer");
        let answer = self.queues[1].read(&request, 2);
        let number = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        assert_eq!(number(0), written);
        assert_eq!(answer[8..], self.unique.to_le_bytes());
        let mut rest = self.queues[1].read(&request, 3);
        rest.truncate(written as usize - 16);
        (number(4).cast_signed(), rest)
    }

    fn mount(&mut self) {
        let mut body = Vec::new();
        for number in [7_u32, 36, 0, 0] {
            body.extend(number.to_le_bytes());
        }
        body.resize(64, 0);
        assert_eq!(self.call(INIT, 0, &body, 64).0, 0);
    }

    /// The number of the file `name` in the share's root.
    fn look_up(&mut self, name: &[u8]) -> Result<u64, i32> {
        let (error, entry) = self.call(LOOKUP, ROOT, name, 128);
        if error == 0 { Ok(u64::from_le_bytes(entry[..8].try_into().unwrap())) } else { Err(error) }
    }

    /// What the file has in its first 64 bytes.
    fn contents(&mut self, node: u64) -> Vec<u8> {
        let (error, opened) = self.call(OPEN, node, &[0; 8], 16);
        assert_eq!(error, 0);
        let mut body = opened[..8].to_vec();
        body.extend(0_u64.to_le_bytes());
        body.extend(64_u32.to_le_bytes());
        body.resize(40, 0);
        let (error, data) = self.call(READ, node, &body, 64);
        assert_eq!(error, 0);
        data
    }
}

fn header(opcode: u32, unique: u64, node: u64, body: usize) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend((40 + u32::try_from(body).unwrap()).to_le_bytes());
    header.extend(opcode.to_le_bytes());
    header.extend(unique.to_le_bytes());
    header.extend(node.to_le_bytes());
    header.resize(40, 0);
    header
}

fn share() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("greeting"), "hello").unwrap();
    directory
}

#[test]
fn the_configuration_space_holds_tag_and_number_of_queues() {
    let share = share();
    let device = device(share.path());
    let bytes = device.config_space().bytes();
    assert_eq!(bytes.len(), TAG_SIZE + 4);
    assert_eq!(&bytes[..6], b"share\0");
    assert_eq!(bytes[TAG_SIZE..], [1, 0, 0, 0]);
    assert_eq!(device.queue_sizes().len(), 2);
}

#[test]
fn tags_and_numbers_of_queues_that_do_not_fit_are_refused() {
    let share = share();
    let new = |tag: &str, queues| {
        let config = FsConfig {
            root: share.path().to_owned(),
            cache: CachePolicy::Auto,
            threads: 0,
            proc_self_fd: None,
            descriptor_limit: 4096,
        };
        Fs::new(tag, file_system(config).unwrap(), queues).map(drop)
    };
    new(&"t".repeat(36), 8).unwrap();
    assert!(matches!(new(&"t".repeat(37), 1), Err(FsError::Tag(_))));
    assert!(matches!(new("", 1), Err(FsError::Tag(_))));
    assert!(matches!(new("t", 0), Err(FsError::RequestQueues(0))));
    assert!(matches!(new("t", 9), Err(FsError::RequestQueues(9))));
}

#[test]
fn a_file_of_the_share_is_found_and_read() {
    let share = share();
    let mut bench = Bench::new(share.path());
    bench.mount();
    let node = bench.look_up(b"greeting\0").unwrap();
    assert_eq!(bench.contents(node), b"hello");
    assert_eq!(bench.look_up(b"nothing\0"), Err(-libc::ENOENT));
    assert!(bench.running.interrupt.take_queues().iter().all(|queue| *queue == 1));
    assert_eq!(bench.running.counters.counts().malformed, 0);
}

#[test]
fn a_request_that_makes_no_sense_is_answered_by_an_error_and_counted() {
    let share = share();
    let mut bench = Bench::new(share.path());
    bench.mount();
    assert_eq!(bench.look_up(b"no end"), Err(-libc::EINVAL));
    assert_eq!(bench.look_up(b"two\0names\0"), Err(-libc::EINVAL));
    assert_eq!(bench.running.counters.counts().malformed, 2);
    assert_eq!(bench.call(9999, ROOT, &[], 16).0, -libc::ENOSYS);
}

#[test]
fn a_request_without_room_for_an_answer_is_given_back_unserved() {
    let share = share();
    let mut bench = Bench::new(share.path());
    bench.mount();
    for (opcode, room) in [(READ, 15), (READDIR, 0), (OPEN, 0), (LOOKUP, 3)] {
        let header = header(opcode, 5, ROOT, 40);
        bench.queues[1].request(&[Part::Out(&header), Part::Out(&[0; 40]), Part::In(room)]);
        bench.running.worker.handle(Event::Queue(1)).unwrap();
        let used = bench.queues[1].take_used();
        assert_eq!((used.len(), used[0].1), (1, 0));
    }
    assert_eq!(bench.running.counters.counts().malformed, 4);
}

#[test]
fn a_forgotten_file_is_not_answered() {
    let share = share();
    let mut bench = Bench::new(share.path());
    bench.mount();
    let node = bench.look_up(b"greeting\0").unwrap();
    let header = header(FORGET, 9, node, 8);
    bench.queues[0].request(&[Part::Out(&header), Part::Out(&1_u64.to_le_bytes())]);
    bench.running.worker.handle(Event::Queue(0)).unwrap();
    assert_eq!(bench.queues[0].take_used()[0].1, 0);
    assert_eq!(bench.running.counters.counts().malformed, 0);
    assert_eq!(bench.call(OPEN, node, &[0; 8], 16).0, -libc::EBADF);
}

#[test]
fn a_request_in_more_pieces_than_any_driver_makes_is_refused() {
    let share = share();
    let mut bench = Bench::new(share.path());
    let pieces = vec![Part::Out(&[0]); 1025];
    bench.queues[1].indirect_request(&pieces);
    bench.running.worker.handle(Event::Queue(1)).unwrap();
    assert_eq!(bench.queues[1].take_used()[0].1, 0);
    assert_eq!(bench.running.counters.counts().malformed, 1);
}

#[test]
fn a_reset_by_the_driver_closes_its_files() {
    let share = share();
    let mut bench = Bench::new(share.path());
    bench.mount();
    let node = bench.look_up(b"greeting\0").unwrap();
    bench.device.reset();
    assert_eq!(bench.call(OPEN, node, &[0; 8], 16).0, -libc::EBADF);
    bench.mount();
    bench.look_up(b"greeting\0").unwrap();
}

#[test]
fn the_files_that_a_guest_remembers_are_found_again_after_a_restore() {
    let share = share();
    let mut bench = Bench::new(share.path());
    bench.mount();
    let node = bench.look_up(b"greeting\0").unwrap();
    bench.running.worker.stop();
    let saved = bench.device.save();
    let mut restored = device(share.path());
    restored.restore(&saved).unwrap();
    assert_eq!(restored.save(), saved, "also before it has run");
    let mut bench = Bench::with(restored);
    assert_eq!(bench.contents(node), b"hello");
}

#[test]
fn a_restored_guest_whose_files_cannot_be_found_has_a_device_that_fails() {
    let share = share();
    let mut device = device(share.path());
    device.restore(&serde_json::json!({"version": VERSION, "session": "ffffffff"})).unwrap();
    let mut bench = Bench::with(device);
    assert!(matches!(bench.running.worker.handle(Event::Queue(1)), Err(DeviceError::Host { .. })));
}

#[test]
fn a_guest_that_had_not_mounted_it_has_nothing_to_restore() {
    let share = share();
    let saved = device(share.path()).save();
    assert_eq!(saved, serde_json::json!({"version": VERSION, "session": null}));
    device(share.path()).restore(&saved).unwrap();
}

#[test]
fn states_of_other_versions_and_devices_are_refused() {
    let share = share();
    let mut device = device(share.path());
    for state in [
        serde_json::json!({"version": VERSION + 1, "session": null}),
        serde_json::json!({"version": VERSION, "session": ""}),
        serde_json::json!({"version": VERSION, "session": "0"}),
        serde_json::json!({"version": VERSION, "session": "xy"}),
        serde_json::Value::Null,
    ] {
        assert!(device.restore(&state).is_err(), "{state}");
    }
}

#[test]
fn hexadecimal_digits_say_the_bytes() {
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(decode(&encode(&bytes)), Some(bytes));
}

fn requests() -> impl Strategy<Value = (AnyRing, Vec<Vec<u8>>)> {
    let memory = guest_memory(2 * QUEUE_SPAN as usize);
    let queue = DriverQueue::new(&memory, 1, 64);
    let opcode = prop_oneof![16 => 1..60_u32, 1 => any::<u32>()];
    let node = prop_oneof![8 => 0..4_u64, 1 => any::<u64>()];
    let len = prop_oneof![4 => 40..200_u32, 1 => any::<u32>()];
    let body = prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..120);
    let request = (opcode, node, len, body).prop_map(|(opcode, node, len, body)| {
        let mut bytes = header(opcode, 1, node, 0);
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes.extend(body);
        bytes
    });
    (any_ring(&queue, 64), prop::collection::vec(request, 1..24))
}

proptest! {
    #[test]
    fn no_ring_makes_the_device_panic_or_write_elsewhere((ring, requests) in requests()) {
        let share = share();
        let mut bench = Bench::new(share.path());
        bench.mount();
        // Requests at addresses where rings like to have buffers.
        let data = bench.queues[1].data();
        for (place, request) in requests.iter().enumerate() {
            bench.memory.write_slice(request, GuestAddress(data.start + 0x8000 * place as u64)).unwrap();
        }
        let buffers = Buffers::of(&bench.memory, &bench.queues[1]);
        ring.write(&mut bench.queues[1]);
        let _ = bench.running.worker.handle(Event::Queue(1));
        buffers.check_writes(std::slice::from_ref(&ring));
    }

    #[test]
    fn no_request_makes_the_server_panic((_, requests) in requests(), room in prop_oneof![0..20_usize, 0..70_000_usize]) {
        let share = share();
        let mut bench = Bench::new(share.path());
        bench.mount();
        let _ = bench.look_up(b"greeting\0");
        let mut expected = 0;
        for request in &requests {
            bench.queues[1].request(&[Part::Out(request), Part::In(room)]);
            bench.running.worker.handle(Event::Queue(1)).unwrap();
            expected += 1;
            prop_assert_eq!(bench.queues[1].take_used().len(), 1, "request {}", expected);
        }
    }
}
