//! A device for tests of what runs devices.

use super::super::{
    Activation, ConfigSpace, Counters, DeviceError, DeviceKind, Event, F_RING, Interrupt, LiveQueue, Source,
    VirtioDevice, Worker,
};
use crate::memory::GuestMemory;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How often a worker listens to its source.
const SOURCE_EVENTS: usize = 3;

/// Bit of a feature of the device itself.
pub(crate) const F_TEST: u64 = 1 << 3;

/// Copies the readable part of each request of its first queue to the writable one. Its configuration is eight bytes
/// that the driver may write. It needs queue 0; queue 1 does nothing.
#[derive(Debug)]
pub(crate) struct TestDevice {
    shared: Arc<Shared>,
    resets: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Shared {
    config: Mutex<[u8; 8]>,
    source: Arc<EventFd>,
    source_events: AtomicUsize,
    runs: AtomicBool,
    features: Mutex<u64>,
    /// The interrupt that the device was attached with.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl TestDevice {
    pub(crate) fn new() -> Self {
        let shared = Shared {
            config: Mutex::new(*b"TESTTEST"),
            source: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            source_events: AtomicUsize::new(0),
            runs: AtomicBool::new(false),
            features: Mutex::new(0),
            interrupt: Mutex::new(None),
        };
        Self { shared: Arc::new(shared), resets: Arc::default() }
    }

    /// What a worker of this device watches, at most [`SOURCE_EVENTS`] times.
    pub(crate) fn source(&self) -> Arc<EventFd> {
        Arc::clone(&self.shared.source)
    }

    pub(crate) fn source_events(&self) -> usize {
        self.shared.source_events.load(Ordering::SeqCst)
    }

    /// Tells whether a worker runs, also once the device is in a slot.
    pub(crate) fn probe(&self) -> Probe {
        Probe { shared: Arc::clone(&self.shared), resets: Arc::clone(&self.resets) }
    }
}

/// What can be seen of a device that a slot owns.
#[derive(Debug)]
pub(crate) struct Probe {
    shared: Arc<Shared>,
    resets: Arc<AtomicUsize>,
}

impl Probe {
    pub(crate) fn runs(&self) -> bool {
        self.shared.runs.load(Ordering::SeqCst)
    }

    /// The features of the last activation.
    pub(crate) fn features(&self) -> u64 {
        *self.shared.features.lock().unwrap()
    }

    /// The interrupt that the slot has given to the device.
    pub(crate) fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.shared.interrupt.lock().unwrap().clone().unwrap()
    }

    pub(crate) fn resets(&self) -> usize {
        self.resets.load(Ordering::SeqCst)
    }
}

impl ConfigSpace for Shared {
    fn bytes(&self) -> Vec<u8> {
        self.config.lock().unwrap().to_vec()
    }
}

impl VirtioDevice for TestDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        F_RING | F_TEST
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::clone(&self.shared) as Arc<dyn ConfigSpace>
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.shared.config.lock().unwrap();
        let to = config.iter_mut().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (to, from) in to.zip(data) {
            *to = *from;
        }
    }

    fn attached(&mut self, interrupt: Arc<dyn Interrupt>) {
        *self.shared.interrupt.lock().unwrap() = Some(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let queue = activation.take_queue(0)?;
        assert!(!self.shared.runs.swap(true, Ordering::SeqCst), "one worker at a time");
        *self.shared.features.lock().unwrap() = activation.features;
        Ok(Box::new(TestWorker {
            memory: activation.memory,
            queue,
            others: activation.queues,
            interrupt: activation.interrupt,
            counters: activation.counters,
            shared: Arc::clone(&self.shared),
        }))
    }

    fn reset(&mut self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!({"config": *self.shared.config.lock().unwrap()})
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let config = serde_json::from_value(state["config"].clone()).map_err(|error| error.to_string())?;
        *self.shared.config.lock().unwrap() = config;
        Ok(())
    }
}

#[derive(Debug)]
struct TestWorker {
    memory: GuestMemory,
    queue: LiveQueue,
    others: Vec<LiveQueue>,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
}

impl Worker for TestWorker {
    fn sources(&self) -> Vec<Source> {
        let read = self.shared.source_events.load(Ordering::SeqCst) < SOURCE_EVENTS;
        vec![Source { fd: self.shared.source.as_raw_fd(), token: 7, read, write: false }]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match event {
            Event::Queue(0) => {
                let (memory, counters) = (&*self.memory, &self.counters);
                self.queue.serve(memory, &*self.interrupt, |chain| {
                    counters.request();
                    let mut bytes = Vec::new();
                    for part in chain.clone().readable() {
                        let mut piece = vec![0; (part.len() as usize).min(4096)];
                        let _ = memory.read(&mut piece, part.addr());
                        bytes.extend(piece);
                    }
                    let mut written = 0;
                    for part in chain.writable() {
                        let length = bytes.len().min(part.len() as usize);
                        let piece: Vec<u8> = bytes.drain(..length).collect();
                        written += memory.write(&piece, part.addr()).unwrap_or(0);
                    }
                    Ok(Some(written as u32))
                })
            }
            Event::Queue(_) => Ok(()),
            Event::Source(token) => {
                assert_eq!(token, 7);
                self.shared.source.read().unwrap();
                self.shared.source_events.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        self.shared.runs.store(false, Ordering::SeqCst);
        let mut queues = vec![self.queue];
        queues.extend(self.others);
        queues
    }
}
