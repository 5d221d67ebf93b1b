//! The status register (virtio 1.2, sections 2.1 and 3.1.1).
//!
//! ```text
//!   0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK       each bit once, none taken back
//!   ▲         │            │           │             │
//!   └── 0 ────┴────────────┴───────────┴─────────────┘           FAILED from each; then only 0
//! ```

use virtio_bindings::virtio_config as abi;

pub(super) const ACKNOWLEDGE: u32 = abi::VIRTIO_CONFIG_S_ACKNOWLEDGE;
pub(super) const DRIVER: u32 = abi::VIRTIO_CONFIG_S_DRIVER;
pub(super) const FEATURES_OK: u32 = abi::VIRTIO_CONFIG_S_FEATURES_OK;
pub(super) const DRIVER_OK: u32 = abi::VIRTIO_CONFIG_S_DRIVER_OK;
pub(super) const NEEDS_RESET: u32 = abi::VIRTIO_CONFIG_S_NEEDS_RESET;
pub(super) const FAILED: u32 = abi::VIRTIO_CONFIG_S_FAILED;

/// The bits that the driver sets, in their order.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// What a write of the status register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Back to the beginning.
    Reset,
    /// These bits more (may be none).
    Add(u32),
    /// Something that a driver may not ask for.
    Invalid,
}

/// Judges a write of `written` when the driver has set `current` so far. DEVICE_NEEDS_RESET is the device's bit: drivers
/// that write back what they have read write it too, which means nothing.
pub(super) fn request(current: u32, written: u32) -> Request {
    if written == 0 {
        return Request::Reset;
    }
    let wanted = written & !NEEDS_RESET;
    if current & !wanted != 0 || !is_consistent(wanted) {
        return Request::Invalid;
    }
    match wanted & !current {
        0 => Request::Add(0),
        _ if current & FAILED != 0 => Request::Invalid,
        added => Request::Add(added),
    }
}

/// Whether these bits, without DEVICE_NEEDS_RESET, can be set together: known ones, none before the one it builds on.
pub(super) fn is_consistent(bits: u32) -> bool {
    let mut gap = false;
    for step in STEPS {
        let set = bits & step != 0;
        if set && gap {
            return false;
        }
        gap |= !set;
    }
    bits & !(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_may_go_one_step_at_a_time_or_several_at_once() {
        assert_eq!(request(0, ACKNOWLEDGE), Request::Add(ACKNOWLEDGE));
        assert_eq!(request(ACKNOWLEDGE, ACKNOWLEDGE | DRIVER), Request::Add(DRIVER));
        assert_eq!(request(0, ACKNOWLEDGE | DRIVER), Request::Add(ACKNOWLEDGE | DRIVER));
        assert_eq!(request(3, 3 | FEATURES_OK), Request::Add(FEATURES_OK));
        assert_eq!(request(11, 15), Request::Add(DRIVER_OK));
    }

    #[test]
    fn a_driver_may_leave_out_no_step() {
        for written in [DRIVER, ACKNOWLEDGE | FEATURES_OK, 3 | DRIVER_OK, DRIVER_OK] {
            assert_eq!(request(0, written), Request::Invalid, "{written:#x}");
        }
    }

    #[test]
    fn a_driver_takes_bits_back_by_a_reset_only() {
        assert_eq!(request(3, ACKNOWLEDGE), Request::Invalid);
        assert_eq!(request(15, FAILED), Request::Invalid);
        for current in [0, 1, 3, 11, 15, 15 | FAILED] {
            assert_eq!(request(current, 0), Request::Reset);
        }
    }

    #[test]
    fn a_driver_that_has_failed_can_only_reset() {
        assert_eq!(request(3, 3 | FAILED), Request::Add(FAILED));
        assert_eq!(request(3 | FAILED, 11 | FAILED), Request::Invalid);
        assert_eq!(request(3 | FAILED, 3 | FAILED), Request::Add(0));
    }

    #[test]
    fn the_devices_own_bit_means_nothing_when_written() {
        assert_eq!(request(11, 15 | NEEDS_RESET), Request::Add(DRIVER_OK));
        assert_eq!(request(15, 15 | NEEDS_RESET), Request::Add(0));
        assert_eq!(request(0, NEEDS_RESET), Request::Add(0));
    }

    #[test]
    fn bits_that_do_not_exist_are_refused() {
        for bit in [16, 32, 256, 1 << 31] {
            assert_eq!(request(3, 3 | bit), Request::Invalid);
        }
    }
}
