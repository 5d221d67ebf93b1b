//! Finds the files, merges them key by key, and remembers where each value came from.

use crate::document::{self, Setting};
use crate::error::{ConfigError, Conflict, Location};
use crate::options::Config;
use crate::schema::{OptionSpec, TABLES, TableSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use toml::Value;

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;
const ETC: &str = "etc/stockade/stockade.toml";
const SHARE: &str = "usr/share/stockade/stockade.toml";
const DROP_INS: &str = "stockade.d";

/// Where to look. Nothing else of the process or the host decides what is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// `--config`: this file, which must exist.
    pub config: Option<PathBuf>,
    /// The variable `STOCKADE_CONFIG`: this file, which must exist, unless `config` is given. Empty counts as unset.
    pub env: Option<PathBuf>,
    /// Stands before /etc and /usr/share.
    pub root: PathBuf,
}

impl Lookup {
    /// This process' environment and the host's root, with the file that `--config` names.
    pub fn from_process(config: Option<PathBuf>) -> Self {
        Self { config, env: std::env::var_os("STOCKADE_CONFIG").map(PathBuf::from), root: PathBuf::from("/") }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Origin {
    /// No layer set it.
    BuiltIn,
    /// A configuration file or drop-in.
    File(Location),
    /// An annotation of the sandbox.
    Annotation {
        /// Its whole name.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in default"),
            Self::File(at) => write!(f, "from {}:{}", at.path.display(), at.line),
            Self::Annotation { name } => write!(f, "from annotation {name}"),
        }
    }
}

/// Names of options that this version does not act on; docs/configuration.md lists them too.
const WITHOUT_EFFECT: [&str; 16] = [
    "block_device_driver",
    "disable_block_device_use",
    "disable_vhost_net",
    "enable_template",
    "entropy_source",
    "experimental",
    "memory_slots",
    "overhead_memory",
    "overhead_vcpus",
    "reclaim_guest_freed_memory",
    "sandbox_cgroup_only",
    "static_sandbox_resource_mgmt",
    "template_path",
    "virtio_fs_queue_size",
    "vm_cache_endpoint",
    "vm_cache_number",
];

/// Full names of options that have an effect although their namesakes in other tables have none.
const WITH_EFFECT: [&str; 1] = ["hypervisor.kvm.reclaim_guest_freed_memory"];

/// A checked configuration that knows where its values came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The main file; `None`: there is none.
    pub file: Option<PathBuf>,
    /// The drop-ins, in the order they were read.
    pub drop_ins: Vec<PathBuf>,
    /// By the key's full path, of what is not a built-in default.
    origins: BTreeMap<String, Origin>,
}

impl Config {
    /// Reads the configuration: the file of `--config`, or of `STOCKADE_CONFIG`, or /etc/stockade/stockade.toml, or
    /// /usr/share/stockade/stockade.toml, or none; then `stockade.d/*.toml` beside it, in name order. Where neither an
    /// option nor the environment names a file, /etc/stockade/stockade.d is read last in any case, so that a drop-in
    /// there changes a packaged file.
    ///
    /// # Errors
    /// What is wrong first, with its place.
    pub fn load(lookup: &Lookup) -> Result<Loaded, ConfigError> {
        let named = lookup.config.as_ref().or(lookup.env.as_ref()).filter(|path| !path.as_os_str().is_empty());
        let etc = lookup.root.join(ETC);
        let mut drop_in_dirs = Vec::new();
        let main = match named {
            Some(path) => Some((path.clone(), read(path)?)),
            None => first_existing([etc.clone(), lookup.root.join(SHARE)])?,
        };
        drop_in_dirs.extend(main.as_ref().map(|(path, _)| path.with_file_name(DROP_INS)));
        let etc_drop_ins = etc.with_file_name(DROP_INS);
        if named.is_none() && !drop_in_dirs.contains(&etc_drop_ins) {
            drop_in_dirs.push(etc_drop_ins);
        }

        let mut layers = Vec::new();
        let file = main.as_ref().map(|(path, _)| path.clone());
        layers.extend(main);
        let mut drop_ins = Vec::new();
        for dir in drop_in_dirs {
            for path in drop_ins_of(&dir)? {
                layers.push((path.clone(), read(&path)?));
                drop_ins.push(path);
            }
        }

        let mut merged = Merged::defaults();
        for (path, text) in &layers {
            let settings = document::parse(path, text)?;
            merged
                .apply(settings.into_iter().map(|Setting { key, value, at }| (key, value, Origin::File(at))).collect());
        }
        merged.finish(file, drop_ins)
    }
}

