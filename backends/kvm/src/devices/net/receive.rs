//! Frames for the guest.
//!
//! The guest's buffers are taken out of the queue ahead of the frames, so that each is looked at once, and a frame is read
//! into as many of them as it fills. Those that are left over when the queue is stopped go back into it.
//!
//! **Back pressure.** Nothing is read from the tap device before the guest has given room for the largest frame that it can
//! get (or as much as it ever gave at once). Until then frames wait, or are dropped, where the host's kernel has them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::sys::{Pieces, Scratch};
use super::tap::Tap;
use super::{HEADER, MAX_FRAME, MAX_PIECES};
use crate::devices::queue::{notify_since, push_all};
use crate::memory::GuestMemory;
use crate::virtio::queue::Chain;
use crate::virtio::{Counters, DeviceError, Interrupt, LiveQueue};

/// Frames that are received before others get their turn.
const MAX_BATCH: usize = 256;

/// Most pieces of buffers that are held, and so that a frame is read into; the kernel takes 1024.
const MAX_HELD_PIECES: usize = 3 * MAX_PIECES;

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

/// A buffer of the guest.
#[derive(Debug)]
struct Buffer {
    head: u16,
    pieces: usize,
    len: usize,
    /// Where the two bytes of `num_buffers` are, if it is the first of a frame.
    num_buffers: [GuestAddress; 2],
}

/// What reading from a tap device came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Frame,
    Nothing,
    Gone,
}

/// How the driver wants its frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// A frame may fill several buffers.
    pub(super) mergeable: bool,
    /// Bytes of the largest frame, header included.
    pub(super) largest: usize,
}

/// One receive queue.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) queue: LiveQueue,
    shape: Shape,
    pieces: Pieces,
    buffers: VecDeque<Buffer>,
    /// Bytes in all buffers.
    room: usize,
    /// The most bytes that were ever there at once.
    most: usize,
    scratch: Scratch,
    overflow: Box<[u8]>,
    used: Vec<(u16, u32)>,
}

impl Receive {
    pub(super) fn new(queue: LiveQueue, memory: GuestMemory, shape: Shape) -> Self {
        Self {
            queue,
            shape,
            pieces: Pieces::new(memory),
            buffers: VecDeque::new(),
            room: 0,
            most: 0,
            scratch: Scratch::default(),
            overflow: vec![0; HEADER + MAX_FRAME].into_boxed_slice(),
            used: Vec::new(),
        }
    }

    /// Whether the next frame has a place.
    pub(super) fn has_room(&self) -> bool {
        let needed = if self.shape.mergeable { self.shape.largest.min(self.most) } else { 1 };
        !self.buffers.is_empty() && (self.room >= needed || !self.may_hold_more())
    }

    /// Takes buffers that the guest has made available, as many as are of use. Whether there is room then; when not, the
    /// guest has been asked to tell of more.
    fn refill(&mut self, memory: &GuestMemory, counters: &Counters) -> Result<bool, DeviceError> {
        self.queue.want_kicks(memory, false)?;
        // Each round takes at least one buffer; those are as many as the ring has.
        for _ in 0..=self.queue.queue.size() {
            while self.wants_more() {
                let Some(chain) = self.queue.pop(memory)? else {
                    break;
                };
                let head = chain.head_index();
                if !self.hold(chain) {
                    counters.malformed();
                    self.queue.push(memory, head, 0)?;
                }
            }
            if self.has_room() || !self.queue.want_kicks(memory, true)? {
                break;
            }
        }
        Ok(self.has_room())
    }

    fn wants_more(&self) -> bool {
        let enough = if self.shape.mergeable { self.shape.largest } else { 1 };
        self.room < enough && self.may_hold_more()
    }

    fn may_hold_more(&self) -> bool {
        self.pieces.len() < MAX_HELD_PIECES - MAX_PIECES
    }

