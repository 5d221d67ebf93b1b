//! The places for virtio devices.
//!
//! ```text
//!            attach                 detach, before the start
//!   Free ─────────────▶ Taken ───────────────────────────────▶ Free
//!                       │ │ ▲
//!                       │ │ └──────────────── attach, when none is free ────────────────┐
//!                       │ └─ detach, later, when the driver has let go of the device ─▶ Released
//!                       │ detach, later, when it has not
//!                       ▼
//!                    Retired          (the registers of both say that there is no device)
//! ```
//! Linux keeps the platform device that it once made for a slot, and with it the driver unless that was unbound. While the
//! driver is there the next device in the slot would be taken for the one before, so such a slot is not used again. One
//! whose driver has let go is: but Linux looks at it only when it is told to by its user space, and so those that were never
//! used, which it looks at by itself, come first.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::IoEventAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::assembly::Parts;
use super::event::SlotFailures;
use super::{ExitKind, MachineError, SLOTS, SlotIndex, SlotState};
use crate::bus::SharedDevice;
use crate::memory::layout::{slot_gsi, slot_registers};
use crate::virtio::transport::{
    INTERRUPT_ACKNOWLEDGE_OFFSET, INTERRUPT_USED, InterruptLine, MmioTransport, QUEUE_NOTIFY_OFFSET, TransportState,
};
use crate::virtio::{Counts, DeviceKind, EventLoops, Threads, VirtioDevice};
use crate::vm::{Vm, kvm_error};

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Free,
    Taken(Taken),
    Released(Transport),
    Retired,
}

/// A slot's registers. Once the guest has seen them they stay where they are, so that a driver which is still there, or looks
/// again, sees no device rather than nothing.
type Transport = Arc<Mutex<MmioTransport>>;

/// A device in its slot, and what KVM does for it.
#[derive(Debug)]
struct Taken {
    transport: Transport,
    kicks: Vec<Arc<EventFd>>,
    /// Takes the driver's acknowledgements of used buffers, which nobody reads: KVM does so without an exit. (Those of a
    /// changed configuration are rare.)
    acknowledged: EventFd,
}

impl Taken {
    fn lock(&self) -> MutexGuard<'_, MmioTransport> {
        lock(&self.transport)
    }
}

fn lock(transport: &Transport) -> MutexGuard<'_, MmioTransport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SlotCounts {
    /// Where it is.
    pub slot: SlotIndex,
    /// What it is.
    pub kind: DeviceKind,
    /// What it has counted.
    pub counts: Counts,
}

/// All slots.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    loops: EventLoops,
    /// What was saved of devices that have not been attached yet.
    saved: Vec<SlotState>,
}

impl Slots {
    /// Slots that are all free.
    pub(super) fn new(threads: Threads) -> Self {
        let slots = (0..SLOTS).map(|_| Slot::Free).collect();
        Self { slots, loops: EventLoops::new(threads), saved: Vec::new() }
    }

    /// The slots of a saved machine: devices that are put where `saved` has one take on its state.
    pub(super) fn restore(
        threads: Threads,
        saved: Vec<SlotState>,
        released: &[u8],
        retired: &[u8],
        parts: &Parts,
    ) -> Result<Self, MachineError> {
        let mut slots = Self { saved, ..Self::new(threads) };
        for slot in released {
            let transport = slots.show(SlotIndex(*slot), parts)?;
            slots.slots[usize::from(*slot)] = Slot::Released(transport);
        }
        for slot in retired {
            slots.show(SlotIndex(*slot), parts)?;
            slots.slots[usize::from(*slot)] = Slot::Retired;
        }
        Ok(slots)
    }

    /// A slot's registers, without a device, and not yet where the guest's writes reach them.
    fn transport(&self, slot: SlotIndex, parts: &Parts) -> Result<Transport, MachineError> {
        let memory = Arc::clone(parts.vm.guest_memory());
        let page = parts.vm.registers().page(slot.0).ok_or(MachineError::EmptySlot(slot.0))?;
        let line = Arc::new(Line { vm: Arc::clone(&parts.vm), gsi: slot_gsi(slot.0) });
        let mut transport = MmioTransport::new(slot.0, page, memory, self.loops.clone(), line);
        transport.tell_failures(Arc::new(SlotFailures { slot, events: parts.surroundings.events.clone() }));
        Ok(Arc::new(Mutex::new(transport)))
    }

    /// The registers of a slot whose device is gone, where the guest's writes reach them.
    fn show(&self, slot: SlotIndex, parts: &Parts) -> Result<Transport, MachineError> {
        let transport = self.transport(slot, parts)?;
        let device = Arc::clone(&transport) as SharedDevice;
        parts.surroundings.mmio.insert(slot_registers(slot.0), ExitKind::Virtio, device);
        Ok(transport)
    }

