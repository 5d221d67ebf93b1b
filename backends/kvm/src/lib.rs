//! The built-in virtual machine monitor: KVM, virtio-mmio devices, and nothing else.
//!
//! ```text
//!   supervisor                             │ stockade vmm (jailed, one per machine)
//!   backend: the Hypervisor trait ─ control ─▶ vmm ─▶ machine ─▶ vm, vcpu, loader, acpi
//!                                          │              └──▶ bus ─▶ virtio (mmio) ─▶ devices
//! ```
//! - [`machine`]: the assembly, and what a process does with it;
//! - [`virtio`]: what a device is, its transport, and the threads that serve it;
//! - [`devices`]: the devices, a folder each;
//! - [`bus`]: who answers at which guest-physical address;
//! - [`memory`]: the guest's memory.

pub mod bus;
pub mod devices;
pub mod machine;
pub mod memory;
pub mod virtio;
