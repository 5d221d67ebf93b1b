//! Names that no other test uses at the same time.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A valid container id that starts with `prefix`: unique among the tests that run on this machine.
#[must_use]
pub fn unique_id(prefix: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{number}", process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ids_differ() {
        assert_ne!(unique_id("a"), unique_id("a"));
    }
}
