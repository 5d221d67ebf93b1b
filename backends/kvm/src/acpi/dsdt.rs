//! The devices that cannot be found otherwise: console, virtio slots, vCPUs that may come, and the event device.
//!
//! All slots are children of one container, those that are free at boot in a table of their own ([`super`]). Linux takes
//! hot-plug notifications for containers, processors and memory only; told to look at the container's bus, it finds children
//! that have come.

use std::ops::Range;

use acpi_tables::aml::{
    BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store,
};
use acpi_tables::madt::{EnabledStatus, ProcessorLocalApic};
use acpi_tables::{Aml, AmlSink};

use super::{Bytes, Description, bytes_of, plug};
use crate::memory::layout::{EVENT_GSI, HOTPLUG_PAGE, SERIAL_GSI, VIRTIO_STRIDE, slot_gsi, slot_registers};
use crate::{power, serial};

/// The notification of a bus whose children may have changed.
const BUS_CHECK: u8 = 0;

/// AML that was made before.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The table of further slots, as memory that it is loaded from.
const FURTHER: &str = "FURT";
/// Whether it has been loaded.
const LOADED: &str = "LODD";

/// All of the table's definitions. That of further slots is at `further`.
pub(super) fn definitions(description: Description, further: Range<u64>) -> Vec<u8> {
    let hotplug_vcpus = description.vcpus..description.max_vcpus;
    let mut all = Bytes(Vec::new());
    let mut devices = vec![plug_fields(description), console()];
    devices.push(slots(description.used_slots));
    devices.push(further_table(further));
    devices.extend(hotplug_vcpus.clone().map(vcpu));
    devices.push(event_device(hotplug_vcpus));
    Scope::new("\\_SB_".into(), devices.iter().map(|device| device as &dyn Aml).collect()).to_aml_bytes(&mut all);
    sleep_types().to_aml_bytes(&mut all);
    all.0
}

/// A name of four letters, of which three are a number.
fn name(letter: char, index: u8) -> String {
    format!("{letter}{index:03X}")
}

/// Power off is the only kind of sleep.
fn sleep_types() -> Name {
    let mut package = PackageBuilder::new();
    for value in [power::SLEEP_TYPE_OFF, power::SLEEP_TYPE_OFF, 0, 0] {
        package.add_element(&value);
    }
    Name::new("\\_S5_".into(), &package)
}

/// The page of what is plugged, and the port that takes vCPUs back.
fn plug_fields(description: Description) -> Raw {
    let hotplug_vcpus = description.vcpus..description.max_vcpus;
    let byte = |name: &str| {
        let mut letters = [b'_'; 4];
        letters.copy_from_slice(&name.as_bytes()[..4]);
        FieldEntry::Named(letters, 8)
    };
    let mut all = Bytes(Vec::new());
    let mut region = |region: &str, space, start: u64, len: u64, entries: Vec<FieldEntry>| {
        OpRegion::new(region.into(), space, &start, &len).to_aml_bytes(&mut all);
        Field::new(region.into(), FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve, entries)
            .to_aml_bytes(&mut all);
    };

    let mut at = plug::SLOTS;
    let mut entries = Vec::new();
    let mut put = |offset: u64, entry: FieldEntry| {
        let gap = usize::try_from(offset - at).unwrap_or(0);
        if gap > 0 {
            entries.push(FieldEntry::Reserved(gap * 8));
        }
        entries.push(entry);
        at = offset + 1;
    };
    for slot in 0..description.slots {
        put(plug::SLOTS + u64::from(slot), byte(&name('S', slot)));
    }
    put(plug::LOOK_AT_SLOTS, byte("LOOK"));
    for index in hotplug_vcpus.clone() {
        put(plug::VCPUS + u64::from(index), byte(&name('P', index)));
    }
    for index in hotplug_vcpus.clone() {
        put(plug::REQUESTS + u64::from(index), byte(&name('R', index)));
    }
    region("PLUG", OpRegionSpace::SystemMemory, HOTPLUG_PAGE, plug::LEN, entries);
    if !hotplug_vcpus.is_empty() {
        region("EJEC", OpRegionSpace::SystemIO, u64::from(power::EJECT), 1, vec![byte("EJCT")]);
    }
    Raw(all.0)
}

fn console() -> Raw {
    let port = serial::PORT;
    let ports = u8::try_from(serial::PORTS).unwrap_or(u8::MAX);
    Raw(bytes_of(&Device::new(
        "COM0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port, port, 1, ports),
                    &Interrupt::new(true, true, false, false, SERIAL_GSI),
                ]),
            ),
        ],
    )))
}

