//! Times in words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, in RFC 3339.
pub(super) fn now_rfc3339() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A time since the epoch. The civil date is found by counting days in the 400-year cycle of the Gregorian calendar.
fn rfc3339(since_epoch: Duration) -> String {
    const DAYS_TO_0000_03_01: u64 = 719_468;
    let (days, second) = (since_epoch.as_secs() / 86_400 + DAYS_TO_0000_03_01, since_epoch.as_secs() % 86_400);
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    // Years here begin in March, so that a leap day is a year's last.
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = cycle * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since_epoch.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_at_the_calendars_corners() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_164_799, "2024-02-28T23:59:59.000000000Z"),
            (1_767_225_600, "2026-01-01T00:00:00.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
    }
}
