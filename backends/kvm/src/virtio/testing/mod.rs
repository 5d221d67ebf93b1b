//! The driver's side of queues, for tests of devices without a guest.
#![allow(dead_code, reason = "each device's tests use what they need")]

pub(crate) mod arbitrary;
mod device;

pub(crate) use device::{F_TEST, Probe, TestDevice};

use super::transport::InterruptLine;
use super::{Activation, Counters, DeviceError, F_EVENT_IDX, Interrupt, LiveQueue, VirtioDevice, Worker};
use crate::memory::GuestMemory;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;

/// How long a test waits for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// How much guest memory a [`DriverQueue`] takes: its rings, then its buffers.
pub(crate) const QUEUE_SPAN: u64 = 0x20_0000;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x6000;
const USED: u64 = 0x8000;
const DATA: u64 = 0x1_0000;

/// Guest memory from address 0 on.
pub(crate) fn guest_memory(size: usize) -> GuestMemory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap())
}

/// Waits until `condition` gives something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An interrupt that remembers.
#[derive(Debug, Default)]
pub(crate) struct RecordingInterrupt {
    queues: Mutex<Vec<usize>>,
    configs: AtomicUsize,
    configs_by_driver: AtomicUsize,
}

impl RecordingInterrupt {
    /// The queues that have interrupted since the last call, in order.
    pub(crate) fn take_queues(&self) -> Vec<usize> {
        std::mem::take(&mut self.queues.lock().unwrap())
    }

    /// How often the configuration has changed.
    pub(crate) fn configs(&self) -> usize {
        self.configs.load(Ordering::SeqCst)
    }

    /// How often it has by what the driver asked for.
    pub(crate) fn configs_by_driver(&self) -> usize {
        self.configs_by_driver.load(Ordering::SeqCst)
    }
}

impl Interrupt for RecordingInterrupt {
    fn queue(&self, index: usize) {
        self.queues.lock().unwrap().push(index);
    }

    fn config(&self) {
        self.configs.fetch_add(1, Ordering::SeqCst);
    }

    fn config_by_driver(&self) {
        self.configs_by_driver.fetch_add(1, Ordering::SeqCst);
    }
}

/// A slot's wire that counts.
#[derive(Debug, Default)]
pub(crate) struct TestLine(AtomicUsize);

impl TestLine {
    /// How often the guest has been interrupted since the last call.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl InterruptLine for TestLine {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A device that has been activated, without transport and loop: the test calls the worker itself.
#[derive(Debug)]
pub(crate) struct Activated {
    pub(crate) worker: Box<dyn Worker>,
    pub(crate) interrupt: Arc<RecordingInterrupt>,
    pub(crate) counters: Arc<Counters>,
}

/// Activates `device` with all features that it offers.
pub(crate) fn activate(
    device: &mut dyn VirtioDevice,
    memory: &GuestMemory,
    queues: &[&DriverQueue],
) -> Result<Activated, DeviceError> {
    let interrupt = Arc::new(RecordingInterrupt::default());
    let counters = Arc::new(Counters::default());
    let features = device.features();
    device.attached(interrupt.clone());
    let worker = device.activate(Activation {
        memory: Arc::clone(memory),
        features,
        queues: queues.iter().map(|queue| queue.live(features)).collect(),
        interrupt: interrupt.clone(),
        counters: Arc::clone(&counters),
    })?;
    Ok(Activated { worker, interrupt, counters })
}

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    /// The device reads these bytes.
    Out(&'a [u8]),
    /// The device may write this many bytes; they are 0xee before.
    In(usize),
}

/// A request that the driver has made available.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Its first descriptor.
    pub(crate) head: u16,
    /// Address and length of each part.
    pub(crate) parts: Vec<(u64, usize)>,
}

/// The driver's side of one queue: rings and buffers in [`QUEUE_SPAN`] bytes of guest memory.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    memory: GuestMemory,
    index: usize,
    size: u16,
    base: u64,
    kick: Arc<EventFd>,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    avail: u16,
    used: u16,
    data: u64,
}

impl DriverQueue {
    /// The queue `index`, whose memory begins at `index * QUEUE_SPAN`.
    pub(crate) fn new(memory: &GuestMemory, index: usize, size: u16) -> Self {
        assert!(size <= 1024, "the rings have no more room");
        let base = index as u64 * QUEUE_SPAN;
        Self {
            memory: Arc::clone(memory),
            index,
            size,
            base,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            avail: 0,
            used: 0,
            data: base + DATA,
        }
    }

    pub(crate) fn descriptor_table(&self) -> u64 {
        self.base + TABLE
    }

    pub(crate) fn available_ring(&self) -> u64 {
        self.base + AVAIL
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + USED
    }

    /// Where its buffers are.
    pub(crate) fn data(&self) -> std::ops::Range<u64> {
        self.base + DATA..self.base + QUEUE_SPAN
    }

