//! When each step of a creation ran.

use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// One step that ran or runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimelineEntry {
    /// The step's name.
    pub step: &'static str,
    /// Microseconds from the begin of the creation to that of the step.
    pub start_us: u64,
    /// How long it took, in microseconds; `None` while it runs.
    pub duration_us: Option<u64>,
    /// Whether it succeeded; `None` while it runs.
    pub ok: Option<bool>,
}

/// The steps of one creation. Clones are the same timeline: the pipeline writes it while `inspect` reads, hence the lock.
#[derive(Debug, Clone)]
pub struct Timeline {
    begin: Instant,
    entries: Arc<Mutex<Vec<TimelineEntry>>>,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn begin() -> Self {
        Self { begin: Instant::now(), entries: Arc::default() }
    }

    /// All steps so far.
    pub fn entries(&self) -> Vec<TimelineEntry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn enter(&self, step: &'static str) {
        let entry = TimelineEntry { step, start_us: micros(self.begin), duration_us: None, ok: None };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    pub(super) fn leave(&self, ok: bool) {
        let now = micros(self.begin);
        if let Some(last) = self.entries.lock().unwrap_or_else(PoisonError::into_inner).last_mut() {
            last.duration_us = Some(now.saturating_sub(last.start_us));
            last.ok = Some(ok);
        }
    }

    /// The entries as JSON lines, one a step.
    pub fn to_json_lines(&self) -> String {
        let lines = self.entries().iter().filter_map(|entry| serde_json::to_string(entry).ok()).collect::<Vec<_>>();
        lines.join("\n") + "\n"
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
