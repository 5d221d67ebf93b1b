//! The report pipe: how a process that is not yet the user's program tells what went wrong.
//!
//! Lines of text. Every process on the way to the program inherits the writing end, which closes when
//! the program runs. Writing never blocks: a full pipe loses lines.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// Starts a line with a detail of an error.
const DETAIL: &str = "detail ";
/// Starts the line with the reason why the program cannot be run.
const REASON: &str = "reason ";
/// The line that comes right before the program runs.
const RUNNING: &str = "running";

/// The writing end.
#[derive(Clone, Debug)]
pub(crate) struct Reporter(Arc<OwnedFd>);

impl Reporter {
    /// Wraps the writing end, which must not block.
    pub(crate) fn new(pipe: OwnedFd) -> Reporter {
        Reporter(Arc::new(pipe))
    }

    /// Tells why the program cannot be run.
    pub(crate) fn reason(&self, text: &str) {
        self.line(REASON, text);
    }

    /// Tells that all is ready and the program is run next.
    pub(crate) fn running(&self) {
        self.line(RUNNING, "");
    }

    fn line(&self, kind: &str, text: &str) {
        let line = format!("{kind}{}\n", text.replace('\n', " "));
        // A reader that is gone, or a full pipe, leaves only the coarser error.
        let _ = nix::unistd::write(&*self.0, line.as_bytes());
    }
}

/// Sends errors that libraries log to the report pipe: they hold the causes that returned errors lack.
pub(crate) struct ReportErrors(pub(crate) Reporter);

impl Subscriber for ReportErrors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.0.line(DETAIL, &format!("{}{}", text.message, text.fields));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, ", {}: {value:?}", field.name())
        };
    }
}

/// What a report says about an attempt to run a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The program was about to run.
    pub(crate) running: bool,
    /// Why it could not be run.
    pub(crate) reason: Option<String>,
    /// The first error logged on the way, which is the one nearest to the cause.
    pub(crate) detail: Option<String>,
}

impl Report {
    /// Reads the lines of a report.
    pub(crate) fn parse(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines() {
            if line == RUNNING {
                report.running = true;
            } else if let Some(reason) = line.strip_prefix(REASON) {
                report.reason.get_or_insert_with(|| reason.to_owned());
            } else if let Some(detail) = line.strip_prefix(DETAIL) {
                report.detail.get_or_insert_with(|| detail.to_owned());
            }
        }
        report
    }

    /// The best explanation, given what the helper said.
    pub(crate) fn explain(&self, answer: &str) -> String {
        match (&self.reason, &self.detail) {
            (Some(reason), _) => reason.clone(),
            (None, Some(detail)) => format!("{answer}: {detail}"),
            (None, None) => answer.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_explains_more_than_what_the_library_returned() {
        let report = Report::parse("detail failed to mount\nreason exec: \"x\": not found\n");
        assert_eq!(report.explain("failed"), "exec: \"x\": not found");
        let report = Report::parse("detail first\ndetail second\n");
        assert_eq!(report.explain("failed"), "failed: first");
        assert_eq!(Report::parse("").explain("failed"), "failed");
    }

    #[test]
    fn a_program_that_is_run_is_told_from_one_that_failed_before() {
        assert!(Report::parse("detail odd\nrunning\n").running);
        assert!(!Report::parse("running-mate\n").running);
    }
}
