//! The event loops that run workers.
//!
//! ```text
//!   transport ── add, remove ──▶ orders ─┐
//!   KVM (ioeventfd) ──▶ kicks ───────────┼─▶ epoll ─▶ one thread: a worker's handle, then the next
//!   files, sockets ──▶ sources ──────────┘
//! ```
//! A loop is a thread that waits for what its workers watch and lets each serve its events, one at a time. Orders are
//! carried out between two rounds, so that no event reaches a worker that is gone. Whoever removes a worker waits for it
//! (a round takes as long as its workers' `handle`) and gets its queues; the loop itself waits for no one but the kernel.
//!
//! Why not the `event-manager` crate: it leaves to its callers how to get a subscriber back, and when that is safe.

use super::{DeviceError, Event, LiveQueue, Source, ThreadKind, Threads, Worker};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How many events a round takes from the kernel.
const ROUND: usize = 16;

/// The epoll token that announces orders; workers count from 0.
const ORDERS: u64 = u64::MAX;

/// In a token: the rest is a queue's index rather than a source's token.
const QUEUE: u64 = 1 << 32;

/// All loops of a process.
#[derive(Debug, Clone)]
pub struct EventLoops {
    threads: Threads,
    shared: Arc<Mutex<Weak<EventLoop>>>,
}

impl EventLoops {
    /// No loop yet; the threads of those to come are started by `threads`.
    #[must_use]
    pub fn new(threads: Threads) -> Self {
        Self { threads, shared: Arc::default() }
    }

    /// The loop for a device: the one of [`ThreadKind::Devices`], or a new one that is called `name`. Its thread ends with
    /// the last handle. Not for vCPU threads, see [`Threads::spawn`].
    ///
    /// # Errors
    /// The kernel has no descriptor or thread to give.
    pub fn open(&self, kind: ThreadKind, name: &str) -> io::Result<Arc<EventLoop>> {
        if kind != ThreadKind::Devices {
            return EventLoop::start(&self.threads, kind, name.to_owned());
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let started = EventLoop::start(&self.threads, kind, kind.name().to_owned())?;
        *shared = Arc::downgrade(&started);
        Ok(started)
    }
}

/// What happens, on the loop's thread, when a worker can go on no longer. It is not served any more but keeps its queues
/// until it is removed.
pub type OnFailure = Box<dyn FnOnce(DeviceError) + Send>;

/// A worker in a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(u64);

/// One loop: gives orders to its thread.
pub struct EventLoop {
    orders: Arc<Orders>,
    next: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EventLoop").field("thread", &self.thread).finish_non_exhaustive()
    }
}

/// What the thread is told. `None` once it has ended.
struct Orders {
    waiting: Mutex<Option<Vec<Order>>>,
    ready: EventFd,
}

enum Order {
    Add(Box<Entry>),
    Remove { id: WorkerId, reply: mpsc::SyncSender<Vec<LiveQueue>> },
    End,
}

impl Orders {
    fn waiting(&self) -> MutexGuard<'_, Option<Vec<Order>>> {
        // Nothing panics while it is held; and a list of orders is whole at any time.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order; false when the thread has ended.
    fn give(&self, order: Order) -> bool {
        let mut waiting = self.waiting();
        let Some(orders) = waiting.as_mut() else { return false };
        orders.push(order);
        // Fails only if the counter is at its limit, and then the descriptor is readable anyway.
        let _ = self.ready.write(1);
        true
    }
}

