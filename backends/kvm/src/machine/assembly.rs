//! How a machine is put together.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use stockade_hypervisor::MiB;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

use super::cpus::{Cpus, Plugged};
use super::slots::Slots;
use super::{
    Console, Events, ExitCounters, ExitKind, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY, MachineConfig, MachineError,
    MachineState, RestoreConfig, SLOTS, STATE_VERSION, SerialRegisters, Size, SlotState, VcpuHook, VcpuState,
};
use crate::acpi::{self, PlugPage};
use crate::bus::{Bus, SharedDevice};
use crate::loader::{self, BootParams, MemoryMapEntry};
use crate::memory::layout::{self, ACPI_TABLES, BOOT_PARAMS, CONVENTIONAL_END, EVENT_GSI, HIGH_MEMORY, SERIAL_GSI};
use crate::memory::registers::RegisterPages;
use crate::memory::{HUGE_PAGE, Memory};
use crate::power::{self, KeyboardReset, PowerRegisters};
use crate::serial::{self, SerialConsole};
use crate::vcpu::{Surroundings, Vcpu, write_tables};
use crate::vm::{EmptyVm, Vm};

/// Everything of a machine but its vCPUs and devices.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) surroundings: Surroundings,
    pub(super) size: Size,
    pub(super) hotplug_range: Range<u64>,
    pub(super) plug_page: PlugPage,
    /// Written to interrupt the guest for what has been written to the plug page.
    look: EventFd,
    pub(super) plugged: Plugged,
    pub(super) vcpu_hook: VcpuHook,
    pub(super) vm: Arc<Vm>,
}

/// A machine's parts that belong to each other.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) vcpus: Vec<Arc<Vcpu>>,
    pub(super) slots: Slots,
    pub(super) parts: Parts,
}

/// Makes a machine that boots.
pub(super) fn boot(kvm: OwnedFd, config: MachineConfig) -> Result<Assembled, MachineError> {
    let MachineConfig { size, kernel, initrd, cmdline, console, vcpu_hook, threads } = config;
    check_size(size)?;
    let regions = layout::boot_memory(size.memory);
    let low_end = regions.first().map_or(0, |low| low.end);
    let load = |memory: &Memory| Ok(loader::load(memory, low_end, &kernel, initrd.as_ref(), &cmdline)?);
    let (vm, loaded) = make_vm(kvm, size, load)?;

    let map = memory_map(&regions);
    let header = loaded.header.as_deref();
    let params =
        BootParams { header, initrd: loaded.initrd, command_line_len: cmdline.len(), memory_map: &map }.to_page();
    let write = || -> Result<(), GuestMemoryError> {
        let guest = vm.guest_memory();
        guest.write_slice(&params, GuestAddress(BOOT_PARAMS))?;
        write_tables(guest)
    };
    write().map_err(outside)?;

    let vcpus = (0..size.vcpus).map(|index| Vcpu::new(&vm, index, size.max_vcpus)).collect::<Result<Vec<_>, _>>()?;
    for vcpu in &vcpus {
        vcpu.set_firmware_registers()?;
    }
    if let Some(first) = vcpus.first() {
        first.begin_at(loaded.entry)?;
    }
    let plugged = Plugged::new(vcpus.iter().map(|vcpu| vcpu.index()));
    let parts = Parts::new(vm, size, console, vcpu_hook, plugged, None)?;
    Ok(Assembled { vcpus, slots: Slots::new(threads), parts })
}

