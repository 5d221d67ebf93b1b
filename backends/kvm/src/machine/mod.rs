//! The machine: memory, vCPUs, interrupt controllers, console, and slots for virtio devices.
//!
//! ```text
//!         new                 start              pause
//!   ───────────▶ Made ──────────────▶ Running ◀────────▶ Paused ──▶ save
//!   restore ───▶ (Made, slots filled) ─ start ─▶ Paused   resume
//!                         Running, Paused ── an event, or drop ──▶ ended
//! ```
//! A machine is used by one thread; its vCPUs have one each. What happens by itself comes out of [`Machine::events`].

#![allow(dead_code, reason = "the assembly that uses them follows")]

mod config;
mod counters;
mod error;
mod event;
mod state;

pub use config::{Console, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY, MachineConfig, RestoreConfig, Size, VcpuHook};
pub use counters::Exits;
pub use error::MachineError;
pub use event::{Events, MachineEvent, ResetCause};
pub use state::{ChipState, MachineState, STATE_VERSION, SerialRegisters, SlotState, VcpuState};

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;

use crate::memory::GuestMemory;
use crate::virtio::VirtioDevice;

/// How many virtio devices a machine can have.
pub const SLOTS: usize = 32;

/// What the kernel's command line should begin with on this machine.
pub const COMMAND_LINE: &str = "console=ttyS0";

/// A place for a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SlotIndex(pub u8);

/// A virtual machine.
#[derive(Debug)]
pub struct Machine {
    memory: GuestMemory,
    hotplug_range: Range<u64>,
    events: Events,
}

/// What the assembly does not do yet.
const MISSING: MachineError = MachineError::Capability("assembly");

impl Machine {
    /// Makes a machine on `kvm`, an open /dev/kvm: reserves its memory, loads kernel and initrd, makes its vCPUs. It runs
    /// after [`Machine::start`].
    ///
    /// # Errors
    /// The configuration makes no sense, the kernel is none, or the host lacks something.
    pub fn new(kvm: OwnedFd, config: MachineConfig) -> Result<Self, MachineError> {
        drop((kvm, config));
        Err(MISSING)
    }

    /// Makes a machine that goes on from a saved state. The devices are then attached by [`Machine::attach_at`] in the slots
    /// of the state, and take on what was saved of them; [`Machine::start`] leaves it paused.
    ///
    /// # Errors
    /// As [`Machine::new`], or the state does not fit.
    pub fn restore(kvm: OwnedFd, config: RestoreConfig) -> Result<Self, MachineError> {
        drop((kvm, config));
        Err(MISSING)
    }

    /// Adds a device in a free slot: before the start, and while the machine runs or is paused (the guest is told).
    ///
    /// # Errors
    /// No slot is free, or the host lacks something.
    pub fn attach(&mut self, device: Box<dyn VirtioDevice>) -> Result<SlotIndex, MachineError> {
        drop(device);
        Err(MISSING)
    }

    /// [`Machine::attach`] in a given slot, which must be free.
    ///
    /// # Errors
    /// The slot is taken, or does not exist, or the host lacks something.
    pub fn attach_at(&mut self, slot: SlotIndex, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        drop((slot, device));
        Err(MISSING)
    }

    /// Takes a device away: it is stopped and gone when this returns, and reads as failed in the guest. The guest's driver
    /// should have let go of it before (by the agent); Linux cannot be asked by ACPI to do so for such a device.
    ///
    /// # Errors
    /// The slot is empty.
    pub fn detach(&mut self, slot: SlotIndex) -> Result<(), MachineError> {
        Err(MachineError::EmptySlot(slot.0))
    }

    /// Lets the vCPUs run (or wait, for a restored machine).
    ///
    /// # Errors
    /// It was started before, a slot of the restored state is empty, or the host has no thread to give.
    pub fn start(&mut self) -> Result<(), MachineError> {
        Err(MISSING)
    }

    /// Stops all vCPUs and the devices' workers; no effect when paused already. When it returns, nothing writes the
    /// guest's memory.
    ///
    /// # Errors
    /// A thread does not stop in time.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        Err(MISSING)
    }

    /// Goes on; no effect when running already.
    ///
    /// # Errors
    /// A device cannot be activated again.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        Err(MISSING)
    }

    /// Asks the guest to plug or unplug vCPUs until `count` are there. Answers with the number offered to it now; the guest
    /// takes its time, and may not give vCPUs back ([`Machine::vcpus`] tells).
    ///
    /// # Errors
    /// `count` is 0 or beyond the maximum, or the machine is not running.
    pub fn resize_vcpus(&mut self, count: u8) -> Result<u8, MachineError> {
        let _ = count;
        Err(MISSING)
    }

    /// How many vCPUs there are now: those that the guest has not ejected.
    pub fn vcpus(&self) -> u8 {
        0
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The guest-physical addresses that are reserved for a virtio-mem device; empty if none are. Starts and ends at
    /// multiples of 128 MiB (the least that Linux adds), is part of [`Machine::memory`], and is not told of to the guest.
    pub fn hotplug_range(&self) -> Range<u64> {
        self.hotplug_range.clone()
    }

    /// What happened by itself, and a descriptor that tells of it. A clone is of the same queue.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// How often the guest has left to user space.
    pub fn exits(&self) -> Exits {
        Exits::default()
    }

    /// The state of a paused machine. Its memory is written to `memory`, an empty file, at the offsets that
    /// [`RestoreConfig::memory`] is read from; pages that hold only zeros are left out as holes.
    ///
    /// # Errors
    /// The machine is not paused, or the host fails.
    pub fn save(&mut self, memory: &File) -> Result<MachineState, MachineError> {
        let _ = memory;
        Err(MISSING)
    }
}