impl EventLoop {
    fn start(threads: &Threads, kind: ThreadKind, name: String) -> io::Result<Arc<Self>> {
        let orders = Arc::new(Orders {
            waiting: Mutex::new(Some(Vec::new())),
            ready: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let epoll = Epoll::new()?;
        let ready = orders.ready.as_raw_fd();
        epoll.ctl(ControlOperation::Add, ready, EpollEvent::new(EventSet::IN, ORDERS))?;
        let of_thread = Arc::clone(&orders);
        let thread = threads.spawn(kind, name, move || {
            let mut round = Rounds { epoll, orders: of_thread, workers: Vec::new() };
            round.run();
        })?;
        Ok(Arc::new(Self { orders, next: AtomicU64::new(0), thread: Some(thread) }))
    }

    /// Lets `worker` be served from now on: at first each queue of `kicks` (its index, and what the guest notifies it by),
    /// then whatever happens. Does not wait.
    pub fn add(&self, worker: Box<dyn Worker>, kicks: Vec<(usize, Arc<EventFd>)>, on_failure: OnFailure) -> WorkerId {
        let id = WorkerId(self.next.fetch_add(1, Ordering::Relaxed));
        let entry = Entry { id, worker, kicks, sources: Vec::new(), on_failure: Some(on_failure) };
        self.orders.give(Order::Add(Box::new(entry)));
        id
    }

    /// Stops a worker and waits for that. When it is not there (any more): no queues.
    pub fn remove(&self, id: WorkerId) -> Vec<LiveQueue> {
        let (reply, receiver) = mpsc::sync_channel(1);
        if !self.orders.give(Order::Remove { id, reply }) {
            return Vec::new();
        }
        // The sender is gone without an answer when the thread has ended.
        receiver.recv().unwrap_or_default()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.orders.give(Order::End);
        if let Some(thread) = self.thread.take() {
            // That a worker panicked has been said by the panic itself.
            let _ = thread.join();
        }
    }
}

/// A worker, and what is watched for it.
struct Entry {
    id: WorkerId,
    worker: Box<dyn Worker>,
    kicks: Vec<(usize, Arc<EventFd>)>,
    sources: Vec<Source>,
    /// `None` once it has failed.
    on_failure: Option<OnFailure>,
}

/// The thread's side of a loop.
struct Rounds {
    epoll: Epoll,
    orders: Arc<Orders>,
    /// A worker's place is part of its tokens; places are used again.
    workers: Vec<Option<Entry>>,
}

impl Drop for Rounds {
    /// Whoever waits for an answer gets none.
    fn drop(&mut self) {
        self.orders.waiting().take();
    }
}

impl Rounds {
    fn run(&mut self) {
        let mut events = [EpollEvent::default(); ROUND];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    tracing::error!(%error, "an event loop cannot wait for events; its devices stop");
                    return;
                }
            };
            let mut ordered = false;
            for event in events.iter().take(count) {
                if event.data() == ORDERS {
                    ordered = true;
                } else {
                    self.dispatch(event.data());
                }
            }
            if ordered && !self.obey() {
                return;
            }
        }
    }

    /// Hands an event to the worker that watches for it.
    fn dispatch(&mut self, token: u64) {
        let (place, rest) = split(token);
        let Some(Some(entry)) = self.workers.get_mut(place) else { return };
        let event = match rest {
            Rest::Queue(index) => Event::Queue(index),
            Rest::Source(token) => Event::Source(token),
        };
        entry.serve(&self.epoll, place, event);
    }

    /// Carries the orders out. False when the loop is to end.
    fn obey(&mut self) -> bool {
        let orders = {
            let mut waiting = self.orders.waiting();
            // Read while no order can come in between.
            let _ = self.orders.ready.read();
            waiting.as_mut().map(std::mem::take).unwrap_or_default()
        };
        for order in orders {
            match order {
                Order::Add(entry) => self.begin(*entry),
                Order::Remove { id, reply } => {
                    // The receiver waits; if it does not, no one needs the queues.
                    let _ = reply.send(self.end(id));
                }
                Order::End => return false,
            }
        }
        true
    }

    fn begin(&mut self, entry: Entry) {
        let place = self.workers.iter().position(Option::is_none).unwrap_or(self.workers.len());
        if place == self.workers.len() {
            self.workers.push(None);
        }
        let Some(slot) = self.workers.get_mut(place) else { return };
        let entry = slot.insert(entry);
        for (index, kick) in &entry.kicks {
            // Each write is an event, so that the descriptor need not be read: that would be a system call more for each.
            let interest = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(interest, token(place, Rest::Queue(*index)));
            if let Err(source) = self.epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), event) {
                entry.fail(&self.epoll, DeviceError::Host { what: "watch a queue's notifications", source });
                return;
            }
        }
        let indices: Vec<usize> = entry.kicks.iter().map(|(index, _)| *index).collect();
        entry.watch(&self.epoll, place);
        for index in indices {
            entry.serve(&self.epoll, place, Event::Queue(index));
        }
    }

    fn end(&mut self, id: WorkerId) -> Vec<LiveQueue> {
        for slot in &mut self.workers {
            if slot.as_ref().is_some_and(|entry| entry.id == id)
                && let Some(mut entry) = slot.take()
            {
                entry.ignore(&self.epoll);
                return entry.worker.stop();
            }
        }
        Vec::new()
    }
}

