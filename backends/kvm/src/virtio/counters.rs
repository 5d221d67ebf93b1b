//! What a device counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one device, written by its threads and read by whoever asks for metrics. They only grow, and survive
/// resets of the device.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    malformed: AtomicU64,
    invalid_accesses: AtomicU64,
    failures: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Requests taken from the queues.
    pub requests: u64,
    /// Requests that failed on the host, or that the device does not support.
    pub errors: u64,
    /// Requests that make no sense.
    pub malformed: u64,
    /// Accesses of registers that do not exist or are not allowed in the device's state.
    pub invalid_accesses: u64,
    /// How often the device has failed as a whole.
    pub failures: u64,
}

impl Counters {
    /// A request was taken from a queue.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request failed on the host, or is not supported.
    pub fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A request made no sense.
    pub fn malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// The guest accessed a register in a way that is not allowed.
    pub fn invalid_access(&self) {
        self.invalid_accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// The device failed.
    pub fn failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            invalid_accesses: self.invalid_accesses.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}
