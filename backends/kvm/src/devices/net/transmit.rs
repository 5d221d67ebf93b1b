//! Frames that the guest sends.

use std::os::fd::AsFd;

use super::sys::Pieces;
use super::tap::Tap;
use super::{HEADER, MAX_FRAME, MAX_PIECES};
use crate::memory::GuestMemory;
use crate::virtio::queue::Chain;
use crate::virtio::{Counters, DeviceError, Interrupt, LiveQueue};

/// Frames that are sent before others get their turn.
const MAX_BATCH: usize = 256;

/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;

/// One transmit queue.
#[derive(Debug)]
pub(super) struct Transmit {
    pub(super) queue: LiveQueue,
    pieces: Pieces,
    /// The tap device is full.
    pub(super) blocked: bool,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Sent,
    Wait,
    /// It makes no sense.
    Malformed,
    /// The host does not want it.
    Refused,
}

impl Transmit {
    pub(super) fn new(queue: LiveQueue, memory: GuestMemory) -> Self {
        Self { queue, pieces: Pieces::new(memory), blocked: false }
    }

    /// Sends what is there, within bounds.
    pub(super) fn run(
        &mut self,
        tap: &Tap,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        counters: &Counters,
    ) -> Result<(), DeviceError> {
        let mut sent = false;
        self.blocked = false;
        self.queue.want_kicks(memory, false)?;
        let mut left = MAX_BATCH;
        while left > 0 {
            let Some(chain) = self.queue.pop(memory)? else {
                if self.queue.want_kicks(memory, true)? {
                    self.queue.want_kicks(memory, false)?;
                    left -= 1;
                    continue;
                }
                break;
            };
            left -= 1;
            let head = chain.head_index();
            match self.send(tap, chain) {
                Verdict::Sent => {}
                Verdict::Wait => {
                    self.queue.put_back();
                    self.blocked = true;
                    break;
                }
                Verdict::Malformed => counters.malformed(),
                Verdict::Refused => counters.error(),
            }
            counters.request();
            self.queue.push(memory, head, 0)?;
            sent = true;
        }
        if left == 0 {
            self.queue.kick_again();
        }
        if sent {
            self.queue.notify(memory, interrupt)?;
        }
        Ok(())
    }

    fn send(&mut self, tap: &Tap, chain: Chain<'_>) -> Verdict {
        self.pieces.truncate(0);
        let mut len = 0;
        for descriptor in chain.readable() {
            let size = descriptor.len() as usize;
            if size > HEADER + MAX_FRAME - len || !self.pieces.push(descriptor.addr(), size) {
                return Verdict::Malformed;
            }
            if self.pieces.len() > MAX_PIECES {
                return Verdict::Malformed;
            }
            len += size;
        }
        if len < HEADER + MIN_FRAME {
            return Verdict::Malformed;
        }
        loop {
            let Err(error) = self.pieces.write_to(tap.as_fd()) else {
                return Verdict::Sent;
            };
            return match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) => Verdict::Wait,
                // The header does not fit the frame.
                Some(libc::EINVAL | libc::EFAULT | libc::EMSGSIZE) => Verdict::Malformed,
                // The interface is down, or there is no memory: what a network does with frames, too.
                _ => Verdict::Refused,
            };
        }
    }
}