    /// The queue as a device gets it.
    pub(crate) fn live(&self, features: u64) -> LiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.descriptor_table() as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_ring() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_event_idx(features & super::F_EVENT_IDX != 0);
        queue.set_ready(true);
        assert!(queue.is_valid(self.memory.as_ref()));
        LiveQueue { index: self.index, queue, kick: Arc::clone(&self.kick) }
    }

    /// Writes one descriptor as it is told.
    pub(crate) fn set_descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        write_descriptor(&self.memory, self.descriptor_table(), index, (address, length, flags, next));
    }

    /// Puts `head` into the available ring.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = self.available_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.memory.store(self.avail, GuestAddress(self.available_ring() + 2), Ordering::Release).unwrap();
    }

    /// Claims that there are requests up to `index` without writing any.
    pub(crate) fn set_available_index(&mut self, index: u16) {
        self.avail = index;
        self.memory.store(index, GuestAddress(self.available_ring() + 2), Ordering::Release).unwrap();
    }

    /// Makes a request of `parts` available, a descriptor for each.
    pub(crate) fn request(&mut self, parts: &[Part<'_>]) -> Request {
        let buffers: Vec<_> = parts.iter().map(|part| self.buffer(*part)).collect();
        let indices: Vec<u16> = buffers.iter().map(|_| self.free.pop().expect("descriptors are used up")).collect();
        for (place, (address, length, flags)) in buffers.iter().enumerate() {
            let next = indices.get(place + 1);
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.set_descriptor(indices[place], *address, *length, flags, next.copied().unwrap_or(0));
        }
        self.finish(indices, &buffers)
    }

    /// Makes a request of `parts` available, by a table of descriptors of its own.
    pub(crate) fn indirect_request(&mut self, parts: &[Part<'_>]) -> Request {
        let buffers: Vec<_> = parts.iter().map(|part| self.buffer(*part)).collect();
        let table = self.allocate(16 * buffers.len());
        for (place, (address, length, flags)) in buffers.iter().enumerate() {
            let last = place + 1 == buffers.len();
            let flags = flags | if last { 0 } else { NEXT };
            let place = u16::try_from(place).unwrap();
            write_descriptor(&self.memory, table, place, (*address, *length, flags, place.wrapping_add(1)));
        }
        let index = self.free.pop().expect("descriptors are used up");
        self.set_descriptor(index, table, 16 * u32::try_from(buffers.len()).unwrap(), INDIRECT, 0);
        self.finish(vec![index], &buffers)
    }

    fn finish(&mut self, indices: Vec<u16>, buffers: &[(u64, u32, u16)]) -> Request {
        let head = indices[0];
        self.chains.insert(head, indices);
        self.make_available(head);
        Request { head, parts: buffers.iter().map(|(address, length, _)| (*address, *length as usize)).collect() }
    }

    fn buffer(&mut self, part: Part<'_>) -> (u64, u32, u16) {
        match part {
            Part::Out(bytes) => {
                let address = self.allocate(bytes.len());
                self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
                (address, u32::try_from(bytes.len()).unwrap(), 0)
            }
            Part::In(length) => {
                let address = self.allocate(length);
                self.memory.write_slice(&vec![0xee; length], GuestAddress(address)).unwrap();
                (address, u32::try_from(length).unwrap(), WRITE)
            }
        }
    }

    /// Room for `length` bytes. When the end is reached, the oldest buffers are written over.
    fn allocate(&mut self, length: usize) -> u64 {
        let length = (length as u64).next_multiple_of(16);
        if self.data + length > self.data().end {
            self.data = self.data().start;
        }
        let address = self.data;
        self.data += length;
        assert!(self.data <= self.data().end, "a request of {length} bytes");
        address
    }

    /// What the device is notified by.
    pub(crate) fn kick_descriptor(&self) -> Arc<EventFd> {
        Arc::clone(&self.kick)
    }

    /// Whether a driver with these features would notify of the request that was added last (virtio 1.2, section 2.7.10).
    pub(crate) fn must_kick(&self, features: u64) -> bool {
        let read = |at: u64| self.memory.load::<u16>(GuestAddress(self.used_ring() + at), Ordering::Acquire).unwrap();
        if features & F_EVENT_IDX == 0 {
            return read(0) & NO_NOTIFY == 0;
        }
        let event = read(4 + 8 * u64::from(self.size));
        event == self.avail.wrapping_sub(1)
    }

    /// Tells the device that there are requests, as the guest's notification does.
    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The requests that the device has given back since the last call: first descriptor, and bytes written. Their
    /// descriptors are free again.
    pub(crate) fn take_used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self.memory.load(GuestAddress(self.used_ring() + 2), Ordering::Acquire).unwrap();
        let mut used = Vec::new();
        while self.used != index {
            let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
            let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let written: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            let head = u16::try_from(head).unwrap();
            self.free.extend(self.chains.remove(&head).into_iter().flatten());
            used.push((head, written));
            self.used = self.used.wrapping_add(1);
        }
        // The driver wants to be interrupted at the next one.
        let event = self.available_ring() + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(self.used, GuestAddress(event)).unwrap();
        used
    }

    /// Waits until the device has given `count` requests back.
    pub(crate) fn wait_used(&mut self, count: usize) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        wait_for("the end of the requests", || {
            used.extend(self.take_used());
            (used.len() >= count).then_some(())
        });
        used
    }

    /// What part `index` of a request contains now.
    pub(crate) fn read(&self, request: &Request, index: usize) -> Vec<u8> {
        let (address, length) = request.parts[index];
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Writes a descriptor (address, length, flags, next) into a table.
pub(crate) fn write_descriptor(
    memory: &GuestMemoryMmap,
    table: u64,
    index: u16,
    (address, length, flags, next): (u64, u32, u16, u16),
) {
    let place = table + 16 * u64::from(index);
    memory.write_obj(address, GuestAddress(place)).unwrap();
    memory.write_obj(length, GuestAddress(place + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(place + 12)).unwrap();
    memory.write_obj(next, GuestAddress(place + 14)).unwrap();
}
