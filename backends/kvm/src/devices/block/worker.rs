//! The half that serves the queue.

use super::disk::Drive;
use super::io::{self, Outcome};
use super::request::{Action, Malformed, Request, parse};
use super::{F_FLUSH, Shared};
use crate::devices::queue::waiting;
use crate::memory::GuestMemory;
use crate::virtio::{Activation, Counters, DeviceError, Event, Interrupt, LiveQueue, Worker};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use virtio_queue::QueueT as _;
use vm_memory::{Bytes as _, GuestAddress};

/// Takes requests from the queue, does some and gives the others to the pool.
#[derive(Debug)]
pub(super) struct BlockWorker {
    shared: Arc<Shared>,
    service: Arc<Service>,
}

/// What the pool's threads need too.
#[derive(Debug)]
struct Service {
    drive: Arc<Drive>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    /// The driver knows no flush: writes are put through.
    through: bool,
    side: Mutex<Side>,
    /// Told when the last request under way is done.
    idle: Condvar,
}

/// The queue, shared by all threads that give requests back.
#[derive(Debug)]
struct Side {
    /// `None` once the worker has stopped.
    queue: Option<LiveQueue>,
    /// Requests that the pool has.
    in_flight: usize,
    /// There may be requests that were not taken because so many are under way.
    stalled: bool,
    /// Found by a thread of the pool; for the loop to say.
    broken: Option<DeviceError>,
}

impl Service {
    fn side(&self) -> MutexGuard<'_, Side> {
        // A panic ends the process, so that a poisoned lock is never seen.
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the outcome into the guest's memory. Returns how many bytes of the request were written in all.
    fn answer(&self, status: GuestAddress, outcome: Outcome) -> u32 {
        let data = match outcome {
            Outcome::Done(data) => data,
            Outcome::Failed | Outcome::Unsupported => {
                self.counters.error();
                0
            }
        };
        match self.memory.write_obj(outcome.status(), status) {
            Ok(()) => data.saturating_add(1),
            // Parsing has found it in memory, which does not go away.
            Err(_) => 0,
        }
    }

    /// What a thread of the pool does.
    fn perform(&self, request: &Request) {
        let outcome = self.drive.with(|disk| io::perform(&request.action, disk, &self.memory, self.through));
        let written = self.answer(request.status, outcome);
        let mut side = self.side();
        side.in_flight = side.in_flight.saturating_sub(1);
        if let Err(error) = side.give_back(self, request.head, written) {
            side.broken.get_or_insert(error);
            side.stalled = true;
        }
        if side.stalled
            && let Some(queue) = &side.queue
        {
            queue.kick_again();
            side.stalled = false;
        }
        if side.in_flight == 0 {
            self.idle.notify_all();
        }
    }
}

impl Side {
    /// Gives one request back and tells the guest.
    fn give_back(&mut self, service: &Service, head: u16, written: u32) -> Result<(), DeviceError> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        queue.push(&service.memory, head, written)?;
        queue.notify(&service.memory, &*service.interrupt)
    }
}

impl BlockWorker {
    pub(super) fn new(shared: Arc<Shared>, mut activation: Activation) -> Result<Self, DeviceError> {
        let queue = activation.take_queue(0)?;
        let service = Service {
            drive: Arc::clone(&shared.drive),
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: activation.counters,
            through: activation.features & F_FLUSH == 0,
            side: Mutex::new(Side { queue: Some(queue), in_flight: 0, stalled: false, broken: None }),
            idle: Condvar::new(),
        };
        Ok(Self { shared, service: Arc::new(service) })
    }

    /// Takes requests until there is none, or enough are under way, or others should have their turn.
    fn take_requests(&self) -> Result<(), DeviceError> {
        let service = &self.service;
        let memory = &*service.memory;
        let mut pushed = false;
        let mut side = service.side();
        if let Some(error) = side.broken.take() {
            return Err(error);
        }
        let size = side.queue.as_ref().map_or(0, |queue| queue.queue.size());
        for turn in 0..=size {
            // With as many under way as the queue has entries, a driver has made some available twice. The rest waits, or
            // the pool's list would grow as long as the guest likes.
            if side.in_flight >= usize::from(size) {
                side.stalled = true;
                break;
            }
            let Some(queue) = &mut side.queue else { break };
            if turn == size {
                queue.kick_again();
                break;
            }
            let Some(chain) = queue.pop(memory)? else {
                if queue.want_kicks(memory, true)? {
                    continue;
                }
                break;
            };
            service.counters.request();
            let last = waiting(queue, memory)? == 0;
            let alone = last && side.in_flight == 0;
            // Other threads may give requests back meanwhile.
            drop(side);
            let done = match parse(chain) {
                Ok(request) => self.begin(request, alone),
                Err(Malformed { head, status }) => {
                    service.counters.malformed();
                    let written = status.map_or(0, |status| service.answer(status, Outcome::Failed));
                    Some((head, written))
                }
            };
            side = service.side();
            if let (Some((head, written)), Some(queue)) = (done, &mut side.queue) {
                queue.push(memory, head, written)?;
                pushed = true;
            }
        }
        if pushed && let Some(queue) = &mut side.queue {
            queue.notify(memory, &*service.interrupt)?;
        }
        Ok(())
    }

    /// Does a request now if that needs no waiting, or if no other request could be done meanwhile: then the bytes that
    /// were written are returned. Otherwise gives it to the pool.
    fn begin(&self, request: Request, alone: bool) -> Option<(u16, u32)> {
        let service = &self.service;
        let now = service.drive.with(|disk| {
            let quick = match &request.action {
                Action::Read { .. } if disk.is_some_and(|disk| disk.has_nowait()) => {
                    return io::perform_now(&request.action, disk, &service.memory);
                }
                Action::Read { .. } => alone,
                Action::Write { .. } => alone && !service.through,
                Action::GetId { .. } | Action::Unsupported => true,
                Action::Flush | Action::Discard(_) | Action::WriteZeroes { .. } => false,
            };
            (quick || disk.is_none()).then(|| io::perform(&request.action, disk, &service.memory, service.through))
        });
        if let Some(outcome) = now {
            return Some((request.head, service.answer(request.status, outcome)));
        }
        service.side().in_flight += 1;
        let service = Arc::clone(service);
        self.shared.pool.give(Box::new(move || service.perform(&request)));
        None
    }
}

impl Worker for BlockWorker {
    fn handle(&mut self, _event: Event) -> Result<(), DeviceError> {
        self.take_requests()
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        let mut side = self.service.side();
        while side.in_flight > 0 {
            side = self.service.idle.wait(side).unwrap_or_else(PoisonError::into_inner);
        }
        side.queue.take().into_iter().collect()
    }
}