    /// How many slots, counted from the first, have all that are in use.
    pub(super) fn used(&self) -> u8 {
        let last = self.slots.iter().rposition(|slot| !matches!(slot, Slot::Free));
        last.and_then(|last| u8::try_from(last + 1).ok()).unwrap_or(0)
    }

    /// The first free slot, or else the first that is free again.
    pub(super) fn free(&self) -> Result<SlotIndex, MachineError> {
        let first = |wanted: fn(&Slot) -> bool| self.slots.iter().position(wanted);
        let free = first(|slot| matches!(slot, Slot::Free)).or_else(|| first(|slot| matches!(slot, Slot::Released(_))));
        free.and_then(|index| u8::try_from(index).ok()).map(SlotIndex).ok_or(MachineError::NoSlot(SLOTS))
    }

    /// Puts a device into a free slot and shows it.
    pub(super) fn attach(
        &mut self,
        slot: SlotIndex,
        device: Box<dyn VirtioDevice>,
        parts: &Parts,
    ) -> Result<(), MachineError> {
        let (transport, is_seen) = match self.slots.get(usize::from(slot.0)) {
            Some(Slot::Free) => (self.transport(slot, parts)?, false),
            Some(Slot::Released(transport)) => (Arc::clone(transport), true),
            Some(_) => return Err(MachineError::SlotTaken(slot.0)),
            None => return Err(MachineError::EmptySlot(slot.0)),
        };
        let saved = self.saved.iter().position(|saved| saved.slot == slot.0);
        let state = saved.and_then(|index| self.saved.get(index));
        // Of a slot that the guest sees it sees nothing before all is there.
        let mut registers = lock(&transport);
        let (kicks, acknowledged) = match fill(&mut registers, device, slot, state, parts) {
            Ok(kept) => kept,
            Err(error) => {
                drop(registers.detach());
                return Err(error);
            }
        };
        drop(registers);
        let taken = Taken { transport, kicks, acknowledged };
        if !is_seen {
            let device = Arc::clone(&taken.transport) as SharedDevice;
            parts.surroundings.mmio.insert(slot_registers(slot.0), ExitKind::Virtio, device);
        }
        if let Err(error) = parts.plug_page.show_slot(slot.0, true) {
            drop(taken.lock().detach());
            unbind(&parts.vm, slot, &taken);
            if !is_seen {
                parts.surroundings.mmio.remove(slot_registers(slot.0).start);
            }
            return Err(plug_error(error));
        }
        self.slots[usize::from(slot.0)] = Slot::Taken(taken);
        if let Some(index) = saved {
            self.saved.remove(index);
        }
        Ok(())
    }

    /// Takes a device out of its slot. `started` says whether the guest may have seen it.
    pub(super) fn detach(&mut self, slot: SlotIndex, started: bool, parts: &Parts) -> Result<(), MachineError> {
        let place = self.slots.get_mut(usize::from(slot.0));
        let place = place.filter(|slot| matches!(slot, Slot::Taken(_))).ok_or(MachineError::EmptySlot(slot.0))?;
        parts.plug_page.show_slot(slot.0, false).map_err(plug_error)?;
        if let Slot::Taken(taken) = std::mem::take(place) {
            let mut registers = taken.lock();
            // In one piece: a driver that comes later finds no device.
            let released = registers.driver_has_let_go();
            drop(registers.detach());
            drop(registers);
            unbind(&parts.vm, slot, &taken);
            match (started, released) {
                (false, _) => parts.surroundings.mmio.remove(slot_registers(slot.0).start),
                (true, true) => *place = Slot::Released(taken.transport),
                (true, false) => *place = Slot::Retired,
            }
        }
        Ok(())
    }

    fn taken(&self) -> impl Iterator<Item = (u8, &Taken)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| match slot {
            Slot::Taken(taken) => Some((index, taken)),
            Slot::Free | Slot::Released(_) | Slot::Retired => None,
        })
    }

    /// Stops all devices; no vCPU runs.
    pub(super) fn pause(&self) {
        self.taken().for_each(|(_, taken)| taken.lock().pause());
    }

    /// Lets all devices go on, before the vCPUs do.
    pub(super) fn resume(&self) {
        self.taken().for_each(|(_, taken)| taken.lock().resume());
    }

    /// What was saved and has no device yet.
    pub(super) fn missing(&self) -> Option<u8> {
        self.saved.first().map(|saved| saved.slot)
    }

    /// The states of the devices, which are paused.
    pub(super) fn save(&self) -> Result<Vec<SlotState>, MachineError> {
        let state = |(slot, taken): (u8, &Taken)| {
            let saved = taken.lock().save().ok_or(MachineError::EmptySlot(slot))?;
            let device = serde_json::to_value(saved).map_err(|error| MachineError::SavedState(error.to_string()))?;
            Ok(SlotState { slot, device })
        };
        self.taken().map(state).collect()
    }

    fn those(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<u8> {
        (0..).zip(&self.slots).filter(|(_, slot)| wanted(slot)).map(|(index, _)| index).collect()
    }

    /// The slots whose device is gone and that can be used again.
    pub(super) fn released(&self) -> Vec<u8> {
        self.those(|slot| matches!(slot, Slot::Released(_)))
    }

    /// The slots that are not used again.
    pub(super) fn retired(&self) -> Vec<u8> {
        self.those(|slot| matches!(slot, Slot::Retired))
    }

    /// What each device has counted.
    pub(super) fn counts(&self) -> Vec<SlotCounts> {
        let counts = |(index, taken): (u8, &Taken)| {
            let transport = taken.lock();
            Some(SlotCounts { slot: SlotIndex(index), kind: transport.kind()?, counts: transport.counts() })
        };
        self.taken().filter_map(counts).collect()
    }
}

