//! The process's log: lines on standard error, without what a subscriber for people would bring along.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::control::bounded;

/// Lines in each [`PERIOD`]; a guest can cause some, and shall not fill its supervisor's log with them.
const LINES: u32 = 50;
/// See [`LINES`].
const PERIOD: Duration = Duration::from_secs(10);

/// Sends what is logged from now on to standard error.
pub(super) fn start() {
    let log = Log { spans: AtomicU64::new(1), quota: Mutex::new(Quota { begun: Instant::now(), lines: 0 }) };
    // Fails only where a log has been started before.
    let _ = tracing::subscriber::set_global_default(log);
}

struct Log {
    spans: AtomicU64,
    quota: Mutex<Quota>,
}

/// How many lines were written since when.
struct Quota {
    begun: Instant,
    lines: u32,
}

impl Quota {
    /// Whether one more may be written at `now`.
    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= PERIOD {
            *self = Self { begun: now, lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES
    }
}

/// The message and the fields of an event, as one line.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A String takes whatever is written.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        // A panic ends the process, so that a poisoned lock is never seen.
        let allowed = self.quota.lock().is_ok_and(|mut quota| quota.take(Instant::now()));
        if !allowed {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let text = bounded(&format!("{}: {}{}", event.metadata().level(), line.message, line.fields));
        // One write, so that lines of two threads do not mix.
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_begins_anew_later() {
        let begun = Instant::now();
        let mut quota = Quota { begun, lines: 0 };
        assert_eq!((0..10 * LINES).filter(|_| quota.take(begun)).count(), LINES as usize);
        assert!(quota.take(begun + PERIOD));
    }
}
