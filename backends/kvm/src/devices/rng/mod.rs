//! The entropy device (virtio 1.2, section 5.4): a guest that has just begun has no randomness of its own, and one that
//! goes on from a snapshot has the same as all others.

#[cfg(test)]
mod tests;

use crate::memory::GuestMemory;
use crate::sys;
use crate::virtio::queue::Chain;
use crate::virtio::{
    Activation, ConfigSpace, Counters, DeviceError, DeviceKind, Event, F_RING, Interrupt, LiveQueue, VirtioDevice,
    Worker,
};
use std::sync::Arc;
use vm_memory::{Address, Bytes};

/// One queue, of requests. Drivers have one under way.
const QUEUE_SIZES: [u16; 1] = [16];

/// The most bytes that a request gets. Drivers ask for up to a page and take what comes; a guest that asks for more makes
/// this process do nothing but compute.
const MAX_BYTES: u32 = 4096;

/// How many bytes are asked of the kernel at once: not more, as these are not interrupted by signals.
const PIECE: usize = 256;

/// The front of the device. It has no state.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    /// A device that hands out the host's randomness.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        F_RING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Vec::new())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let queue = activation.take_queue(0)?;
        let Activation { memory, interrupt, counters, .. } = activation;
        Ok(Box::new(RngWorker { queue, memory, interrupt, counters }))
    }
}

#[derive(Debug)]
struct RngWorker {
    queue: LiveQueue,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
}

impl Worker for RngWorker {
    fn handle(&mut self, _event: Event) -> Result<(), DeviceError> {
        let (memory, counters) = (&*self.memory, &*self.counters);
        self.queue.serve(memory, &*self.interrupt, |chain| fill(chain, counters).map(Some))
    }

    fn stop(self: Box<Self>) -> Vec<LiveQueue> {
        vec![self.queue]
    }
}

/// Fills a request's writable buffers, up to [`MAX_BYTES`]. Returns how many bytes that were.
fn fill(chain: Chain<'_>, counters: &Counters) -> Result<u32, DeviceError> {
    counters.request();
    let memory = chain.memory();
    let mut written: u32 = 0;
    for buffer in chain.clone() {
        if !buffer.is_write_only() {
            // The driver has nothing to say to this device.
            counters.malformed();
            return Ok(written);
        }
        let mut address = buffer.addr();
        let mut left = buffer.len().min(MAX_BYTES - written);
        while left > 0 {
            let mut bytes = [0; PIECE];
            let (piece, _) = bytes.split_at_mut(PIECE.min(left as usize));
            sys::fill_random(piece).map_err(|source| DeviceError::Host { what: "get random bytes", source })?;
            let length = piece.len() as u32;
            let (Ok(()), Some(next)) = (memory.write_slice(piece, address), address.checked_add(length.into())) else {
                counters.malformed();
                return Ok(written);
            };
            address = next;
            written += length;
            left -= length;
        }
    }
    if written == 0 {
        counters.malformed();
    }
    Ok(written)
}
