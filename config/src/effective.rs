//! What `stockade config` shows: every option's value, and where it came from.

use crate::layers::{Loaded, Origin};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use toml::Value;

/// One option as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its table's dotted name.
    pub table: &'static str,
    /// Its key within the table.
    pub key: &'static str,
    /// Its value.
    pub value: Value,
    /// Where the value came from.
    pub origin: Origin,
}

/// The whole effective configuration, in the order of the shipped file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effective {
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    /// Every option.
    pub entries: Vec<Entry>,
}

impl Loaded {
    /// Every option with its value and origin.
    pub fn effective(&self) -> Effective {
        let entries = self
            .values()
            .map(|(table, option, value)| Entry {
                table: table.name,
                key: option.key,
                origin: self.origin(&format!("{}.{}", table.name, option.key)),
                value,
            })
            .collect();
        Effective { files: self.files().cloned().collect(), entries }
    }
}

impl Effective {
    /// As a configuration file that says the same, each line with its origin.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            line(&mut text, format_args!("# read {}", file.display()));
        }
        if self.files.is_empty() {
            line(&mut text, format_args!("# no file was found; these are the built-in defaults"));
        }
        let mut table = "";
        for entry in &self.entries {
            if entry.table != table {
                table = entry.table;
                line(&mut text, format_args!("\n[{table}]"));
            }
            line(&mut text, format_args!("{} = {} # {}", entry.key, entry.value, entry.origin));
        }
        text
    }

    /// As JSON, for programs.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A String takes whatever is written.
    let _ = writeln!(text, "{what}");
}
