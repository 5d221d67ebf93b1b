//! Accesses of the guest that KVM could not do itself.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::machine::ExitKind;

/// What answers accesses in a range of guest-physical (or port) addresses.
///
/// Called by vCPU threads: quick, and never panics whatever the guest asks. Lengths are 1, 2, 4 or 8.
pub trait BusDevice: Send {
    /// Answers a read at `offset` from the range's start. What is not there reads as it finds it: `data` is zeroed before.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes a write at `offset` from the range's start.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that several threads reach.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Who answers where, in one address space (memory, or ports). Devices come and go while vCPUs run.
#[derive(Default)]
pub(crate) struct Bus(RwLock<BTreeMap<u64, Entry>>);

struct Entry {
    end: u64,
    kind: ExitKind,
    device: SharedDevice,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bus")
    }
}

impl Bus {
    /// Lets `device` answer in `range`; says no when another answers in a part of it.
    pub(crate) fn insert(&self, range: Range<u64>, kind: ExitKind, device: SharedDevice) -> bool {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = entries.range(..range.end).next_back();
        if range.is_empty() || before.is_some_and(|(_, entry)| entry.end > range.start) {
            return false;
        }
        entries.insert(range.start, Entry { end: range.end, kind, device });
        true
    }

    /// Lets nothing answer in the range that starts at `start`.
    pub(crate) fn remove(&self, start: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&start);
    }

    /// Reads; what nobody answers reads as ones, as on a real bus. Says who was asked.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> Option<ExitKind> {
        let Some((kind, offset, device)) = self.find(address) else {
            data.fill(0xff);
            return None;
        };
        data.fill(0);
        device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        Some(kind)
    }

    /// Writes; what nobody takes is lost. Says who was asked.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Option<ExitKind> {
        let (kind, offset, device) = self.find(address)?;
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        Some(kind)
    }

    /// The device is called without the bus's lock, so that one that takes long holds up nobody else.
    fn find(&self, address: u64) -> Option<(ExitKind, u64, SharedDevice)> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (start, entry) = entries.range(..=address).next_back()?;
        (address < entry.end).then(|| (entry.kind, address - start, Arc::clone(&entry.device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Register(u8, u64);

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.1 = offset;
            data[0] = self.0;
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            (self.0, self.1) = (data[0], offset);
        }
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_it_is_in() {
        let bus = Bus::default();
        let device = Arc::new(Mutex::new(Register::default()));
        assert!(bus.insert(0x100..0x108, ExitKind::Serial, Arc::clone(&device) as SharedDevice));
        assert_eq!(bus.write(0x107, &[9]), Some(ExitKind::Serial));
        assert_eq!(device.lock().unwrap().1, 7);
        let mut data = [0; 4];
        assert_eq!(bus.read(0x101, &mut data), Some(ExitKind::Serial));
        assert_eq!(data, [9, 0, 0, 0]);
    }

    #[test]
    fn an_access_that_nobody_answers_reads_ones() {
        let bus = Bus::default();
        bus.insert(0x100..0x108, ExitKind::Serial, Arc::new(Mutex::new(Register::default())));
        for address in [0xff, 0x108, u64::MAX] {
            let mut data = [0; 8];
            assert_eq!(bus.read(address, &mut data), None);
            assert_eq!(data, [0xff; 8]);
            assert_eq!(bus.write(address, &data), None);
        }
        bus.remove(0x100);
        assert_eq!(bus.write(0x100, &[1]), None);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(ranges in proptest::collection::vec((0u64..100, 0u64..20), 0..30)) {
            let bus = Bus::default();
            let mut taken = [false; 128];
            for (start, len) in ranges {
                let free = len > 0 && (start..start + len).all(|at| !taken[at as usize]);
                let device = Arc::new(Mutex::new(Register::default()));
                prop_assert_eq!(bus.insert(start..start + len, ExitKind::Virtio, device), free);
                if free {
                    (start..start + len).for_each(|at| taken[at as usize] = true);
                }
            }
            for (at, taken) in (0..).zip(taken) {
                prop_assert_eq!(bus.write(at, &[0]).is_some(), taken);
            }
        }
    }
}
