//! The machine: memory, vCPUs, interrupt controllers, console, and slots for virtio devices.
//!
//! ```text
//!         new                 start              pause
//!   ───────────▶ Made ──────────────▶ Running ◀────────▶ Paused ──▶ save
//!   restore ───▶ (Made, slots filled) ─ start ─▶ Paused   resume
//!                         Running, Paused ── an event, or drop ──▶ ended
//! ```
//! A machine is used by one thread; its vCPUs have one each. What happens by itself comes out of [`Machine::events`].

mod assembly;
mod config;
mod counters;
mod cpus;
mod error;
mod event;
mod slots;
mod state;

pub use config::{Console, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY, MachineConfig, RestoreConfig, Size, VcpuHook};
pub use counters::Exits;
pub(crate) use counters::{ExitCounters, ExitKind};
pub use error::MachineError;
pub use event::{Events, MachineEvent, ResetCause};
pub use slots::SlotCounts;
pub use state::{ChipState, MachineState, STATE_VERSION, SerialRegisters, SlotState, VcpuState};

use assembly::Parts;
use cpus::Cpus;
use slots::Slots;

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;

use crate::memory::GuestMemory;
use crate::virtio::VirtioDevice;

/// How many virtio devices a machine can have.
pub const SLOTS: usize = 32;

/// What the kernel's command line should begin with on this machine; each option saves the guest from looking for what is
/// not there, or from work that it need not do at each boot. Reasons and figures are in docs/kvm.md.
pub const COMMAND_LINE: &str = "console=ttyS0 8250.nr_uarts=1 pci=off reboot=k tsc=reliable cryptomgr.notests \
                                initcall_blacklist=ftrace_check_for_weak_functions,trace_eval_init";

/// A place for a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SlotIndex(pub u8);

/// A virtual machine.
#[derive(Debug)]
pub struct Machine {
    // The vCPUs' threads end first, then those of the devices, then the rest goes.
    cpus: Cpus,
    slots: Slots,
    parts: Parts,
    phase: Phase,
}

/// What the machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Made,
    Restored,
    Running,
    Paused,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Made | Self::Restored => "not started",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }

    fn refuse(self, operation: &'static str) -> MachineError {
        MachineError::State { operation, state: self.name() }
    }
}

impl Machine {
    fn of(assembled: assembly::Assembled, phase: Phase) -> Self {
        let assembly::Assembled { vcpus, slots, parts } = assembled;
        Self { cpus: Cpus::new(vcpus, &parts), slots, parts, phase }
    }

    /// Makes a machine on `kvm`, an open /dev/kvm: reserves its memory, loads kernel and initrd, makes its vCPUs. It runs
    /// after [`Machine::start`].
    ///
    /// # Errors
    /// The configuration makes no sense, the kernel is none, or the host lacks something.
    pub fn new(kvm: OwnedFd, config: MachineConfig) -> Result<Self, MachineError> {
        Ok(Self::of(assembly::boot(kvm, config)?, Phase::Made))
    }

    /// Makes a machine that goes on from a saved state. The devices are then attached by [`Machine::attach_at`] in the slots
    /// of the state, and take on what was saved of them; [`Machine::start`] leaves it paused.
    ///
    /// # Errors
    /// As [`Machine::new`], or the state does not fit.
    pub fn restore(kvm: OwnedFd, config: RestoreConfig) -> Result<Self, MachineError> {
        Ok(Self::of(assembly::restore(kvm, config)?, Phase::Restored))
    }

    /// Adds a device in a free slot: before the start, and while the machine runs or is paused (the guest is told).
    ///
    /// # Errors
    /// No slot is free, or the host lacks something.
    pub fn attach(&mut self, device: Box<dyn VirtioDevice>) -> Result<SlotIndex, MachineError> {
        let slot = self.slots.free()?;
        self.attach_at(slot, device)?;
        Ok(slot)
    }

    /// [`Machine::attach`] in a given slot, which must be free.
    ///
    /// # Errors
    /// The slot is taken, or does not exist, or the host lacks something.
    pub fn attach_at(&mut self, slot: SlotIndex, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        self.slots.attach(slot, device, &self.parts)?;
        self.tell_guest()
    }

    /// Takes a device away: it is stopped and gone when this returns, and reads as failed in the guest. The guest's driver
    /// should have let go of it before (by the agent): Linux cannot be asked by ACPI to do so for such a device, and the
    /// slot is used again only if it has.
    ///
    /// # Errors
    /// The slot is empty.
    pub fn detach(&mut self, slot: SlotIndex) -> Result<(), MachineError> {
        self.slots.detach(slot, self.has_started(), &self.parts)?;
        self.tell_guest()
    }

