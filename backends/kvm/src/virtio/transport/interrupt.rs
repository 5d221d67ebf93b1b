//! What the guest sees when it is interrupted.

use super::super::{ConfigSpace, Interrupt};
use super::registers::CONFIG_OFFSET;
use super::status;
use crate::memory::registers::RegisterPage;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_mmio as abi;

/// In the interrupt status: buffers were used.
pub const USED: u32 = abi::VIRTIO_MMIO_INT_VRING;
/// In the interrupt status: the configuration has changed, or the device needs a reset.
pub(super) const CONFIG: u32 = abi::VIRTIO_MMIO_INT_CONFIG;

/// The wire of a slot's interrupt.
pub trait InterruptLine: Send + Sync + fmt::Debug {
    /// Interrupts the guest once: an edge. Called on any thread, by several at once too.
    fn raise(&self);
}

/// The registers that a device changes by itself; shared with its worker's thread, which therefore takes no lock of the
/// slot: a vCPU may hold that one while it waits for the worker.
#[derive(Debug)]
pub(super) struct SlotInterrupt {
    line: Arc<dyn InterruptLine>,
    space: Arc<dyn ConfigSpace>,
    /// [`USED`] is in the interrupt status, so that nothing is left to do but to interrupt.
    used: AtomicBool,
    // Worker, handles of the device and vCPUs change them; nothing that waits is done under it.
    registers: Mutex<Registers>,
}

#[derive(Debug)]
struct Registers {
    /// Where the guest reads them; `None` once the device has left the slot.
    page: Option<RegisterPage>,
    /// The bits that the driver has set in the status.
    driver_status: u32,
    needs_reset: bool,
    interrupt_status: u32,
    generation: u32,
    /// The driver may be told: it has said DRIVER_OK.
    driver_ok: bool,
    /// A change of the configuration that it has not been told of.
    config_pending: bool,
}

impl Registers {
    fn set(&self, register: u32, value: u32) {
        if let Some(page) = &self.page {
            page.set(register.into(), value);
        }
    }

    fn show_status(&self) {
        let needs_reset = if self.needs_reset { status::NEEDS_RESET } else { 0 };
        self.set(abi::VIRTIO_MMIO_STATUS, self.driver_status | needs_reset);
    }

    fn count_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.set(abi::VIRTIO_MMIO_CONFIG_GENERATION, self.generation);
    }
}

impl SlotInterrupt {
    /// Of a device that has just come, with the configuration `space`, shown in `page`.
    pub(super) fn new(line: Arc<dyn InterruptLine>, page: RegisterPage, space: Arc<dyn ConfigSpace>) -> Self {
        let interrupt = Self {
            line,
            space,
            used: AtomicBool::new(false),
            registers: Mutex::new(Registers {
                page: Some(page),
                driver_status: 0,
                needs_reset: false,
                interrupt_status: 0,
                generation: 0,
                driver_ok: false,
                config_pending: false,
            }),
        };
        interrupt.show_config(&interrupt.registers());
        interrupt
    }

    /// A panic ends the process, so that a poisoned lock is never seen.
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        registers.interrupt_status = value;
        registers.set(abi::VIRTIO_MMIO_INTERRUPT_STATUS, value);
        // Whoever sees this interrupts at once, so it comes last.
        self.used.store(value & USED != 0, Ordering::SeqCst);
    }

    pub(super) fn status(&self) -> u32 {
        self.registers().interrupt_status
    }

    /// The driver has seen `bits`. That buffers were used stays said, whatever it acknowledges, so that the guest pays no
    /// exit to hear of each: the driver looks into its queues whenever it is interrupted, and finds nothing at worst.
    pub(super) fn acknowledge(&self, bits: u32) {
        let mut registers = self.registers();
        let left = registers.interrupt_status & !(bits & CONFIG);
        self.set_status(&mut registers, left);
    }

    pub(super) fn generation(&self) -> u32 {
        self.registers().generation
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.registers().needs_reset
    }

    /// The driver has set these bits of the status.
    pub(super) fn set_driver_status(&self, bits: u32) {
        let mut registers = self.registers();
        registers.driver_status = bits;
        registers.show_status();
    }

    /// The driver is to reset the device.
    pub(super) fn require_reset(&self) {
        let mut registers = self.registers();
        registers.needs_reset = true;
        registers.show_status();
        registers.config_pending = true;
        self.tell_pending(&mut registers);
    }

    /// The driver has said DRIVER_OK.
    pub(super) fn driver_ready(&self) {
        let mut registers = self.registers();
        registers.driver_ok = true;
        self.tell_pending(&mut registers);
    }

    /// The driver has reset the device, whose worker has been stopped. The generation counts on: the driver reads the
    /// configuration anew anyway.
    pub(super) fn reset(&self) {
        let mut registers = self.registers();
        registers.driver_ok = false;
        registers.config_pending = false;
        registers.needs_reset = false;
        registers.driver_status = 0;
        registers.show_status();
        self.set_status(&mut registers, 0);
        self.show_config(&registers);
    }

    /// Takes on what was saved, of a device that has taken on its own state. It may have changed its configuration since then.
    pub(super) fn restore(&self, status: u32, generation: u32, needs_reset: bool, config_pending: bool) {
        let mut registers = self.registers();
        self.set_status(&mut registers, status);
        registers.generation = registers.generation.wrapping_add(generation);
        registers.set(abi::VIRTIO_MMIO_CONFIG_GENERATION, registers.generation);
        registers.needs_reset = needs_reset;
        registers.show_status();
        registers.config_pending |= config_pending;
        self.show_config(&registers);
    }

    pub(super) fn config_pending(&self) -> bool {
        self.registers().config_pending
    }

    /// Interrupts again if there is anything to see: the guest may have been stopped before it saw it.
    pub(super) fn repeat(&self) {
        if self.status() != 0 {
            self.line.raise();
        }
    }

    /// The device leaves the slot: whoever still holds this changes nothing there any more.
    pub(super) fn leave(&self) {
        self.registers().page = None;
    }

    fn show_config(&self, registers: &Registers) {
        if let Some(page) = &registers.page {
            page.set_bytes(CONFIG_OFFSET, &self.space.bytes());
        }
    }

    /// Whichever comes last, the change or the driver's readiness, tells; and only one of them.
    fn tell_pending(&self, registers: &mut Registers) {
        if registers.driver_ok && std::mem::take(&mut registers.config_pending) {
            let status = registers.interrupt_status | CONFIG;
            self.set_status(registers, status);
            self.line.raise();
        }
    }

    /// Shows the configuration. A driver that reads several registers meanwhile sees the generation change, unless it did so
    /// all between the two: then it is what comes after, the interrupt, that lets it read again.
    fn change_config(&self) -> MutexGuard<'_, Registers> {
        let mut registers = self.registers();
        registers.count_generation();
        self.show_config(&registers);
        registers.count_generation();
        registers
    }
}