/// Makes a machine that goes on from a saved state.
pub(super) fn restore(kvm: OwnedFd, config: RestoreConfig) -> Result<Assembled, MachineError> {
    let RestoreConfig { state, memory, console, vcpu_hook, threads } = config;
    check(&state)?;
    let failed = |source| MachineError::Host { what: "map the saved memory", source };
    let (vm, ()) = make_vm(kvm, state.size, |saved| saved.read_from(&memory).map_err(failed))?;
    vm.restore(&state.chips)?;
    let mut vcpus = Vec::new();
    for saved in &state.vcpus {
        let vcpu = Vcpu::new(&vm, saved.index, state.size.max_vcpus)?;
        vcpu.restore(saved)?;
        vcpus.push(vcpu);
    }
    let plugged = Plugged::new(state.plugged_vcpus.iter().copied());
    let parts = Parts::new(vm, state.size, console, vcpu_hook, plugged, Some(&state.serial))?;
    let slots = Slots::restore(threads, state.slots, &state.released_slots, &state.retired_slots, &parts)?;
    Ok(Assembled { vcpus, slots, parts })
}

/// The state of a machine whose vCPUs are parked.
pub(super) fn save(parts: &Parts, cpus: &Cpus, slots: &Slots) -> Result<MachineState, MachineError> {
    let vcpus = cpus.iter().map(Vcpu::save).collect::<Result<Vec<VcpuState>, _>>()?;
    let serial = parts.surroundings.serial.lock().unwrap_or_else(PoisonError::into_inner).save();
    Ok(MachineState {
        version: STATE_VERSION,
        size: parts.size,
        chips: parts.vm.save()?,
        vcpus,
        plugged_vcpus: parts.plugged.list(),
        serial,
        slots: slots.save()?,
        released_slots: slots.released(),
        retired_slots: slots.retired(),
    })
}

impl Parts {
    fn new(
        vm: Arc<Vm>,
        size: Size,
        console: Console,
        vcpu_hook: VcpuHook,
        plugged: Plugged,
        registers: Option<&SerialRegisters>,
    ) -> Result<Self, MachineError> {
        let failed = |source| MachineError::Host { what: "make an event descriptor", source };
        let events = Events::new().map_err(failed)?;
        let line = vm.interrupt(SERIAL_GSI)?;
        let serial = match registers {
            None => SerialConsole::new(console, line, events.clone()),
            Some(registers) => SerialConsole::restore(console, line, events.clone(), registers)
                .map_err(|problem| MachineError::SavedState(format!("the serial console: {problem}")))?,
        };
        vm.coalesce_port(serial::PORT)?;
        let surroundings = Surroundings {
            ports: Arc::default(),
            mmio: Arc::default(),
            serial: Arc::new(Mutex::new(serial)),
            exits: Arc::new(ExitCounters::default()),
            events,
        };
        let plug_page = PlugPage::new(vm.guest_memory());
        let parts = Self {
            hotplug_range: layout::hotplug_memory(size.memory, size.hotplug_memory),
            look: vm.interrupt(EVENT_GSI)?,
            plug_page,
            surroundings,
            size,
            plugged,
            vcpu_hook,
            vm,
        };
        parts.insert_ports();
        Ok(parts)
    }

    /// Writes the tables that describe the machine to a guest that is to boot, with devices in the first `used` slots.
    pub(super) fn describe(&self, used: u8) -> Result<(), MachineError> {
        let Size { vcpus, max_vcpus, .. } = self.size;
        let tables = acpi::build(acpi::Description { vcpus, max_vcpus, used_slots: used, slots: slot_count() })
            .ok_or(MachineError::Capability("room for the ACPI tables"))?;
        self.vm.guest_memory().write_slice(&tables, GuestAddress(ACPI_TABLES)).map_err(outside)
    }

    /// Interrupts the guest to look at what the plug page says.
    pub(super) fn tell_guest(&self) -> Result<(), MachineError> {
        self.look.write(1).map_err(|source| MachineError::Host { what: "interrupt the guest", source })
    }

