//! Cases of the whole device: a driver of test code on one side, a real file on the other.

mod arbitrary;

use super::*;
use crate::virtio::testing::{
    Activated, DriverQueue, Part, QUEUE_SPAN, Request, WRITE, activate, guest_memory, wait_for,
};
use crate::virtio::{Event, F_VERSION_1, LiveQueue};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

/// Sectors of the disk of most cases.
const SECTORS: u64 = 64;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A file of `SECTORS` sectors, each filled with its number, and a bit that is not part of the disk.
fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    file.write_all(b"beyond the end").unwrap();
    file
}

/// All of a file.
fn contents(file: &File) -> Vec<u8> {
    let mut file = file.try_clone().unwrap();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn disk(file: &File, read_only: bool) -> Disk {
    Disk::new(file.try_clone().unwrap(), &DiskOptions { read_only, serial: "root-disk".to_owned() }).unwrap()
}

/// A device with a disk, and its driver.
struct Bench {
    file: File,
    block: Block,
    driver: DriverQueue,
    device: Activated,
}

impl Bench {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(read_only: bool) -> Self {
        let file = file();
        let mut block = Block::new(Some(disk(&file, read_only)), read_only, Threads::default()).unwrap();
        let memory = guest_memory(QUEUE_SPAN as usize);
        let driver = DriverQueue::new(&memory, 0, 256);
        let device = activate(&mut block, &memory, &[&driver]).unwrap();
        Self { file, block, driver, device }
    }

    /// Has the device serve what is in the queue.
    fn serve(&mut self) {
        self.device.worker.handle(Event::Queue(0)).unwrap();
    }

    /// Makes a request of a header, `data`, and a status; the device has not seen it yet.
    fn send(&mut self, kind: u32, sector: u64, data: &[Part<'_>]) -> Request {
        let header = header(kind, sector);
        let mut parts = vec![Part::Out(&header)];
        parts.extend(data);
        parts.push(Part::In(1));
        self.driver.request(&parts)
    }

    /// Makes a request, waits for its end, and returns its status and the length that the device claims to have written.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Part<'_>]) -> (u8, u32, Request) {
        let request = self.send(kind, sector, data);
        self.serve();
        let used = self.driver.wait_used(1);
        assert_eq!((used.len(), used[0].0), (1, request.head));
        (self.status(&request), used[0].1, request)
    }

    fn status(&self, request: &Request) -> u8 {
        self.driver.read(request, request.parts.len() - 1)[0]
    }

    fn counts(&self) -> crate::virtio::Counts {
        self.device.counters.counts()
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn config(block: &Block, offset: usize, length: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..length].copy_from_slice(&block.config_space().bytes()[offset..offset + length]);
    u64::from_le_bytes(bytes)
}

#[test]
fn a_disk_has_as_many_whole_sectors_as_its_file() {
    let bench = Bench::new();
    assert_eq!(config(&bench.block, 0, 8), SECTORS);
    assert_eq!(config(&bench.block, 12, 4), 254, "segments");
    assert_eq!(config(&bench.block, 20, 4), 512, "bytes of a block");
    assert_eq!(bench.block.config_space().bytes().len(), 60);
}

#[test]
fn what_is_read_is_what_the_file_has() {
    let mut bench = Bench::new();
    let (status, written, request) = bench.ask(abi::VIRTIO_BLK_T_IN, 3, &[Part::In(1024), Part::In(512)]);
    assert_eq!((status, written), (OK, 1537));
    assert_eq!(bench.driver.read(&request, 1), [[3; 512], [4; 512]].concat());
    assert_eq!(bench.driver.read(&request, 2), [5; 512]);
    assert_eq!(bench.device.interrupt.take_queues(), [0]);
}

#[test]
fn what_is_written_is_in_the_file_afterwards() {
    let mut bench = Bench::new();
    let (first, second) = ([0xaa; 512], [0xbb; 1024]);
    let (status, written, _) = bench.ask(abi::VIRTIO_BLK_T_OUT, SECTORS - 3, &[Part::Out(&first), Part::Out(&second)]);
    assert_eq!((status, written), (OK, 1));
    let now = contents(&bench.file);
    assert_eq!(now[(SECTORS as usize - 3) * 512..SECTORS as usize * 512], [first.as_slice(), &second].concat());
    assert!(now.ends_with(b"beyond the end"));
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut bench = Bench::new();
    let bytes = [header(abi::VIRTIO_BLK_T_OUT, 9), vec![0x99; 512]].concat();
    let request = bench.driver.indirect_request(&[
        Part::Out(&bytes[..3]),
        Part::Out(&bytes[3..40]),
        Part::Out(&bytes[40..]),
        Part::In(1),
    ]);
    bench.serve();
    bench.driver.wait_used(1);
    assert_eq!(bench.status(&request), OK);
    assert_eq!(contents(&bench.file)[9 * 512..10 * 512], [0x99; 512]);

    // Data and status of a read in one buffer.
    let request = bench.driver.request(&[Part::Out(&header(abi::VIRTIO_BLK_T_IN, 9)), Part::In(513)]);
    bench.serve();
    assert_eq!(bench.driver.wait_used(1), [(request.head, 513)]);
    assert_eq!(bench.driver.read(&request, 1), [vec![0x99; 512], vec![OK]].concat());
}

#[test]
fn nothing_beyond_the_disks_end_is_read_or_written() {
    let mut bench = Bench::new();
    let before = contents(&bench.file);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, sector, &[Part::In(1024)]).0, IOERR, "{sector}");
        assert_eq!(bench.ask(abi::VIRTIO_BLK_T_OUT, sector, &[Part::Out(&[0xff; 1024])]).0, IOERR, "{sector}");
        for kind in [abi::VIRTIO_BLK_T_DISCARD, abi::VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(bench.ask(kind, 0, &[Part::Out(&range(sector, 2, 0))]).0, IOERR, "{sector}");
        }
    }
    assert!(contents(&bench.file) == before);
    assert_eq!(bench.counts().errors, 20);
}

