//! What a slot with the test device must do, as short as it can be said.

use super::super::super::testing::F_TEST;
use super::super::super::{F_RING, F_VERSION_1};
use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use std::ops::Range;
use virtio_bindings::virtio_mmio as abi;

/// The sizes of the test device's queues.
const SIZES: [u32; 2] = [16, 8];

#[derive(Debug, Default, Clone, Copy)]
struct Queue {
    size: u32,
    addresses: [u64; 3],
    ready: bool,
}

/// The driver-visible state.
#[derive(Debug)]
pub(super) struct Model {
    memory: Range<u64>,
    pub(super) status: u32,
    features: u64,
    selects: [u32; 3],
    queues: [Queue; 2],
    /// DRIVER_OK came without queue 0.
    needs_reset: bool,
    pub(super) invalid: u64,
}

impl Model {
    pub(super) fn new(memory: Range<u64>) -> Self {
        let queues = SIZES.map(|size| Queue { size, ..Queue::default() });
        Self { memory, status: 0, features: 0, selects: [0; 3], queues, needs_reset: false, invalid: 0 }
    }

    pub(super) fn runs(&self) -> bool {
        self.status & (DRIVER_OK | FAILED) == DRIVER_OK && !self.needs_reset
    }

    pub(super) fn read(&self, offset: u32) -> Option<u32> {
        let [offered, _, queue] = self.selects;
        let queue = self.queues.get(queue as usize);
        Some(match offset {
            abi::VIRTIO_MMIO_DEVICE_FEATURES => match offered {
                0 => (F_RING | F_TEST) as u32,
                1 => (F_VERSION_1 >> 32) as u32,
                _ => 0,
            },
            abi::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |_| SIZES[self.selects[2] as usize]),
            abi::VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            abi::VIRTIO_MMIO_STATUS => self.status | if self.needs_reset { NEEDS_RESET } else { 0 },
            _ => return None,
        })
    }

    pub(super) fn write(&mut self, offset: u32, value: u32) {
        if self.try_write(offset, value).is_none() {
            self.invalid += 1;
        }
    }

    /// `None` for what is not allowed.
    fn try_write(&mut self, offset: u32, value: u32) -> Option<()> {
        let describing = self.status == (ACKNOWLEDGE | DRIVER | FEATURES_OK) && !self.needs_reset;
        let memory = self.memory.clone();
        let selected = self.selects[2] as usize;
        let queue = self.queues.get_mut(selected);
        match offset {
            abi::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.selects[0] = value,
            abi::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.selects[1] = value,
            abi::VIRTIO_MMIO_QUEUE_SEL => self.selects[2] = value,
            abi::VIRTIO_MMIO_DRIVER_FEATURES => {
                (self.status == (ACKNOWLEDGE | DRIVER)).then_some(())?;
                match self.selects[1] {
                    0 => self.features = self.features >> 32 << 32 | u64::from(value),
                    1 => self.features = self.features & 0xffff_ffff | u64::from(value) << 32,
                    _ => (value == 0).then_some(())?,
                }
            }
            abi::VIRTIO_MMIO_QUEUE_NUM => queue.filter(|queue| describing && !queue.ready)?.size = value,
            0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => {
                let queue = queue.filter(|queue| describing && !queue.ready)?;
                let address = &mut queue.addresses[(offset as usize - 0x80) / 16];
                *address = match offset % 16 {
                    0 => *address >> 32 << 32 | u64::from(value),
                    _ => *address & 0xffff_ffff | u64::from(value) << 32,
                };
            }
            abi::VIRTIO_MMIO_QUEUE_READY => match (value, queue) {
                (0, Some(queue)) if queue.ready => {
                    describing.then_some(())?;
                    queue.ready = false;
                }
                (0, _) => {}
                (1, Some(queue)) if describing && !queue.ready => {
                    let size = u64::from(queue.size);
                    let fits = |(address, (align, length)): (u64, (u64, u64))| {
                        address >= memory.start
                            && address % align == 0
                            && address.checked_add(length).is_some_and(|end| end <= memory.end)
                    };
                    let rings = [(16, 16 * size), (2, 6 + 2 * size), (4, 6 + 8 * size)];
                    let usable = queue.size.is_power_of_two() && queue.size <= SIZES[selected];
                    (usable && queue.addresses.into_iter().zip(rings).all(fits)).then_some(())?;
                    queue.ready = true;
                }
                _ => return None,
            },
            abi::VIRTIO_MMIO_QUEUE_NOTIFY => {
                (self.status & DRIVER_OK != 0 && value < SIZES.len() as u32).then_some(())?;
            }
            abi::VIRTIO_MMIO_INTERRUPT_ACK | abi::VIRTIO_MMIO_SHM_SEL => {}
            abi::VIRTIO_MMIO_STATUS => return self.write_status(value),
            _ => return None,
        }
        Some(())
    }

    fn write_status(&mut self, value: u32) -> Option<()> {
        if value == 0 {
            *self = Self { invalid: self.invalid, ..Self::new(self.memory.clone()) };
            return Some(());
        }
        let value = value & !NEEDS_RESET;
        // Only whole prefixes of the steps, with or without FAILED, that take nothing back.
        [0, 1, 3, 11, 15].contains(&(value & !FAILED)).then_some(())?;
        (value & self.status == self.status).then_some(())?;
        if self.status & FAILED != 0 {
            return (value == self.status).then_some(());
        }
        let acceptable = self.features & !(F_RING | F_TEST) == 0 && self.features & F_VERSION_1 != 0;
        let value =
            if self.status & FEATURES_OK == 0 && !acceptable { value & !(FEATURES_OK | DRIVER_OK) } else { value };
        let begins = (value & !self.status) & DRIVER_OK != 0;
        (!begins || !self.needs_reset).then_some(())?;
        self.status = value;
        if begins && value & FAILED == 0 && !self.queues[0].ready {
            self.needs_reset = true;
        }
        Some(())
    }
}