/// A method that says what the field `field` does.
fn status_from(field: &str) -> Raw {
    Raw(bytes_of(&Method::new("_STA".into(), 0, false, vec![&Return::new(&Path::new(field))])))
}

/// What is needed to load the table that is at `further`.
fn further_table(further: Range<u64>) -> Raw {
    let mut all = Bytes(Vec::new());
    let (start, len) = (further.start, further.end - further.start);
    OpRegion::new(FURTHER.into(), OpRegionSpace::SystemMemory, &start, &len).to_aml_bytes(&mut all);
    Name::new(LOADED.into(), &0u8).to_aml_bytes(&mut all);
    Raw(all.0)
}

/// The definitions of the table of further slots: those without a device at boot.
pub(super) fn further_slots(description: Description) -> Vec<u8> {
    let slots: Vec<Raw> = (description.used_slots..description.slots).map(slot).collect();
    let children = slots.iter().map(|slot| slot as &dyn Aml).collect();
    bytes_of(&Scope::new("\\_SB_.VIRT".into(), children))
}

/// Loads the table that is in memory (`Load`, ACPI 6.5, 19.6.77, whose answer nobody needs).
struct Load(&'static str);

impl Aml for Load {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&[0x5b, 0x20]);
        Path::new(self.0).to_aml_bytes(sink);
        Local(0).to_aml_bytes(sink);
    }
}

fn slots(count: u8) -> Raw {
    let slots: Vec<Raw> = (0..count).map(slot).collect();
    let id = Name::new("_HID".into(), &"ACPI0004".to_owned());
    let number = Name::new("_UID".into(), &0u8);
    let mut children: Vec<&dyn Aml> = vec![&id, &number];
    children.extend(slots.iter().map(|slot| slot as &dyn Aml));
    Raw(bytes_of(&Device::new("VIRT".into(), children)))
}

fn slot(slot: u8) -> Raw {
    let registers = slot_registers(slot);
    let start = u32::try_from(registers.start).unwrap_or(u32::MAX);
    let len = u32::try_from(VIRTIO_STRIDE).unwrap_or(u32::MAX);
    Raw(bytes_of(&Device::new(
        name('V', slot).as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005".to_owned()),
            &Name::new("_UID".into(), &slot),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, start, len),
                    &Interrupt::new(true, true, false, true, slot_gsi(slot)),
                ]),
            ),
            &status_from(&name('S', slot)),
        ],
    )))
}

/// A vCPU that may come and go.
fn vcpu(index: u8) -> Raw {
    let entry = bytes_of(&ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    Raw(bytes_of(&Device::new(
        name('C', index).as_str().into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0007".to_owned()),
            &Name::new("_UID".into(), &index),
            &Name::new("_MAT".into(), &BufferData::new(entry)),
            &status_from(&name('P', index)),
            &Method::new("_EJ0".into(), 1, false, vec![&Store::new(&Path::new("EJCT"), &index)]),
        ],
    )))
}

fn event_device(hotplug_vcpus: Range<u8>) -> Raw {
    let mut body = Bytes(Vec::new());
    // What is asked is taken away first, so that what comes meanwhile is seen at the next event.
    If::new(
        &Path::new("LOOK"),
        vec![
            &Store::new(&Path::new("LOOK"), &0u8),
            &If::new(
                &Equal::new(&Path::new(LOADED), &0u8),
                vec![&Store::new(&Path::new(LOADED), &1u8), &Load(FURTHER)],
            ),
            &Notify::new(&Path::new("VIRT"), &BUS_CHECK),
        ],
    )
    .to_aml_bytes(&mut body);
    for index in hotplug_vcpus {
        let (request, device) = (name('R', index), name('C', index));
        for what in [plug::LOOK, plug::GIVE_BACK] {
            If::new(
                &Equal::new(&Path::new(&request), &what),
                vec![&Store::new(&Path::new(&request), &0u8), &Notify::new(&Path::new(&device), &what)],
            )
            .to_aml_bytes(&mut body);
        }
    }
    let interrupt = Interrupt::new(true, true, false, false, EVENT_GSI);
    Raw(bytes_of(&Device::new(
        "EVTS".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013".to_owned()),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new("_EVT".into(), 1, true, vec![&Raw(body.0)]),
        ],
    )))
}