impl Loaded {
    /// The built-in defaults alone.
    pub fn built_in() -> Self {
        Self { config: Config::default(), file: None, drop_ins: Vec::new(), origins: BTreeMap::new() }
    }

    /// Where the value of a key came from, such as `hypervisor.qemu.path`.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::BuiltIn)
    }

    /// The options that were set though this version does not act on them, with where they were set. Kata's
    /// configurations have them, so they are accepted and checked; whoever set one should know.
    pub fn without_effect(&self) -> Vec<(String, Origin)> {
        let inert = |key: &&String| {
            let name = key.rsplit('.').next().unwrap_or(key);
            WITHOUT_EFFECT.contains(&name) && !WITH_EFFECT.contains(&key.as_str())
        };
        self.origins.keys().filter(inert).map(|key| (key.clone(), self.origin(key))).collect()
    }

    /// The files that were read, in order.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.file.iter().chain(&self.drop_ins)
    }

    /// Every option with its value, in the order of the schema.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static TableSpec, &'static OptionSpec, Value)> {
        flatten(&self.config).into_iter()
    }

    pub(crate) fn merged(&self) -> Merged {
        let values = self.values().map(|(table, option, value)| (format!("{}.{}", table.name, option.key), value));
        Merged {
            values: values
                .map(|(key, value)| {
                    let origin = self.origin(&key);
                    (key, (value, origin))
                })
                .collect(),
        }
    }
}

/// The value of every option of a configuration.
fn flatten(config: &Config) -> Vec<(&'static TableSpec, &'static OptionSpec, Value)> {
    // Every field is a string, a number, a flag or a list of strings, so that serialising fails only for a path that is
    // no text, and no such path comes in: the files and the annotations are text.
    let root = Value::try_from(config).unwrap_or_else(|_| Value::Table(toml::Table::new()));
    let value = |table: &TableSpec, option: &OptionSpec| {
        table.name.split('.').chain([option.key]).try_fold(&root, |value, name| value.get(name)).cloned()
    };
    TABLES
        .iter()
        .flat_map(|table| table.options().map(move |option| (table, option)))
        .filter_map(|(table, option)| value(table, option).map(|value| (table, option, value)))
        .collect()
}

/// The layers so far.
#[derive(Debug)]
pub(crate) struct Merged {
    values: BTreeMap<String, (Value, Origin)>,
}

impl Merged {
    fn defaults() -> Self {
        Loaded::built_in().merged()
    }

    /// Lays the settings of one layer over what is there.
    pub(crate) fn apply(&mut self, settings: Vec<(String, Value, Origin)>) {
        let set = |key: &str| settings.iter().find(|(name, _, _)| name == key);
        let mut taken_away = Vec::new();
        for table in TABLES {
            // A machine boots from one of the two: naming one takes the other, of an earlier layer, away.
            for (one, other) in [("image", "initrd"), ("initrd", "image")] {
                let other = format!("{}.{other}", table.name);
                if let Some((_, value, origin)) = set(&format!("{}.{one}", table.name))
                    && value.as_str() != Some("")
                    && set(&other).is_none()
                {
                    taken_away.push((other, Value::String(String::new()), origin.clone()));
                }
            }
        }
        for (key, value, origin) in settings.into_iter().chain(taken_away) {
            self.values.insert(key, (value, origin));
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).map(|(value, _)| value)
    }