impl Entry {
    fn serve(&mut self, epoll: &Epoll, place: usize, event: Event) {
        if self.on_failure.is_none() {
            return;
        }
        match self.worker.handle(event) {
            Ok(()) => self.watch(epoll, place),
            Err(error) => self.fail(epoll, error),
        }
    }

    /// Brings what epoll watches in line with what the worker wants now.
    fn watch(&mut self, epoll: &Epoll, place: usize) {
        let mut wanted = self.worker.sources();
        wanted.retain(|source| source.read || source.write);
        if wanted == self.sources {
            return;
        }
        for old in &self.sources {
            if !wanted.iter().any(|source| source.fd == old.fd) {
                forget(epoll, old.fd);
            }
        }
        for source in &wanted {
            if self.sources.contains(source) {
                continue;
            }
            let mut interest = EventSet::empty();
            interest.set(EventSet::IN, source.read);
            interest.set(EventSet::OUT, source.write);
            let event = EpollEvent::new(interest, token(place, Rest::Source(source.token)));
            let outcome = match epoll.ctl(ControlOperation::Modify, source.fd, event) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    epoll.ctl(ControlOperation::Add, source.fd, event)
                }
                outcome => outcome,
            };
            if let Err(error) = outcome {
                self.fail(epoll, DeviceError::Host { what: "watch a device's descriptor", source: error });
                return;
            }
        }
        self.sources = wanted;
    }

    /// Watches nothing more of it.
    fn ignore(&mut self, epoll: &Epoll) {
        for (_, kick) in &self.kicks {
            forget(epoll, kick.as_raw_fd());
        }
        for source in std::mem::take(&mut self.sources) {
            forget(epoll, source.fd);
        }
    }

    fn fail(&mut self, epoll: &Epoll, error: DeviceError) {
        self.ignore(epoll);
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(error);
        }
    }
}

/// Fails when the descriptor has been closed or was never added; either is as good.
fn forget(epoll: &Epoll, fd: RawFd) {
    let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
}

/// What a worker is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Queue(usize),
    Source(u32),
}

/// A token is the worker's place (31 bits), whether it is of a queue (1), and the queue's index or source's token (32).
fn token(place: usize, rest: Rest) -> u64 {
    let place = (place as u64) << 33;
    match rest {
        Rest::Queue(index) => place | QUEUE | (index as u64 & 0xffff_ffff),
        Rest::Source(token) => place | u64::from(token),
    }
}