    fn has_started(&self) -> bool {
        self.phase != Phase::Made
    }

    /// Interrupts the guest, if there is one, to look at what is plugged.
    fn tell_guest(&self) -> Result<(), MachineError> {
        match self.phase {
            // A guest that boots sees it anyway, and one that goes on has seen it before.
            Phase::Made | Phase::Restored => Ok(()),
            Phase::Running | Phase::Paused => self.parts.tell_guest(),
        }
    }

    /// Lets the vCPUs run (or wait, for a restored machine).
    ///
    /// # Errors
    /// It was started before, a slot of the restored state is empty, the tables that describe the machine do not fit, or the
    /// host has no thread to give.
    pub fn start(&mut self) -> Result<(), MachineError> {
        let resting = match self.phase {
            Phase::Made => false,
            Phase::Restored => true,
            phase => return Err(phase.refuse("start")),
        };
        if let Some(slot) = self.slots.missing() {
            return Err(MachineError::EmptySlot(slot));
        }
        if !resting {
            self.parts.describe(self.slots.used())?;
        }
        self.cpus.start(&self.parts)?;
        self.phase = Phase::Paused;
        if resting { Ok(()) } else { self.resume() }
    }

    /// Stops all vCPUs and the devices' workers; no effect when paused already. When it returns, nothing writes the
    /// guest's memory.
    ///
    /// # Errors
    /// A thread does not stop in time.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        match self.phase {
            Phase::Paused => return Ok(()),
            Phase::Running => {}
            phase => return Err(phase.refuse("pause")),
        }
        self.cpus.pause()?;
        self.slots.pause();
        self.phase = Phase::Paused;
        Ok(())
    }

    /// Goes on; no effect when running already.
    ///
    /// # Errors
    /// A device cannot be activated again.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        match self.phase {
            Phase::Running => return Ok(()),
            Phase::Paused => {}
            phase => return Err(phase.refuse("resume")),
        }
        self.slots.resume();
        self.cpus.resume();
        self.phase = Phase::Running;
        Ok(())
    }

    /// Asks the guest to plug or unplug vCPUs until `count` are there. Answers with the number offered to it now; the guest
    /// takes its time, and may not give vCPUs back ([`Machine::vcpus`] tells).
    ///
    /// # Errors
    /// `count` is 0 or beyond the maximum, or the machine is not running.
    pub fn resize_vcpus(&mut self, count: u8) -> Result<u8, MachineError> {
        if self.phase != Phase::Running {
            return Err(self.phase.refuse("resize"));
        }
        self.cpus.resize(count, &self.parts)
    }

    /// How many vCPUs there are now: those that the guest has not ejected.
    pub fn vcpus(&self) -> u8 {
        self.cpus.count()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        self.parts.vm.guest_memory()
    }

    /// The guest-physical addresses that are reserved for a virtio-mem device; empty if none are. Starts and ends at
    /// multiples of 128 MiB (the least that Linux adds), is part of [`Machine::memory`], and is not told of to the guest.
    pub fn hotplug_range(&self) -> Range<u64> {
        self.parts.hotplug_range.clone()
    }

    /// What happened by itself, and a descriptor that tells of it. A clone is of the same queue.
    pub fn events(&self) -> Events {
        self.parts.surroundings.events.clone()
    }

    /// How often the guest has left to user space.
    pub fn exits(&self) -> Exits {
        self.parts.surroundings.exits.read()
    }

    /// What each attached device has counted.
    pub fn device_counts(&self) -> Vec<SlotCounts> {
        self.slots.counts()
    }

    /// The state of a paused machine. Its memory is written to `memory`, an empty file, at the offsets that
    /// [`RestoreConfig::memory`] is read from; pages that hold only zeros are left out as holes.
    ///
    /// # Errors
    /// The machine is not paused, or the host fails.
    pub fn save(&mut self, memory: &File) -> Result<MachineState, MachineError> {
        if self.phase != Phase::Paused {
            return Err(self.phase.refuse("save"));
        }
        let state = assembly::save(&self.parts, &self.cpus, &self.slots)?;
        self.parts
            .vm
            .memory()
            .write_to(memory)
            .map_err(|source| MachineError::Host { what: "write the guest's memory to a file", source })?;
        Ok(state)
    }
}
