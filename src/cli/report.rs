//! What a verb says beside its output: to standard error for a person, to --log for the program that called.

use super::client::one_line;
use super::globals::{Format, Globals};
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes errors, warnings and progress.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    log: Option<PathBuf>,
    format: Format,
    debug: bool,
}

impl Reporter {
    pub(super) fn new(globals: &Globals) -> Self {
        Self { log: globals.log.clone(), format: globals.log_format, debug: globals.debug }
    }

    /// The verb failed.
    pub(super) fn error(&self, message: &str) {
        let message = one_line(message);
        // Nobody is left to hear that standard error is closed.
        let _ = writeln!(io::stderr(), "stockade: {message}");
        self.log("error", &message);
    }

    /// Something that the caller asked for has no effect, or something is left over.
    pub(super) fn warning(&self, message: &str) {
        let message = one_line(message);
        let _ = writeln!(io::stderr(), "stockade: warning: {message}");
        // An engine takes the whole of a JSON log for the one error.
        if self.debug || self.format == Format::Text {
            self.log("warning", &message);
        }
    }

    /// A step of long work begins.
    pub(super) fn step(&self, message: &str) {
        let _ = writeln!(io::stderr(), "{}", one_line(message));
    }

    /// For a developer; with --debug only.
    pub(super) fn debug(&self, message: &str) {
        if !self.debug {
            return;
        }
        let message = one_line(message);
        if self.log.is_none() {
            let _ = writeln!(io::stderr(), "stockade: debug: {message}");
        }
        self.log("debug", &message);
    }

    /// A log that cannot be written must not fail what it reports on; the error has been on standard error before.
    fn log(&self, level: &str, message: &str) {
        let Some(path) = &self.log else { return };
        let line = log_line(self.format, level, message, &timestamp(SystemTime::now()));
        if let Ok(mut file) = File::options().append(true).create(true).mode(0o644).open(path) {
            let _ = file.write_all(line.as_bytes());
        }
    }
}

fn log_line(format: Format, level: &str, message: &str, time: &str) -> String {
    match format {
        Format::Json => format!("{}\n", json!({"level": level, "msg": message, "time": time})),
        Format::Text => format!("time={time} level={level} msg={message:?}\n"),
    }
}

/// RFC 3339 in UTC, to the second.
pub(super) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day counted from 1970-01-01. Years are taken to begin in March, so that the leap day is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (days / ERA, days % ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_log_line_in_json_has_the_keys_that_engines_read() {
        let line = log_line(Format::Json, "error", "a \"b\"", "2026-01-02T03:04:05Z");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value, json!({"level": "error", "msg": "a \"b\"", "time": "2026-01-02T03:04:05Z"}));
        assert!(line.ends_with('\n') && line.lines().count() == 1);
    }

    #[test]
    fn a_log_line_in_text_quotes_the_message() {
        assert_eq!(log_line(Format::Text, "error", "a b", "T"), "time=T level=error msg=\"a b\"\n");
    }

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_767_323_045, "2026-01-02T03:04:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
