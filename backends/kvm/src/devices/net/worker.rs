//! The half of the network device that moves frames.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};

use super::receive::{Receive, Shape};
use super::transmit::Transmit;
use super::{HEADER, MAX_FRAME, MAX_SMALL_FRAME, Shared, control};
use crate::memory::GuestMemory;
use crate::virtio::{Activation, Counters, DeviceError, Event, Interrupt, LiveQueue, Source, Worker};

/// Moves frames between tap devices and queues: those that the guest sends go by the tap of their queue; those that a
/// tap receives go to its queue, or, while the guest uses fewer, to one of those it uses.
#[derive(Debug)]
pub(super) struct NetWorker {
    shared: Arc<Shared>,
    features: u64,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    /// By pair; a driver may enable fewer than there are.
    receive: Vec<Receive>,
    transmit: Vec<Transmit>,
    control: Option<LiveQueue>,
    /// Queues that are of no use without their other half.
    idle: Vec<LiveQueue>,
    /// The taps know what the driver can take.
    configured: bool,
    /// Taps whose interface is gone: their descriptors would be ready for ever.
    gone: Vec<bool>,
}

impl NetWorker {
    pub(super) fn new(shared: Arc<Shared>, mut activation: Activation) -> Result<Self, DeviceError> {
        let features = activation.features;
        let has = |feature: u32| features & 1 << feature != 0;
        let large = [
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_UFO,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ];
        let frame = if large.into_iter().any(has) { MAX_FRAME } else { MAX_SMALL_FRAME };
        let shape = Shape { mergeable: has(VIRTIO_NET_F_MRG_RXBUF), largest: HEADER + frame };
        let max_pairs = if has(VIRTIO_NET_F_MQ) { shared.taps.len() } else { 1 };
        let control = has(VIRTIO_NET_F_CTRL_VQ).then(|| activation.take_queue(2 * max_pairs).ok()).flatten();
        let (mut receive, mut transmit) = (Vec::new(), Vec::new());
        let mut idle = Vec::new();
        for pair in 0..max_pairs {
            match (activation.take_queue(2 * pair), activation.take_queue(2 * pair + 1)) {
                // Pairs have no gaps.
                (Ok(rx), Ok(tx)) if receive.len() == pair => {
                    receive.push(Receive::new(rx, Arc::clone(&activation.memory), shape));
                    transmit.push(Transmit::new(tx, Arc::clone(&activation.memory)));
                }
                (Err(error), _) | (_, Err(error)) if pair == 0 => return Err(error),
                (rx, tx) => idle.extend(rx.into_iter().chain(tx)),
            }
        }
        idle.append(&mut activation.queues);
        let gone = vec![false; shared.taps.len()];
        Ok(Self {
            gone,
            shared,
            features,
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: activation.counters,
            receive,
            transmit,
            control,
            idle,
            configured: false,
        })
    }

    /// How many pairs the guest uses.
    fn active(&self) -> usize {
        usize::from(self.shared.active_pairs.load(Ordering::Relaxed)).clamp(1, self.receive.len())
    }

    /// The receive queue that frames of tap `tap` go to.
    fn target(&self, tap: usize) -> usize {
        tap % self.active()
    }

    fn receive_from(&mut self, tap: usize) -> Result<(), DeviceError> {
        let target = self.target(tap);
        let (Some(receive), Some(device), Some(gone)) =
            (self.receive.get_mut(target), self.shared.taps.get(tap), self.gone.get_mut(tap))
        else {
            return Ok(());
        };
        if !*gone && !receive.run(device, &self.memory, &*self.interrupt, &self.counters)? {
            *gone = true;
            self.counters.error();
            tracing::warn!(tap, "the interface of a tap device is gone");
        }
        Ok(())
    }

    fn transmit_from(&mut self, pair: usize) -> Result<(), DeviceError> {
        let (Some(transmit), Some(tap)) = (self.transmit.get_mut(pair), self.shared.taps.get(pair)) else {
            return Ok(());
        };
        transmit.run(tap, &self.memory, &*self.interrupt, &self.counters)
    }
}

impl Worker for NetWorker {
    /// The token of a tap is its number.
    fn sources(&self) -> Vec<Source> {
        let taps = self.shared.taps.iter().enumerate();
        taps.map(|(number, tap)| {
            let here = self.gone.get(number) == Some(&false);
            Source {
                fd: tap.raw(),
                token: u32::try_from(number).unwrap_or(u32::MAX),
                read: here && self.receive.get(self.target(number)).is_some_and(Receive::has_room),
                write: here && self.transmit.get(number).is_some_and(|transmit| transmit.blocked),
            }
        })
        .collect()
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        if !self.configured {
            // One setting for all queues of an interface.
            if let Some(tap) = self.shared.taps.first() {
                tap.set_offloads(self.features)
                    .map_err(|source| DeviceError::Host { what: "set the offloads of a tap device", source })?;
            }
            self.configured = true;
        }
        match event {
            Event::Queue(index) => {
                if let Some(control) = self.control.as_mut().filter(|control| control.index == index) {
                    let pairs = u16::try_from(self.receive.len()).unwrap_or(u16::MAX);
                    let active = &self.shared.active_pairs;
                    return control::run(control, &self.memory, &*self.interrupt, &self.counters, active, pairs);
                }
                let pair = index / 2;
                if index % 2 == 1 {
                    return self.transmit_from(pair);
                }
                if let Some(receive) = self.receive.get_mut(pair) {
                    receive.kicked(&self.memory, &*self.interrupt, &self.counters)?;
                }
                Ok(())
            }
            Event::Source(token) => {
                let tap = usize::try_from(token).unwrap_or(usize::MAX);
                self.receive_from(tap)?;
                if self.transmit.get(tap).is_some_and(|transmit| transmit.blocked) {
                    self.transmit_from(tap)?;
                }
                Ok(())
            }
        }
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        let receive = self.receive.into_iter().map(Receive::stop);
        let transmit = self.transmit.into_iter().map(|transmit| transmit.queue);
        let mut queues: Vec<_> = receive.chain(transmit).chain(self.control).chain(self.idle).collect();
        queues.sort_by_key(|queue| queue.index);
        queues
    }
}
