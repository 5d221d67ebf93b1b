//! A sandbox's annotations, laid over the configuration as far as it allows them.
//!
//! The names are Kata's: `io.katacontainers.config.hypervisor.default_memory` and so on. What may be set is decided by
//! `enable_annotations` of the backend that runs the sandbox, for the namespaces `hypervisor`, `runtime` and `agent`
//! alike. An annotation is written by whoever may start a pod, so everything in it is checked and nothing is skipped.

use crate::document::shown;
use crate::error::ConfigError;
use crate::kernel_params::KernelParams;
use crate::layers::{Loaded, Origin};
use crate::nearest::nearest;
use crate::options::{Backend, HypervisorChoice};
use crate::schema::{Items, Kind, OptionSpec, PathRule, Problem, TABLES, TableSpec};
use regex::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use std::path::{Component, Path};
use toml::Value;

/// What all that is looked at begins with.
const FAMILY: &str = "io.katacontainers.config";
const PREFIX: &str = "io.katacontainers.config.";
const CONFIG_PATH: &str = "io.katacontainers.config_path";
const HYPERVISOR_NAME: &str = "runtime.hypervisor_name";
/// The size that a compiled pattern may have, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

/// Why an annotation was not taken. `Display` is one line.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// No `enable_annotations` matches it.
    #[error(
        "the annotation {annotation} is not allowed; to allow it, add \"{pattern}\" to enable_annotations under [{table}] in {file}"
    )]
    NotAllowed {
        /// The whole name.
        annotation: String,
        /// What would allow it.
        pattern: String,
        /// The table to add it to.
        table: String,
        /// The file to add it to.
        file: String,
    },
    /// No option of this sandbox's backend has it.
    #[error("the annotation {annotation} is unknown{hint}")]
    Unknown {
        /// The whole name.
        annotation: String,
        /// What to write in its place, with a separator before it; empty when nothing comes near.
        hint: String,
    },
    /// A pod that names its own configuration could read any file of the host as one.
    #[error("the annotation {CONFIG_PATH} is not supported: a pod cannot choose the configuration file")]
    ConfigPath,
    /// The option does not take this value.
    #[error("the annotation {annotation} = {value:?}: allowed is {allowed}")]
    Value {
        /// The whole name.
        annotation: String,
        /// Its value, shortened.
        value: String,
        /// What may stand there, in words.
        allowed: String,
    },
    /// The path matches none of the globs for it.
    #[error("the annotation {annotation} = {path:?} matches none of {globs} under [{table}] in {file}")]
    PathNotAllowed {
        /// The whole name.
        annotation: String,
        /// The path, shortened.
        path: String,
        /// The key of the list of globs.
        globs: &'static str,
        /// The list's table.
        table: String,
        /// The file with the list, or to add it to.
        file: String,
    },
    /// The configuration that would result contradicts itself.
    #[error(transparent)]
    Conflict(ConfigError),
}

/// The hypervisor that a sandbox asks for: its annotation where there is one and the table of the backend that it names
/// allows it, else the configuration's. For `auto` the tables of all backends must allow it.
///
/// # Errors
/// When the annotation is not allowed or names no hypervisor.
pub fn chosen_hypervisor(
    loaded: &Loaded,
    annotations: &BTreeMap<String, String>,
) -> Result<HypervisorChoice, AnnotationError> {
    let name = format!("{PREFIX}{HYPERVISOR_NAME}");
    let Some(value) = annotations.get(&name) else {
        return Ok(loaded.config.runtime.hypervisor);
    };
    let (choice, backends): (_, &[Backend]) = match value.as_str() {
        "auto" => (HypervisorChoice::Auto, &[Backend::Kvm, Backend::Qemu]),
        "kvm" => (HypervisorChoice::Kvm, &[Backend::Kvm]),
        "qemu" => (HypervisorChoice::Qemu, &[Backend::Qemu]),
        _ => {
            return Err(AnnotationError::Value {
                annotation: name,
                value: shown(value),
                allowed: "auto, kvm, qemu".to_owned(),
            });
        }
    };
    for backend in backends {
        Gate::of(loaded, *backend).admit(&name, HYPERVISOR_NAME)?;
    }
    Ok(choice)
}

