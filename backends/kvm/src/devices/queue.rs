//! What more than one device asks of a queue beside [`LiveQueue`]'s own.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::{DeviceError, Interrupt, LiveQueue};

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

/// Gives several requests back at once: the guest sees all of them or none. Whoever calls it tells the guest by
/// [`notify_since`].
///
/// # Errors
/// The used ring cannot be written.
pub(super) fn push_all(
    queue: &mut LiveQueue,
    memory: &GuestMemoryMmap,
    requests: &[(u16, u32)],
) -> Result<(), DeviceError> {
    let Some(((head, written), before)) = requests.split_last() else {
        return Ok(());
    };
    let size = queue.queue.size();
    let mut next = queue.queue.next_used();
    for (head, written) in before {
        let mut entry = [0; USED_ENTRY];
        entry[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        let place = queue.queue.used_ring() + 4 + USED_ENTRY as u64 * u64::from(next % size);
        memory.write_slice(&entry, GuestAddress(place)).map_err(|error| queue.broken(error.to_string()))?;
        next = next.wrapping_add(1);
    }
    // The last one makes the ring's index public, with a release barrier.
    queue.queue.set_next_used(next);
    queue.push(memory, *head, *written)
}

/// Bytes of an entry of the used ring.
const USED_ENTRY: usize = 8;

/// Interrupts the guest if it wants to know of the requests that were given back since the used index was `before`.
///
/// # Errors
/// The rings cannot be read.
pub(super) fn notify_since(
    queue: &mut LiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    before: u16,
) -> Result<(), DeviceError> {
    let now = queue.queue.next_used();
    if now == before {
        return Ok(());
    }
    if queue.queue.event_idx_enabled() {
        // The index that was written must be visible before the guest's wish is read.
        fence(Ordering::SeqCst);
        let place = queue.queue.avail_ring() + 4 + 2 * u64::from(queue.queue.size());
        let wish = memory.load::<u16>(GuestAddress(place), Ordering::Relaxed);
        let wish = u16::from_le(wish.map_err(|error| queue.broken(error.to_string()))?);
        if now.wrapping_sub(wish).wrapping_sub(1) >= now.wrapping_sub(before) {
            return Ok(());
        }
    }
    interrupt.queue(queue.index);
    Ok(())
}