#[test]
fn a_read_only_disk_does_not_change() {
    let mut bench = Bench::with(true);
    assert_ne!(bench.block.features() & F_READ_ONLY, 0);
    let before = contents(&bench.file);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_OUT, 0, &[Part::Out(&[0xff; 512])]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_DISCARD, 0, &[Part::Out(&range(0, 8, 0))]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Part::Out(&range(0, 8, 1))]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 1, &[Part::In(512)]).0, OK);
    assert!(contents(&bench.file) == before);
}

#[test]
fn a_disk_says_its_serial() {
    let mut bench = Bench::new();
    let (status, written, request) = bench.ask(abi::VIRTIO_BLK_T_GET_ID, 0, &[Part::In(4), Part::In(20)]);
    assert_eq!((status, written), (OK, 21));
    assert_eq!(bench.driver.read(&request, 1), b"root");
    assert_eq!(bench.driver.read(&request, 2)[..16], *b"-disk\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn discarded_sectors_take_no_room_and_read_as_zeros() {
    let mut bench = Bench::new();
    bench.file.set_len(1 << 20).unwrap();
    bench.file.write_all_at(&vec![0x77; 1 << 20], 0).unwrap();
    bench.file.sync_all().unwrap();
    bench.block.handle().refresh().unwrap();
    let blocks = bench.file.metadata().unwrap().blocks();
    let ranges = [range(0, 1024, 0), range(1024, 512, 0)].concat();
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_DISCARD, 0, &[Part::Out(&ranges)]).0, OK);
    let now = contents(&bench.file);
    assert!(now[..1536 * 512].iter().all(|byte| *byte == 0) && now[1536 * 512..].iter().all(|byte| *byte == 0x77));
    assert!(bench.file.metadata().unwrap().blocks() < blocks / 2);
}

