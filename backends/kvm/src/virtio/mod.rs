//! Virtio devices, apart from the transport that the guest finds them by.
//!
//! ```text
//!                 DRIVER_OK: activate
//!   VirtioDevice ─────────────────────▶ Box<dyn Worker> ─▶ a thread's event loop
//!   (configuration  ◀─────────────────   (the queues)
//!    space, features)    reset, pause: stop
//! ```
//! A device has two halves. The front, [`VirtioDevice`], answers what vCPU threads ask of its registers. Activation
//! makes the other, a [`Worker`], which owns the queues and is run by an event loop of a device thread. Pausing a machine,
//! saving it and resetting the device all stop the worker, which gives the queues back; resuming activates the device
//! with the same queues again. So what is not in the queues' state or in the device's own [saved state](VirtioDevice::save)
//! may not matter.
//!
//! Nothing that a guest writes into its queues or registers makes a device panic, touch memory other than the guest's,
//! or loop without end. A request that makes no sense is answered with the device's error and [counted](Counters); when
//! the queue itself makes no sense the worker returns [`DeviceError`], and the transport sets DEVICE_NEEDS_RESET and tells
//! the [`FailureListener`].
//!
//! - [`queue`]: a queue that the driver has set up, and how it is served within bounds;
//! - [`transport`]: how the guest finds a device and talks to it;
//! - [`event_loop`]: the loops that run workers;
//! - [`threads`]: the threads that device code runs on.

mod counters;
pub mod event_loop;
pub mod queue;
#[cfg(test)]
pub(crate) mod testing;
pub mod threads;
pub mod transport;

pub use counters::{Counters, Counts};
pub use event_loop::EventLoops;
pub use queue::LiveQueue;
pub use threads::{ThreadKind, Threads};

use crate::memory::GuestMemory;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

/// The device follows virtio 1.0 or later; every device offers it and no driver gets along without it (virtio 1.2,
/// section 6).
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// Queues may name tables of descriptors in descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// Each side says after which entry it wants to be notified next.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// What every device offers whose queues are served by [`LiveQueue`].
pub const F_RING: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

/// The number of a kind of device (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DeviceKind {
    Net = 1,
    Block = 2,
    Entropy = 4,
    Balloon = 5,
    Vsock = 19,
    Mem = 24,
    Fs = 26,
}

/// Why a device can serve its guest no longer: the guest has broken its queues, or the host failed it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The guest's queue is not usable.
    #[error("queue {queue} of the guest is broken: {problem}")]
    Queue {
        /// Its index.
        queue: usize,
        /// What is wrong.
        problem: String,
    },
    /// A call on the host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Tells the guest's driver that there is something to see.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// The device has used buffers of the queue `index`. The caller has asked the queue whether the guest wants to know.
    fn queue(&self, index: usize);

    /// The configuration space has changed; the transport counts its generation up before the guest is told. At any
    /// time: a driver that is not ready yet is told when it is.
    fn config(&self);

    /// The configuration space has changed by what the driver asked for, as its device's description says: it reads it anew
    /// and is not interrupted.
    fn config_by_driver(&self);
}

/// A device's configuration space. The transport keeps a copy that the guest reads, and asks for it when a device comes, is
/// [told](Interrupt::config) to have changed it, is reset or takes on a state, and when the driver has written to it.
pub trait ConfigSpace: Send + Sync + fmt::Debug {
    /// Its bytes now; what is beyond them reads as zero. On any thread: must come back at once, and not call the
    /// [`Interrupt`].
    fn bytes(&self) -> Vec<u8>;
}

/// One that never changes.
impl ConfigSpace for Vec<u8> {
    fn bytes(&self) -> Vec<u8> {
        self.clone()
    }
}

/// Hears that a device serves its driver no longer.
pub trait FailureListener: Send + Sync + fmt::Debug {
    /// The device has failed, for this reason, and waits for its driver to reset it. Called on the thread that noticed it,
    /// which may be a vCPU's or a device's: must come back at once.
    fn device_failed(&self, kind: DeviceKind, problem: String);
}

