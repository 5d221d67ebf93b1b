//! The half of the vsock device that moves packets.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use stockade_devices::vsock::{
    Batch, EVENT_QUEUE, QueueError, RX_QUEUE, TX_QUEUE, process_rx, process_tx, write_transport_reset,
};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::{Phase, Shared, lock};
use crate::devices::queue::waiting;
use crate::memory::GuestMemory;
use crate::virtio::{Activation, Counters, DeviceError, Event, Interrupt, LiveQueue, Source, Worker};

/// Rounds of both queues before other devices and the order to stop get their turn. One moves up to
/// [`stockade_devices::vsock::MAX_BATCH`] packets each way.
const MAX_ROUNDS: u32 = 16;

/// Token of the host's sockets.
const SOCKETS: u32 = 0;

/// Moves packets between the queues and the connections.
#[derive(Debug)]
pub(super) struct VsockWorker {
    shared: Arc<Mutex<Shared>>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    rx: LiveQueue,
    tx: LiveQueue,
    events: LiveQueue,
    /// Readable when a socket of the host needs attention; stays open as long as the connections, which are shared.
    sockets: RawFd,
}

impl VsockWorker {
    pub(super) fn new(shared: Arc<Mutex<Shared>>, mut activation: Activation) -> Result<Self, DeviceError> {
        let sockets = lock(&shared).muxer.event_fd().as_raw_fd();
        Ok(Self {
            rx: activation.take_queue(RX_QUEUE)?,
            tx: activation.take_queue(TX_QUEUE)?,
            events: activation.take_queue(EVENT_QUEUE)?,
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: activation.counters,
            shared,
            sockets,
        })
    }
}

/// Whether a batch of the core used anything, and whether the guest wants to know.
fn finish(
    queue: &mut LiveQueue,
    memory: &GuestMemoryMmap,
    batch: Result<Batch, QueueError>,
) -> Result<(bool, bool), DeviceError> {
    let batch = batch.map_err(|error| queue.broken(error.to_string()))?;
    Ok((batch.used, batch.used && queue.wants_interrupt(memory)?))
}

/// Goes on with telling the guest that its connections are gone, until it knows.
fn announce_reset(
    phase: &mut Phase,
    events: &mut LiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
) -> Result<(), DeviceError> {
    if *phase == Phase::Open {
        return Ok(());
    }
    waiting(events, memory)?;
    // The buffers that the guest has there stay, but for one: it tells of none of them, but of the one that it gives back.
    let index = events.want_next_kick(memory)?;
    match *phase {
        Phase::ResetTold(before) if before != index => {
            *phase = Phase::Open;
            events.want_kicks(memory, false)?;
        }
        Phase::ResetDue => {
            let before = events.queue.next_used();
            let written =
                write_transport_reset(&mut events.queue, memory).map_err(|error| events.broken(error.to_string()))?;
            if written {
                *phase = Phase::ResetTold(index);
            }
            // A buffer that was too small is given back too.
            if events.queue.next_used() != before {
                events.notify(memory, interrupt)?;
            }
        }
        Phase::ResetTold(_) | Phase::Open => {}
    }
    Ok(())
}

impl VsockWorker {
    /// Moves all that can be moved, within bounds.
    fn drive(&mut self, shared: &mut Shared) -> Result<(), DeviceError> {
        let (memory, interrupt) = (&*self.memory, &*self.interrupt);
        let mut rounds = 0;
        // Twice without progress: a ring claims to have buffers that cannot be taken.
        let mut idle = 0;
        while idle < 2 {
            self.rx.want_kicks(memory, false)?;
            self.tx.want_kicks(memory, false)?;
            idle += 1;
            loop {
                if rounds == MAX_ROUNDS {
                    self.tx.kick_again();
                    return Ok(());
                }
                rounds += 1;
                let sent = process_tx(&mut shared.muxer, &mut self.tx.queue, memory);
                let (sent, tell_sent) = finish(&mut self.tx, memory, sent)?;
                let polled = shared.muxer.poll();
                let received = process_rx(&mut shared.muxer, &mut self.rx.queue, memory);
                let (received, tell_received) = finish(&mut self.rx, memory, received)?;
                // One interrupt for both, as the driver looks into all queues at each.
                if tell_sent || tell_received {
                    interrupt.queue(if tell_received { self.rx.index } else { self.tx.index });
                }
                if !(sent || received || polled) {
                    break;
                }
                idle = 0;
            }
            // That the guest fills its receive queue is of interest only while packets wait for buffers.
            let rx_more = shared.muxer.has_packets() && self.rx.want_kicks(memory, true)?;
            let tx_more = self.tx.want_kicks(memory, true)? && shared.muxer.can_handle();
            if !(rx_more || tx_more) {
                return Ok(());
            }
        }
        Err(self.tx.broken("its available ring, or that of the receive queue, cannot be read".to_owned()))
    }
}

impl Worker for VsockWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.sockets, token: SOCKETS, read: true, write: false }]
    }

    fn handle(&mut self, _event: Event) -> Result<(), DeviceError> {
        let held = Arc::clone(&self.shared);
        let mut shared = lock(&held);
        announce_reset(&mut shared.phase, &mut self.events, &self.memory, &*self.interrupt)?;
        if shared.phase == Phase::Open {
            shared.muxer.activate();
        }
        // What is wrong with a ring has a name here; the core would only find nothing in it.
        waiting(&self.rx, &self.memory)?;
        waiting(&self.tx, &self.memory)?;
        let before = shared.muxer.counters();
        let driven = self.drive(&mut shared);
        let after = shared.muxer.counters();
        for _ in before.malformed..after.malformed {
            self.counters.malformed();
        }
        for _ in before.refused_requests..after.refused_requests {
            self.counters.error();
        }
        for _ in before.connections..after.connections {
            self.counters.request();
        }
        driven
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        vec![self.rx, self.tx, self.events]
    }
}
