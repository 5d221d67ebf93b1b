//! The registers that a guest powers off, resets, and gives vCPUs back by.

use crate::bus::BusDevice;
use crate::machine::{Events, MachineEvent, ResetCause};

/// The first port of power management; nothing else on this machine is near it.
pub(crate) const PORT: u16 = 0x600;
/// How many ports.
pub(crate) const PORTS: u16 = 4;
/// ACPI's sleep control register.
pub(crate) const SLEEP_CONTROL: u16 = PORT;
/// ACPI's sleep status register.
pub(crate) const SLEEP_STATUS: u16 = PORT + 1;
/// ACPI's reset register.
pub(crate) const RESET: u16 = PORT + 2;
/// The number of a vCPU that the guest gives back.
pub(crate) const EJECT: u16 = PORT + 3;
/// What the reset register takes.
pub(crate) const RESET_VALUE: u8 = 1;
/// The type of sleep that is power off.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// Says which vCPUs the guest has given back.
pub(crate) type Eject = Box<dyn FnMut(u8) + Send>;

/// The registers at [`PORT`].
pub(crate) struct PowerRegisters {
    events: Events,
    eject: Eject,
}

impl PowerRegisters {
    /// Registers that tell `events` of the end, and `eject` of vCPUs.
    pub(crate) fn new(events: Events, eject: Eject) -> Self {
        Self { events, eject }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first().copied() else { return };
        match u16::try_from(offset).map(|offset| PORT + offset) {
            Ok(SLEEP_CONTROL) if value == SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT => {
                self.events.push(MachineEvent::Shutdown);
            }
            Ok(RESET) if value == RESET_VALUE => self.events.push(MachineEvent::Reset(ResetCause::Register)),
            Ok(EJECT) => (self.eject)(value),
            _ => {}
        }
    }
}

/// The one thing of a keyboard controller that this machine has: its line to the processor's reset.
#[derive(Debug)]
pub(crate) struct KeyboardReset(Events);

/// The controller's status and command port.
pub(crate) const KEYBOARD_PORT: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

impl KeyboardReset {
    /// A line that tells `events`.
    pub(crate) fn new(events: Events) -> Self {
        Self(events)
    }
}

impl BusDevice for KeyboardReset {
    /// Nothing to read, and ready for a command.
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            self.0.push(MachineEvent::Reset(ResetCause::KeyboardController));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn each_way_to_end_is_told_as_what_it_is() {
        let events = Events::new().unwrap();
        let mut power = PowerRegisters::new(events.clone(), Box::new(|_| {}));
        power.write(0, &[0x34]);
        power.write(2, &[1]);
        KeyboardReset::new(events.clone()).write(0, &[0xfe]);
        assert_eq!(events.take(), Some(MachineEvent::Shutdown));
        assert_eq!(events.take(), Some(MachineEvent::Reset(ResetCause::Register)));
        assert_eq!(events.take(), Some(MachineEvent::Reset(ResetCause::KeyboardController)));
    }

    proptest! {
        #[test]
        fn other_writes_do_nothing(offset in 0u64..3, data in proptest::collection::vec(any::<u8>(), 0..9)) {
            let ends = matches!((offset, data.first()), (0, Some(0x34)) | (2, Some(1)));
            let ejected = Arc::new(Mutex::new(0));
            let count = Arc::clone(&ejected);
            let events = Events::new().unwrap();
            let mut power = PowerRegisters::new(events.clone(), Box::new(move |_| *count.lock().unwrap() += 1));
            power.write(offset, &data);
            prop_assert_eq!(events.take().is_some(), ends);
            prop_assert_eq!(*ejected.lock().unwrap(), 0);
        }
    }
}
