//! Commands of the driver (virtio 1.2, section 5.1.6.5): only the number of queue pairs can be set.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU16, Ordering};

use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET};
use vm_memory::GuestMemoryMmap;

use crate::virtio::queue::Chain;
use crate::virtio::{Counters, DeviceError, Interrupt, LiveQueue};

const OK: u8 = 0;
const ERROR: u8 = 1;

/// Serves the control queue.
pub(super) fn run(
    queue: &mut LiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    counters: &Counters,
    active_pairs: &AtomicU16,
    max_pairs: u16,
) -> Result<(), DeviceError> {
    queue.serve(memory, interrupt, |chain| {
        counters.request();
        let answered = command(memory, chain, active_pairs, max_pairs);
        if answered != Some(OK) {
            counters.malformed();
        }
        Ok(Some(u32::from(answered.is_some())))
    })
}

/// Does what a command says; the answer, or `None` when there is no room for it.
fn command(memory: &GuestMemoryMmap, chain: Chain<'_>, active_pairs: &AtomicU16, max_pairs: u16) -> Option<u8> {
    let mut writer = chain.clone().writer(memory).ok()?;
    if writer.available_bytes() == 0 {
        return None;
    }
    let answer = match chain.reader(memory).ok().and_then(|mut reader| {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).ok().map(|()| (bytes, reader.available_bytes()))
    }) {
        Some(([class, command, low, high], 0))
            if u32::from(class) == VIRTIO_NET_CTRL_MQ && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET =>
        {
            let pairs = u16::from_le_bytes([low, high]);
            if (1..=max_pairs).contains(&pairs) {
                active_pairs.store(pairs, Ordering::Relaxed);
                OK
            } else {
                ERROR
            }
        }
        _ => ERROR,
    };
    writer.write_all(&[answer]).ok().map(|()| answer)
}
