//! The built-in virtual machine monitor: KVM, virtio-mmio devices, and nothing else.
//!
//! ```text
//!   supervisor                             │ stockade vmm (jailed, one per machine)
//!   backend: the Hypervisor trait ─ control ─▶ vmm ─▶ machine ─▶ vm, vcpu, loader, acpi
//!                                          │              └──▶ bus ─▶ virtio (mmio) ─▶ devices
//! ```
//! - [`backend`]: the supervisor's side, which starts the process and ends it;
//! - [`machine`]: what a machine is asked for and what it tells;
//! - [`virtio`]: what a device is, its transport, and the threads that serve it;
//! - [`devices`]: the devices, a folder each;
//! - [`bus`]: who answers at which guest-physical address;
//! - [`memory`]: the guest's memory;
//! - [`control`]: how the supervisor talks to the process;
//! - [`jail`]: what the process gives up before the guest runs;
//! - [`vmm`]: the process, `stockade vmm`.

#![allow(clippy::single_range_in_vec_init, reason = "memory is a list of ranges, and may be one range")]

mod acpi;
pub mod backend;
pub mod bus;
pub mod control;
pub mod devices;
pub mod jail;
pub mod loader;
pub mod machine;
pub mod memory;
mod power;
mod serial;
mod sys;
mod vcpu;
pub mod virtio;
mod vm;
pub mod vmm;
