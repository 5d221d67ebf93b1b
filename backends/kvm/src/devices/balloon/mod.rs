//! The memory balloon (virtio 1.2, section 5.5): the guest gives memory back, because it is asked to (the balloon is
//! inflated) or because it is free anyway (free page reporting).
//!
//! ```text
//!   Handle: target ──▶ configuration space ──▶ driver ─▶ inflateq, deflateq: page numbers
//!           actual ◀── configuration space ◀── driver
//!           statistics ◀──────────────── statsq ◀──┤      a buffer that is held until the next ones are wanted
//!                                                  └─▶ reporting queue: ranges of free memory
//! ```
//! The guest may take pages back at any time: touching them is enough, and deflating only tells how many there are.
//! DEFLATE_ON_OOM is offered: a guest that runs out of memory takes pages back rather than kill a process.

mod statistics;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use stockade_hypervisor::MiB;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::{Activation, ConfigSpace, DeviceError, DeviceKind, F_RING, Interrupt, VirtioDevice, Worker};
pub use statistics::Statistics;

/// Feature bits (virtio 1.2, section 5.5.3).
const F_STATS_VQ: u32 = 1;
const F_DEFLATE_ON_OOM: u32 = 2;
const F_REPORTING: u32 = 5;

/// inflateq, deflateq, statsq and the reporting queue. A driver reports up to 32 ranges in one request.
const QUEUE_SIZES: [u16; 4] = [32, 32, 8, 64];

/// Pages in the configuration space, whatever the guest's are, are of 4 KiB.
const PAGES_PER_MIB: u32 = 256;

/// Version of [`Saved`].
const VERSION: u32 = 1;

/// What of the device outlives its process.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    target: u32,
    actual: u32,
}

/// What front, worker and handle share.
#[derive(Debug)]
struct Shared {
    /// Pages that shall be in the balloon.
    target: AtomicU32,
    /// Pages that the driver says are in it.
    actual: AtomicU32,
    // The last statistics: the worker writes them, handles read them.
    statistics: Mutex<Option<Statistics>>,
    /// Tells the worker that new ones are wanted.
    wanted: EventFd,
    // Set once, when the device gets its slot; read by whoever changes the target.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

/// The host's handle of a balloon.
#[derive(Debug, Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to have so much memory in the balloon. It takes its time, and may fall short for ever.
    pub fn set_target(&self, target: MiB) {
        let pages = u32::try_from(u64::from(target.0) * u64::from(PAGES_PER_MIB)).unwrap_or(u32::MAX);
        if self.0.target.swap(pages, Ordering::Relaxed) != pages
            && let Some(interrupt) = &*self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
        {
            interrupt.config();
        }
    }

    /// How many bytes the guest says it has in the balloon. Its word, not a measure.
    #[must_use]
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Relaxed)) << 12
    }

    /// What the guest has told last of its memory; `None` when it never did.
    #[must_use]
    pub fn statistics(&self) -> Option<Statistics> {
        *self.0.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest for new [statistics](Self::statistics).
    pub fn refresh_statistics(&self) {
        // Fails only when the counter is full, and then the worker is told already.
        let _ = self.0.wanted.write(1);
    }
}

/// The front of the device.
#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
}

impl Balloon {
    /// An empty balloon.
    ///
    /// # Errors
    /// The kernel has no descriptor to give.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                target: AtomicU32::new(0),
                actual: AtomicU32::new(0),
                statistics: Mutex::new(None),
                wanted: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
                interrupt: Mutex::new(None),
            }),
        })
    }

    /// The host's handle.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }
}

impl ConfigSpace for Shared {
    fn bytes(&self) -> Vec<u8> {
        let numbers = [&self.target, &self.actual];
        numbers.iter().flat_map(|pages| pages.load(Ordering::Relaxed).to_le_bytes()).collect()
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        F_RING | 1 << F_STATS_VQ | 1 << F_DEFLATE_ON_OOM | 1 << F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::clone(&self.shared) as Arc<dyn ConfigSpace>
    }

    /// Only `actual`, at offset 4, can be written, and only as a whole.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(bytes)) = (offset, data.try_into()) {
            self.shared.actual.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }

    fn attached(&mut self, interrupt: Arc<dyn Interrupt>) {
        *self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(interrupt);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(worker::BalloonWorker::new(Arc::clone(&self.shared), activation)?))
    }

    fn reset(&mut self) {
        self.shared.actual.store(0, Ordering::Relaxed);
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!(Saved {
            version: VERSION,
            target: self.shared.target.load(Ordering::Relaxed),
            actual: self.shared.actual.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let saved = Saved::deserialize(state).map_err(|error| format!("this is no state of a balloon: {error}"))?;
        if saved.version != VERSION {
            return Err(format!("the balloon's state has version {}, not {VERSION}", saved.version));
        }
        self.shared.target.store(saved.target, Ordering::Relaxed);
        self.shared.actual.store(saved.actual, Ordering::Relaxed);
        Ok(())
    }
}
