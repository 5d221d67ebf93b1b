//! Cases of a slot with a device and its loop, driven through the registers.

mod model;
mod sequences;

use super::super::event_loop::EventLoops;
use super::super::testing::{
    DriverQueue, F_TEST, Part, Probe, QUEUE_SPAN, TestDevice, TestLine, guest_memory, wait_for,
};
use super::super::{DeviceKind, F_RING, F_VERSION_1, FailureListener, Threads};
use super::failures::TOLD;
use super::registers::Writable;
use super::*;
use crate::bus::BusDevice as _;
use crate::memory::GuestMemory;
use crate::memory::registers::RegisterPage;
use std::sync::{Arc, Mutex};
use virtio_bindings::virtio_mmio as abi;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// What a machine has heard of failures.
#[derive(Debug, Default)]
struct Heard(Mutex<Vec<(DeviceKind, String)>>);

impl FailureListener for Heard {
    fn device_failed(&self, kind: DeviceKind, problem: String) {
        self.0.lock().unwrap().push((kind, problem));
    }
}

impl Heard {
    fn take(&self) -> Vec<(DeviceKind, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A slot, and a driver that knows what to do with it.
struct Bench {
    memory: GuestMemory,
    slot: MmioTransport,
    line: Arc<TestLine>,
    heard: Arc<Heard>,
    probe: Probe,
    driver: DriverQueue,
}

impl Bench {
    /// A test device in the slot.
    fn new() -> Self {
        Self::on(&guest_memory(2 * QUEUE_SPAN as usize))
    }

    fn on(memory: &GuestMemory) -> Self {
        let page = RegisterPage::alone().unwrap();
        let line: Arc<TestLine> = Arc::default();
        let loops = EventLoops::new(Threads::default());
        let mut slot = MmioTransport::new(3, page, memory.clone(), loops, Arc::clone(&line) as _);
        let heard: Arc<Heard> = Arc::default();
        slot.tell_failures(Arc::clone(&heard) as Arc<dyn FailureListener>);
        let device = TestDevice::new();
        let probe = device.probe();
        slot.attach(Box::new(device)).unwrap();
        Self { memory: memory.clone(), slot, line, heard, probe, driver: DriverQueue::new(memory, 0, 8) }
    }

    fn read(&mut self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.slot.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.slot.write(offset.into(), &value.to_le_bytes());
    }

    fn status(&mut self) -> u32 {
        self.read(abi::VIRTIO_MMIO_STATUS)
    }

    /// Sets one bit more, as drivers do.
    fn add_status(&mut self, bit: u32) {
        let status = self.status();
        self.write(abi::VIRTIO_MMIO_STATUS, status | bit);
    }

    fn accept(&mut self, features: u64) {
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(abi::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(abi::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
    }

    /// Up to FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.accept(features);
        self.add_status(FEATURES_OK);
    }

    /// Describes queue `index` as the driver's, without making it ready.
    fn describe(&mut self, index: u32) {
        self.write(abi::VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(abi::VIRTIO_MMIO_QUEUE_NUM, 8);
        for (low, address) in [
            (abi::VIRTIO_MMIO_QUEUE_DESC_LOW, self.driver.descriptor_table()),
            (abi::VIRTIO_MMIO_QUEUE_AVAIL_LOW, self.driver.available_ring()),
            (abi::VIRTIO_MMIO_QUEUE_USED_LOW, self.driver.used_ring()),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
    }

    /// Up to DRIVER_OK, with queue 0.
    fn probe_device(&mut self) {
        self.negotiate(F_RING);
        self.describe(0);
        self.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
        self.add_status(DRIVER_OK);
    }

    fn echoes(&mut self) {
        let request = self.driver.request(&[Part::Out(b"abc"), Part::In(3)]);
        self.write(abi::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        assert_eq!(self.driver.wait_used(1), [(request.head, 3)]);
        assert_eq!(self.driver.read(&request, 1), b"abc");
    }

    fn breaks_its_queue(&mut self) {
        self.driver.make_available(8);
        self.write(abi::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        wait_for("the failure", || (self.slot.state() == DeviceState::Failed).then_some(()));
    }

    fn invalid_accesses(&self) -> u64 {
        self.slot.counts().invalid_accesses
    }
}

#[test]
fn a_slot_says_what_is_in_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(abi::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(bench.read(abi::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(bench.slot.state(), DeviceState::Idle);
    assert_eq!(bench.slot.kicks().len(), 2);
}

#[test]
fn an_empty_slot_is_device_zero_and_ignores_everything() {
    let mut bench = Bench::new();
    assert!(bench.slot.detach().is_some());
    assert_eq!(bench.read(abi::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(bench.read(abi::VIRTIO_MMIO_DEVICE_ID), 0);
    bench.probe_device();
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.slot.state(), DeviceState::Empty);
    assert!(bench.slot.detach().is_none());
}

#[test]
fn a_driver_that_keeps_to_the_order_gets_its_requests_served() {
    let mut bench = Bench::new();
    bench.probe_device();
    assert_eq!(bench.status(), 15);
    assert_eq!(bench.slot.state(), DeviceState::Active);
    assert_eq!(bench.probe.features(), F_RING);
    bench.echoes();
    assert_eq!(bench.slot.counts().requests, 1);
    assert_eq!(bench.invalid_accesses(), 0);
}

#[test]
fn an_interrupt_needs_no_answer_and_a_change_of_the_configuration_does() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    bench.probe_device();
    for _ in 0..2 {
        bench.echoes();
        wait_for("the interrupt", || (bench.line.take() > 0).then_some(()));
        assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        bench.write(abi::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    }
    bench.probe.interrupt().config();
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    bench.write(abi::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert_eq!(bench.invalid_accesses(), 0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING | 1 << 40);
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER);
    // It may try again with fewer.
    bench.accept(F_RING);
    bench.add_status(FEATURES_OK);
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let mut bench = Bench::new();
    bench.negotiate(F_TEST);
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER);
}

#[test]
fn the_offered_features_are_read_in_halves() {
    let mut bench = Bench::new();
    let mut halves = [0, 1, 2, u32::MAX].map(|select| {
        bench.write(abi::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        bench.read(abi::VIRTIO_MMIO_DEVICE_FEATURES)
    });
    halves.reverse();
    assert_eq!(halves, [0, 0, (F_VERSION_1 >> 32) as u32, (F_RING | F_TEST) as u32]);
}

#[test]
fn features_cannot_change_once_they_are_agreed_on() {
    let mut bench = Bench::new();
    bench.negotiate(F_VERSION_1);
    bench.accept(F_RING);
    assert_eq!(bench.invalid_accesses(), 2);
    bench.describe(0);
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    bench.add_status(DRIVER_OK);
    assert_eq!(bench.probe.features(), F_VERSION_1);
}

#[test]
fn queues_are_described_between_features_ok_and_driver_ok_only() {
    let mut bench = Bench::new();
    bench.describe(0);
    assert_eq!(bench.invalid_accesses(), 7, "size and three addresses in halves, before FEATURES_OK");
    bench.probe_device();
    bench.write(abi::VIRTIO_MMIO_QUEUE_SEL, 1);
    bench.write(abi::VIRTIO_MMIO_QUEUE_NUM, 4);
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(bench.invalid_accesses(), 9);
}

#[test]
fn a_ready_queue_cannot_be_changed_but_be_made_unready() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING);
    bench.describe(0);
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    bench.write(abi::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x10);
    assert_eq!(bench.invalid_accesses(), 1);
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_READY), 0);
    bench.write(abi::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x10);
    assert_eq!(bench.invalid_accesses(), 1);
}

#[test]
fn a_queue_outside_memory_does_not_become_ready() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING);
    bench.describe(0);
    bench.write(abi::VIRTIO_MMIO_QUEUE_USED_HIGH, 1);
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(bench.invalid_accesses(), 1);
}

#[test]
fn a_queue_that_does_not_exist_has_no_size() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING);
    for (index, size) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        bench.write(abi::VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_NUM_MAX), size);
        assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    bench.write(abi::VIRTIO_MMIO_QUEUE_NUM, 8);
    assert_eq!(bench.invalid_accesses(), 2);
}

#[test]
fn a_device_without_the_queue_that_it_needs_has_failed() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING);
    bench.add_status(DRIVER_OK);
    assert_eq!(bench.status(), 15 | NEEDS_RESET);
    assert_eq!(bench.slot.state(), DeviceState::Failed);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert_eq!(bench.slot.counts().failures, 1);
}