    /// Lets the machine's own devices answer at their ports.
    fn insert_ports(&self) {
        let ports: &Bus = &self.surroundings.ports;
        let events = || self.surroundings.events.clone();
        let insert = |port: u16, count: u16, kind, device: SharedDevice| {
            ports.insert(u64::from(port)..u64::from(port) + u64::from(count), kind, device);
        };
        let serial = Arc::clone(&self.surroundings.serial) as SharedDevice;
        insert(serial::PORT, serial::PORTS, ExitKind::Serial, serial);
        let keyboard = KeyboardReset::new(events());
        insert(power::KEYBOARD_PORT, 1, ExitKind::KeyboardController, Arc::new(Mutex::new(keyboard)));
        let (plugged, page) = (self.plugged.clone(), self.plug_page.clone());
        let first = self.size.vcpus;
        let eject = move |index| {
            // Those that were there at boot are no devices that the guest could eject.
            if index >= first && plugged.remove(index) {
                // The page is in the guest's memory for as long as there is any.
                let _ = page.set_vcpu(index, false);
            }
        };
        let power = PowerRegisters::new(events(), Box::new(eject));
        insert(power::PORT, power::PORTS, ExitKind::Power, Arc::new(Mutex::new(power)));
    }
}

fn slot_count() -> u8 {
    u8::try_from(SLOTS).unwrap_or(u8::MAX)
}

/// The virtual machine with memory of the right size, which `fill` fills, and what that returns.
///
/// KVM makes the machine meanwhile, on another thread: for the first machine of a host it waits for all processors.
fn make_vm<T>(
    kvm: OwnedFd,
    size: Size,
    fill: impl FnOnce(&Memory) -> Result<T, MachineError>,
) -> Result<(Arc<Vm>, T), MachineError> {
    let failed = |what| move |source| MachineError::Host { what, source };
    thread::scope(|scope| {
        let vm = thread::Builder::new()
            .name("create-vm".to_owned())
            .spawn_scoped(scope, || EmptyVm::new(kvm))
            .map_err(failed("start a thread"))?;
        let mut ranges = layout::boot_memory(size.memory);
        ranges.push(layout::hotplug_memory(size.memory, size.hotplug_memory));
        let memory = Memory::reserve(&ranges).map_err(failed("reserve the guest's memory"))?;
        for range in ranges {
            memory.advise_huge_pages(range, true);
        }
        // Some tables of the boot, and little else.
        memory.advise_huge_pages(0..HUGE_PAGE, false);
        let registers = RegisterPages::new(slot_count()).map_err(failed("reserve the guest's memory"))?;
        let filled = fill(&memory)?;
        let vm = vm.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((Arc::new(vm.with(memory, registers)?), filled))
    })
}

fn check_size(size: Size) -> Result<(), MachineError> {
    let wrong = |option, problem: String| Err(MachineError::Config { option, problem });
    let Size { memory, hotplug_memory, vcpus, max_vcpus } = size;
    let most = memory.bytes() + hotplug_memory.bytes();
    if memory < MIN_MEMORY || most > MAX_MEMORY.bytes() {
        let all = MiB(u32::try_from(most >> 20).unwrap_or(u32::MAX));
        return wrong("memory", format!("{memory} ({all} at most) is not within {MIN_MEMORY} and {MAX_MEMORY}"));
    }
    if vcpus == 0 || vcpus > max_vcpus || max_vcpus > MAX_VCPUS {
        return wrong("vcpus", format!("{vcpus} of {max_vcpus} at most; there may be from 1 to {MAX_VCPUS}"));
    }
    Ok(())
}

/// Whether a saved state is one of this version and makes sense.
fn check(state: &MachineState) -> Result<(), MachineError> {
    let wrong = |problem: String| Err(MachineError::SavedState(problem));
    if state.version != STATE_VERSION {
        return wrong(format!("its version is {}, this program's {STATE_VERSION}", state.version));
    }
    check_size(state.size)?;
    let max = state.size.max_vcpus;
    let ascending = state.vcpus.windows(2).all(|pair| pair[0].index < pair[1].index);
    if state.vcpus.is_empty() || !ascending || state.vcpus.iter().any(|vcpu| vcpu.index >= max) {
        return wrong("its vCPUs are not those of its size".to_owned());
    }
    if state.plugged_vcpus.iter().any(|index| !state.vcpus.iter().any(|vcpu| vcpu.index == *index)) {
        return wrong("a vCPU is plugged and has no registers".to_owned());
    }
    check_slots(&state.slots, &state.released_slots, &state.retired_slots)
}

