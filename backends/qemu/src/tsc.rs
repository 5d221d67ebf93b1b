//! How fast the host's time stamp counter runs. Under TCG the guest reads the same counter and must be told: it would
//! measure it by a timer, and a guest that waits for a processor meanwhile finds a rate that is wrong by any factor.

use crate::sys;
use nix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::time::Duration;

/// Over this time the error of two readings of the clock, some 50 ns, is a few hundred-thousandths.
const LEAST: Duration = Duration::from_millis(5);
/// Readings to choose the least disturbed from.
const TRIES: usize = 16;

/// The counter and the clock at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TscSample {
    ticks: u64,
    time: Duration,
}

/// The hardware's clock, which no time daemon bends.
fn clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).map(Duration::from).unwrap_or_default()
}

impl TscSample {
    /// The first of this process: the longer ago it is, the less there is to wait for.
    pub(crate) fn first() -> Self {
        static FIRST: OnceLock<TscSample> = OnceLock::new();
        *FIRST.get_or_init(Self::now)
    }

    fn now() -> Self {
        let once = || {
            let before = clock();
            let ticks = sys::time_stamp_counter();
            let after = clock();
            (after.saturating_sub(before), Self { ticks, time: after })
        };
        let first = once();
        (1..TRIES).map(|_| once()).fold(first, |best, next| if next.0 < best.0 { next } else { best }).1
    }

    /// Ticks a millisecond since this sample; waits until enough time has passed to tell.
    pub(crate) async fn khz(&self) -> u64 {
        let passed = clock().saturating_sub(self.time);
        if passed < LEAST {
            tokio::time::sleep(LEAST - passed).await;
        }
        let now = Self::now();
        let nanoseconds = now.time.saturating_sub(self.time).as_nanos().max(1);
        let ticks = u128::from(now.ticks.saturating_sub(self.ticks));
        u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_measurements_agree() {
        let first = TscSample::now().khz().await;
        let second = TscSample::now().khz().await;
        assert!(first > 100_000, "{first}");
        assert!(first.abs_diff(second) < first / 100, "{first} and {second}");
    }
}