#[test]
fn a_broken_queue_fails_the_device_until_it_is_reset() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.breaks_its_queue();
    assert_eq!(bench.status(), 15 | NEEDS_RESET);
    bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    bench.driver = DriverQueue::new(&bench.memory, 1, 8);
    bench.probe_device();
    bench.echoes();
}

#[test]
fn a_broken_queue_is_told_once_and_with_the_reason() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.echoes();
    assert_eq!(bench.heard.take(), []);
    bench.breaks_its_queue();
    bench.write(abi::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    bench.slot.pause();
    bench.slot.resume();
    let heard = wait_for("the report", || Some(bench.heard.take()).filter(|heard| !heard.is_empty()));
    let [(DeviceKind::Entropy, problem)] = heard.as_slice() else { panic!("{heard:?}") };
    assert!(problem.starts_with("queue 0 of the guest is broken: "), "{problem}");
    bench.slot.detach();
    assert_eq!(bench.heard.take(), []);
}

#[test]
fn a_driver_that_gives_its_device_up_is_told_of_once() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING);
    bench.add_status(FAILED);
    bench.add_status(FAILED);
    assert_eq!(bench.heard.take(), [(DeviceKind::Entropy, "its driver has given it up".to_owned())]);
    assert_eq!(bench.slot.state(), DeviceState::Failed);
}

