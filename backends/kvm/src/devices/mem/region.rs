//! The region of memory, and what may be done to it.
//!
//! ```text
//!                plug (while plugged < requested)
//!   unplugged ──────────────────────────────────▶ plugged
//!             ◀──────────────────────────────────
//!                unplug, unplug all: the host has the memory back
//! ```

use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::blocks::{BlockState, Blocks};
use super::{MemConfig, MemError};
use crate::devices::discard::{PAGE, discard};

/// A request in order of form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug { address: u64, blocks: u16 },
    Unplug { address: u64, blocks: u16 },
    UnplugAll,
    State { address: u64, blocks: u16 },
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: u16,
    /// Of the blocks that were asked for; otherwise 0.
    pub(super) state: u16,
}

impl Answer {
    /// Done.
    pub(super) const ACK: Self = Self { kind: 0, state: 0 };
    /// More than the host wants.
    pub(super) const NACK: Self = Self { kind: 1, state: 0 };
    /// Not now.
    pub(super) const BUSY: Self = Self { kind: 2, state: 0 };
    /// It makes no sense.
    pub(super) const ERROR: Self = Self { kind: 3, state: 0 };
}

/// The region.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) config: MemConfig,
    /// Bytes that the host wants to be plugged.
    pub(super) requested: u64,
    pub(super) blocks: Blocks,
}

impl Region {
    pub(super) fn new(config: MemConfig) -> Result<Self, MemError> {
        let MemConfig { address, size, block_size, .. } = config;
        if !block_size.is_power_of_two() || block_size < PAGE {
            return Err(MemError::BlockSize(block_size));
        }
        let end = address.checked_add(size);
        if size == 0 || end.is_none() || address % block_size != 0 || size % block_size != 0 {
            return Err(MemError::Region { address, size, block_size });
        }
        Ok(Self { config, requested: 0, blocks: Blocks::new(size / block_size) })
    }

    /// Bytes that are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.blocks.plugged() * self.config.block_size
    }

    /// The blocks that a request names; `None` when they are not blocks of the region.
    fn range(&self, address: u64, blocks: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.config.address)?;
        let first = offset / self.config.block_size;
        let end = first.checked_add(blocks.into())?;
        let fits = end <= self.config.size / self.config.block_size;
        (blocks > 0 && offset % self.config.block_size == 0 && fits).then_some(first..end)
    }

    /// Does what a request says.
    pub(super) fn serve(&mut self, memory: &GuestMemoryMmap, request: Request) -> Answer {
        match request {
            Request::Plug { address, blocks } => self.plug(address, blocks),
            Request::Unplug { address, blocks } => match self.range(address, blocks) {
                Some(range) if self.blocks.state(range.clone()) == BlockState::Plugged => self.unplug(memory, range),
                _ => Answer::ERROR,
            },
            Request::UnplugAll => {
                let runs = self.blocks.runs();
                runs.into_iter()
                    .map(|run| self.unplug(memory, run))
                    .find(|answer| *answer != Answer::ACK)
                    .unwrap_or(Answer::ACK)
            }
            Request::State { address, blocks } => self.range(address, blocks).map_or(Answer::ERROR, |range| {
                let state = match self.blocks.state(range) {
                    BlockState::Plugged => 0,
                    BlockState::Unplugged => 1,
                    BlockState::Mixed => 2,
                };
                Answer { state, ..Answer::ACK }
            }),
        }
    }

    fn plug(&mut self, address: u64, blocks: u16) -> Answer {
        let Some(range) = self.range(address, blocks) else {
            return Answer::ERROR;
        };
        if self.blocks.state(range.clone()) != BlockState::Unplugged {
            return Answer::ERROR;
        }
        // The region's size bounds the sum.
        if self.plugged() + u64::from(blocks) * self.config.block_size > self.requested {
            return Answer::NACK;
        }
        self.blocks.set(range, true);
        Answer::ACK
    }

    fn unplug(&mut self, memory: &GuestMemoryMmap, range: Range<u64>) -> Answer {
        let block = self.config.block_size;
        let start = GuestAddress(self.config.address + range.start * block);
        if discard(memory, start, (range.end - range.start) * block).is_err() {
            return Answer::BUSY;
        }
        self.blocks.set(range, false);
        Answer::ACK
    }
}