/// The configuration of one sandbox that `backend` runs: what was loaded, with its annotations laid over it. Only
/// `io.katacontainers.config…` is looked at.
///
/// # Errors
/// At the first annotation, in name order, that is unknown, not allowed, or has a value that does not fit.
pub fn apply_annotations(
    loaded: &Loaded,
    backend: Backend,
    annotations: &BTreeMap<String, String>,
) -> Result<Loaded, AnnotationError> {
    // Most sandboxes have none, and laying nothing over a configuration that was checked gives the same again.
    if !annotations.keys().any(|name| name.starts_with(FAMILY)) {
        return Ok(loaded.clone());
    }
    let gate = Gate::of(loaded, backend);
    let mut merged = loaded.merged();
    let mut settings = Vec::new();
    for (name, text) in annotations {
        if name == CONFIG_PATH {
            return Err(AnnotationError::ConfigPath);
        }
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        let (table, option) = find(backend, key)
            .ok_or_else(|| AnnotationError::Unknown { annotation: shown(name), hint: hint(backend, key) })?;
        gate.admit(name, key)?;
        let refused = |allowed| AnnotationError::Value { annotation: name.clone(), value: shown(text), allowed };
        let value = parse(option.kind, text).ok_or_else(|| refused(option.kind.type_name().to_owned()))?;
        option.kind.check(&value).map_err(|problem| {
            refused(match problem {
                Problem::Value { allowed } => allowed,
                Problem::Type { expected, .. } => expected,
            })
        })?;
        let option_key = format!("{}.{}", table.name, option.key);
        let value = match option.kind {
            Kind::Path(PathRule { globs: Some(globs), .. }) => {
                gate.admit_path(name, text, table, globs, merged.get(&format!("{}.{globs}", table.name)))?;
                value
            }
            Kind::KernelParams => {
                // A pod adds to what the node's operator set; it does not take that away.
                let line = format!("{} {text}", merged.get(&option_key).and_then(Value::as_str).unwrap_or(""));
                let line =
                    line.parse::<KernelParams>().map_err(|error| refused(format!("a command line ({error})")))?;
                Value::String(line.to_string())
            }
            _ => value,
        };
        settings.push((option_key, value, Origin::Annotation { name: name.clone() }));
    }
    merged.apply(settings);
    merged.finish(loaded.file.clone(), loaded.drop_ins.clone()).map_err(AnnotationError::Conflict)
}

/// What one backend's table lets annotations do.
struct Gate<'l> {
    loaded: &'l Loaded,
    table: String,
    patterns: Vec<Regex>,
}

impl<'l> Gate<'l> {
    fn of(loaded: &'l Loaded, backend: Backend) -> Self {
        let patterns = &loaded.config.machine(backend).enable_annotations;
        // A pattern that does not compile was refused at loading; if one comes by another way, it allows nothing.
        let patterns = patterns.iter().filter_map(|text| pattern(text).ok()).collect();
        Self { loaded, table: format!("hypervisor.{backend}"), patterns }
    }

    fn admit(&self, name: &str, key: &str) -> Result<(), AnnotationError> {
        // Kata writes hypervisor annotations without their namespace.
        let bare = key.strip_prefix("hypervisor.");
        let allowed = |pattern: &Regex| pattern.is_match(key) || bare.is_some_and(|bare| pattern.is_match(bare));
        if self.patterns.iter().any(allowed) {
            return Ok(());
        }
        Err(AnnotationError::NotAllowed {
            annotation: shown(name),
            pattern: shown(key),
            table: self.table.clone(),
            file: self.file_of(&format!("{}.enable_annotations", self.table)),
        })
    }

    fn admit_path(
        &self,
        name: &str,
        path: &str,
        table: &TableSpec,
        globs: &'static str,
        list: Option<&Value>,
    ) -> Result<(), AnnotationError> {
        let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        // "" takes a path away and names no file.
        if path.is_empty() || list.iter().filter_map(Value::as_str).any(|glob| glob_matches(glob, path)) {
            return Ok(());
        }
        Err(AnnotationError::PathNotAllowed {
            annotation: name.to_owned(),
            path: shown(path),
            globs,
            table: table.name.to_owned(),
            file: self.file_of(&format!("{}.{globs}", table.name)),
        })
    }

