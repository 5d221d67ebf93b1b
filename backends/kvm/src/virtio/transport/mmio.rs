//! A slot: a window of registers, and who answers there.

use super::super::event_loop::EventLoops;
use super::super::{Counts, DeviceKind, F_VERSION_1, FailureListener, VirtioDevice};
use super::attached::Attached;
use super::failures::Failures;
use super::interrupt::InterruptLine;
use super::registers::{CONFIG_OFFSET, MAGIC, VERSION, WINDOW_SIZE, Writable};
use super::state::{RestoreError, TransportState};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::memory::registers::RegisterPage;
use std::io;
use std::sync::Arc;
use virtio_bindings::virtio_mmio as abi;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a slot is doing, see the picture of the [module](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DeviceState {
    /// No device is in it.
    Empty,
    /// The guest's driver is not ready, or not there.
    Idle,
    /// The driver uses the device.
    Active,
    /// The driver uses the device, and the machine is paused.
    Paused,
    /// The device serves its driver no longer, until that resets it.
    Failed,
}

/// Why a device cannot be put into a slot.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// One is in it already.
    #[error("a device is in the slot already")]
    Taken,
    /// The device offers what this transport cannot do.
    #[error("cannot use the device: {0}")]
    Device(&'static str),
    /// The host has no descriptor or thread to give.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The most queues that a device may have: each takes a descriptor, and KVM an entry in its list of notifications.
const MAX_QUEUES: usize = 64;

/// A window of registers, and the device in it. Used under one lock by vCPU threads (writes) and by the machine; what the guest
/// reads is always in the slot's page.
#[derive(Debug)]
pub struct MmioTransport {
    slot: u8,
    page: RegisterPage,
    memory: GuestMemory,
    loops: EventLoops,
    line: Arc<dyn InterruptLine>,
    failure_listener: Option<Arc<dyn FailureListener>>,
    attached: Option<Attached>,
}

impl MmioTransport {
    /// The empty slot number `slot`, whose registers the guest reads in `page`, for devices on `memory` that are run by
    /// `loops` and interrupt by `line`.
    #[must_use]
    pub fn new(
        slot: u8,
        page: RegisterPage,
        memory: GuestMemory,
        loops: EventLoops,
        line: Arc<dyn InterruptLine>,
    ) -> Self {
        show_no_device(&page);
        Self { slot, page, memory, loops, line, failure_listener: None, attached: None }
    }

    /// Lets `listener` hear of failures of devices that are attached from now on: the first few of each device.
    pub fn tell_failures(&mut self, listener: Arc<dyn FailureListener>) {
        self.failure_listener = Some(listener);
    }

    /// What tells that the guest has notified each queue of the attached device, by the queue's index: to be bound to
    /// writes of that index, 32 bits wide, at [`QUEUE_NOTIFY_OFFSET`](super::QUEUE_NOTIFY_OFFSET) (ioeventfd).
    #[must_use]
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        self.attached.as_ref().map(Attached::kicks).unwrap_or_default()
    }

    /// Puts a device into the empty slot. Starts its thread, so not for vCPU threads.
    ///
    /// # Errors
    /// The slot is taken, or the host has no descriptor or thread to give. The device is gone then.
    pub fn attach(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), TransportError> {
        if self.attached.is_some() {
            return Err(TransportError::Taken);
        }
        if device.features() & F_VERSION_1 == 0 {
            return Err(TransportError::Device("it does not offer VIRTIO_F_VERSION_1"));
        }
        let sizes = device.queue_sizes();
        if sizes.len() > MAX_QUEUES || sizes.iter().any(|size| !size.is_power_of_two()) {
            return Err(TransportError::Device("its queues are too many, or no powers of two"));
        }
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| TransportError::Host { what: "make a descriptor for a queue's notifications", source })?;
        let kind = device.thread();
        let event_loop = self
            .loops
            .open(kind, &format!("{}-{}", kind.name(), self.slot))
            .map_err(|source| TransportError::Host { what: "start a device's thread", source })?;
        let (memory, page) = (Arc::clone(&self.memory), self.page.clone());
        let failures = Failures::new(self.failure_listener.clone());
        self.attached = Some(Attached::new(device, memory, page, event_loop, Arc::clone(&self.line), kicks, failures));
        Ok(())
    }

    /// Takes the device out; it is stopped when this returns. The driver should have let go of it before. `None` when the
    /// slot is empty.
    pub fn detach(&mut self) -> Option<Box<dyn VirtioDevice>> {
        let device = self.attached.take().map(Attached::into_device);
        show_no_device(&self.page);
        device
    }

    /// Whether a driver has used the device and has let go of it since, so that it holds nothing of it. False when the slot is
    /// empty.
    #[must_use]
    pub fn driver_has_let_go(&self) -> bool {
        self.attached.as_ref().is_some_and(Attached::driver_has_let_go)
    }

    /// What the slot is doing.
    #[must_use]
    pub fn state(&self) -> DeviceState {
        self.attached.as_ref().map_or(DeviceState::Empty, Attached::state)
    }

    /// What is in it.
    #[must_use]
    pub fn kind(&self) -> Option<DeviceKind> {
        self.attached.as_ref().map(Attached::kind)
    }

    /// What the device has counted since it was attached.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.attached.as_ref().map(|attached| attached.counters().counts()).unwrap_or_default()
    }

    /// Stops the device and keeps its queues: when this returns it accesses the guest's memory no more. The vCPUs should
    /// have been stopped before. No effect on a device that does not run.
    pub fn pause(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.pause();
        }
    }

    /// Lets a device go on that was paused, or that has taken on the state of one. No effect on others. A device that
    /// cannot be activated again has failed, which its driver is told.
    pub fn resume(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.resume();
        }
    }

    /// The state of a slot whose device does not run ([`pause`](Self::pause) it before); `None` when the slot is empty or
    /// the device runs.
    #[must_use]
    pub fn save(&self) -> Option<TransportState> {
        self.attached.as_ref()?.save()
    }

    /// Takes on what [`save`](Self::save) gave, for a device that has just been attached. [`resume`](Self::resume) lets
    /// it go on.
    ///
    /// # Errors
    /// The state does not fit the device or the machine's memory; the slot is then to be emptied.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        self.attached.as_mut().ok_or(RestoreError::NotFresh)?.restore(state)
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.detach();
    }
}

impl BusDevice for MmioTransport {
    /// As the guest does it by itself where KVM maps the page.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(attached) = &mut self.attached else { return };
        let valid = if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            attached.write_config(offset, data)
        } else if let (Some(register), Ok(value)) = (Writable::at(offset), data.try_into()) {
            attached.write(register, u32::from_le_bytes(value))
        } else {
            false
        };
        if !valid {
            attached.counters().invalid_access();
        }
    }
}

/// Shows what drivers leave alone: a device 0.
fn show_no_device(page: &RegisterPage) {
    page.set(abi::VIRTIO_MMIO_DEVICE_ID.into(), 0);
    page.set_bytes(0, &[0; WINDOW_SIZE as usize]);
    page.set(abi::VIRTIO_MMIO_VERSION.into(), VERSION);
    page.set(abi::VIRTIO_MMIO_MAGIC_VALUE.into(), MAGIC);
}