    /// Checks what depends on several values and makes the typed configuration.
    pub(crate) fn finish(self, file: Option<PathBuf>, drop_ins: Vec<PathBuf>) -> Result<Loaded, ConfigError> {
        self.check()?;
        let mut root = toml::Table::new();
        for table in TABLES {
            let mut inner = &mut root;
            for name in table.name.split('.') {
                let next = inner.entry(name).or_insert_with(|| Value::Table(toml::Table::new()));
                match next {
                    Value::Table(next) => inner = next,
                    _ => unreachable!("tables hold tables and options, and no option has a table's name"),
                }
            }
            for option in table.options() {
                if let Some(value) = self.get(&format!("{}.{}", table.name, option.key)) {
                    inner.insert(option.key.to_owned(), value.clone());
                }
            }
        }
        let config = Config::deserialize(Value::Table(root)).map_err(ConfigError::Mismatch)?;
        let origins = self.values.into_iter().map(|(key, (_, origin))| (key, origin));
        let origins = origins.filter(|(_, origin)| *origin != Origin::BuiltIn).collect();
        Ok(Loaded { config, file, drop_ins, origins })
    }

    fn check(&self) -> Result<(), ConfigError> {
        for table in ["hypervisor.qemu", "hypervisor.kvm"] {
            let text = |key: &str| self.text(&format!("{table}.{key}"));
            let number = |key: &str| self.number(&format!("{table}.{key}"));
            let conflict = |key: &str, other: &str, reason| {
                self.conflict(&format!("{table}.{key}"), &format!("{table}.{other}"), reason)
            };
            match (text("image"), text("initrd")) {
                ("", "") => return conflict("image", "initrd", "the guest boots from one of them"),
                ("", _) | (_, "") => {}
                _ => return conflict("image", "initrd", "the guest boots from one of them; set the other to \"\""),
            }
            let ceiling = number("default_maxvcpus");
            if ceiling != 0 && ceiling < number("default_vcpus") {
                return conflict("default_maxvcpus", "default_vcpus", "the ceiling is below the start");
            }
            let ceiling = number("default_maxmemory");
            if ceiling != 0 && ceiling < number("default_memory") {
                return conflict("default_maxmemory", "default_memory", "the ceiling is below the start");
            }
            match (text("block_device_driver"), text("machine_type")) {
                ("virtio-blk-pci", "microvm") => {
                    return conflict("block_device_driver", "machine_type", "this machine has no PCI");
                }
                ("virtio-blk-mmio", "pc" | "q35") => {
                    return conflict("block_device_driver", "machine_type", "this machine has no virtio-mmio");
                }
                _ => {}
            }
        }
        if self.number("agent.kata.dial_timeout_ms") > self.number("agent.kata.reconnect_timeout_ms") {
            let reason = "one step is longer than the whole";
            return self.conflict("agent.kata.dial_timeout_ms", "agent.kata.reconnect_timeout_ms", reason);
        }
        let without_netns = self.get("runtime.disable_new_netns") == Some(&Value::Boolean(true));
        if without_netns && self.text("runtime.internetworking_model") != "none" {
            let reason = "without a network namespace of its own the guest has no network; set the model to \"none\"";
            return self.conflict("runtime.disable_new_netns", "runtime.internetworking_model", reason);
        }
        Ok(())
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or("")
    }

    fn number(&self, key: &str) -> i64 {
        self.get(key).and_then(Value::as_integer).unwrap_or(0)
    }

    fn conflict(&self, key: &str, other: &str, reason: &'static str) -> Result<(), ConfigError> {
        let shown = |key: &str| {
            let (value, origin) =
                self.values.get(key).cloned().unwrap_or((Value::String(String::new()), Origin::BuiltIn));
            (origin.to_string(), document::shown(&value.to_string()))
        };
        let ((at, value), (other_at, other_value)) = (shown(key), shown(other));
        Err(ConfigError::Conflict(Box::new(Conflict {
            at: at.strip_prefix("from ").unwrap_or(&at).to_owned(),
            key: key.to_owned(),
            value,
            other_at,
            other_key: other.to_owned(),
            other_value,
            reason,
        })))
    }
}

fn first_existing<const N: usize>(paths: [PathBuf; N]) -> Result<Option<(PathBuf, String)>, ConfigError> {
    for path in paths {
        match read(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(ConfigError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_FILE) {
        return Err(ConfigError::TooLarge { path: path.to_owned(), limit: LARGEST_FILE });
    }
    String::from_utf8(bytes).map_err(|_| ConfigError::NotText { path: path.to_owned() })
}

/// The drop-ins of a directory in name order. Hidden files are not read: editors and package managers leave such.
fn drop_ins_of(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
