//! The guest's memory: regions of this process that KVM maps into the guest.

use std::sync::Arc;

/// The guest's memory as devices see it. All that can ever be there (the part that is plugged later included) is mapped
/// from the start, so that it never changes under a device.
pub type GuestMemory = Arc<vm_memory::GuestMemoryMmap>;
