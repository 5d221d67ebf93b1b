//! How often the guest has left to user space, and why.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a guest's exit to user space was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitKind {
    Serial,
    KeyboardController,
    Power,
    OtherPort,
    Virtio,
    OtherMmio,
    Interrupted,
    Other,
}

/// The counters, written by vCPU threads.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters([AtomicU64; 8]);

impl ExitCounters {
    pub(crate) fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Exits {
        let [serial, keyboard_controller, power, other_port, virtio, other_mmio, interrupted, other] =
            std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed));
        Exits { serial, keyboard_controller, power, other_port, virtio, other_mmio, interrupted, other }
    }
}

/// Exits to user space since the machine was made, of all vCPUs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exits {
    /// Registers of the serial console.
    pub serial: u64,
    /// Registers of the keyboard controller.
    pub keyboard_controller: u64,
    /// Registers of power management and hot-plug.
    pub power: u64,
    /// Ports that nothing answers at.
    pub other_port: u64,
    /// Registers of virtio devices.
    pub virtio: u64,
    /// Addresses that nothing answers at.
    pub other_mmio: u64,
    /// The host wanted the thread: signals, pauses.
    pub interrupted: u64,
    /// All else.
    pub other: u64,
}

impl Exits {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.serial
            + self.keyboard_controller
            + self.power
            + self.other_port
            + self.virtio
            + self.other_mmio
            + self.interrupted
            + self.other
    }
}
