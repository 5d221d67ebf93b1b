//! The guest's memory in the type that the file server takes.
#![expect(unsafe_code, reason = "a second description of the same mapping has no safe constructor")]

use std::fmt;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::memory::GuestMemory;

/// Memory as `virtiofsd` has it: with a bitmap of dirty pages, which stays empty here.
pub(super) type ServerMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// Why there is no such view.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    /// A region is not usable.
    #[error("cannot describe the region of guest memory at {0:#x}")]
    Region(u64, #[source] MmapRegionError),
    /// A region ends beyond the address space.
    #[error("the region of guest memory at {0:#x} ends beyond the address space")]
    End(u64),
    /// The regions do not fit together.
    #[error("cannot put the regions of guest memory together")]
    Collection(#[source] vm_memory::GuestRegionCollectionError),
}

/// Another description of the guest's memory, which keeps it mapped.
pub(super) struct MemoryView {
    view: ServerMemory,
    /// The owner of the mappings.
    memory: GuestMemory,
}

impl MemoryView {
    /// Describes `memory` anew.
    ///
    /// # Errors
    /// The library refuses a region.
    pub(super) fn new(memory: GuestMemory) -> Result<Self, ViewError> {
        let mut regions = Vec::new();
        for region in memory.iter() {
            let start = region.start_addr();
            let (at, size, protection, flags) = (region.as_ptr(), region.size(), region.prot(), region.flags());
            // SAFETY: the range is so mapped in this process, by what `memory` holds and never changes; the view is only lent,
            // lives no longer than `memory`, which it holds, and does not unmap what it did not map. Like all accesses to
            // guest memory, those through it are volatile.
            let mapping = unsafe { MmapRegion::build_raw(at, size, protection, flags) };
            let mapping = mapping.map_err(|error| ViewError::Region(start.0, error))?;
            regions.push(GuestRegionMmap::new(mapping, start).ok_or(ViewError::End(start.0))?);
        }
        let view = GuestMemoryMmap::from_regions(regions).map_err(ViewError::Collection)?;
        Ok(Self { view, memory })
    }

    /// For the server.
    pub(super) fn server(&self) -> &ServerMemory {
        &self.view
    }

    /// For queues.
    pub(super) fn guest(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

impl fmt::Debug for MemoryView {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MemoryView").finish_non_exhaustive()
    }
}