    /// The file that sets a key; where none does, the one to set it in.
    fn file_of(&self, key: &str) -> String {
        match self.loaded.origin(key) {
            Origin::File(at) => at.path.display().to_string(),
            _ => match &self.loaded.file {
                Some(file) => file.display().to_string(),
                None => "/etc/stockade/stockade.toml".to_owned(),
            },
        }
    }
}

/// The tables whose options annotations reach when this backend runs the sandbox.
fn tables(backend: Backend) -> impl Iterator<Item = &'static TableSpec> {
    let hypervisor = format!("hypervisor.{backend}");
    TABLES.iter().filter(move |table| !table.name.starts_with("hypervisor.") || table.name == hypervisor)
}

fn find(backend: Backend, key: &str) -> Option<(&'static TableSpec, &'static OptionSpec)> {
    tables(backend).find_map(|table| {
        let option = table.options().find(|option| option.annotation == Some(key))?;
        Some((table, option))
    })
}

fn hint(backend: Backend, key: &str) -> String {
    let other = if backend == Backend::Qemu { Backend::Kvm } else { Backend::Qemu };
    if find(other, key).is_some() {
        return format!(" to the hypervisor {backend}, which runs this sandbox; it belongs to {other}");
    }
    let option = key.split_once('.').and_then(|(namespace, key)| {
        tables(backend).filter(|table| table.name.starts_with(namespace)).find_map(|table| table.option(key))
    });
    match option {
        Some(OptionSpec { annotation: Some(known), .. }) => return format!("; did you mean {PREFIX}{known}?"),
        Some(option) => return format!("; {} can be set in the configuration file only", option.key),
        None => {}
    }
    match nearest(key, tables(backend).flat_map(|table| table.options().filter_map(|option| option.annotation))) {
        Some(known) => format!("; did you mean {PREFIX}{known}?"),
        None => String::new(),
    }
}

/// An annotation's text as a value of the option's type.
fn parse(kind: Kind, text: &str) -> Option<Value> {
    let list = |items: Vec<&str>| {
        let items = items.into_iter().map(str::trim).filter(|item| !item.is_empty());
        Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
    };
    match kind {
        Kind::Flag => match text {
            "true" | "1" => Some(Value::Boolean(true)),
            "false" | "0" => Some(Value::Boolean(false)),
            _ => None,
        },
        Kind::Number { .. } | Kind::PowerOfTwo { .. } => text.parse().ok().map(Value::Integer),
        Kind::Decimal { .. } => text.parse().ok().map(Value::Float),
        Kind::Text | Kind::Choice(_) | Kind::Path(_) | Kind::KernelParams => Some(Value::String(text.to_owned())),
        Kind::List(Items::Features) => Some(list(text.split_whitespace().collect())),
        Kind::List(_) => Some(list(text.split(';').collect())),
    }
}

/// Compiles a pattern of `enable_annotations` so that it must match a whole key: `path` does not allow `jailer_path`.
pub(crate) fn pattern(text: &str) -> Result<Regex, String> {
    let compile = |text: &str| {
        let built = RegexBuilder::new(text).size_limit(PATTERN_SIZE).build();
        built.map_err(|error| {
            let error = error.to_string();
            // The last line of a syntax error is its reason; the others draw the place.
            shown(error.lines().last().unwrap_or("it does not compile"))
        })
    };
    // By itself first: `a)|(b` would compile within the anchors, and leave them.
    compile(text)?;
    compile(&format!(r"\A(?:{text})\z"))
}

/// Whether a clean absolute path matches a glob, in which `*` and `?` do not match a slash.
fn glob_matches(glob: &str, path: &str) -> bool {
    let clean = Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // `components` overlooks these.
    if !clean || path.contains("/./") || path.contains("//") || path.ends_with("/.") {
        return false;
    }
    let mut pattern = String::from(r"\A");
    for c in glob.chars() {
        match c {
            '*' => pattern.push_str("[^/]*"),
            '?' => pattern.push_str("[^/]"),
            c => pattern.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    pattern.push_str(r"\z");
    RegexBuilder::new(&pattern).size_limit(PATTERN_SIZE).build().is_ok_and(|pattern| pattern.is_match(path))
}

#[cfg(test)]
#[path = "annotations_tests.rs"]
mod tests;