#[test]
fn sectors_are_filled_with_zeros_with_or_without_their_room() {
    let mut bench = Bench::new();
    for (sector, flags) in [(8, 0), (24, 1)] {
        assert_eq!(bench.ask(abi::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Part::Out(&range(sector, 9, flags))]).0, OK);
        let now = contents(&bench.file);
        let place = |sector: u64| sector as usize * 512;
        assert!(now[place(sector)..place(sector + 9)].iter().all(|byte| *byte == 0));
        assert_eq!(now[place(sector + 9)], sector as u8 + 9);
        assert_eq!(now[place(sector) - 1], sector as u8 - 1);
    }
}

#[test]
fn ranges_that_are_too_many_too_large_or_flagged_are_refused() {
    let mut bench = Bench::new();
    let before = contents(&bench.file);
    let one = range(0, 1, 0);
    let cases = [
        (abi::VIRTIO_BLK_T_DISCARD, range(0, 1, 1), UNSUPP),
        (abi::VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), UNSUPP),
        (abi::VIRTIO_BLK_T_DISCARD, one.repeat(17), IOERR),
        (abi::VIRTIO_BLK_T_WRITE_ZEROES, one.repeat(2), IOERR),
        (abi::VIRTIO_BLK_T_DISCARD, Vec::new(), IOERR),
        (abi::VIRTIO_BLK_T_DISCARD, vec![0; 15], IOERR),
        (abi::VIRTIO_BLK_T_DISCARD, range(0, MAX_DISCARD_SECTORS + 1, 0), IOERR),
        (abi::VIRTIO_BLK_T_WRITE_ZEROES, range(0, MAX_ZERO_SECTORS + 1, 0), IOERR),
    ];
    for (kind, ranges, expected) in cases {
        assert_eq!(bench.ask(kind, 0, &[Part::Out(&ranges)]).0, expected);
    }
    assert!(contents(&bench.file) == before);
}

#[test]
fn kinds_that_were_not_offered_are_unsupported() {
    let mut bench = Bench::new();
    for kind in [2, abi::VIRTIO_BLK_T_SECURE_ERASE, abi::VIRTIO_BLK_T_ZONE_REPORT, u32::MAX] {
        assert_eq!(bench.ask(kind, 0, &[Part::In(512)]).0, UNSUPP, "{kind}");
    }
}

#[test]
fn data_that_is_not_whole_sectors_or_the_wrong_way_round_is_refused() {
    let mut bench = Bench::new();
    let before = contents(&bench.file);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 0, &[Part::In(511)]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_OUT, 0, &[Part::Out(&[1; 513])]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_OUT, 0, &[Part::In(512)]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 0, &[Part::Out(&[1; 512])]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_GET_ID, 0, &[Part::In(19)]).0, IOERR);
    assert_eq!(bench.counts().malformed, 5);
    assert!(contents(&bench.file) == before);
}

#[test]
fn a_request_without_a_header_or_a_status_is_given_back() {
    let mut bench = Bench::new();
    let short = bench.driver.request(&[Part::Out(&[0; 15]), Part::In(1)]);
    let mute = bench.driver.request(&[Part::Out(&header(abi::VIRTIO_BLK_T_IN, 0))]);
    let empty = bench.driver.request(&[Part::Out(&header(abi::VIRTIO_BLK_T_IN, 0)), Part::In(0)]);
    bench.serve();
    assert_eq!(bench.driver.wait_used(3), [(short.head, 1), (mute.head, 0), (empty.head, 0)]);
    assert_eq!(bench.status(&short), IOERR);
    assert_eq!(bench.counts().malformed, 3);
}

