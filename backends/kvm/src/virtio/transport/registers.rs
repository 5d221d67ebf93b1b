//! The register layout (virtio 1.2, section 4.2.2).

use virtio_bindings::virtio_mmio as abi;

/// How many bytes of guest-physical addresses a slot takes. A page, so that an access never concerns two slots.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Where the driver writes a queue's index to notify the device.
pub const QUEUE_NOTIFY_OFFSET: u64 = abi::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where a driver acknowledges an interrupt. A write of [`USED`](super::INTERRUPT_USED) alone changes nothing here, so that the
/// machine may have KVM take it.
pub const INTERRUPT_ACKNOWLEDGE_OFFSET: u64 = abi::VIRTIO_MMIO_INTERRUPT_ACK as u64;

/// Where the device's configuration space begins.
pub const CONFIG_OFFSET: u64 = abi::VIRTIO_MMIO_CONFIG as u64;

/// "virt".
pub(super) const MAGIC: u32 = 0x7472_6976;

/// The version of the layout: not the legacy one.
pub(super) const VERSION: u32 = 2;

/// Says who made the device; drivers show it and act the same.
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"STKD");

/// A half of a 64-bit value in two registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

impl Half {
    /// Replaces this half of `value`.
    pub(super) fn set(self, value: &mut u64, half: u32) {
        *value = match self {
            Self::Low => *value & !0xffff_ffff | u64::from(half),
            Self::High => *value & 0xffff_ffff | u64::from(half) << 32,
        };
    }
}

/// A register that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writable {
    DeviceFeaturesSelect,
    DriverFeatures,
    DriverFeaturesSelect,
    QueueSelect,
    QueueSize,
    QueueReady,
    QueueNotify,
    InterruptAcknowledge,
    Status,
    QueueDescriptors(Half),
    QueueAvailable(Half),
    QueueUsed(Half),
    SharedMemorySelect,
}

impl Writable {
    pub(super) fn at(offset: u64) -> Option<Self> {
        Some(match u32::try_from(offset).ok()? {
            abi::VIRTIO_MMIO_DEVICE_FEATURES_SEL => Self::DeviceFeaturesSelect,
            abi::VIRTIO_MMIO_DRIVER_FEATURES => Self::DriverFeatures,
            abi::VIRTIO_MMIO_DRIVER_FEATURES_SEL => Self::DriverFeaturesSelect,
            abi::VIRTIO_MMIO_QUEUE_SEL => Self::QueueSelect,
            abi::VIRTIO_MMIO_QUEUE_NUM => Self::QueueSize,
            abi::VIRTIO_MMIO_QUEUE_READY => Self::QueueReady,
            abi::VIRTIO_MMIO_QUEUE_NOTIFY => Self::QueueNotify,
            abi::VIRTIO_MMIO_INTERRUPT_ACK => Self::InterruptAcknowledge,
            abi::VIRTIO_MMIO_STATUS => Self::Status,
            abi::VIRTIO_MMIO_QUEUE_DESC_LOW => Self::QueueDescriptors(Half::Low),
            abi::VIRTIO_MMIO_QUEUE_DESC_HIGH => Self::QueueDescriptors(Half::High),
            abi::VIRTIO_MMIO_QUEUE_AVAIL_LOW => Self::QueueAvailable(Half::Low),
            abi::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => Self::QueueAvailable(Half::High),
            abi::VIRTIO_MMIO_QUEUE_USED_LOW => Self::QueueUsed(Half::Low),
            abi::VIRTIO_MMIO_QUEUE_USED_HIGH => Self::QueueUsed(Half::High),
            abi::VIRTIO_MMIO_SHM_SEL => Self::SharedMemorySelect,
            _ => return None,
        })
    }
}
