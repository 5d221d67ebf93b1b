//! The serial console: a 16550A at the first port's address.

use std::io::{self, Write};

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::machine::{Console, Events, MachineEvent, SerialRegisters};

/// Its ports.
pub(crate) const PORT: u16 = 0x3f8;
/// How many.
pub(crate) const PORTS: u16 = 8;

/// What Linux writes when it panics. Told by the console, a panic is known without a device and before any driver.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// What waits for the sink at most.
const BUFFER: usize = 4096;

#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Collects bytes for the sink, as the serial port's model hands them on one by one.
#[derive(Debug)]
struct Output {
    console: Console,
    buffer: Vec<u8>,
    matched: usize,
    events: Events,
}

impl Output {
    fn watch(&mut self, byte: u8) {
        // The first letter occurs once in the text, so a mismatch can only begin anew at it.
        if PANIC.get(self.matched) == Some(&byte) {
            self.matched += 1;
        } else {
            self.matched = usize::from(PANIC.first() == Some(&byte));
        }
        if self.matched == PANIC.len() {
            self.matched = 0;
            self.events.push(MachineEvent::Panic);
        }
    }

    fn hand_on(&mut self) {
        if !self.buffer.is_empty() {
            // A sink that fails loses the console, not the machine.
            let _ = self.console.0.write_all(&self.buffer).and_then(|()| self.console.0.flush());
            self.buffer.clear();
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|byte| self.watch(*byte));
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.hand_on();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The console's device.
#[derive(Debug)]
pub(crate) struct SerialConsole(Serial<Line, NoEvents, Output>);

impl SerialConsole {
    /// A console that writes to `console` and raises its interrupt by `line`.
    pub(crate) fn new(console: Console, line: EventFd, events: Events) -> Self {
        let output = Output { console, buffer: Vec::new(), matched: 0, events };
        Self(Serial::new(Line(line), output))
    }

    /// A console with saved registers.
    pub(crate) fn restore(
        console: Console,
        line: EventFd,
        events: Events,
        registers: &SerialRegisters,
    ) -> Result<Self, String> {
        let output = Output { console, buffer: Vec::new(), matched: 0, events };
        Serial::from_state(&registers.into(), Line(line), NoEvents, output).map(Self).map_err(|error| error.to_string())
    }

    /// The registers.
    pub(crate) fn save(&self) -> SerialRegisters {
        (&self.0.state()).into()
    }

    /// A byte was written to the transmitter, which KVM has kept for us.
    pub(crate) fn transmit(&mut self, byte: u8) {
        // Fails when the interrupt's counter is full, and then the interrupt is on its way.
        let _ = self.0.write(0, byte);
    }

    /// Hands all bytes on to the sink.
    pub(crate) fn flush(&mut self) {
        self.0.writer_mut().hand_on();
    }
}

impl BusDevice for SerialConsole {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Ok(offset) = u8::try_from(offset) {
            data.iter_mut().for_each(|byte| *byte = self.0.read(offset));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u8::try_from(offset) {
            for byte in data {
                let _ = self.0.write(offset, *byte);
            }
        }
        self.flush();
    }
}

impl Drop for SerialConsole {
    fn drop(&mut self) {
        self.flush();
    }
}

impl From<&SerialState> for SerialRegisters {
    fn from(state: &SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        }
    }
}

impl From<&SerialRegisters> for SerialState {
    fn from(registers: &SerialRegisters) -> Self {
        Self {
            baud_divisor_low: registers.baud_divisor_low,
            baud_divisor_high: registers.baud_divisor_high,
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            in_buffer: registers.in_buffer.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut sink = self.0.lock().unwrap();
            sink.0.extend(bytes);
            sink.1 += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn console() -> (SerialConsole, Sink, Events) {
        let (sink, events) = (Sink::default(), Events::new().unwrap());
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        (SerialConsole::new(Console(Box::new(sink.clone())), line, events.clone()), sink, events)
    }

    #[test]
    fn bytes_that_kvm_kept_reach_the_sink_in_one_write() {
        let (mut console, sink, _) = console();
        b"hello\n".iter().for_each(|byte| console.transmit(*byte));
        console.flush();
        assert_eq!(*sink.0.lock().unwrap(), (b"hello\n".to_vec(), 1));
    }

    #[test]
    fn a_panic_is_seen_on_the_console() {
        let (mut console, _, events) = console();
        console.write(0, b"[ 1.0] KKernel panic - not syncin: no\n");
        assert_eq!(events.take(), None);
        console.write(0, b"[ 1.0] KKernel panic - not syn");
        console.write(0, b"cing: Attempted to kill init\n");
        assert_eq!(events.take(), Some(MachineEvent::Panic));
        assert_eq!(events.take(), None);
    }

    #[test]
    fn the_port_looks_like_a_16550a_with_its_transmitter_empty() {
        let (mut console, _, _) = console();
        let mut data = [0];
        console.read(5, &mut data);
        assert_eq!(data[0] & 0x60, 0x60);
        console.write(2, &[1]);
        console.read(2, &mut data);
        assert_eq!(data[0] & 0xc0, 0xc0, "the FIFOs are on");
    }

    #[test]
    fn registers_survive_being_saved() {
        let (mut console, _, events) = console();
        console.write(1, &[0x0f]);
        console.write(7, &[0x5a]);
        let saved = console.save();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut second = SerialConsole::restore(Console(Box::new(io::sink())), line, events, &saved).unwrap();
        let mut data = [0];
        second.read(7, &mut data);
        assert_eq!(data, [0x5a]);
    }
}
