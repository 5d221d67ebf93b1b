//! virtio-mem (virtio 1.2, section 5.15): memory that is plugged into the running guest, and unplugged again, in blocks.
//!
//! ```text
//!   handle: requested size ──▶ configuration space, config interrupt ──▶ driver ─▶ plug, unplug requests
//!   handle: plugged size   ◀── set of plugged blocks ◀─────────────────────┘
//! ```
//! The machine maps the whole region from the start, and it takes memory of the host only where the guest has touched it.
//! Unplugging gives that back. A guest that reads a block that is not plugged finds zeros, or its own former content; one
//! that writes there takes memory from its own process's limit, and loses it at the next unplug. Nothing of the host or of
//! other guests is ever there.
//!
//! What is plugged stays so when the driver resets the device, so that it can be found again.

mod blocks;
mod region;
mod request;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::memory::GuestMemory;
use crate::virtio::{
    Activation, ConfigSpace, Counters, DeviceError, DeviceKind, Event, F_RING, Interrupt, LiveQueue, VirtioDevice,
    Worker,
};
use blocks::Blocks;
use region::Region;

/// The request queue. The driver has one request at a time under way.
const QUEUE_SIZES: [u16; 1] = [32];

/// Version of [`Saved`].
const VERSION: u32 = 1;

/// A region of pluggable memory to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemConfig {
    /// Its guest-physical address, a multiple of the block size. It is part of the guest's memory, but not of its memory map.
    /// A hole before it keeps a guest's buffer from reaching over from the memory below, which devices refuse.
    pub address: u64,
    /// Its bytes, a multiple of the block size.
    pub size: u64,
    /// Bytes of a block, a power of two of at least a page. Linux plugs multiples of 2 MiB within memory sections of 128.
    pub block_size: u64,
}

/// Why there can be no such region, or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// Out of range.
    #[error("a block of {0} bytes is not a power of two from 4096 on")]
    BlockSize(u64),
    /// Out of line.
    #[error("the region of {size:#x} bytes at {address:#x} does not consist of blocks of {block_size:#x} bytes")]
    Region {
        /// Its address.
        address: u64,
        /// Its size.
        size: u64,
        /// Its block size.
        block_size: u64,
    },
    /// The host asked for what cannot be.
    #[error("{requested} bytes are not a number of blocks of {block_size} bytes up to {size} bytes")]
    Requested {
        /// What was asked for.
        requested: u64,
        /// The block size.
        block_size: u64,
        /// The region's size.
        size: u64,
    },
}

/// What of the device outlives its process.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    config: MemConfig,
    requested: u64,
    /// Plugged blocks: first, and first not, ascending.
    plugged: Vec<(u64, u64)>,
}

/// What front, worker and handle share.
#[derive(Debug)]
struct Shared {
    // The worker changes blocks, the handle the requested size, and vCPU threads read both.
    region: Mutex<Region>,
    // Set once, when the device gets its slot; read by whoever changes the requested size.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    /// A panic ends the process, so that a poisoned lock is never seen.
    fn region(&self) -> MutexGuard<'_, Region> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's handle of a region.
#[derive(Debug, Clone)]
pub struct MemHandle(Arc<Shared>);

impl MemHandle {
    /// Asks the guest to have so many bytes plugged. Growing is up to the guest's driver; shrinking also to whether the guest
    /// can free whole blocks.
    ///
    /// # Errors
    /// It is no number of blocks, or more than there are.
    pub fn request(&self, bytes: u64) -> Result<(), MemError> {
        let changed = {
            let mut region = self.0.region();
            let MemConfig { size, block_size, .. } = region.config;
            if !bytes.is_multiple_of(block_size) || bytes > size {
                return Err(MemError::Requested { requested: bytes, block_size, size });
            }
            std::mem::replace(&mut region.requested, bytes) != bytes
        };
        if changed && let Some(interrupt) = &*self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt.config();
        }
        Ok(())
    }

