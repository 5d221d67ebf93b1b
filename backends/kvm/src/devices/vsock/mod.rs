//! virtio-vsock (virtio 1.2, section 5.10): the guest's sockets meet Unix sockets of the host.
//!
//! The protocol is that of the core, [`stockade_devices::vsock`], which serves QEMU's machines too; here are the device's
//! registers and its three queues.
//!
//! A machine that is restored from a snapshot has lost the host's end of all its connections, and its context id may be
//! another. The device tells it by a transport reset, and accepts nobody before the guest has dealt with that: a guest
//! drops all connections then, new ones included.
//! ```text
//!   fresh ──────────────────────────────────────────▶ Open
//!   restored ─▶ Reset due ─ event written ─▶ Reset told ─ the guest gives a buffer back ─▶ Open
//! ```

#[cfg(test)]
mod tests;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use stockade_devices::vsock::{Counters, Muxer};

use crate::virtio::{Activation, ConfigSpace, DeviceError, DeviceKind, F_RING, ThreadKind, VirtioDevice, Worker};

/// Receive, transmit, event. The guest fills the first with buffers of 4 KiB.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Version of [`Saved`].
const VERSION: u32 = 1;

/// What of the device outlives its process.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// A driver was there, which has to hear that its connections are gone.
    had_driver: bool,
}

/// How far the guest knows that it has lost its connections; see the picture above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    ResetDue,
    /// With the available index of the event queue at that time.
    ResetTold(u16),
}

/// What front and worker share: connections outlive a worker.
#[derive(Debug)]
struct Shared {
    muxer: Muxer,
    phase: Phase,
    had_driver: bool,
}

/// The front of the device.
#[derive(Debug, Clone)]
pub struct Vsock {
    // A worker holds it while it serves an event; the front does when the device is reset or asked for its numbers.
    shared: Arc<Mutex<Shared>>,
    guest_cid: u64,
}

impl Vsock {
    /// A device for these sockets.
    #[must_use]
    pub fn new(muxer: Muxer) -> Self {
        let guest_cid = muxer.guest_cid();
        let shared = Shared { muxer, phase: Phase::Open, had_driver: false };
        Self { shared: Arc::new(Mutex::new(shared)), guest_cid }
    }

    /// What the device has seen.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared().muxer.counters()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

/// A panic ends the process, so that a poisoned lock is never seen.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        F_RING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(self.guest_cid.to_le_bytes().to_vec())
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let worker = worker::VsockWorker::new(Arc::clone(&self.shared), activation)?;
        self.shared().had_driver = true;
        Ok(Box::new(worker))
    }

    fn reset(&mut self) {
        let mut shared = self.shared();
        shared.muxer.reset();
        shared.phase = Phase::Open;
        shared.had_driver = false;
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!(Saved { version: VERSION, had_driver: self.shared().had_driver })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let saved =
            Saved::deserialize(state).map_err(|error| format!("this is no state of a vsock device: {error}"))?;
        if saved.version != VERSION {
            return Err(format!("the vsock device's state has version {}, not {VERSION}", saved.version));
        }
        let mut shared = self.shared();
        shared.had_driver = saved.had_driver;
        if saved.had_driver {
            shared.phase = Phase::ResetDue;
        }
        Ok(())
    }

    fn thread(&self) -> ThreadKind {
        ThreadKind::Vsock
    }
}