#[test]
fn a_device_that_is_made_to_fail_over_and_over_is_told_of_a_few_times() {
    let mut bench = Bench::new();
    let rounds = 3 * TOLD;
    for _ in 0..rounds {
        bench.negotiate(F_RING);
        bench.add_status(DRIVER_OK);
        bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    }
    assert_eq!(bench.slot.counts().failures, u64::from(rounds));
    let heard = bench.heard.take();
    assert_eq!(heard.len(), TOLD as usize);
    assert!(heard.last().unwrap().1.ends_with("; no more is told of this device"), "{heard:?}");
    let device = bench.slot.detach().unwrap();
    bench.slot.attach(device).unwrap();
    bench.negotiate(F_RING);
    bench.add_status(DRIVER_OK);
    assert_eq!(bench.heard.take().len(), 1, "one that is plugged in again is told of again");
}

#[test]
fn a_reset_stops_the_device_and_forgets_what_the_driver_said() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.echoes();
    bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    assert!(!bench.probe.runs());
    assert_eq!((bench.slot.state(), bench.probe.resets()), (DeviceState::Idle, 1));
    bench.negotiate(F_RING);
    bench.write(abi::VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_READY), 0);
    bench.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_QUEUE_READY), 0, "its addresses are forgotten");
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.add_status(FAILED);
    assert!(!bench.probe.runs());
    assert_eq!((bench.slot.state(), bench.status()), (DeviceState::Failed, 15 | FAILED));
}

