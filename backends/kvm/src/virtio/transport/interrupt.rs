//! What the guest sees when it is interrupted.

use super::super::Interrupt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use virtio_bindings::virtio_mmio as abi;
use vmm_sys_util::eventfd::EventFd;

/// In the interrupt status: buffers were used.
pub const USED: u32 = abi::VIRTIO_MMIO_INT_VRING;
/// In the interrupt status: the configuration has changed, or the device needs a reset.
pub(super) const CONFIG: u32 = abi::VIRTIO_MMIO_INT_CONFIG;

/// The registers that a device changes by itself; shared with its worker's thread, which therefore takes no lock of the
/// slot: a vCPU may hold that one while it waits for the worker.
#[derive(Debug)]
pub(super) struct SlotInterrupt {
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    /// The driver may be told: it has said DRIVER_OK.
    driver_ok: AtomicBool,
    /// A change of the configuration that it has not been told of.
    config_pending: AtomicBool,
    line: Arc<EventFd>,
}

impl SlotInterrupt {
    pub(super) fn new(line: Arc<EventFd>) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            driver_ok: AtomicBool::new(false),
            config_pending: AtomicBool::new(false),
            line,
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// What the driver reads, which with that counts as acknowledged. A driver reads once for each interrupt, and then
    /// writes what it has read (virtio 1.2, section 4.2.2): so that write says nothing new, and need not be seen, which
    /// spares the guest an exit. What comes between the two is not lost either: it interrupts again.
    pub(super) fn take_status(&self) -> u32 {
        self.status.swap(0, Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The driver is to reset the device.
    pub(super) fn require_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.announce();
    }

    /// The driver has said DRIVER_OK.
    pub(super) fn driver_ready(&self) {
        self.driver_ok.store(true, Ordering::SeqCst);
        self.tell_pending();
    }

    /// The driver has reset the device. The generation counts on: the driver reads the configuration anew anyway.
    pub(super) fn reset(&self) {
        self.driver_ok.store(false, Ordering::SeqCst);
        self.config_pending.store(false, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.status.store(0, Ordering::SeqCst);
    }

    /// Takes on what was saved. The device may have changed its configuration since then.
    pub(super) fn restore(&self, status: u32, generation: u32, needs_reset: bool, config_pending: bool) {
        self.status.store(status, Ordering::SeqCst);
        self.generation.fetch_add(generation, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.config_pending.fetch_or(config_pending, Ordering::SeqCst);
    }

    pub(super) fn config_pending(&self) -> bool {
        self.config_pending.load(Ordering::SeqCst)
    }

    /// Interrupts again if the guest has not read all: it may have been stopped in between.
    pub(super) fn repeat(&self) {
        if self.status() != 0 {
            self.interrupt();
        }
    }

    fn announce(&self) {
        self.config_pending.store(true, Ordering::SeqCst);
        self.tell_pending();
    }

    /// Whichever comes last, the change or the driver's readiness, tells; and only one of them.
    fn tell_pending(&self) {
        if self.driver_ok.load(Ordering::SeqCst) && self.config_pending.swap(false, Ordering::SeqCst) {
            self.raise(CONFIG);
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.interrupt();
    }

    fn interrupt(&self) {
        // Fails only if the counter is at its limit: then KVM is to interrupt anyway.
        let _ = self.line.write(1);
    }
}

impl Interrupt for SlotInterrupt {
    fn queue(&self, _index: usize) {
        self.raise(USED);
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn interrupt() -> SlotInterrupt {
        SlotInterrupt::new(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()))
    }

    #[test]
    fn used_buffers_and_changes_are_told_apart_and_once() {
        let interrupt = interrupt();
        interrupt.driver_ready();
        interrupt.queue(0);
        interrupt.config();
        assert_eq!(interrupt.line.read().unwrap(), 2);
        assert_eq!(interrupt.take_status(), USED | CONFIG);
        assert_eq!(interrupt.status(), 0);
        interrupt.config();
        assert_eq!(interrupt.take_status(), CONFIG);
    }

    #[test]
    fn a_change_before_the_driver_is_ready_is_told_once_it_is() {
        let interrupt = interrupt();
        interrupt.config();
        assert_eq!((interrupt.status(), interrupt.generation()), (0, 1));
        assert!(interrupt.line.read().is_err());
        interrupt.driver_ready();
        assert_eq!(interrupt.status(), CONFIG);
        interrupt.driver_ready();
        assert_eq!(interrupt.line.read().unwrap(), 1);
    }

    #[test]
    fn a_change_between_saving_and_going_on_is_told() {
        let interrupt = interrupt();
        interrupt.config();
        interrupt.restore(0, 7, false, false);
        assert_eq!(interrupt.generation(), 8);
        interrupt.driver_ready();
        assert_eq!(interrupt.status(), CONFIG);
    }

    #[test]
    fn a_reset_forgets_all_but_the_generation() {
        let interrupt = interrupt();
        interrupt.driver_ready();
        interrupt.config();
        interrupt.require_reset();
        interrupt.reset();
        assert_eq!((interrupt.status(), interrupt.generation(), interrupt.needs_reset()), (0, 1, false));
        interrupt.driver_ready();
        assert_eq!(interrupt.status(), 0);
    }
}
