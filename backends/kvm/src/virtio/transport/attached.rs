//! A device in a slot, and what its registers do.

use super::super::event_loop::{EventLoop, OnFailure, WorkerId};
use super::super::{
    Activation, Counters, DeviceError, DeviceKind, F_EVENT_IDX, F_VERSION_1, Interrupt, LiveQueue, VirtioDevice,
};
use super::failures::Failures;
use super::interrupt::InterruptLine;
use super::interrupt::SlotInterrupt;
use super::mmio::DeviceState;
use super::queue::QueueSetup;
use super::registers::{Half, VENDOR, Writable};
use super::state::{RestoreError, TRANSPORT_STATE_VERSION, TransportState};
use super::status;
use crate::memory::GuestMemory;
use crate::memory::registers::RegisterPage;
use std::mem;
use std::sync::Arc;
use stockade_devices::one_line;
use virtio_bindings::virtio_mmio as abi;
use vmm_sys_util::eventfd::EventFd;

/// What the worker is doing.
#[derive(Debug)]
enum Run {
    /// There is none, and there are no queues in use.
    Stopped,
    /// It is in the loop (and may have failed there).
    Running(WorkerId),
    /// The driver uses these queues, but the machine is paused.
    Paused(Vec<LiveQueue>),
}

/// A device in a slot.
#[derive(Debug)]
pub(super) struct Attached {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    page: RegisterPage,
    event_loop: Arc<EventLoop>,
    interrupt: Arc<SlotInterrupt>,
    counters: Arc<Counters>,
    failures: Failures,
    kicks: Vec<Arc<EventFd>>,
    /// The bits that the driver has set.
    status: u32,
    /// A driver has used the device, now or before.
    was_driven: bool,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueSetup>,
    run: Run,
}

impl Attached {
    /// `device` with the registers that a reset leaves, shown in `page`. `kicks` are as many as it has queues.
    pub(super) fn new(
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        page: RegisterPage,
        event_loop: Arc<EventLoop>,
        line: Arc<dyn InterruptLine>,
        kicks: Vec<Arc<EventFd>>,
        failures: Failures,
    ) -> Self {
        let interrupt = Arc::new(SlotInterrupt::new(line, page.clone(), device.config_space()));
        device.attached(Arc::clone(&interrupt) as Arc<dyn Interrupt>);
        let queues = fresh_queues(device.as_ref());
        let attached = Self {
            device,
            memory,
            page,
            event_loop,
            interrupt,
            counters: Arc::default(),
            failures,
            kicks,
            status: 0,
            was_driven: false,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            run: Run::Stopped,
        };
        attached.show_identity();
        attached.show();
        attached
    }

    /// The device, stopped.
    pub(super) fn into_device(mut self) -> Box<dyn VirtioDevice> {
        self.stop();
        self.interrupt.leave();
        self.device
    }

    pub(super) fn kind(&self) -> DeviceKind {
        self.device.kind()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    pub(super) fn state(&self) -> DeviceState {
        match &self.run {
            _ if self.has_failed() => DeviceState::Failed,
            Run::Stopped => DeviceState::Idle,
            Run::Running(_) => DeviceState::Active,
            Run::Paused(_) => DeviceState::Paused,
        }
    }

    fn has_failed(&self) -> bool {
        self.status & status::FAILED != 0 || self.interrupt.needs_reset()
    }

    /// Whether a driver was there and has gone: it has reset the device, which Linux then acknowledges once more. A device that
    /// no driver has used does not say that: one may be about to come.
    pub(super) fn driver_has_let_go(&self) -> bool {
        self.was_driven && self.status & !status::ACKNOWLEDGE == 0
    }

    /// Shows the registers that stay the same while the device is here.
    fn show_identity(&self) {
        self.set(abi::VIRTIO_MMIO_VENDOR_ID, VENDOR);
        // There is no shared memory region: its length and base are all ones (virtio 1.2, section 4.2.2).
        for register in [
            abi::VIRTIO_MMIO_SHM_LEN_LOW,
            abi::VIRTIO_MMIO_SHM_LEN_HIGH,
            abi::VIRTIO_MMIO_SHM_BASE_LOW,
            abi::VIRTIO_MMIO_SHM_BASE_HIGH,
        ] {
            self.set(register, u32::MAX);
        }
        self.set(abi::VIRTIO_MMIO_DEVICE_ID, self.device.kind() as u32);
    }

    /// Shows what the driver's last write may have changed in the registers that it reads.
    fn show(&self) {
        let features = match self.device_features_select {
            0 => self.device.features() as u32,
            1 => (self.device.features() >> 32) as u32,
            _ => 0,
        };
        self.set(abi::VIRTIO_MMIO_DEVICE_FEATURES, features);
        let queue = self.selected();
        self.set(abi::VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max_size.into()));
        self.set(abi::VIRTIO_MMIO_QUEUE_READY, queue.is_some_and(|queue| queue.ready).into());
        self.interrupt.set_driver_status(self.status);
    }