#[test]
fn a_notification_of_a_queue_that_is_not_there_is_counted() {
    let mut bench = Bench::new();
    bench.write(abi::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    bench.probe_device();
    bench.write(abi::VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    bench.write(abi::VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    assert_eq!(bench.invalid_accesses(), 3);
}

#[test]
fn writes_of_the_wrong_width_or_place_are_counted_and_reads_of_nothing_are_zero() {
    let mut bench = Bench::new();
    for (offset, width) in [(0x98, 4), (0xfe, 2), (0x74, 4), (0x50, 4), (WINDOW_SIZE - 2, 4), (u64::MAX, 8)] {
        let mut data = vec![0; width];
        bench.slot.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0));
    }
    assert_eq!(bench.invalid_accesses(), 0);
    let mut counted = 0;
    for (offset, width) in [(0x70, 1), (0x70, 8), (0x72, 4), (0, 4), (0x44, 2), (0xfc, 4)] {
        bench.slot.write(offset, &vec![1; width]);
        counted += 1;
        assert_eq!(bench.invalid_accesses(), counted);
    }
    assert_eq!(bench.status(), 0);
}

#[test]
fn the_configuration_is_read_in_any_width_and_written_after_features_ok() {
    let mut bench = Bench::new();
    let mut byte = [0];
    bench.slot.read(CONFIG_OFFSET + 1, &mut byte);
    assert_eq!(byte, *b"E");
    bench.slot.write(CONFIG_OFFSET, b"x");
    assert_eq!(bench.invalid_accesses(), 1);
    bench.negotiate(F_RING);
    bench.slot.write(CONFIG_OFFSET, b"x");
    let mut all = [0; 8];
    bench.slot.read(CONFIG_OFFSET, &mut all);
    assert_eq!(all, *b"xESTTEST");
    let mut beyond = [0; 8];
    bench.slot.read(WINDOW_SIZE - 8, &mut beyond);
    bench.slot.write(WINDOW_SIZE - 8, &beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn a_change_of_the_configuration_counts_its_generation_and_interrupts_a_ready_driver() {
    let mut bench = Bench::new();
    bench.probe.interrupt().config();
    assert_eq!(bench.read(abi::VIRTIO_MMIO_CONFIG_GENERATION), 2, "once before and once after the change");
    assert_eq!(bench.line.take(), 0, "no driver is ready");
    bench.probe_device();
    assert_eq!(bench.line.take(), 1);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    bench.probe.interrupt().config();
    assert_eq!(bench.read(abi::VIRTIO_MMIO_CONFIG_GENERATION), 4);
    assert_eq!(bench.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
}

#[test]
fn there_is_no_shared_memory() {
    let mut bench = Bench::new();
    bench.write(abi::VIRTIO_MMIO_SHM_SEL, 0);
    for register in [
        abi::VIRTIO_MMIO_SHM_LEN_LOW,
        abi::VIRTIO_MMIO_SHM_LEN_HIGH,
        abi::VIRTIO_MMIO_SHM_BASE_LOW,
        abi::VIRTIO_MMIO_SHM_BASE_HIGH,
    ] {
        assert_eq!(bench.read(register), u32::MAX);
    }
}

#[test]
fn a_paused_device_goes_on_with_the_requests_that_came_meanwhile() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.echoes();
    bench.slot.pause();
    bench.slot.pause();
    assert_eq!((bench.slot.state(), bench.probe.runs()), (DeviceState::Paused, false));
    let request = bench.driver.request(&[Part::Out(b"later"), Part::In(5)]);
    bench.slot.resume();
    bench.slot.resume();
    assert_eq!(bench.driver.wait_used(1), [(request.head, 5)]);
    assert_eq!(bench.slot.state(), DeviceState::Active);
}

#[test]
fn pausing_touches_no_device_that_does_not_run() {
    let mut bench = Bench::new();
    bench.negotiate(F_RING);
    bench.slot.pause();
    bench.slot.resume();
    assert_eq!((bench.slot.state(), bench.status()), (DeviceState::Idle, 11));
    bench.slot.detach();
    bench.slot.pause();
    bench.slot.resume();
    assert_eq!(bench.slot.state(), DeviceState::Empty);
}

#[test]
fn a_reset_while_paused_forgets_the_queues() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.slot.pause();
    bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    bench.slot.resume();
    assert_eq!((bench.slot.state(), bench.probe.runs()), (DeviceState::Idle, false));
}

#[test]
fn a_saved_device_goes_on_in_another_machine() {
    let mut first = Bench::new();
    first.probe_device();
    first.slot.write(CONFIG_OFFSET, b"saved");
    first.echoes();
    assert!(first.slot.save().is_none(), "it runs");
    first.slot.pause();
    let text = serde_json::to_string(&first.slot.save().unwrap()).unwrap();

    // The driver and its memory are the machine's; the slot is new.
    let mut second = Bench::on(&first.memory);
    second.driver = first.driver;
    second.slot.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!((second.status(), second.slot.state()), (15, DeviceState::Paused));
    let mut config = [0; 8];
    second.slot.read(CONFIG_OFFSET, &mut config);
    assert_eq!(config, *b"savedEST");
    second.slot.resume();
    second.echoes();
    assert_eq!(second.probe.features(), F_RING);
}

#[test]
fn a_device_that_is_half_set_up_is_saved_as_it_is() {
    let mut first = Bench::new();
    first.negotiate(F_RING);
    first.describe(0);
    first.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
    let state = first.slot.save().unwrap();
    let mut second = Bench::on(&first.memory);
    second.slot.restore(&state).unwrap();
    assert_eq!(second.slot.save().unwrap(), state);
    second.slot.resume();
    second.add_status(DRIVER_OK);
    second.echoes();
}

#[test]
fn an_interrupt_that_was_not_read_comes_again_after_a_restore() {
    let mut first = Bench::new();
    first.probe_device();
    first.echoes();
    wait_for("the interrupt", || (first.line.take() > 0).then_some(()));
    first.slot.pause();
    let mut second = Bench::on(&first.memory);
    second.slot.restore(&first.slot.save().unwrap()).unwrap();
    assert_eq!(second.line.take(), 0);
    second.slot.resume();
    assert_eq!(second.line.take(), 1);
    assert_eq!(second.read(abi::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
}

#[test]
fn a_failed_device_is_saved_as_failed() {
    let mut first = Bench::new();
    first.probe_device();
    first.breaks_its_queue();
    first.slot.pause();
    let mut second = Bench::on(&first.memory);
    second.slot.restore(&first.slot.save().unwrap()).unwrap();
    second.slot.resume();
    assert_eq!((second.slot.state(), second.probe.runs()), (DeviceState::Failed, false));
    assert_eq!(second.status(), 15 | NEEDS_RESET);
}

#[test]
fn states_that_do_not_fit_are_refused_with_the_reason() {
    let mut bench = Bench::new();
    bench.probe_device();
    bench.slot.pause();
    let sound = bench.slot.save().unwrap();
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let mut state = sound.clone();
        change(&mut state);
        let mut other = Bench::on(&bench.memory);
        let error = other.slot.restore(&state).unwrap_err();
        assert_eq!(other.slot.state(), DeviceState::Idle);
        error
    };
    assert!(matches!(refused(&|state| state.version = 2), RestoreError::Version(2)));
    assert!(matches!(refused(&|state| state.kind = super::super::DeviceKind::Net), RestoreError::Kind { .. }));
    assert!(matches!(refused(&|state| state.status = DRIVER_OK), RestoreError::Status(4)));
    assert!(matches!(refused(&|state| state.driver_features |= 1 << 50), RestoreError::Features(_)));
    assert!(matches!(refused(&|state| state.queues.truncate(1)), RestoreError::Queues { saved: 1, present: 2 }));
    assert!(matches!(refused(&|state| state.queues[0].size = 32), RestoreError::Queue(0)));
    assert!(matches!(refused(&|state| state.queues[0].used = 1 << 40), RestoreError::Queue(0)));
    assert!(matches!(refused(&|state| state.device = serde_json::Value::Null), RestoreError::Device(_)));
    assert!(matches!(bench.slot.restore(&sound), Err(RestoreError::NotFresh)));
}

#[test]
fn a_device_is_taken_out_while_its_driver_uses_it() {
    let mut bench = Bench::new();
    bench.probe_device();
    let device = bench.slot.detach().unwrap();
    assert!(!bench.probe.runs());
    assert_eq!(bench.read(abi::VIRTIO_MMIO_DEVICE_ID), 0);
    bench.slot.attach(device).unwrap();
    bench.driver = DriverQueue::new(&bench.memory, 1, 8);
    bench.probe_device();
    bench.echoes();
}

#[test]
fn a_device_that_was_taken_out_does_not_show_in_the_slot_any_more() {
    let mut bench = Bench::new();
    let handle = bench.probe.interrupt();
    bench.probe_device();
    bench.slot.detach();
    handle.config();
    handle.queue(0);
    for register in [abi::VIRTIO_MMIO_STATUS, abi::VIRTIO_MMIO_INTERRUPT_STATUS, abi::VIRTIO_MMIO_CONFIG_GENERATION] {
        assert_eq!(bench.read(register), 0);
    }
    let mut config = [0; 8];
    bench.slot.read(CONFIG_OFFSET, &mut config);
    assert_eq!(config, [0; 8]);
}

#[test]
fn a_driver_has_let_go_when_it_was_there_and_has_reset_its_device() {
    let mut bench = Bench::new();
    assert!(!bench.slot.driver_has_let_go(), "it may be about to come");
    bench.add_status(ACKNOWLEDGE);
    assert!(!bench.slot.driver_has_let_go());
    bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    bench.probe_device();
    assert!(!bench.slot.driver_has_let_go());
    bench.breaks_its_queue();
    assert!(!bench.slot.driver_has_let_go());
    bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    assert!(bench.slot.driver_has_let_go());
    // As Linux does behind a driver that was unbound.
    bench.add_status(ACKNOWLEDGE);
    assert!(bench.slot.driver_has_let_go());
    bench.add_status(DRIVER);
    assert!(!bench.slot.driver_has_let_go(), "another has come");
    bench.add_status(FAILED);
    assert!(!bench.slot.driver_has_let_go());
    bench.write(abi::VIRTIO_MMIO_STATUS, 0);
    bench.slot.detach();
    assert!(!bench.slot.driver_has_let_go(), "nothing is there to let go of");
}

#[test]
fn a_device_that_was_in_use_when_it_was_saved_can_be_let_go_of() {
    let mut first = Bench::new();
    first.probe_device();
    first.slot.pause();
    let mut second = Bench::on(&first.memory);
    second.slot.restore(&first.slot.save().unwrap()).unwrap();
    assert!(!second.slot.driver_has_let_go());
    second.write(abi::VIRTIO_MMIO_STATUS, 0);
    assert!(second.slot.driver_has_let_go());
}

#[test]
fn a_slot_takes_one_device() {
    let mut bench = Bench::new();
    let error = bench.slot.attach(Box::new(TestDevice::new())).unwrap_err();
    assert!(matches!(error, TransportError::Taken));
}

#[test]
fn a_dropped_slot_stops_its_device() {
    let mut bench = Bench::new();
    bench.probe_device();
    let Bench { slot, probe, .. } = bench;
    drop(slot);
    assert!(!probe.runs());
}

#[test]
fn each_register_that_can_be_written_is_known_by_its_offset_alone() {
    let offsets: Vec<u64> = (0..CONFIG_OFFSET).filter(|offset| Writable::at(*offset).is_some()).collect();
    assert_eq!(offsets.len(), 16);
    assert!(offsets.iter().all(|offset| offset % 4 == 0));
}
