//! Telling that a device has failed.

use super::super::{DeviceKind, FailureListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many failures of a device are told: a guest can make it fail, reset it and begin anew as often as it likes. All are
/// [counted](super::super::Counters::failure).
pub(super) const TOLD: u32 = 4;

/// Tells of the failures of one device, as long as it is in its slot; on any thread.
#[derive(Debug, Clone)]
pub(super) struct Failures {
    listener: Option<Arc<dyn FailureListener>>,
    told: Arc<AtomicU32>,
}

impl Failures {
    pub(super) fn new(listener: Option<Arc<dyn FailureListener>>) -> Self {
        Self { listener, told: Arc::default() }
    }

    /// Tells of one, unless enough have been told.
    pub(super) fn tell(&self, kind: DeviceKind, problem: impl FnOnce() -> String) {
        let Some(listener) = &self.listener else { return };
        let counted =
            self.told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |told| (told < TOLD).then_some(told + 1));
        match counted {
            Ok(before) if before + 1 == TOLD => {
                listener.device_failed(kind, format!("{}; no more is told of this device", problem()));
            }
            Ok(_) => listener.device_failed(kind, problem()),
            Err(_) => {}
        }
    }
}
