//! What is where in the guest's physical address space.
//!
//! ```text
//!          0 ┌──────────────────────────────┐
//!     0x7000 │ boot parameters, page tables │  conventional memory, below 640 KiB
//!    0x20000 │ command line                 │
//!    0xa0000 ├──────────────────────────────┤
//!            │ ACPI tables, hot-plug page   │  memory that the guest is told not to use
//!   0x100000 ├──────────────────────────────┤
//!            │ kernel … initrd at its end   │
//!      3 GiB ├──────────────────────────────┤
//!            │ virtio slots                 │  registers; reads are answered by pages, writes exit
//!            │ IOAPIC, local APIC, KVM's own│
//!      4 GiB ├──────────────────────────────┤
//!            │ memory beyond 3 GiB          │
//!            ├──────────────────────────────┤  next multiple of 1 GiB
//!            │ virtio-mem                   │
//!            └──────────────────────────────┘
//! ```

use std::ops::Range;

use stockade_hypervisor::MiB;

/// The zero page of the boot protocol.
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
/// The first of the boot page tables: one page each for the three levels.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The boot descriptor table.
pub(crate) const GDT: u64 = 0x500;
/// The stack pointer at the first instruction; the kernel makes its own stack at once.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// The command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line, with its end: what a kernel of this architecture takes (COMMAND_LINE_SIZE).
pub(crate) const COMMAND_LINE_LIMIT: usize = 2048;
/// The end of conventional memory.
pub(crate) const CONVENTIONAL_END: u64 = 0xa_0000;
/// The page that tells the guest's ACPI code what is plugged.
pub(crate) const HOTPLUG_PAGE: u64 = 0xd_f000;
/// ACPI tables; the root pointer comes first.
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
/// The end of the ACPI tables, and the first address that a kernel may be loaded at.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
/// The end of memory below 4 GiB.
pub(crate) const LOW_MEMORY_END: u64 = 0xc000_0000;
/// The first virtio slot's registers.
pub(crate) const VIRTIO: u64 = 0xc000_0000;
/// How far slots are apart.
pub(crate) const VIRTIO_STRIDE: u64 = 0x1000;
/// The IOAPIC's registers.
pub(crate) const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs' registers.
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;
/// Four pages that KVM uses itself on Intel's processors.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// The three after the first.
pub(crate) const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;
/// The first address of memory beyond what fits below [`LOW_MEMORY_END`].
pub(crate) const ABOVE_4G: u64 = 1 << 32;

/// Where hot-plugged memory begins is a multiple of this, so that it can be mapped by the largest pages.
const HOTPLUG_ALIGNMENT: u64 = 1 << 30;
/// What Linux adds memory in.
const HOTPLUG_BLOCK: u64 = 128 << 20;

/// The interrupt of the serial console, as on every PC.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The interrupt of the generic event device.
pub(crate) const EVENT_GSI: u32 = 5;
/// The first interrupt of a slot.
const FIRST_SLOT_GSI: u32 = 6;
/// KVM's IOAPIC has 24 inputs.
const GSI_END: u32 = 24;
/// A PC's clock chip. KVM watches for the end of each of its interrupts, which is an exit of the guest's that others do
/// without (paravirtual end of interrupt). So nothing else is put there.
const CLOCK_GSI: u32 = 8;

/// The interrupt of a virtio slot. There are fewer interrupts than slots, so the last slots share with the first: a
/// driver looks whether its device has something, and edges are not lost by it.
pub(crate) fn slot_gsi(slot: u8) -> u32 {
    let gsi = FIRST_SLOT_GSI + u32::from(slot) % (GSI_END - FIRST_SLOT_GSI - 1);
    if gsi < CLOCK_GSI { gsi } else { gsi + 1 }
}

/// The registers of a virtio slot.
pub(crate) fn slot_registers(slot: u8) -> Range<u64> {
    let start = VIRTIO + u64::from(slot) * VIRTIO_STRIDE;
    start..start + VIRTIO_STRIDE
}

/// The memory that the machine boots with, by ascending address.
pub(crate) fn boot_memory(size: MiB) -> Vec<Range<u64>> {
    let bytes = size.bytes();
    if bytes <= LOW_MEMORY_END {
        vec![0..bytes]
    } else {
        vec![0..LOW_MEMORY_END, ABOVE_4G..ABOVE_4G + (bytes - LOW_MEMORY_END)]
    }
}

/// The addresses of memory that is plugged later; empty without any. There is a hole before it: a buffer of the guest that
/// spanned two regions would be refused by devices.
pub(crate) fn hotplug_memory(boot: MiB, size: MiB) -> Range<u64> {
    let end = boot_memory(boot).last().map_or(0, |last| last.end).max(ABOVE_4G);
    let start = (end + 1).next_multiple_of(HOTPLUG_ALIGNMENT);
    start..start + size.bytes().next_multiple_of(HOTPLUG_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{MAX_MEMORY, MIN_MEMORY, SLOTS};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn memory_adds_up_and_leaves_the_registers_alone(boot in MIN_MEMORY.0..=MAX_MEMORY.0, plugged in 0..MAX_MEMORY.0) {
            let regions = boot_memory(MiB(boot));
            prop_assert_eq!(regions.iter().map(|r| r.end - r.start).sum::<u64>(), MiB(boot).bytes());
            let hotplug = hotplug_memory(MiB(boot), MiB(plugged));
            for region in regions.iter().chain([&hotplug]) {
                prop_assert!(region.end <= LOW_MEMORY_END || region.start >= ABOVE_4G);
            }
            prop_assert!(regions.iter().all(|r| r.end < hotplug.start));
            prop_assert!(hotplug.end - hotplug.start >= MiB(plugged).bytes());
            prop_assert_eq!(hotplug.start % HOTPLUG_BLOCK, 0);
            prop_assert_eq!(hotplug.end % HOTPLUG_BLOCK, 0);
        }
    }

    #[test]
    fn slots_have_interrupts_of_their_own_kind_and_registers_that_do_not_overlap() {
        for slot in 0..u8::try_from(SLOTS).unwrap() {
            assert!((FIRST_SLOT_GSI..GSI_END).contains(&slot_gsi(slot)) && slot_gsi(slot) != CLOCK_GSI);
            assert!(slot_registers(slot).end <= IOAPIC);
            assert_eq!(slot_registers(slot).end, slot_registers(slot + 1).start);
        }
    }
}
