//! Any sequence of register accesses: the slot does what the model says, whatever comes.

use super::model::Model;
use super::*;
use crate::virtio::testing::arbitrary::config;
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Where the guest's memory begins.
const LEAST: u64 = 0x1000;

/// What a driver may do with the slot.
#[derive(Debug, Clone)]
enum Access {
    /// Reads a register, 32 bits wide.
    Read(u32),
    /// Writes one.
    Write(u32, u32),
    /// Reads or writes with any width, anywhere.
    Odd { offset: u64, width: usize, write: bool },
    /// Sets the next bit of the status, as a driver that works would.
    Advance,
    /// Accepts features that are right or nearly.
    Accept(u64),
    /// Describes a queue as it should be.
    Describe(u32),
    /// Selects a queue and makes it ready or not.
    Enable(u32, u32),
    /// Gives up.
    Fail,
    /// Begins anew.
    Reset,
    /// The machine pauses the device and lets it go on.
    Pause,
}

fn register() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0..0x40_u32).prop_map(|word| word * 4),
        1 => 0..0x100_u32,
        // Those that matter most.
        4 => prop::sample::select(vec![0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xa0]),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => 0..20_u32,
        1 => prop::sample::select(vec![64, 128, 143, 207, 0x1000, 0x6000, 0x8000]),
        1 => any::<u32>(),
    ]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        2 => register().prop_map(Access::Read),
        4 => (register(), value()).prop_map(|(register, value)| Access::Write(register, value)),
        1 => (0..WINDOW_SIZE, prop::sample::select(vec![1, 2, 4, 8]), any::<bool>())
            .prop_map(|(offset, width, write)| Access::Odd { offset, width, write }),
        6 => Just(Access::Advance),
        3 => prop_oneof![
            4 => Just(F_RING),
            1 => Just(F_VERSION_1),
            1 => Just(F_RING | F_TEST),
            1 => any::<u64>(),
        ].prop_map(Access::Accept),
        3 => (0..3_u32).prop_map(Access::Describe),
        1 => (0..3_u32, 0..3_u32).prop_map(|(queue, value)| Access::Enable(queue, value)),
        1 => prop::sample::select(vec![Access::Fail, Access::Reset, Access::Reset, Access::Pause, Access::Pause]),
    ]
}

/// A slot and what it should be.
struct Pair {
    bench: Bench,
    model: Model,
}

impl Pair {
    fn write(&mut self, offset: u32, value: u32) {
        self.bench.write(offset, value);
        self.model.write(offset, value);
    }

    fn perform(&mut self, access: Access) {
        match access {
            Access::Read(offset) => {
                let answer = self.bench.read(offset);
                if let Some(expected) = self.model.read(offset) {
                    assert_eq!(answer, expected, "register {offset:#x}");
                }
            }
            Access::Write(offset, value) => self.write(offset, value),
            Access::Odd { offset, width, write } => {
                if !write {
                    self.bench.slot.read(offset, &mut vec![0; width]);
                    return;
                }
                if offset < CONFIG_OFFSET && width == 4 {
                    self.write(offset as u32, 0xa5a5_a5a5);
                } else {
                    self.bench.slot.write(offset, &vec![0xa5; width]);
                }
                self.model.invalid = self.bench.invalid_accesses();
            }
            Access::Advance => {
                let next = match self.model.status & 15 {
                    0 => 1,
                    1 => 3,
                    3 => 11,
                    _ => 15,
                };
                self.write(abi::VIRTIO_MMIO_STATUS, self.model.status | next);
            }
            Access::Accept(features) => {
                for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
                    self.write(abi::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
                    self.write(abi::VIRTIO_MMIO_DRIVER_FEATURES, half);
                }
            }
            Access::Describe(index) => {
                let rings = [
                    self.bench.driver.descriptor_table(),
                    self.bench.driver.available_ring(),
                    self.bench.driver.used_ring(),
                ];
                self.write(abi::VIRTIO_MMIO_QUEUE_SEL, index);
                self.write(abi::VIRTIO_MMIO_QUEUE_NUM, 8);
                for (place, address) in (0_u32..).zip(rings) {
                    self.write(0x80 + 0x10 * place, address as u32);
                    self.write(0x84 + 0x10 * place, (address >> 32) as u32);
                }
                self.write(abi::VIRTIO_MMIO_QUEUE_READY, 1);
            }
            Access::Enable(index, value) => {
                self.write(abi::VIRTIO_MMIO_QUEUE_SEL, index);
                self.write(abi::VIRTIO_MMIO_QUEUE_READY, value);
            }
            Access::Fail => self.write(abi::VIRTIO_MMIO_STATUS, self.model.status | FAILED),
            Access::Reset => self.write(abi::VIRTIO_MMIO_STATUS, 0),
            Access::Pause => {
                self.bench.slot.pause();
                assert!(!self.bench.probe.runs());
                let state = self.bench.slot.save().unwrap();
                assert_eq!(state.status, self.model.status);
                self.bench.slot.resume();
            }
        }
    }

    fn check(&mut self) {
        for register in [abi::VIRTIO_MMIO_QUEUE_NUM_MAX, abi::VIRTIO_MMIO_QUEUE_READY, abi::VIRTIO_MMIO_DEVICE_FEATURES]
        {
            assert_eq!(self.bench.read(register), self.model.read(register).unwrap(), "register {register:#x}");
        }
        assert_eq!(self.bench.status(), self.model.read(abi::VIRTIO_MMIO_STATUS).unwrap());
        assert_eq!(self.bench.probe.runs(), self.model.runs());
        assert_eq!(self.bench.slot.state() == DeviceState::Active, self.model.runs());
        assert_eq!(self.bench.invalid_accesses(), self.model.invalid);
    }
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn a_slot_does_what_the_model_says(accesses in prop::collection::vec(access(), 1..60)) {
        // No memory where small numbers point, so that rings do not overlap. All rings are of zeros: whatever becomes a
        // queue has no requests.
        let range = (GuestAddress(LEAST), (QUEUE_SPAN - LEAST) as usize);
        let memory = std::sync::Arc::new(GuestMemoryMmap::from_ranges(&[range]).unwrap());
        let mut pair = Pair { bench: Bench::on(&memory), model: Model::new(LEAST..QUEUE_SPAN) };
        for access in accesses {
            pair.perform(access);
            pair.check();
        }
    }
}