    /// Bytes that the host wants to be plugged.
    #[must_use]
    pub fn requested_bytes(&self) -> u64 {
        self.0.region().requested
    }

    /// Bytes that are plugged.
    #[must_use]
    pub fn plugged_bytes(&self) -> u64 {
        self.0.region().plugged()
    }

    /// The region.
    #[must_use]
    pub fn config(&self) -> MemConfig {
        self.0.region().config
    }
}

/// The front of the device.
#[derive(Debug)]
pub struct Mem {
    shared: Arc<Shared>,
}

impl Mem {
    /// A region of which nothing is plugged.
    ///
    /// # Errors
    /// Its numbers do not go together.
    pub fn new(config: MemConfig) -> Result<Self, MemError> {
        let region = Region::new(config)?;
        Ok(Self { shared: Arc::new(Shared { region: Mutex::new(region), interrupt: Mutex::new(None) }) })
    }

    /// The host's handle.
    #[must_use]
    pub fn handle(&self) -> MemHandle {
        MemHandle(Arc::clone(&self.shared))
    }
}

impl ConfigSpace for Shared {
    fn bytes(&self) -> Vec<u8> {
        let region = self.region();
        let MemConfig { address, size, block_size } = region.config;
        // The node (not used), then: address, size, usable size, plugged size, requested size.
        let numbers = [block_size, 0, address, size, size, region.plugged(), region.requested];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Mem
    }

    fn features(&self) -> u64 {
        F_RING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::clone(&self.shared) as Arc<dyn ConfigSpace>
    }

    fn attached(&mut self, interrupt: Arc<dyn Interrupt>) {
        *self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(MemWorker {
            shared: Arc::clone(&self.shared),
            queue: activation.take_queue(0)?,
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: activation.counters,
        }))
    }

    fn save(&self) -> serde_json::Value {
        let region = self.shared.region();
        serde_json::json!(Saved {
            version: VERSION,
            config: region.config,
            requested: region.requested,
            plugged: region.blocks.runs().into_iter().map(|run| (run.start, run.end)).collect(),
        })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let saved = Saved::deserialize(state).map_err(|error| format!("this is no state of virtio-mem: {error}"))?;
        if saved.version != VERSION {
            return Err(format!("the state of virtio-mem has version {}, not {VERSION}", saved.version));
        }
        let mut region = self.shared.region();
        let MemConfig { size, block_size, .. } = region.config;
        if saved.config != region.config {
            return Err(format!("the state is of the region {:?}, not of {:?}", saved.config, region.config));
        }
        if saved.requested % block_size != 0 || saved.requested > size {
            return Err(format!("{} requested bytes are not in the region's blocks", saved.requested));
        }
        let count = size / block_size;
        let mut blocks = Blocks::new(count);
        let mut before = 0;
        for (first, end) in saved.plugged {
            if first < before || first >= end || end > count {
                return Err(format!("blocks {first} to {end} cannot be plugged in a region of {count}"));
            }
            blocks.set(first..end, true);
            before = end;
        }
        region.blocks = blocks;
        region.requested = saved.requested;
        Ok(())
    }
}

/// The half of the device that serves its queue.
#[derive(Debug)]
struct MemWorker {
    shared: Arc<Shared>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    queue: LiveQueue,
}

impl Worker for MemWorker {
    fn handle(&mut self, _event: Event) -> Result<(), DeviceError> {
        let (memory, counters) = (&*self.memory, &*self.counters);
        self.queue.serve(memory, &*self.interrupt, |chain| {
            counters.request();
            let mut region = self.shared.region();
            let before = region.plugged();
            let (written, in_order) = request::serve(&mut region, memory, chain);
            let changed = region.plugged() != before;
            drop(region);
            if changed {
                // Before the driver hears that it was done.
                self.interrupt.config_by_driver();
            }
            if !in_order {
                counters.malformed();
            }
            Ok(Some(written))
        })
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        vec![self.queue]
    }
}