/// The interrupt of a slot.
#[derive(Debug)]
struct Line {
    vm: Arc<Vm>,
    gsi: u32,
}

impl InterruptLine for Line {
    /// By a call rather than a descriptor (irqfd): KVM raises inputs of the IOAPIC for a descriptor on a kernel thread only,
    /// which costs two changes of threads and waits for a processor.
    fn raise(&self) {
        // Down first: when two threads do this at once and one finds the line up, the other has raised it after this one let
        // it down, and so the guest, which looks at everything then, finds what both have done.
        for active in [false, true] {
            if let Err(error) = self.vm.fd().set_irq_line(self.gsi, active) {
                tracing::error!(%error, gsi = self.gsi, "cannot interrupt the guest");
            }
        }
    }
}

/// What is kept of a device beside its registers, see [`Taken`].
type Kept = (Vec<Arc<EventFd>>, EventFd);

/// Puts a device behind a slot's registers, as it was saved or fresh, and lets KVM serve it. After an error it is to be taken
/// out again.
fn fill(
    registers: &mut MmioTransport,
    device: Box<dyn VirtioDevice>,
    slot: SlotIndex,
    saved: Option<&SlotState>,
    parts: &Parts,
) -> Result<Kept, MachineError> {
    registers.attach(device).map_err(|error| MachineError::Device(Box::new(error)))?;
    if let Some(saved) = saved {
        restore(registers, saved)?;
    }
    let kicks = registers.kicks().to_vec();
    let acknowledged = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
        .map_err(|source| MachineError::Host { what: "make a descriptor for acknowledgements", source })?;
    bind(&parts.vm, slot, &kicks, &acknowledged)?;
    Ok((kicks, acknowledged))
}

fn restore(transport: &mut MmioTransport, saved: &SlotState) -> Result<(), MachineError> {
    let wrong = |problem: String| MachineError::SavedState(format!("the device in slot {}: {problem}", saved.slot));
    let state: TransportState =
        serde_json::from_value(saved.device.clone()).map_err(|error| wrong(error.to_string()))?;
    transport.restore(&state).map_err(|error| wrong(error.to_string()))
}

/// Lets KVM take the guest's notifications.
fn bind(vm: &Vm, slot: SlotIndex, kicks: &[Arc<EventFd>], acknowledged: &EventFd) -> Result<(), MachineError> {
    for (index, kick) in (0u32..).zip(kicks) {
        if let Err(error) = vm.fd().register_ioevent(kick, &notify_address(slot), index) {
            for (index, kick) in (0..index).zip(kicks) {
                // What was just registered can be taken back; nothing better could be done if not.
                let _ = vm.fd().unregister_ioevent(kick, &notify_address(slot), index);
            }
            return Err(kvm_error("take a device's notifications by a descriptor")(error));
        }
    }
    if let Err(error) = vm.fd().register_ioevent(acknowledged, &acknowledge_address(slot), INTERRUPT_USED) {
        // It is an exit then, and works all the same.
        tracing::debug!(%error, "KVM does not take acknowledgements");
    }
    Ok(())
}

/// Undoes [`bind`].
fn unbind(vm: &Vm, slot: SlotIndex, taken: &Taken) {
    for (index, kick) in (0u32..).zip(&taken.kicks) {
        let _ = vm.fd().unregister_ioevent(kick, &notify_address(slot), index);
    }
    let _ = vm.fd().unregister_ioevent(&taken.acknowledged, &acknowledge_address(slot), INTERRUPT_USED);
}

fn notify_address(slot: SlotIndex) -> IoEventAddress {
    IoEventAddress::Mmio(slot_registers(slot.0).start + QUEUE_NOTIFY_OFFSET)
}

fn acknowledge_address(slot: SlotIndex) -> IoEventAddress {
    IoEventAddress::Mmio(slot_registers(slot.0).start + INTERRUPT_ACKNOWLEDGE_OFFSET)
}

fn plug_error(error: vm_memory::GuestMemoryError) -> MachineError {
    MachineError::Host { what: "write to the guest's memory what is plugged", source: io::Error::other(error) }
}
