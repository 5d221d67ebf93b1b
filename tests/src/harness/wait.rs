//! Waiting for something to become true.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// How many times longer than on an ordinary machine everything may take here: STOCKADE_TEST_SLOWNESS, or 1. An
/// emulated host, which runs the tests that need KVM where there is none, sets it.
///
/// # Panics
/// When the variable holds no number from 1 on.
#[must_use]
pub fn slowness() -> u32 {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let Ok(text) = std::env::var("STOCKADE_TEST_SLOWNESS") else { return 1 };
        let number = text.parse().ok().filter(|number| *number >= 1);
        number.unwrap_or_else(|| panic!("STOCKADE_TEST_SLOWNESS is {text:?}, not a number from 1 on"))
    });
    *SLOWNESS
}

/// What `limit` is on this machine. For comparisons with a measured time: functions that take a limit do this themselves.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit * slowness()
}

/// Looks at `predicate` until it holds. Returns whether it did within `limit`, [scaled](scaled).
pub fn until(limit: Duration, mut predicate: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + scaled(limit);
    loop {
        if predicate() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// Like [`until`], and returns what the first `Some` held.
pub fn until_some<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let mut found = None;
    until(limit, || {
        found = look();
        found.is_some()
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_seen_at_once_and_what_never_holds_ends() {
        assert!(until(Duration::ZERO, || true));
        assert!(!until(Duration::from_millis(1), || false));
        assert_eq!(until_some(Duration::from_secs(5), || Some(3)), Some(3));
    }
}
