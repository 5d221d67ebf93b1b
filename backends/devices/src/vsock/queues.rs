//! Packets between the [`Muxer`] and virtqueues.
//!
//! A chain may hold header and payload in one descriptor or in many: drivers have changed that over time, and the
//! specification lets them.

use std::io::{Read, Write};
use std::ops::Deref;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::GuestMemory;

use super::packet::{HEADER_LEN, Header};
use super::{MAX_PAYLOAD, Muxer};

/// Most chains taken from a queue before the caller gets to look at other things.
pub const MAX_BATCH: usize = 256;

/// The ring itself could not be used; the guest has broken its queue.
#[derive(Debug, thiserror::Error)]
#[error("cannot return a buffer to the {queue} virtqueue")]
pub struct QueueError {
    queue: &'static str,
    #[source]
    source: virtio_queue::Error,
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// Chains were used: the guest may want a notification.
    pub used: bool,
    /// The batch ended for its size, so that the next call finds more. Back pressure and empty queues are not more:
    /// the guest's next notification goes on from there.
    pub more: bool,
}

/// Hands packets that the guest transmits to the muxer, as long as it takes them.
///
/// # Errors
/// The used ring is not in guest memory.
pub fn process_tx<Q, M>(muxer: &mut Muxer, queue: &mut Q, mem: M) -> Result<Batch, QueueError>
where
    Q: QueueT,
    M: Deref + Clone,
    M::Target: GuestMemory + Sized,
{
    let mut batch = Batch::default();
    for _ in 0..MAX_BATCH {
        if !muxer.can_handle() {
            return Ok(batch);
        }
        let Some(chain) = queue.pop_descriptor_chain(mem.clone()) else {
            return Ok(batch);
        };
        let head = chain.head_index();
        let mut scratch = muxer.take_scratch();
        match read_packet(&mem, chain, &mut scratch) {
            Some((header, len)) => muxer.handle(&header, &scratch[..len]),
            None => muxer.count_malformed(),
        }
        muxer.return_scratch(scratch);
        queue.add_used(&*mem, head, 0).map_err(|source| QueueError { queue: "transmit", source })?;
        batch.used = true;
    }
    batch.more = true;
    Ok(batch)
}

/// Fills buffers of the guest with packets, as long as there are both.
///
/// # Errors
/// The used ring is not in guest memory.
pub fn process_rx<Q, M>(muxer: &mut Muxer, queue: &mut Q, mem: M) -> Result<Batch, QueueError>
where
    Q: QueueT + QueueOwnedT,
    M: Deref + Clone,
    M::Target: GuestMemory + Sized,
{
    let mut batch = Batch::default();
    for _ in 0..MAX_BATCH {
        if !muxer.has_packets() {
            return Ok(batch);
        }
        let Some(chain) = queue.pop_descriptor_chain(mem.clone()) else {
            return Ok(batch);
        };
        let head = chain.head_index();
        let len = match Writer::new(&*mem, chain) {
            Ok(mut writer) if writer.available_bytes() > HEADER_LEN => {
                let room = (writer.available_bytes() - HEADER_LEN).min(MAX_PAYLOAD);
                let mut scratch = muxer.take_scratch();
                let header = muxer.next_packet(&mut scratch[..room]);
                let len = header.map(|header| write_packet(&mut writer, &header, &scratch));
                muxer.return_scratch(scratch);
                let Some(len) = len else {
                    queue.go_to_previous_position();
                    return Ok(batch);
                };
                len
            }
            _ => {
                muxer.count_malformed();
                0
            }
        };
        queue.add_used(&*mem, head, len).map_err(|source| QueueError { queue: "receive", source })?;
        batch.used = true;
    }
    batch.more = true;
    Ok(batch)
}

/// Tells the guest that the device has changed under it (it was restored from a snapshot), so that it ends all
/// connections. Returns whether the event queue had a buffer for it.
///
/// # Errors
/// The used ring is not in guest memory.
pub fn write_transport_reset<Q, M>(queue: &mut Q, mem: M) -> Result<bool, QueueError>
where
    Q: QueueT,
    M: Deref + Clone,
    M::Target: GuestMemory + Sized,
{
    const TRANSPORT_RESET: [u8; 4] = [0; 4];
    let Some(chain) = queue.pop_descriptor_chain(mem.clone()) else {
        return Ok(false);
    };
    let head = chain.head_index();
    let written = Writer::new(&*mem, chain).is_ok_and(|mut writer| writer.write_all(&TRANSPORT_RESET).is_ok());
    queue.add_used(&*mem, head, if written { 4 } else { 0 }).map_err(|source| QueueError { queue: "event", source })?;
    Ok(written)
}

/// The header of a chain, and how much payload is in the front of `scratch`: all, or nothing when the chain does not
/// hold what the header says. `None` when there is no header.
fn read_packet<M, T>(mem: &M, chain: DescriptorChain<T>, scratch: &mut [u8]) -> Option<(Header, usize)>
where
    M: Deref,
    M::Target: GuestMemory + Sized,
    T: Deref,
    T::Target: GuestMemory + Sized,
{
    let mut reader = Reader::new(&**mem, chain).ok()?;
    let mut bytes = [0; HEADER_LEN];
    reader.read_exact(&mut bytes).ok()?;
    let header = Header::decode(&bytes);
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    let whole = scratch.get_mut(..len).is_some_and(|payload| reader.read_exact(payload).is_ok());
    Some((header, if whole { len } else { 0 }))
}

/// Writes a packet and returns its length; the caller has seen that there is room.
fn write_packet<B: vm_memory::bitmap::BitmapSlice>(writer: &mut Writer<'_, B>, header: &Header, payload: &[u8]) -> u32 {
    let len = usize::try_from(header.len).map_or(0, |len| len.min(payload.len()));
    let written = writer.write_all(&header.encode()).and_then(|()| writer.write_all(&payload[..len]));
    match written {
        Ok(()) => u32::try_from(HEADER_LEN + len).unwrap_or(u32::MAX),
        Err(_) => 0,
    }
}