    fn set(&self, register: u32, value: u32) {
        self.page.set(register.into(), value);
    }

    /// Writes a register. False, and without effect, if the driver may not do that (now).
    pub(super) fn write(&mut self, register: Writable, value: u32) -> bool {
        let valid = self.take_write(register, value);
        self.show();
        valid
    }

    fn take_write(&mut self, register: Writable, value: u32) -> bool {
        match register {
            Writable::DeviceFeaturesSelect => self.device_features_select = value,
            Writable::DriverFeaturesSelect => self.driver_features_select = value,
            Writable::DriverFeatures => return self.accept_features(value),
            Writable::QueueSelect => self.queue_select = value,
            Writable::QueueSize => return self.describe_queue(|queue| queue.size = value),
            Writable::QueueDescriptors(half) => return self.describe_ring(half, value, |queue| &mut queue.descriptors),
            Writable::QueueAvailable(half) => return self.describe_ring(half, value, |queue| &mut queue.available),
            Writable::QueueUsed(half) => return self.describe_ring(half, value, |queue| &mut queue.used),
            Writable::QueueReady => return self.set_queue_ready(value),
            Writable::QueueNotify => return self.notify(value),
            Writable::Status => return self.write_status(value),
            Writable::InterruptAcknowledge => self.interrupt.acknowledge(value),
            Writable::SharedMemorySelect => {}
        }
        true
    }