#[test]
fn buffers_outside_the_guests_memory_are_refused_whole() {
    let mut bench = Bench::new();
    let before = contents(&bench.file);
    let header = bench.driver.request(&[Part::Out(&header(abi::VIRTIO_BLK_T_OUT, 0)), Part::In(1)]);
    for (address, length) in [(QUEUE_SPAN - 256, 512), (QUEUE_SPAN, 512), (u64::MAX - 255, 512), (1 << 40, 512)] {
        bench.driver.set_descriptor(header.head, header.parts[0].0, 16, 1, 200);
        bench.driver.set_descriptor(200, address, length, 1, 201);
        bench.driver.set_descriptor(201, header.parts[1].0, 1, WRITE, 0);
        bench.driver.make_available(header.head);
    }
    bench.serve();
    bench.driver.wait_used(5);
    assert!(contents(&bench.file) == before);
}

#[test]
fn many_requests_under_way_all_end() {
    let mut bench = Bench::new();
    let mut expected = contents(&bench.file);
    let mut requests = Vec::new();
    for round in 0..64_u64 {
        let sector = round * 7 % SECTORS;
        let bytes = [round as u8 ^ 0x5a; 512];
        expected[sector as usize * 512..][..512].copy_from_slice(&bytes);
        requests.push(bench.send(abi::VIRTIO_BLK_T_OUT, sector, &[Part::Out(&bytes)]));
    }
    requests.push(bench.send(abi::VIRTIO_BLK_T_FLUSH, 0, &[]));
    bench.serve();
    assert_eq!(bench.driver.wait_used(65).len(), 65);
    assert!(requests.iter().all(|request| bench.status(request) == OK));
    assert!(contents(&bench.file) == expected);
    assert!(!bench.device.interrupt.take_queues().is_empty());
}

#[test]
fn a_driver_that_repeats_a_request_for_ever_has_no_more_under_way_than_its_queue() {
    let mut bench = Bench::new();
    // All threads of the pool are busy until the gate opens.
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    for _ in 0..pool::THREADS {
        let gate = Arc::clone(&gate);
        bench.block.shared.pool.give(Box::new(move || drop(gate.lock().unwrap())));
    }
    let request = bench.send(abi::VIRTIO_BLK_T_FLUSH, 0, &[]);
    bench.serve();
    for _ in 0..2 {
        for _ in 0..200 {
            bench.driver.make_available(request.head);
        }
        bench.serve();
    }
    assert_eq!(bench.counts().requests, 256);
    drop(closed);
    wait_for("the order to come back", || bench.driver.kick_descriptor().read().ok());
    wait_for("the rest", || {
        bench.serve();
        (bench.counts().requests == 401).then_some(())
    });
    assert_eq!(bench.device.worker.stop()[0].queue.state().next_used, 401);
}

#[test]
fn a_stopped_worker_has_finished_all_that_it_took() {
    let mut bench = Bench::new();
    for sector in 0..32 {
        bench.send(abi::VIRTIO_BLK_T_OUT, sector, &[Part::Out(&[0x11; 512])]);
    }
    bench.serve();
    let queues: Vec<LiveQueue> = bench.device.worker.stop();
    let state = queues[0].queue.state();
    assert_eq!((state.next_avail, state.next_used), (32, 32));
    assert_eq!(bench.driver.take_used().len(), 32);
    assert!(contents(&bench.file)[..32 * 512].iter().all(|byte| *byte == 0x11));
}

#[test]
fn a_file_that_has_become_shorter_gives_errors() {
    let mut bench = Bench::new();
    bench.file.set_len(512).unwrap();
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 0, &[Part::In(512)]).0, OK);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 0, &[Part::In(1024)]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 9, &[Part::In(512)]).0, IOERR);
}

#[test]
fn a_file_that_grows_is_a_disk_that_grows_once_it_is_looked_at() {
    let mut bench = Bench::new();
    bench.file.set_len(1 << 20).unwrap();
    let handle = bench.block.handle();
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, SECTORS, &[Part::In(512)]).0, IOERR);
    handle.refresh().unwrap();
    handle.refresh().unwrap();
    assert_eq!((handle.sectors(), bench.device.interrupt.configs()), (2048, 1));
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, SECTORS, &[Part::In(512)]).0, OK);
}

