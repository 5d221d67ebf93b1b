//! The half of the balloon that serves its queues.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};

use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::statistics::{ENTRY, MAX_ENTRIES, Statistics};
use super::{F_REPORTING, F_STATS_VQ, Shared};
use crate::devices::discard::{DiscardError, discard};
use crate::memory::GuestMemory;
use crate::virtio::queue::Chain;
use crate::virtio::{Activation, Counters, DeviceError, Event, Interrupt, LiveQueue, Source, Worker};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;

/// Most pages in one request. Linux sends 256.
const MAX_PAGES: usize = 1024;

/// Most ranges in one report. Linux sends 32.
const MAX_RANGES: usize = 64;

/// Token of the wish for statistics.
const WANTED: u32 = 0;

/// Serves the queues.
#[derive(Debug)]
pub(super) struct BalloonWorker {
    shared: Arc<Shared>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    inflate: LiveQueue,
    deflate: LiveQueue,
    statistics: Option<LiveQueue>,
    reports: Option<LiveQueue>,
    /// The buffer of the statistics queue that is held until new ones are wanted.
    held: Option<u16>,
    /// Queues that there should not be.
    idle: Vec<LiveQueue>,
}

impl BalloonWorker {
    pub(super) fn new(shared: Arc<Shared>, mut activation: Activation) -> Result<Self, DeviceError> {
        let has = |feature: u32| activation.features & 1 << feature != 0;
        let (has_statistics, has_reports) = (has(F_STATS_VQ), has(F_REPORTING));
        let inflate = activation.take_queue(INFLATE)?;
        let deflate = activation.take_queue(DEFLATE)?;
        // A queue that was not agreed on has no number: the next one takes it, in Linux and QEMU alike.
        let mut next = DEFLATE + 1;
        let mut optional = |agreed: bool| {
            let queue = agreed.then(|| activation.take_queue(next).ok()).flatten();
            next += usize::from(agreed);
            queue
        };
        let statistics = optional(has_statistics);
        let reports = optional(has_reports);
        Ok(Self {
            shared,
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: activation.counters,
            inflate,
            deflate,
            statistics,
            reports,
            held: None,
            idle: activation.queues,
        })
    }

    /// Takes the guest's statistics, and keeps the buffer that they came in. There is one at a time; a driver that gives
    /// more gets the earlier ones back.
    fn take_statistics(&mut self) -> Result<(), DeviceError> {
        let Some(queue) = &mut self.statistics else {
            return Ok(());
        };
        let mut returned = false;
        // At most as many as there can be, so that this ends.
        for _ in 0..=queue.queue.size() {
            let Some(chain) = queue.pop(&self.memory)? else {
                if queue.want_kicks(&self.memory, true)? {
                    continue;
                }
                break;
            };
            self.counters.request();
            let head = chain.head_index();
            let mut bytes = [0; ENTRY * MAX_ENTRIES];
            match read(&self.memory, chain, &mut bytes) {
                Some(len) => {
                    let statistics = Statistics::parse(bytes.get(..len).unwrap_or_default());
                    *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
                }
                None => self.counters.malformed(),
            }
            if let Some(earlier) = self.held.replace(head) {
                queue.push(&self.memory, earlier, 0)?;
                returned = true;
            }
        }
        if returned {
            queue.notify(&self.memory, &*self.interrupt)?;
        }
        Ok(())
    }

    /// Gives the held buffer back, which is how new statistics are asked for.
    fn ask_for_statistics(&mut self) -> Result<(), DeviceError> {
        let _ = self.shared.wanted.read();
        if let (Some(queue), Some(head)) = (&mut self.statistics, self.held.take()) {
            queue.push(&self.memory, head, 0)?;
            queue.notify(&self.memory, &*self.interrupt)?;
        }
        Ok(())
    }
}

/// The readable bytes of a chain, as far as there is room; how many. `None` when they are not in memory.
fn read(memory: &GuestMemoryMmap, chain: Chain<'_>, bytes: &mut [u8]) -> Option<usize> {
    let mut reader = chain.reader(memory).ok()?;
    let len = reader.available_bytes().min(bytes.len());
    reader.read_exact(bytes.get_mut(..len)?).ok()?;
    Some(len)
}

/// Counts what did not go well.
fn count(counters: &Counters, result: Result<(), DiscardError>) {
    match result {
        Ok(()) => {}
        Err(DiscardError::Outside) => counters.malformed(),
        Err(DiscardError::Host) => counters.error(),
    }
}

/// Gives back the pages whose numbers a request holds.
fn inflate(memory: &GuestMemoryMmap, chain: Chain<'_>, counters: &Counters) {
    let mut bytes = [0; 4 * MAX_PAGES];
    let beyond = chain.clone().readable().fold(0_u64, |sum, part| sum + u64::from(part.len())) > bytes.len() as u64;
    let Some(len) = read(memory, chain, &mut bytes) else {
        counters.malformed();
        return;
    };
    if beyond || len % 4 != 0 {
        counters.malformed();
    }
    let numbers = bytes.get(..len).unwrap_or_default().as_chunks::<4>().0;
    let mut pages: Vec<u64> = numbers.iter().map(|number| u32::from_le_bytes(*number).into()).collect();
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|before, after| before + 1 == *after) {
        if let Some(first) = run.first() {
            count(counters, discard(memory, GuestAddress(first << 12), (run.len() as u64) << 12));
        }
    }
}

/// Gives back the ranges of a report.
fn report(memory: &GuestMemoryMmap, chain: Chain<'_>, counters: &Counters) {
    let mut ranges = 0;
    for range in chain {
        ranges += 1;
        // What the device may not write to is no free memory.
        if ranges > MAX_RANGES || !range.is_write_only() {
            counters.malformed();
            return;
        }
        count(counters, discard(memory, range.addr(), range.len().into()));
    }
}

impl Worker for BalloonWorker {
    fn sources(&self) -> Vec<Source> {
        // A wish waits until there is a buffer to give back.
        vec![Source { fd: self.shared.wanted.as_raw_fd(), token: WANTED, read: self.held.is_some(), write: false }]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        let (memory, counters) = (&*self.memory, &*self.counters);
        let is = |queue: &Option<LiveQueue>, index| queue.as_ref().is_some_and(|queue| queue.index == index);
        match event {
            Event::Source(_) => self.ask_for_statistics(),
            Event::Queue(INFLATE) => self.inflate.serve(memory, &*self.interrupt, |chain| {
                counters.request();
                inflate(memory, chain, counters);
                Ok(Some(0))
            }),
            Event::Queue(DEFLATE) => self.deflate.serve(memory, &*self.interrupt, |_| {
                counters.request();
                Ok(Some(0))
            }),
            Event::Queue(index) if is(&self.statistics, index) => self.take_statistics(),
            Event::Queue(index) if is(&self.reports, index) => match &mut self.reports {
                Some(queue) => queue.serve(memory, &*self.interrupt, |chain| {
                    counters.request();
                    report(memory, chain, counters);
                    Ok(Some(0))
                }),
                None => Ok(()),
            },
            Event::Queue(_) => Ok(()),
        }
    }

    fn stop(mut self: Box<Self>) -> Vec<LiveQueue> {
        if let (Some(queue), Some(_)) = (&mut self.statistics, self.held) {
            // To be taken again by the next worker.
            queue.put_back();
        }
        let optional = self.statistics.into_iter().chain(self.reports);
        [self.inflate, self.deflate].into_iter().chain(optional).chain(self.idle).collect()
    }
}