    /// Keeps a buffer for a frame; `false` when it cannot be one.
    fn hold(&mut self, chain: Chain<'_>) -> bool {
        let head = chain.head_index();
        let before = self.pieces.len();
        let mut len = 0_usize;
        let mut num_buffers = [GuestAddress(0); 2];
        for descriptor in chain.writable() {
            let size = descriptor.len() as usize;
            for (place, address) in num_buffers.iter_mut().enumerate() {
                let offset = NUM_BUFFERS + place;
                if offset >= len && offset - len < size {
                    // Checked with the piece that it is in.
                    address.0 = descriptor.addr().0.wrapping_add((offset - len) as u64);
                }
            }
            let fits = self.pieces.push(descriptor.addr(), size) && self.pieces.len() - before <= MAX_PIECES;
            if !fits {
                self.pieces.truncate(before);
                return false;
            }
            // A chain has less than 2^32 bytes.
            len += size;
        }
        if len < HEADER {
            self.pieces.truncate(before);
            return false;
        }
        self.buffers.push_back(Buffer { head, pieces: self.pieces.len() - before, len, num_buffers });
        self.room += len;
        self.most = self.most.max(self.room);
        true
    }

    /// The guest has made buffers available.
    pub(super) fn kicked(
        &mut self,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        counters: &Counters,
    ) -> Result<(), DeviceError> {
        let before = self.queue.queue.next_used();
        self.refill(memory, counters)?;
        // Of those that can hold no frame.
        notify_since(&mut self.queue, memory, interrupt, before)
    }

    /// Hands frames of the tap device to the guest, within bounds. Whether the device is still of use.
    pub(super) fn run(
        &mut self,
        tap: &Tap,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        counters: &Counters,
    ) -> Result<bool, DeviceError> {
        let before = self.queue.queue.next_used();
        let mut last = Read::Frame;
        let mut yielded = false;
        for _ in 0..MAX_BATCH {
            if !self.has_room() && !self.refill(memory, counters)? {
                break;
            }
            last = self.receive(tap, memory, counters)?;
            if last == Read::Nothing && !yielded && self.queue.queue.next_used() != before {
                // Where sender and device share a processor, each frame wakes this thread before the next is sent, and each
                // would be an interrupt. Where they do not, and where nobody else wants to run, this is nothing.
                yielded = true;
                std::thread::yield_now();
            } else if last != Read::Frame {
                break;
            }
        }
        if !self.has_room() {
            // Also when the batch ended with the last buffer: the guest is asked to tell of more.
            self.refill(memory, counters)?;
        }
        notify_since(&mut self.queue, memory, interrupt, before)?;
        Ok(last != Read::Gone)
    }

    /// Reads one frame.
    fn receive(&mut self, tap: &Tap, memory: &GuestMemory, counters: &Counters) -> Result<Read, DeviceError> {
        let (pieces, room) = if self.shape.mergeable {
            (self.pieces.len(), self.room)
        } else {
            self.buffers.front().map_or((0, 0), |buffer| (buffer.pieces, buffer.len))
        };
        let len = loop {
            match self.pieces.read_from(tap.as_fd(), pieces, &mut self.overflow, &mut self.scratch) {
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Nothing),
                // Somebody has removed the interface.
                Err(_) => return Ok(Read::Gone),
            }
        };
        counters.request();
        if len < HEADER || len > room {
            // No place for it: it is dropped, as a network card does.
            counters.error();
            return Ok(Read::Frame);
        }
        self.deliver(memory, len)?;
        Ok(Read::Frame)
    }

    /// Gives the guest the buffers that a frame of `len` bytes fills.
    fn deliver(&mut self, memory: &GuestMemory, len: usize) -> Result<(), DeviceError> {
        self.used.clear();
        let mut left = len;
        let mut pieces = 0;
        let mut num_buffers = None;
        while left > 0 {
            let Some(buffer) = self.buffers.pop_front() else {
                break;
            };
            num_buffers.get_or_insert(buffer.num_buffers);
            let filled = left.min(buffer.len);
            self.used.push((buffer.head, u32::try_from(filled).unwrap_or(u32::MAX)));
            left -= filled;
            pieces += buffer.pieces;
            self.room -= buffer.len;
        }
        self.pieces.remove_front(pieces);
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        for (address, byte) in num_buffers.into_iter().flatten().zip(count.to_le_bytes()) {
            memory.write_obj(byte, address).map_err(|error| self.queue.broken(error.to_string()))?;
        }
        push_all(&mut self.queue, memory, &self.used)
    }

    /// The queue, with all buffers back in it that hold no frame.
    pub(super) fn stop(mut self) -> LiveQueue {
        let held = u16::try_from(self.buffers.len()).unwrap_or(u16::MAX);
        let next = self.queue.queue.next_avail().wrapping_sub(held);
        self.queue.queue.set_next_avail(next);
        self.queue
    }
}
