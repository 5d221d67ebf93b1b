//! What more than one device asks of a queue beside [`LiveQueue`]'s own.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use crate::virtio::{DeviceError, LiveQueue};

/// How many requests the driver has made available that were not taken yet.
///
/// # Errors
/// The available ring cannot be read, or claims more than there are descriptors.
pub(super) fn waiting(queue: &LiveQueue, memory: &GuestMemoryMmap) -> Result<u16, DeviceError> {
    let index = queue.queue.avail_idx(memory, Ordering::Acquire).map_err(|error| queue.broken(error.to_string()))?;
    let waiting = index.0.wrapping_sub(queue.queue.next_avail());
    let size = queue.queue.size();
    if waiting > size {
        return Err(queue.broken(format!("{waiting} requests are available in a ring of {size}")));
    }
    Ok(waiting)
}
