//! Figures in Prometheus' text format: of a sandbox by its supervisor, and of all sandboxes of a node by `stockade metrics`.
//!
//! The format wants all samples of a name together, so text is kept apart by names and written at the end. What comes out
//! of a guest goes through the same reader: a line that is none, or of a name that is not a guest's, is left out.

mod collect;
mod reader;

pub use collect::sandbox;

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up only.
    Counter,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// One name with its samples.
#[derive(Debug, Clone, PartialEq)]
struct Family {
    kind: Kind,
    help: String,
    /// Labels as written, without braces, and the value.
    samples: Vec<(String, f64)>,
}

/// Samples by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Families(BTreeMap<String, Family>);

impl Families {
    /// Adds a sample. Of two that say differently what a name counts, the first one holds.
    pub fn add(&mut self, name: &str, kind: Kind, help: &str, labels: &[(&str, &str)], value: f64) {
        self.push(name, kind, help, written(labels), value);
    }

    fn push(&mut self, name: &str, kind: Kind, help: &str, labels: String, value: f64) {
        let new = || Family { kind, help: help.to_owned(), samples: Vec::new() };
        self.0.entry(name.to_owned()).or_insert_with(new).samples.push((labels, value));
    }

    /// Adds another's samples.
    pub fn merge(&mut self, other: Self) {
        for (name, family) in other.0 {
            for (labels, value) in family.samples {
                self.push(&name, family.kind, &family.help, labels, value);
            }
        }
    }

    /// Reads what a supervisor wrote.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        reader::read(text, &[], |_| true)
    }

    /// Reads what a guest says of itself, with these labels before its own.
    #[must_use]
    pub fn of_guest(text: &str, labels: &[(&str, &str)]) -> Self {
        reader::read(text, labels, |name| name.starts_with("stockade_guest_") || name.starts_with("stockade_agent_"))
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        for (name, family) in &self.0 {
            if !family.help.is_empty() {
                let _ = writeln!(out, "# HELP {name} {}", family.help);
            }
            let _ = writeln!(out, "# TYPE {name} {}", family.kind.word());
            for (labels, value) in &family.samples {
                let _ = match labels.as_str() {
                    "" => writeln!(out, "{name} {value}"),
                    labels => writeln!(out, "{name}{{{labels}}} {value}"),
                };
            }
        }
        out
    }
}

/// `key="value",...`, the value escaped.
fn written(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in labels {
        let separator = if text.is_empty() { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{separator}{key}=\"{value}\"");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sandboxes_samples_of_a_name_stand_together_under_one_type() {
        let of = |sandbox: &str, value: f64| {
            let mut families = Families::default();
            families.add("stockade_b", Kind::Gauge, "B.", &[("sandbox", sandbox)], value);
            families.add("stockade_a_total", Kind::Counter, "", &[], value);
            families
        };
        let mut all = Families::parse(&of("one", 1.0).text());
        all.merge(Families::parse(&of("two", 2.5).text()));
        assert_eq!(
            all.text(),
            "# TYPE stockade_a_total counter\nstockade_a_total 1\nstockade_a_total 2.5\n\
             # HELP stockade_b B.\n# TYPE stockade_b gauge\n\
             stockade_b{sandbox=\"one\"} 1\nstockade_b{sandbox=\"two\"} 2.5\n"
        );
    }

    #[test]
    fn a_value_of_a_label_is_escaped() {
        let mut families = Families::default();
        families.add("n", Kind::Gauge, "", &[("a", "x\"y\\z\n")], 1.0);
        assert!(families.text().contains("n{a=\"x\\\"y\\\\z\\n\"} 1\n"), "{}", families.text());
    }
}
