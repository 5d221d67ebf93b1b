//! A slot as a value that can be written down.

use super::super::DeviceKind;
use serde::{Deserialize, Serialize};

/// The version of [`TransportState`]. Another is refused: a saved machine is made again rather than translated.
pub const TRANSPORT_STATE_VERSION: u32 = 1;

/// A slot whose device does not run: registers, queues, and what the device itself has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// [`TRANSPORT_STATE_VERSION`].
    pub version: u32,
    /// The device.
    pub kind: DeviceKind,
    /// The bits that the driver has set.
    pub status: u32,
    /// DEVICE_NEEDS_RESET is set.
    pub needs_reset: bool,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// The features that the driver has accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_select: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The configuration has changed and the driver, which is not ready yet, does not know.
    pub config_pending: bool,
    /// The queues, by their index.
    pub queues: Vec<QueueRecord>,
    /// What [`VirtioDevice::save`](super::super::VirtioDevice::save) gave.
    pub device: serde_json::Value,
}

/// A queue's registers, and where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueRecord {
    /// As the driver wrote it.
    pub size: u32,
    /// The driver has enabled it.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Of the available ring.
    pub available: u64,
    /// Of the used ring.
    pub used: u64,
    /// The next entry of the available ring that the device takes.
    pub next_available: u16,
    /// The next entry of the used ring that it writes.
    pub next_used: u16,
}

/// Why a slot cannot take a saved state on.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It was written by another version.
    #[error(
        "the device's state has version {0}, and only {TRANSPORT_STATE_VERSION} can be read; save the machine anew"
    )]
    Version(u32),
    /// It is of another device than the one in the slot.
    #[error("the state is that of a {saved:?} device, and a {present:?} device is in the slot")]
    Kind {
        /// What was saved.
        saved: DeviceKind,
        /// What is there.
        present: DeviceKind,
    },
    /// The driver uses features which the device in the slot does not offer.
    #[error(
        "the driver uses the features {0:#x}, which this device does not offer; give it the options that it was saved with"
    )]
    Features(u64),
    /// The device in the slot has other queues.
    #[error("the state has {saved} queues, and the device has {present}")]
    Queues {
        /// In the state.
        saved: usize,
        /// In the device.
        present: usize,
    },
    /// A queue in use is not in the guest's memory.
    #[error("queue {0} is not usable: its size or its addresses do not fit")]
    Queue(usize),
    /// The status register cannot have this value.
    #[error("no driver can have set the status {0:#x}")]
    Status(u32),
    /// The device does not understand its own part.
    #[error("the device cannot take its state on: {0}")]
    Device(String),
    /// The slot is empty, or its driver is at work already.
    #[error("a state is taken on by a device that has just been attached")]
    NotFresh,
}