    /// Writes the configuration space. False, and without effect, before the features are agreed on, which may say what
    /// it looks like.
    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) -> bool {
        let may = self.status & status::FEATURES_OK != 0;
        if may {
            self.device.write_config(offset, data);
            self.interrupt.config_by_driver();
        }
        may
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn accept_features(&mut self, value: u32) -> bool {
        if self.status != status::ACKNOWLEDGE | status::DRIVER {
            return false;
        }
        match self.driver_features_select {
            0 => Half::Low.set(&mut self.driver_features, value),
            1 => Half::High.set(&mut self.driver_features, value),
            // No device offers any of these.
            _ => return value == 0,
        }
        true
    }

    /// Whether the driver may describe queues now: the features, which say how, are agreed on, and none is in use.
    fn may_describe(&self) -> bool {
        self.status == status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK && !self.interrupt.needs_reset()
    }

    fn describe_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) -> bool {
        let may = self.may_describe();
        let select = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
        match self.queues.get_mut(select) {
            Some(queue) if may && !queue.ready => {
                change(queue);
                true
            }
            _ => false,
        }
    }

    fn describe_ring(&mut self, half: Half, value: u32, ring: impl FnOnce(&mut QueueSetup) -> &mut u64) -> bool {
        self.describe_queue(|queue| half.set(ring(queue), value))
    }

    fn set_queue_ready(&mut self, value: u32) -> bool {
        let may = self.may_describe();
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let select = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
        match (value, self.queues.get_mut(select)) {
            (0, Some(queue)) if queue.ready && may => queue.ready = false,
            // Drivers do this to be sure, after a reset too.
            (0, queue) => return queue.is_none_or(|queue| !queue.ready),
            (1, Some(queue)) if may && !queue.ready && queue.queue(&self.memory, event_idx, (0, 0)).is_some() => {
                queue.ready = true;
            }
            _ => return false,
        }
        true
    }

    /// A notification that KVM did not take: that of a queue without a descriptor bound to it.
    fn notify(&mut self, index: u32) -> bool {
        let kick = usize::try_from(index).ok().and_then(|index| self.kicks.get(index));
        match kick {
            Some(kick) if self.status & status::DRIVER_OK != 0 => {
                // Fails only if the counter is at its limit, and then the descriptor is readable anyway.
                let _ = kick.write(1);
                true
            }
            _ => false,
        }
    }

    fn write_status(&mut self, value: u32) -> bool {
        let mut added = match status::request(self.status, value) {
            status::Request::Reset => {
                self.reset();
                return true;
            }
            status::Request::Add(added) => added,
            status::Request::Invalid => return false,
        };
        if added & status::FEATURES_OK != 0 && !self.features_fit() {
            // The driver sees that the bit is not set, and gives up or tries others.
            added &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        if added & status::DRIVER_OK != 0 && self.interrupt.needs_reset() {
            return false;
        }
        self.status |= added;
        if added & status::FAILED != 0 {
            self.stop();
            self.failures.tell(self.device.kind(), || "its driver has given it up".to_owned());
        } else if added & status::DRIVER_OK != 0 {
            self.was_driven = true;
            let queues = self.new_queues();
            self.activate(queues);
        }
        true
    }

    /// Whether the driver has accepted only what is offered, and what it cannot be without.
    fn features_fit(&self) -> bool {
        self.driver_features & !self.device.features() == 0 && self.driver_features & F_VERSION_1 != 0
    }

    /// The queues that the driver has made ready, at their beginning.
    fn new_queues(&self) -> Vec<LiveQueue> {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let ready = self.queues.iter().zip(&self.kicks).enumerate().filter(|(_, (setup, _))| setup.ready);
        ready
            .filter_map(|(index, (setup, kick))| {
                let queue = setup.queue(&self.memory, event_idx, (0, 0))?;
                Some(LiveQueue { index, queue, kick: Arc::clone(kick) })
            })
            .collect()
    }

    /// Lets the device serve `queues`.
    fn activate(&mut self, queues: Vec<LiveQueue>) {
        let kicks = queues.iter().map(|live| (live.index, Arc::clone(&live.kick))).collect();
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            features: self.driver_features,
            queues,
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
            counters: Arc::clone(&self.counters),
        };
        self.interrupt.driver_ready();
        match self.device.activate(activation) {
            Ok(worker) => self.run = Run::Running(self.event_loop.add(worker, kicks, self.on_failure())),
            Err(error) => self.on_failure()(error),
        }
    }

    /// What is to happen when the device fails; on any thread.
    fn on_failure(&self) -> OnFailure {
        let kind = self.device.kind();
        let (interrupt, counters) = (Arc::clone(&self.interrupt), Arc::clone(&self.counters));
        let failures = self.failures.clone();
        Box::new(move |error: DeviceError| {
            counters.failure();
            interrupt.require_reset();
            failures.tell(kind, || one_line(&error));
        })
    }

    /// Stops the worker, if there is one, and forgets its queues.
    fn stop(&mut self) {
        if let Run::Running(worker) = mem::replace(&mut self.run, Run::Stopped) {
            self.event_loop.remove(worker);
        }
    }

    /// The driver begins anew.
    fn reset(&mut self) {
        self.stop();
        self.device.reset();
        self.interrupt.reset();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues = fresh_queues(self.device.as_ref());
    }

    pub(super) fn pause(&mut self) {
        if let Run::Running(worker) = self.run {
            self.run = Run::Paused(self.event_loop.remove(worker));
        }
    }

    pub(super) fn resume(&mut self) {
        match mem::replace(&mut self.run, Run::Stopped) {
            // Nothing but a reset can follow.
            Run::Paused(_) if self.has_failed() => self.interrupt.driver_ready(),
            Run::Paused(queues) => self.activate(queues),
            run => self.run = run,
        }
        self.interrupt.repeat();
    }

    pub(super) fn save(&self) -> Option<TransportState> {
        let live: &[LiveQueue] = match &self.run {
            Run::Running(_) => return None,
            Run::Stopped => &[],
            Run::Paused(queues) => queues,
        };
        let next = |index| {
            let state = live.iter().find(|live| live.index == index).map(|live| live.queue.state());
            state.map_or((0, 0), |state| (state.next_avail, state.next_used))
        };
        Some(TransportState {
            version: TRANSPORT_STATE_VERSION,
            kind: self.device.kind(),
            status: self.status,
            needs_reset: self.interrupt.needs_reset(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            config_pending: self.interrupt.config_pending(),
            queues: self.queues.iter().enumerate().map(|(index, setup)| setup.record(next(index))).collect(),
            device: self.device.save(),
        })
    }

    pub(super) fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        if self.status != 0 || !matches!(self.run, Run::Stopped) {
            return Err(RestoreError::NotFresh);
        }
        if state.version != TRANSPORT_STATE_VERSION {
            return Err(RestoreError::Version(state.version));
        }
        if state.kind != self.device.kind() {
            return Err(RestoreError::Kind { saved: state.kind, present: self.device.kind() });
        }
        if !status::is_consistent(state.status) {
            return Err(RestoreError::Status(state.status));
        }
        let unknown = state.driver_features & !self.device.features();
        if state.status & status::FEATURES_OK != 0 && unknown != 0 {
            return Err(RestoreError::Features(unknown));
        }
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::Queues { saved: state.queues.len(), present: self.queues.len() });
        }
        let event_idx = state.driver_features & F_EVENT_IDX != 0;
        let mut setups = Vec::with_capacity(self.queues.len());
        let mut live = Vec::new();
        for (index, ((record, fresh), kick)) in state.queues.iter().zip(&self.queues).zip(&self.kicks).enumerate() {
            let setup = QueueSetup::from_record(record, fresh.max_size);
            if setup.ready {
                let queue = setup
                    .queue(&self.memory, event_idx, (record.next_available, record.next_used))
                    .ok_or(RestoreError::Queue(index))?;
                live.push(LiveQueue { index, queue, kick: Arc::clone(kick) });
            }
            setups.push(setup);
        }
        self.device.restore(&state.device).map_err(RestoreError::Device)?;

        self.status = state.status;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.queues = setups;
        self.interrupt.restore(
            state.interrupt_status,
            state.config_generation,
            state.needs_reset,
            state.config_pending,
        );
        if state.status & status::DRIVER_OK != 0 {
            self.was_driven = true;
            self.run = Run::Paused(live);
        }
        self.show();
        Ok(())
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    device.queue_sizes().iter().map(|size| QueueSetup::new(*size)).collect()
}
