//! What KVM is handed that the compiler cannot check: descriptors and addresses.
#![expect(unsafe_code, reason = "KVM takes the descriptor as a number, and memory by its address")]

use std::ops::Range;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};

/// Takes over an open /dev/kvm. Another file fails at the first call.
pub(super) fn open(fd: OwnedFd) -> Kvm {
    // SAFETY: The descriptor is open and owned, and its ownership goes to the new value.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// What the guest may do with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and execute; its writes exit.
    Read,
    /// Everything.
    Write,
}

/// Maps memory of this process at the guest-physical `range`. `address` is where `memory::Memory` or
/// `memory::registers::RegisterPages` has that range; the caller keeps that memory for longer than `vm`.
pub(super) fn map(
    vm: &VmFd,
    slot: u32,
    range: &Range<u64>,
    address: u64,
    access: Access,
) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: if access == Access::Read { KVM_MEM_READONLY } else { 0 },
        guest_phys_addr: range.start,
        memory_size: range.end - range.start,
        userspace_addr: address,
    };
    // SAFETY: The range is memory that was reserved for this guest and nothing else, all accesses to it elsewhere are
    // volatile, and `vm::Vm` drops it after `vm`.
    unsafe { vm.set_user_memory_region(region) }
}