#[test]
fn a_disk_is_taken_out_and_another_put_in_while_the_driver_uses_the_device() {
    let mut bench = Bench::new();
    let handle = bench.block.handle();
    assert!(matches!(handle.insert(disk(&bench.file, false)), Err(BlockError::Taken)));
    assert!(handle.eject().is_some());
    assert!(handle.eject().is_none());
    assert_eq!((handle.sectors(), config(&bench.block, 0, 8)), (0, 0));
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_IN, 0, &[Part::In(512)]).0, IOERR);
    assert_eq!(bench.ask(abi::VIRTIO_BLK_T_FLUSH, 0, &[]).0, IOERR);

    let mut other = tempfile::tempfile().unwrap();
    other.write_all(&[0x42; 1024]).unwrap();
    handle.insert(disk(&other, false)).unwrap();
    assert_eq!(bench.device.interrupt.configs(), 2);
    let (status, _, request) = bench.ask(abi::VIRTIO_BLK_T_IN, 1, &[Part::In(512)]);
    assert_eq!((status, bench.driver.read(&request, 1)), (OK, vec![0x42; 512]));
    assert_eq!(handle.sectors(), 2);
}

#[test]
fn a_read_only_device_takes_no_disk_that_could_be_written() {
    let block = Block::new(None, true, Threads::default()).unwrap();
    assert!(matches!(block.handle().insert(disk(&file(), false)), Err(BlockError::Writable)));
    block.handle().insert(disk(&file(), true)).unwrap();
}

#[test]
fn a_driver_that_knows_no_flush_has_its_writes_put_through() {
    let file = file();
    let mut block = Block::new(Some(disk(&file, false)), false, Threads::default()).unwrap();
    let memory = guest_memory(QUEUE_SPAN as usize);
    let mut driver = DriverQueue::new(&memory, 0, 256);
    let interrupt = Arc::new(crate::virtio::testing::RecordingInterrupt::default());
    let mut worker = block
        .activate(Activation {
            memory,
            features: F_VERSION_1,
            queues: vec![driver.live(F_VERSION_1)],
            interrupt,
            counters: Arc::default(),
        })
        .unwrap();
    let request = driver.request(&[Part::Out(&header(abi::VIRTIO_BLK_T_OUT, 1)), Part::Out(&[0xcc; 512]), Part::In(1)]);
    worker.handle(Event::Queue(0)).unwrap();
    assert_eq!(driver.wait_used(1), [(request.head, 1)]);
    assert_eq!(driver.read(&request, 2), [OK]);
    assert_eq!(contents(&file)[512..1024], [0xcc; 512]);
}

#[test]
fn a_device_remembers_the_capacity_that_its_driver_knows() {
    let mut bench = Bench::new();
    let state = bench.block.save();
    let configs = bench.device.interrupt.configs();
    bench.block.restore(&state).unwrap();
    assert_eq!(bench.device.interrupt.configs(), configs);
    bench.file.set_len(1 << 20).unwrap();
    bench.block.handle().refresh().unwrap();
    bench.block.restore(&state).unwrap();
    assert_eq!(bench.device.interrupt.configs(), configs + 2);
    assert!(bench.block.restore(&serde_json::json!({"version": 2, "sectors": 1})).unwrap_err().contains("version"));
    assert!(bench.block.restore(&serde_json::Value::Null).is_err());
}

#[test]
fn only_files_and_block_devices_without_direct_access_are_disks() {
    let options = DiskOptions::default();
    let error = Disk::new(File::open("/dev/null").unwrap(), &options).unwrap_err();
    assert!(matches!(error, BlockError::Type), "{error}");
    let error = Disk::new(File::open("/").unwrap(), &options).unwrap_err();
    assert!(matches!(error, BlockError::Type), "{error}");
    for serial in ["a name with spaces", "longer-than-20-letters", "grün"] {
        let error = Disk::new(file(), &DiskOptions { serial: serial.to_owned(), ..options.clone() }).unwrap_err();
        assert!(matches!(error, BlockError::Serial(_)), "{error}");
    }
}