/// Each slot is there, and in one of the lists at most.
fn check_slots(taken: &[SlotState], released: &[u8], retired: &[u8]) -> Result<(), MachineError> {
    let taken = taken.iter().map(|slot| slot.slot);
    let gone = released.iter().chain(retired).copied();
    let mut seen = [false; SLOTS];
    for slot in taken.chain(gone) {
        match seen.get_mut(usize::from(slot)) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(MachineError::SavedState(format!("slot {slot} does not exist, or is named twice"))),
        }
    }
    Ok(())
}

/// What the kernel is told of its memory.
fn memory_map(regions: &[Range<u64>]) -> Vec<MemoryMapEntry> {
    let mut map = vec![
        MemoryMapEntry { range: 0..CONVENTIONAL_END, usable: true },
        // Tables and the plug page; the rest of the hole, too, has memory behind it that is nobody's.
        MemoryMapEntry { range: CONVENTIONAL_END..HIGH_MEMORY, usable: false },
    ];
    for region in regions {
        let range = region.start.max(HIGH_MEMORY)..region.end;
        map.push(MemoryMapEntry { range, usable: true });
    }
    map
}

fn outside(error: GuestMemoryError) -> MachineError {
    MachineError::Host { what: "write the boot tables to the guest's memory", source: std::io::Error::other(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(memory: u32, hotplug: u32, vcpus: u8, max_vcpus: u8) -> Size {
        Size { memory: MiB(memory), hotplug_memory: MiB(hotplug), vcpus, max_vcpus }
    }

    #[test]
    fn sizes_that_make_no_machine_are_refused_with_what_would() {
        for good in [size(32, 0, 1, 1), size(4096, 65536, 4, 254), size(MAX_MEMORY.0, 0, 254, 254)] {
            check_size(good).unwrap();
        }
        for (bad, option) in [
            (size(31, 0, 1, 1), "memory"),
            (size(u32::MAX, u32::MAX, 1, 1), "memory"),
            (size(MAX_MEMORY.0, 1, 1, 1), "memory"),
            (size(256, 0, 0, 1), "vcpus"),
            (size(256, 0, 2, 1), "vcpus"),
            (size(256, 0, 1, 255), "vcpus"),
        ] {
            let error = check_size(bad).unwrap_err();
            assert!(matches!(error, MachineError::Config { option: told, .. } if told == option), "{error}");
        }
    }

    #[test]
    fn a_slot_is_saved_in_one_way_only() {
        let taken = |slot| SlotState { slot, device: serde_json::Value::Null };
        check_slots(&[taken(0), taken(3)], &[1, 31], &[2]).unwrap();
        check_slots(&[], &[], &[]).unwrap();
        for (taken, released, retired) in [
            (vec![taken(0), taken(0)], [1, 2], [3, 4]),
            (vec![taken(0)], [0, 2], [3, 4]),
            (vec![taken(0)], [1, 2], [3, 0]),
            (vec![taken(0)], [1, 2], [2, 3]),
            (vec![taken(0)], [1, 1], [2, 3]),
            (vec![taken(0)], [1, 32], [2, 3]),
            (vec![taken(255)], [1, 2], [3, 4]),
        ] {
            let error = check_slots(&taken, &released, &retired).unwrap_err();
            assert!(matches!(error, MachineError::SavedState(_)), "{error}");
        }
    }

    #[test]
    fn the_memory_map_names_all_memory_once_and_leaves_the_tables_out() {
        let map = memory_map(&layout::boot_memory(MiB(4096)));
        let usable: u64 =
            map.iter().filter(|entry| entry.usable).map(|entry| entry.range.end - entry.range.start).sum();
        assert_eq!(usable, MiB(4096).bytes() - (HIGH_MEMORY - CONVENTIONAL_END));
        assert!(map.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        assert!(map.iter().any(|entry| !entry.usable && entry.range.contains(&layout::HOTPLUG_PAGE)));
    }
}
