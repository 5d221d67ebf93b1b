//! One file: its text becomes settings, each checked by itself and with its place.

use crate::error::{ConfigError, Location};
use crate::nearest::nearest;
use crate::schema::{self, Kind, Problem, TABLES};
use serde::Deserialize;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A key with its value and place.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: Value,
    pub(crate) at: Location,
}

/// Reads the settings of a file's text. The first error in the text is the one that is told.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<Setting>, ConfigError> {
    let places = Places::new(path, text);
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        at: places.at(error.span().unwrap_or(0..0)),
        message: error.message().replace('\n', ", "),
    })?;
    let mut walk = Walk { places, settings: Vec::new(), first_error: None };
    walk.table("", document.get_ref());
    match walk.first_error {
        Some((_, error)) => Err(error),
        None => Ok(walk.settings),
    }
}

struct Walk<'t> {
    places: Places<'t>,
    settings: Vec<Setting>,
    first_error: Option<(usize, ConfigError)>,
}

impl Walk<'_> {
    fn table(&mut self, name: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = if name.is_empty() { key.get_ref().to_string() } else { format!("{name}.{}", key.get_ref()) };
            let option = schema::table(name).and_then(|table| table.option(key.get_ref()));
            let outcome = if let Some(option) = option {
                self.setting(&path, option.kind, value)
            } else if is_table(&path) {
                match value.get_ref() {
                    DeValue::Table(inner) => {
                        self.table(&path, inner);
                        continue;
                    }
                    other => Err(ConfigError::WrongType {
                        at: self.places.at(value.span()),
                        key: path,
                        expected: "a table".to_owned(),
                        found: format!("a value of type {}", other.type_str()),
                    }),
                }
            } else {
                Err(ConfigError::UnknownKey {
                    at: self.places.at(key.span()),
                    hint: hint(name, key.get_ref()),
                    key: shown(&path),
                })
            };
            if let Err(error) = outcome {
                self.note(key.span().start, error);
            }
        }
    }

    fn setting(&mut self, key: &str, kind: Kind, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        let at = self.places.at(value.span());
        let value = match Value::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => value,
            Err(error) => return Err(ConfigError::Syntax { at, message: format!("{key}: {}", error.message()) }),
        };
        kind.check(&value).map_err(|problem| match problem {
            Problem::Type { expected, found } => {
                ConfigError::WrongType { at: at.clone(), key: key.to_owned(), expected, found }
            }
            Problem::Value { allowed } => ConfigError::OutOfRange {
                at: at.to_string(),
                key: key.to_owned(),
                value: shown(&value.to_string()),
                allowed,
            },
        })?;
        self.settings.push(Setting { key: key.to_owned(), value, at });
        Ok(())
    }

    fn note(&mut self, offset: usize, error: ConfigError) {
        if self.first_error.as_ref().is_none_or(|(first, _)| offset < *first) {
            self.first_error = Some((offset, error));
        }
    }
}

/// Whether this dotted name is a table or leads to one.
fn is_table(path: &str) -> bool {
    TABLES
        .iter()
        .any(|table| table.name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// What of Kata is not here, and what to do in its place.
const KATA: &[(&str, &str)] = &[
    ("virtio_fs_daemon", "virtio-fs is served by Stockade itself"),
    ("valid_virtio_fs_daemon_paths", "virtio-fs is served by Stockade itself"),
    ("virtio_fs_extra_args", "virtio-fs is served by Stockade itself"),
    ("seccompsandbox", "it is called seccomp_sandbox"),
    ("dial_timeout", "it is called dial_timeout_ms, in milliseconds"),
    ("hypervisor_name", "it is called hypervisor"),
    ("agent_name", "there is one agent contract, Kata's"),
    ("use_vsock", "vsock is always used"),
    ("msize_9p", "9p is not supported; the share is virtio-fs"),
    ("use_passfd_io", "standard streams need no option"),
    ("ctlpath", "QEMU has no control program"),
];

/// What to write instead of an unknown key: from Kata's names, from other tables, or the nearest of this table.
fn hint(table: &str, key: &str) -> String {
    if let Some((_, note)) = KATA.iter().find(|(name, _)| *name == key) {
        return format!(" ({note})");
    }
    let elsewhere: Vec<String> =
        TABLES.iter().filter(|table| table.option(key).is_some()).map(|table| format!("[{}]", table.name)).collect();
    if !elsewhere.is_empty() {
        return format!("; it belongs to {}", elsewhere.join(" or "));
    }
    let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
    let mut inner_tables: Vec<&str> =
        TABLES.iter().filter_map(|table| table.name.strip_prefix(&prefix)?.split('.').next()).collect();
    inner_tables.dedup();
    let options = schema::table(table).into_iter().flat_map(|table| table.options().map(|option| option.key));
    match nearest(key, options.chain(inner_tables.iter().copied())) {
        Some(known) => format!("; did you mean {known}?"),
        None if inner_tables.is_empty() => String::new(),
        None => format!("; there are {}", inner_tables.join(", ")),
    }
}

/// Text of a file as one short line of a message.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let mut line: String =
        text.chars().take(MOST).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        line.push('…');
    }
    line
}