/// What a device is activated with.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features that device and driver have agreed on.
    pub features: u64,
    /// The queues that the driver has enabled, by index, ascending; may be fewer than the device has.
    pub queues: Vec<LiveQueue>,
    /// How the guest is told.
    pub interrupt: Arc<dyn Interrupt>,
    /// Where the device counts; the same for all its activations.
    pub counters: Arc<Counters>,
}

impl Activation {
    /// Takes out the queue `index`, which the device cannot be without.
    ///
    /// # Errors
    /// The driver has not enabled it.
    pub fn take_queue(&mut self, index: usize) -> Result<LiveQueue, DeviceError> {
        match self.queues.iter().position(|queue| queue.index == index) {
            Some(place) => Ok(self.queues.remove(place)),
            None => Err(DeviceError::Queue { queue: index, problem: "the driver has not enabled it".to_owned() }),
        }
    }
}

/// The front of a device: its identity, features and configuration space.
pub trait VirtioDevice: Send + fmt::Debug {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// The feature bits that it offers. Includes VIRTIO_F_VERSION_1; ring features as its worker can do them.
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration space; the same for as long as it lives.
    fn config_space(&self) -> Arc<dyn ConfigSpace>;

    /// Writes the configuration space at `offset`; what cannot be written, by default everything, is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The device has been put into a slot. One that changes its configuration on its own keeps `interrupt` to say so.
    fn attached(&mut self, interrupt: Arc<dyn Interrupt>) {
        drop(interrupt);
    }

    /// The driver is ready, or the machine goes on. The loop tells the worker of each queue once when it begins, so that
    /// requests which are in the queues already are found. What a later activation needs again (a file, a socket) is
    /// shared between front and worker.
    ///
    /// Called on a vCPU's thread, which may start no thread and open no file: what needs either is made with the device.
    ///
    /// # Errors
    /// It cannot be served; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, DeviceError>;

    /// The driver has reset the device: back to how it was made. Its worker has been stopped before.
    fn reset(&mut self) {}

    /// The state that configuration and queues do not tell, for a snapshot, when no worker runs. Versioned by the device.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes on what [`save`](VirtioDevice::save) gave, before the first activation.
    ///
    /// # Errors
    /// It is not of this device or version; in words.
    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        if state.is_null() { Ok(()) } else { Err("this device has no state".to_owned()) }
    }

    /// The kind of thread whose event loop runs its worker. Devices of [`ThreadKind::Devices`] share one; of the others,
    /// which move data, each has one of its own.
    fn thread(&self) -> ThreadKind {
        ThreadKind::Devices
    }
}

/// What happened to something that a worker watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The guest has notified the queue of this index.
    Queue(usize),
    /// The descriptor of this token (see [`Worker::sources`]) is ready, or has an error or hang-up to be read.
    Source(u32),
}

/// A descriptor that a worker watches beside its queues, level-triggered. One that waits for neither direction is not
/// watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The descriptor; stays open as long as it is watched, and is in the list once. Another that takes its number over
    /// has another token.
    pub fd: RawFd,
    /// Told back in [`Event::Source`].
    pub token: u32,
    /// Wait for input.
    pub read: bool,
    /// Wait for room for output.
    pub write: bool,
}

/// The half of a device that serves its queues, on a device thread.
pub trait Worker: Send + fmt::Debug {
    /// What to watch beside the queues. Asked anew after each event, so that interest may change.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Serves an event. Must come back soon: other devices and the order to stop wait for it.
    ///
    /// # Errors
    /// The device can go on no longer.
    fn handle(&mut self, event: Event) -> Result<(), DeviceError>;

    /// The queues, as far as they are served: nothing that was taken from them is still under way (or it is finished now).
    /// Called after an error too.
    fn stop(self: Box<Self>) -> Vec<LiveQueue>;
}
