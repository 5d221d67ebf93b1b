//! The half of the virtio-fs device that serves requests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sched::{CloneFlags, unshare};

use super::Shared;
use super::request;
use super::sys::MemoryView;
use crate::virtio::{Activation, Counters, DeviceError, Event, Interrupt, LiveQueue, Worker};

/// Requests that are served before the order to stop gets its turn.
const MAX_BATCH: usize = 64;

/// Serves the requests of all queues, one after the other, on one thread: the server takes on the user of each request,
/// and that is a property of the thread.
#[derive(Debug)]
pub(super) struct FsWorker {
    shared: Arc<Shared>,
    memory: MemoryView,
    queues: Vec<LiveQueue>,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    /// The thread has a working directory of its own, which the server changes for extended attributes.
    own_directory: bool,
}

impl FsWorker {
    pub(super) fn new(shared: Arc<Shared>, activation: Activation) -> Result<Self, DeviceError> {
        let memory = MemoryView::new(activation.memory)
            .map_err(|error| DeviceError::Host { what: "describe guest memory", source: io::Error::other(error) })?;
        Ok(Self {
            shared,
            memory,
            queues: activation.queues,
            interrupt: activation.interrupt,
            counters: activation.counters,
            own_directory: false,
        })
    }
}

impl Worker for FsWorker {
    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        if !self.own_directory {
            unshare(CloneFlags::CLONE_FS).map_err(|errno| DeviceError::Host {
                what: "give the virtio-fs thread a working directory of its own",
                source: errno.into(),
            })?;
            self.own_directory = true;
            self.shared
                .take_state_on()
                .map_err(|source| DeviceError::Host { what: "find the guest's files again", source })?;
        }
        let Event::Queue(index) = event else {
            return Ok(());
        };
        let Some(queue) = self.queues.iter_mut().find(|queue| queue.index == index) else {
            return Ok(());
        };
        let memory = self.memory.guest();
        queue.want_kicks(memory, false)?;
        for _ in 0..MAX_BATCH {
            let Some(chain) = queue.pop(memory)? else {
                if queue.want_kicks(memory, true)? {
                    queue.want_kicks(memory, false)?;
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let outcome = request::serve(&self.shared.server, self.memory.server(), chain);
            self.counters.request();
            if outcome.malformed {
                self.counters.malformed();
            }
            if let Some(session) = outcome.session {
                self.shared.session.store(session, Ordering::Release);
            }
            queue.push(memory, head, outcome.written)?;
            // At once: the guest can go on with it while the next one is served.
            queue.notify(memory, &*self.interrupt)?;
        }
        queue.kick_again();
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        self.shared.make_state();
        self.queues
    }
}