fn split(token: u64) -> (usize, Rest) {
    let low = token as u32;
    let rest = if token & QUEUE == 0 { Rest::Source(low) } else { Rest::Queue(low as usize) };
    ((token >> 33) as usize, rest)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DriverQueue, Part, QUEUE_SPAN, TestDevice, activate, guest_memory, wait_for};
    use super::*;
    use crate::memory::GuestMemory;
    use std::sync::atomic::AtomicUsize;

    /// A loop of its own, and a device in it.
    struct Bench {
        memory: GuestMemory,
        driver: DriverQueue,
        failures: Arc<AtomicUsize>,
    }

    impl Bench {
        fn new() -> Self {
            let memory = guest_memory(QUEUE_SPAN as usize);
            let driver = DriverQueue::new(&memory, 0, 16);
            Self { memory, driver, failures: Arc::default() }
        }

        fn add(&self, to: &EventLoop, device: &mut TestDevice) -> WorkerId {
            let activated = activate(device, &self.memory, &[&self.driver]).unwrap();
            let failures = Arc::clone(&self.failures);
            let kicks = vec![(0, self.driver.kick_descriptor())];
            to.add(
                activated.worker,
                kicks,
                Box::new(move |_| {
                    failures.fetch_add(1, Ordering::SeqCst);
                }),
            )
        }

        fn echoes(&mut self) {
            let request = self.driver.request(&[Part::Out(b"abc"), Part::In(3)]);
            self.driver.kick();
            assert_eq!(self.driver.wait_used(1), [(request.head, 3)]);
            assert_eq!(self.driver.read(&request, 1), b"abc");
        }
    }

    fn loops() -> EventLoops {
        EventLoops::new(Threads::default())
    }

    #[test]
    fn a_worker_serves_what_the_guest_notifies() {
        let event_loop = loops().open(ThreadKind::Block, "block-0").unwrap();
        let mut bench = Bench::new();
        let id = bench.add(&event_loop, &mut TestDevice::new());
        bench.echoes();
        bench.echoes();
        assert_eq!(event_loop.remove(id).len(), 1);
    }

    #[test]
    fn requests_that_were_there_before_the_worker_are_served_without_a_notification() {
        let event_loop = loops().open(ThreadKind::Block, "block-0").unwrap();
        let mut bench = Bench::new();
        let request = bench.driver.request(&[Part::Out(b"abc"), Part::In(3)]);
        bench.add(&event_loop, &mut TestDevice::new());
        assert_eq!(bench.driver.wait_used(1), [(request.head, 3)]);
    }

    #[test]
    fn a_removed_worker_gives_its_queues_back_once() {
        let event_loop = loops().open(ThreadKind::Block, "block-0").unwrap();
        let mut bench = Bench::new();
        let id = bench.add(&event_loop, &mut TestDevice::new());
        bench.echoes();
        let queues = event_loop.remove(id);
        assert_eq!(queues[0].queue.state().next_avail, 1);
        assert!(event_loop.remove(id).is_empty());
        bench.driver.request(&[Part::In(3)]);
        bench.driver.kick();
        assert!(event_loop.remove(id).is_empty(), "a round without the worker");
        assert!(bench.driver.take_used().is_empty());
    }

    #[test]
    fn a_failed_worker_stops_alone_and_keeps_its_queues() {
        let loops = loops();
        let event_loop = loops.open(ThreadKind::Devices, "").unwrap();
        let (mut broken, mut sound) = (Bench::new(), Bench::new());
        let id = broken.add(&event_loop, &mut TestDevice::new());
        sound.add(&event_loop, &mut TestDevice::new());
        broken.driver.make_available(16);
        broken.driver.kick();
        wait_for("the failure", || (broken.failures.load(Ordering::SeqCst) == 1).then_some(()));
        broken.driver.kick();
        sound.echoes();
        assert_eq!(broken.failures.load(Ordering::SeqCst), 1, "said once");
        assert_eq!(event_loop.remove(id).len(), 1);
    }

    #[test]
    fn a_source_is_watched_as_long_as_the_worker_wants_it() {
        let event_loop = loops().open(ThreadKind::Net, "net-0").unwrap();
        let mut device = TestDevice::new();
        let source = device.source();
        let bench = Bench::new();
        let id = bench.add(&event_loop, &mut device);
        // The device reads the source three times, then wants it no more.
        for round in 1..=3 {
            source.write(1).unwrap();
            wait_for("the source's event", || (device.source_events() == round).then_some(()));
        }
        source.write(1).unwrap();
        event_loop.remove(id);
        assert_eq!(device.source_events(), 3);
    }

    #[test]
    fn devices_with_little_to_do_share_a_thread_that_ends_with_the_last() {
        let loops = loops();
        let first = loops.open(ThreadKind::Devices, "a").unwrap();
        let second = loops.open(ThreadKind::Devices, "b").unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let own = loops.open(ThreadKind::Net, "net-0").unwrap();
        assert!(!Arc::ptr_eq(&first, &own));
        drop((first, second));
        assert!(loops.shared.lock().unwrap().upgrade().is_none());
    }

    #[test]
    fn tokens_tell_apart_what_they_were_made_of() {
        for place in [0, 1, (1 << 31) - 2] {
            for rest in [Rest::Queue(0), Rest::Queue(65535), Rest::Source(0), Rest::Source(u32::MAX)] {
                assert_eq!(split(token(place, rest)), (place, rest));
                assert_ne!(token(place, rest), ORDERS);
            }
        }
    }
}
