//! The page that tells the guest's ACPI code what is plugged, and what it is to look at.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;
use crate::memory::layout::HOTPLUG_PAGE;

/// What a byte says of what is there: present, enabled, shown, working (the value of ACPI's _STA). 0 says that it is not.
const PRESENT: u8 = 0xf;

/// One byte a slot: [`PRESENT`] or 0.
pub(super) const SLOTS: u64 = 0;
/// One byte: 1 when the guest is to look at the slots.
pub(super) const LOOK_AT_SLOTS: u64 = 0xff;
/// One byte a vCPU: [`PRESENT`] or 0.
pub(super) const VCPUS: u64 = 0x100;
/// One byte a vCPU: [`LOOK`] or [`GIVE_BACK`], which the guest takes away.
pub(super) const REQUESTS: u64 = 0x200;
/// The part of the page that is used.
pub(super) const LEN: u64 = 0x300;

/// The vCPU has come (the value is ACPI's notification).
pub(super) const LOOK: u8 = 1;
/// The vCPU shall go (the value is ACPI's notification).
pub(super) const GIVE_BACK: u8 = 3;

fn status(present: bool) -> u8 {
    if present { PRESENT } else { 0 }
}

/// The host's side of the page.
#[derive(Debug, Clone)]
pub(crate) struct PlugPage(GuestMemory);

impl PlugPage {
    /// The page in `memory`.
    pub(crate) fn new(memory: &GuestMemory) -> Self {
        Self(GuestMemory::clone(memory))
    }

    fn write(&self, offset: u64, value: u8) -> Result<(), GuestMemoryError> {
        self.0.write_obj(value, GuestAddress(HOTPLUG_PAGE + offset))
    }

    /// Shows a slot, or hides it. The guest is to be interrupted when it runs.
    pub(crate) fn show_slot(&self, slot: u8, visible: bool) -> Result<(), GuestMemoryError> {
        self.write(SLOTS + u64::from(slot), status(visible))?;
        self.write(LOOK_AT_SLOTS, 1)
    }

    /// Sets whether a vCPU is plugged, without asking the guest for anything.
    pub(crate) fn set_vcpu(&self, index: u8, plugged: bool) -> Result<(), GuestMemoryError> {
        self.write(VCPUS + u64::from(index), status(plugged))
    }

    /// Asks the guest to look at a vCPU that has come.
    pub(crate) fn offer_vcpu(&self, index: u8) -> Result<(), GuestMemoryError> {
        self.set_vcpu(index, true)?;
        self.write(REQUESTS + u64::from(index), LOOK)
    }

    /// Asks the guest to give a vCPU back.
    pub(crate) fn ask_back_vcpu(&self, index: u8) -> Result<(), GuestMemoryError> {
        self.write(REQUESTS + u64::from(index), GIVE_BACK)
    }
}