impl Interrupt for SlotInterrupt {
    fn queue(&self, _index: usize) {
        if !self.used.load(Ordering::SeqCst) {
            let mut registers = self.registers();
            let status = registers.interrupt_status | USED;
            self.set_status(&mut registers, status);
        }
        self.line.raise();
    }

    fn config(&self) {
        let mut registers = self.change_config();
        registers.config_pending = true;
        self.tell_pending(&mut registers);
    }

    fn config_by_driver(&self) {
        drop(self.change_config());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::TestLine;

    /// An interrupt, its line, and the page where its registers are.
    fn interrupt() -> (SlotInterrupt, Arc<TestLine>, RegisterPage) {
        let page = RegisterPage::alone().unwrap();
        let line: Arc<TestLine> = Arc::default();
        (SlotInterrupt::new(Arc::clone(&line) as _, page.clone(), Arc::new(b"space".to_vec())), line, page)
    }

    fn read(page: &RegisterPage, register: u32) -> u32 {
        let mut data = [0; 4];
        page.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn shown(page: &RegisterPage) -> (u32, u32, u32) {
        (
            read(page, abi::VIRTIO_MMIO_INTERRUPT_STATUS),
            read(page, abi::VIRTIO_MMIO_CONFIG_GENERATION),
            read(page, abi::VIRTIO_MMIO_STATUS),
        )
    }

    #[test]
    fn that_buffers_were_used_stays_said_and_a_change_until_it_is_acknowledged() {
        let (interrupt, line, page) = interrupt();
        interrupt.driver_ready();
        interrupt.queue(0);
        interrupt.config();
        assert_eq!(line.take(), 2);
        assert_eq!(shown(&page).0, USED | CONFIG);
        interrupt.acknowledge(USED);
        assert_eq!(shown(&page).0, USED | CONFIG);
        interrupt.acknowledge(USED | CONFIG);
        assert_eq!((shown(&page).0, interrupt.status()), (USED, USED));
        interrupt.queue(0);
        assert_eq!(line.take(), 1, "each is an interrupt");
        assert_eq!(shown(&page).0, USED);
    }

    #[test]
    fn a_change_before_the_driver_is_ready_is_told_once_it_is() {
        let (interrupt, line, page) = interrupt();
        interrupt.config();
        assert_eq!(shown(&page), (0, 2, 0));
        assert_eq!(line.take(), 0);
        interrupt.driver_ready();
        assert_eq!(shown(&page).0, CONFIG);
        interrupt.driver_ready();
        assert_eq!(line.take(), 1);
    }

    #[test]
    fn a_change_that_the_driver_has_asked_for_does_not_interrupt_it() {
        let (interrupt, line, page) = interrupt();
        interrupt.driver_ready();
        interrupt.config_by_driver();
        assert_eq!(shown(&page), (0, 2, 0));
        assert_eq!(line.take(), 0);
    }

    #[test]
    fn a_change_between_saving_and_going_on_is_told() {
        let (interrupt, _line, page) = interrupt();
        interrupt.config();
        interrupt.restore(0, 7, false, false);
        assert_eq!((interrupt.generation(), shown(&page).1), (9, 9));
        interrupt.driver_ready();
        assert_eq!(shown(&page).0, CONFIG);
    }

    #[test]
    fn a_reset_forgets_all_but_the_generation() {
        let (interrupt, _line, page) = interrupt();
        interrupt.set_driver_status(status::DRIVER);
        interrupt.driver_ready();
        interrupt.queue(0);
        interrupt.config();
        interrupt.require_reset();
        assert_eq!(shown(&page), (USED | CONFIG, 2, status::DRIVER | status::NEEDS_RESET));
        interrupt.reset();
        assert_eq!(shown(&page), (0, 2, 0));
        interrupt.driver_ready();
        assert_eq!(interrupt.status(), 0);
        interrupt.queue(0);
        assert_eq!(shown(&page).0, USED);
    }

    #[test]
    fn a_device_that_has_left_changes_nothing_in_the_page() {
        let (interrupt, _line, page) = interrupt();
        let mut space = [0; 5];
        page.read(CONFIG_OFFSET, &mut space);
        assert_eq!(space, *b"space");
        interrupt.leave();
        page.set_bytes(CONFIG_OFFSET, b"other");
        interrupt.driver_ready();
        interrupt.queue(0);
        interrupt.config();
        interrupt.require_reset();
        assert_eq!(shown(&page), (0, 0, 0));
        page.read(CONFIG_OFFSET, &mut space);
        assert_eq!(space, *b"other");
    }
}