/// Turns byte offsets into lines and columns.
struct Places<'t> {
    path: &'t Path,
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Places<'t> {
    fn new(path: &'t Path, text: &'t str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { path, text, line_starts }
    }

    fn at(&self, span: Range<usize>) -> Location {
        let offset = span.start.min(self.text.len());
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| self.line_starts.get(line)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Location { path: self.path.to_owned(), line: number(line), column: number(column) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        parse(Path::new("/etc/stockade/stockade.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_mistyped_key_is_told_with_its_place_and_the_nearest_valid_one() {
        assert_eq!(
            refused("# one\n[hypervisor.qemu]\n  default_memroy = 2048\n"),
            "/etc/stockade/stockade.toml:3:3: unknown key hypervisor.qemu.default_memroy; did you mean default_memory?"
        );
        assert_eq!(
            refused("[hypervisor.qmeu]\n"),
            "/etc/stockade/stockade.toml:1:13: unknown key hypervisor.qmeu; did you mean qemu?"
        );
        assert_eq!(refused("[runtme]\n"), "/etc/stockade/stockade.toml:1:2: unknown key runtme; did you mean runtime?");
        assert!(refused("[hypervisor.clh]").ends_with("unknown key hypervisor.clh; there are qemu, kvm"));
        assert!(refused("[shim.kata]").ends_with("unknown key shim; there are runtime, hypervisor, agent, factory"));
    }

    #[test]
    fn a_key_of_another_table_or_of_kata_is_told_so() {
        assert!(refused("[runtime]\nkernel = '/x'").ends_with("it belongs to [hypervisor.qemu] or [hypervisor.kvm]"));
        assert!(
            refused("[hypervisor.qemu]\nvirtio_fs_daemon='/x'").ends_with("(virtio-fs is served by Stockade itself)")
        );
    }

    #[test]
    fn a_wrong_type_is_told_with_the_right_one() {
        assert_eq!(
            refused("[agent.kata]\nenable_debug = \"yes\""),
            "/etc/stockade/stockade.toml:2:16: agent.kata.enable_debug must be true or false, not a string"
        );
        assert_eq!(
            refused("[hypervisor]\nqemu = 3"),
            "/etc/stockade/stockade.toml:2:8: hypervisor.qemu must be a table, not a value of type integer"
        );
        assert_eq!(
            refused("[agent.kata]\nkernel_modules = ['a', 1]"),
            "/etc/stockade/stockade.toml:2:18: agent.kata.kernel_modules must be a list of strings, not a list with a whole number"
        );
    }

    #[test]
    fn a_value_out_of_range_is_told_with_the_range() {
        assert_eq!(
            refused("[hypervisor.kvm]\ndefault_memory = 4"),
            "/etc/stockade/stockade.toml:2:18: hypervisor.kvm.default_memory = 4: allowed is 64 to 4194304"
        );
        assert_eq!(
            refused("[runtime]\nhypervisor = 'xen'"),
            "/etc/stockade/stockade.toml:2:14: runtime.hypervisor = \"xen\": allowed is auto, kvm, qemu"
        );
    }

    #[test]
    fn broken_toml_is_told_with_line_and_column() {
        let message = refused("[runtime]\nlog_level = \n");
        assert!(message.starts_with("/etc/stockade/stockade.toml:2:"), "{message}");
        assert!(!message.contains('\n'));
        assert!(refused("[runtime]\nlog_level = 'info'\nlog_level = 'info'").contains("duplicate"));
        assert!(refused("[factory]\nvm_cache_number = 99999999999999999999").contains(":2:19:"));
    }

    #[test]
    fn of_several_errors_the_first_in_the_file_is_told() {
        assert!(refused("[runtime]\nzzz = 1\nabc = 1\n[agent.kata]\nx = 1").contains(":2:1: unknown key runtime.zzz"));
    }

    #[test]
    fn dotted_keys_and_inline_tables_are_the_same_as_tables() {
        for text in ["hypervisor.qemu.memory_slots = 3", "hypervisor = { qemu = { memory_slots = 3 } }"] {
            let settings = parse(Path::new("x"), text).unwrap();
            assert_eq!(settings.len(), 1);
            assert_eq!(settings[0].key, "hypervisor.qemu.memory_slots");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*|[\\[\\]a-z.=\"'\n0-9{}, #]{0,200}") {
            drop(parse(Path::new("x"), &text));
        }

        #[test]
        fn arbitrary_values_of_known_keys_never_panic(
            index in 0..10_000usize,
            value in "-?[0-9]{1,25}|'[^'\n]{0,30}'|true|\\['[^'\n]{0,30}'\\]|[0-9]\\.[0-9]|1979-05-27",
        ) {
            let keys: Vec<_> = TABLES.iter().flat_map(|t| t.options().map(|o| format!("{}.{}", t.name, o.key))).collect();
            drop(parse(Path::new("x"), &format!("{} = {value}", keys[index % keys.len()])));
        }
    }
}
