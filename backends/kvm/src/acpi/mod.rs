//! The machine's ACPI tables (ACPI 6.5), hardware-reduced: no fixed registers but those for sleep and reset, no interrupt of
//! ACPI's own. Hot-plug is told by a generic event device.
//!
//! ```text
//!   RSDP ─▶ XSDT ─▶ FADT ─▶ DSDT ┄┄▶ SSDT
//!                └▶ MADT
//! ```
//! The SSDT has the slots that are free at boot. The guest's ACPI code loads it before the first hot-plug: Linux makes a
//! device of whatever a table describes, present or not, which for all slots took a sixtieth of a boot.
//!
//! What is plugged is a page of the guest's memory that the host writes and the guest's ACPI code reads: reading it needs no
//! exit, unlike registers. A guest that writes it confuses only itself.

mod dsdt;
mod plug;

pub(crate) use plug::PlugPage;

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::memory::layout::{ACPI_TABLES, HIGH_MEMORY, IOAPIC, LOCAL_APIC};
use crate::power;

const OEM: [u8; 6] = *b"STOCKD";
const OEM_TABLE: [u8; 8] = *b"STOCKADE";
const REVISION: u32 = 1;

/// iapc_boot_arch: there is no VGA, no message-signalled power management, no CMOS clock. The flags for legacy devices
/// and for a keyboard controller are not set, so that the guest looks for neither.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;

/// What the tables depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Description {
    /// vCPUs at boot.
    pub(crate) vcpus: u8,
    /// vCPUs at most.
    pub(crate) max_vcpus: u8,
    /// The first virtio slots, which have devices at boot.
    pub(crate) used_slots: u8,
    /// Virtio slots, used or not.
    pub(crate) slots: u8,
}

/// A sink for a table's bytes.
struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn vec(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Bytes(Vec::new());
    table.to_aml_bytes(&mut bytes);
    bytes.0
}

/// The tables' bytes, to be put at [`ACPI_TABLES`]; `None` if they do not fit there.
pub(crate) fn build(description: Description) -> Option<Vec<u8>> {
    let mut tables = Vec::new();
    let rsdp_len = Rsdp::len().next_multiple_of(ALIGNMENT);
    let mut place = |table: Vec<u8>| -> u64 {
        let address = ACPI_TABLES + (rsdp_len + tables.len()) as u64;
        tables.extend(table);
        tables.resize(tables.len().next_multiple_of(ALIGNMENT), 0);
        address
    };
    let further = table_of(*b"SSDT", &dsdt::further_slots(description));
    let len = further.len() as u64;
    let start = place(further);
    let further = start..start + len;
    let dsdt = place(table_of(*b"DSDT", &dsdt::definitions(description, further)));
    let fadt = place(bytes_of(&fixed(dsdt)));
    let madt = place(bytes_of(&interrupts(description)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes_of(&xsdt));
    let mut all = bytes_of(&Rsdp::new(OEM, xsdt));
    all.resize(rsdp_len, 0);
    all.extend(tables);
    (all.len() as u64 <= HIGH_MEMORY - ACPI_TABLES).then_some(all)
}

/// Tables begin at multiples of this.
const ALIGNMENT: usize = 16;

/// A table of AML.
fn table_of(signature: [u8; 4], definitions: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, 6, OEM, OEM_TABLE, REVISION);
    table.append_slice(definitions);
    table.as_slice().to_vec()
}

fn fixed(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |address: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(address));
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        // Set means: no such button among the fixed registers.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.sleep_control_reg = port(power::SLEEP_CONTROL);
    table.sleep_status_reg = port(power::SLEEP_STATUS);
    table.reset_reg = port(power::RESET);
    table.reset_value = power::RESET_VALUE;
    table.finalize()
}

fn interrupts(description: Description) -> MADT {
    let address = u32::try_from(LOCAL_APIC).unwrap_or(u32::MAX);
    let mut table = MADT::new(OEM, OEM_TABLE, REVISION, LocalInterruptController::Address(address));
    for index in 0..description.max_vcpus {
        let plugged = index < description.vcpus;
        let status = if plugged { EnabledStatus::Enabled } else { EnabledStatus::DisabledOnlineCapable };
        table.add_structure(ProcessorLocalApic::new(index, index, status));
    }
    table.add_structure(IoApic::new(0, u32::try_from(IOAPIC).unwrap_or(u32::MAX), 0));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MAX_VCPUS;
    use proptest::prelude::*;

    fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
        bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn table(all: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI_TABLES).unwrap();
        let len = usize::try_from(number(all, start + 4, 4)).unwrap();
        &all[start..start + len]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    proptest! {
        #[test]
        fn every_machine_has_tables_that_lead_to_each_other_and_add_up(
            vcpus in 1..=MAX_VCPUS, more in 0..=MAX_VCPUS, slots in 0u8..=32, used in 0u8..=32
        ) {
            let max_vcpus = vcpus.saturating_add(more).min(MAX_VCPUS);
            let all = build(Description { vcpus, max_vcpus, used_slots: used.min(slots), slots }).unwrap();
            prop_assert_eq!(&all[..8], b"RSD PTR ");
            prop_assert_eq!(sum(&all[..20]), 0);
            prop_assert_eq!(sum(&all[..36]), 0);
            let xsdt = table(&all, number(&all, 24, 8));
            prop_assert_eq!((&xsdt[..4], sum(xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 16));
            let fadt = table(&all, number(xsdt, 36, 8));
            prop_assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
            let madt = table(&all, number(xsdt, 44, 8));
            prop_assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
            prop_assert_eq!(madt.len(), 44 + 8 * usize::from(max_vcpus) + 12);
            let dsdt = table(&all, number(fadt, 140, 8));
            prop_assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
            // The region that the guest loads the further slots from, as the DSDT names it.
            let at = dsdt.windows(4).position(|name| name == b"FURT").unwrap();
            let number_at = |at: usize| match dsdt[at] {
                0x0a => (number(dsdt, at + 1, 1), at + 2),
                0x0b => (number(dsdt, at + 1, 2), at + 3),
                0x0c => (number(dsdt, at + 1, 4), at + 5),
                other => panic!("no number: {other:#x}"),
            };
            prop_assert_eq!(dsdt[at + 4], 0, "memory");
            let (address, next) = number_at(at + 5);
            let (len, _) = number_at(next);
            let ssdt = table(&all, address);
            prop_assert_eq!((&ssdt[..4], sum(ssdt), ssdt.len() as u64), (&b"SSDT"[..], 0, len));
            let slots_in = |table: &[u8]| table.windows(8).filter(|text| text == b"LNRO0005").count();
            prop_assert_eq!((slots_in(dsdt), slots_in(ssdt)), (used.min(slots).into(), slots.saturating_sub(used).into()));
        }
    }

    #[test]
    fn the_guest_is_told_to_look_for_no_legacy_hardware() {
        let fadt = bytes_of(&fixed(0));
        let flags = number(&fadt, 112, 4);
        assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
        assert_ne!(flags & 1 << 10, 0, "reset register");
        let boot = number(&fadt, 109, 2);
        assert_eq!(boot & 0b11, 0, "legacy devices, keyboard controller");
        assert_eq!(boot & 0b10_0100, 0b10_0100, "VGA, CMOS clock");
        assert_eq!(number(&fadt, 116 + 4, 8), u64::from(power::RESET));
        assert_eq!(number(&fadt, 244 + 4, 8), u64::from(power::SLEEP_CONTROL));
    }
}
