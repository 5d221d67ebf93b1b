//! Waiting for something to become true.

use std::thread;
use std::time::{Duration, Instant};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks at `predicate` until it holds. Returns whether it did within `limit`.
pub fn until(limit: Duration, mut predicate: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
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
