//! Every option: its table, its key, what it may hold, and the annotation that may override it.
//!
//! A new option is a line here, a field with its default in [`crate::options`], and an entry in `stockade.toml`; the
//! tests fail while one of the three is missing.

use crate::kernel_params::KernelParams;
use toml::Value;

/// What an option may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number within bounds, both included.
    Number {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// A power of two within bounds, both included.
    PowerOfTwo {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// A number with a fraction, within bounds, both included.
    Decimal {
        /// The least.
        min: f64,
        /// The greatest.
        max: f64,
    },
    /// One line of text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path.
    Path(PathRule),
    /// Kernel parameters, separated by spaces.
    KernelParams,
    /// A list of texts.
    List(Items),
}

/// What a path must look like, and which list of globs it must match when an annotation sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRule {
    /// `""` says that there is none.
    pub may_be_empty: bool,
    /// A name without a slash is searched in `PATH`.
    pub may_be_name: bool,
    /// The option of the same table with the globs; `None`: the path is not one of the host.
    pub globs: Option<&'static str>,
}

/// What a list holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Items {
    /// Regular expressions.
    Patterns,
    /// Path globs.
    Globs,
    /// Kernel modules, each with its parameters. An annotation separates them by `;`.
    KernelModules,
    /// Names of experimental features. An annotation separates them by spaces.
    Features,
}

/// The experimental features of this version.
pub const FEATURES: &[&str] = &[];

/// One option.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptionSpec {
    /// Its key within its table.
    pub key: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// The unit of a number; empty where it counts something.
    pub unit: &'static str,
    /// The annotation behind `io.katacontainers.config.` that may override it.
    pub annotation: Option<&'static str>,
}

impl OptionSpec {
    const fn new(key: &'static str, kind: Kind) -> Self {
        Self { key, kind, unit: "", annotation: None }
    }
    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
    const fn by(mut self, annotation: &'static str) -> Self {
        self.annotation = Some(annotation);
        self
    }
}

/// One table.
#[derive(Debug, Clone, Copy)]
pub struct TableSpec {
    /// Its dotted name.
    pub name: &'static str,
    parts: &'static [&'static [OptionSpec]],
}

impl TableSpec {
    /// Its options, in the order that the shipped file lists them.
    pub fn options(&self) -> impl Iterator<Item = &'static OptionSpec> + use<> {
        self.parts.iter().copied().flatten()
    }

    /// The option with this key.
    pub fn option(&self, key: &str) -> Option<&'static OptionSpec> {
        self.options().find(|option| option.key == key)
    }
}

/// Every table, in the order of the shipped file.
pub static TABLES: &[TableSpec] = &[
    TableSpec { name: "runtime", parts: &[RUNTIME] },
    TableSpec { name: "hypervisor.qemu", parts: &[QEMU, MACHINE] },
    TableSpec { name: "hypervisor.kvm", parts: &[KVM, MACHINE] },
    TableSpec { name: "agent.kata", parts: &[AGENT] },
    TableSpec { name: "factory", parts: &[FACTORY] },
];

/// The table with this dotted name.
pub fn table(name: &str) -> Option<&'static TableSpec> {
    TABLES.iter().find(|table| table.name == name)
}

const fn seconds(min: i64, max: i64) -> Kind {
    Kind::Number { min, max }
}

const fn path(may_be_empty: bool, globs: &'static str) -> Kind {
    Kind::Path(PathRule { may_be_empty, may_be_name: false, globs: Some(globs) })
}

/// The most memory that a machine may have: 4 TiB.
const MOST_MEMORY: i64 = 4 << 20;
/// The fastest rate limit of a network interface: a terabit a second.
const MOST_RATE: i64 = 1_000_000_000_000;
/// A day: longer than any of these waits makes sense, and far from overflowing anything.
const DAY: i64 = 86_400;

const RUNTIME: &[OptionSpec] = &[
    OptionSpec::new("hypervisor", Kind::Choice(&["auto", "kvm", "qemu"])).by("runtime.hypervisor_name"),
    OptionSpec::new("internetworking_model", Kind::Choice(&["tcfilter", "macvtap", "none"]))
        .by("runtime.internetworking_model"),
    OptionSpec::new("disable_new_netns", Kind::Flag).by("runtime.disable_new_netns"),
    OptionSpec::new("disable_guest_seccomp", Kind::Flag).by("runtime.disable_guest_seccomp"),
    OptionSpec::new("sandbox_cgroup_only", Kind::Flag).by("runtime.sandbox_cgroup_only"),
    OptionSpec::new("static_sandbox_resource_mgmt", Kind::Flag),
    OptionSpec::new("create_timeout", seconds(1, DAY)).unit("seconds"),
    OptionSpec::new("default_hook_timeout", seconds(0, DAY)).unit("seconds"),
    OptionSpec::new("enable_debug", Kind::Flag),
    OptionSpec::new("log_level", Kind::Choice(&["trace", "debug", "info", "warn", "error"])),
    OptionSpec::new("experimental", Kind::List(Items::Features)).by("runtime.experimental"),
];

const QEMU: &[OptionSpec] = &[
    OptionSpec::new(
        "path",
        Kind::Path(PathRule { may_be_empty: false, may_be_name: true, globs: Some("valid_hypervisor_paths") }),
    )
    .by("hypervisor.path"),
    OptionSpec::new("valid_hypervisor_paths", Kind::List(Items::Globs)),
    OptionSpec::new("machine_type", Kind::Choice(&["q35", "pc", "microvm"])).by("hypervisor.machine_type"),
    OptionSpec::new("machine_accelerators", Kind::Text).by("hypervisor.machine_accelerators"),
    OptionSpec::new("accelerator", Kind::Choice(&["auto", "kvm", "tcg"])),
    OptionSpec::new("cpu_features", Kind::Text).by("hypervisor.cpu_features"),
    OptionSpec::new("seccomp_sandbox", Kind::Text),
    OptionSpec::new("block_device_driver", Kind::Choice(&["auto", "virtio-blk-pci", "virtio-blk-mmio"]))
        .by("hypervisor.block_device_driver"),
];

const KVM: &[OptionSpec] = &[
    OptionSpec::new("disable_seccomp", Kind::Flag),
    OptionSpec::new("block_device_driver", Kind::Choice(&["auto", "virtio-blk-mmio"]))
        .by("hypervisor.block_device_driver"),
];

const MACHINE: &[OptionSpec] = &[
    OptionSpec::new("kernel", path(false, "valid_guest_paths")).by("hypervisor.kernel"),
    OptionSpec::new("initrd", path(true, "valid_guest_paths")).by("hypervisor.initrd"),
    OptionSpec::new("image", path(true, "valid_guest_paths")).by("hypervisor.image"),
    OptionSpec::new("image_initrd", path(true, "valid_guest_paths")),
    OptionSpec::new("rootfs_type", Kind::Choice(&["ext4", "xfs", "erofs"])).by("hypervisor.rootfs_type"),
    OptionSpec::new("valid_guest_paths", Kind::List(Items::Globs)),
    OptionSpec::new("kernel_params", Kind::KernelParams).by("hypervisor.kernel_params"),
    OptionSpec::new("default_vcpus", Kind::Number { min: -1, max: 255 }).by("hypervisor.default_vcpus"),
    OptionSpec::new("default_maxvcpus", Kind::Number { min: 0, max: 255 }).by("hypervisor.default_max_vcpus"),
    OptionSpec::new("overhead_vcpus", Kind::Decimal { min: 0.0, max: 255.0 }),
    OptionSpec::new("default_memory", Kind::Number { min: 64, max: MOST_MEMORY })
        .unit("MiB")
        .by("hypervisor.default_memory"),
    OptionSpec::new("default_maxmemory", Kind::Number { min: 0, max: MOST_MEMORY })
        .unit("MiB")
        .by("hypervisor.default_max_memory"),
    OptionSpec::new("overhead_memory", Kind::Number { min: 0, max: MOST_MEMORY }).unit("MiB"),
    OptionSpec::new("memory_slots", Kind::Number { min: 1, max: 255 }).by("hypervisor.memory_slots"),
    OptionSpec::new("reclaim_guest_freed_memory", Kind::Flag).by("hypervisor.reclaim_guest_freed_memory"),
    OptionSpec::new("shared_fs", Kind::Choice(&["virtio-fs"])).by("hypervisor.shared_fs"),
    OptionSpec::new("virtio_fs_cache", Kind::Choice(&["never", "metadata", "auto", "always"]))
        .by("hypervisor.virtio_fs_cache"),
    OptionSpec::new("virtio_fs_queue_size", Kind::PowerOfTwo { min: 16, max: 1024 }),
    OptionSpec::new("disable_block_device_use", Kind::Flag).by("hypervisor.disable_block_device_use"),
    OptionSpec::new("disable_vhost_net", Kind::Flag).by("hypervisor.disable_vhost_net"),
    OptionSpec::new("network_queues", Kind::Number { min: 1, max: 256 }),
    OptionSpec::new("rx_rate_limiter_max_rate", Kind::Number { min: 0, max: MOST_RATE })
        .unit("bits a second")
        .by("hypervisor.rx_rate_limiter_max_rate"),
    OptionSpec::new("tx_rate_limiter_max_rate", Kind::Number { min: 0, max: MOST_RATE })
        .unit("bits a second")
        .by("hypervisor.tx_rate_limiter_max_rate"),
    OptionSpec::new("entropy_source", path(false, "valid_entropy_sources")).by("hypervisor.entropy_source"),
    OptionSpec::new("valid_entropy_sources", Kind::List(Items::Globs)),
    OptionSpec::new("guest_hook_path", Kind::Path(PathRule { may_be_empty: true, may_be_name: false, globs: None }))
        .by("hypervisor.guest_hook_path"),
    OptionSpec::new("boot_timeout", seconds(1, DAY)).unit("seconds"),
    OptionSpec::new("stop_timeout", seconds(0, DAY)).unit("seconds"),
    OptionSpec::new("quit_timeout", seconds(0, DAY)).unit("seconds"),
    OptionSpec::new("term_timeout", seconds(0, DAY)).unit("seconds"),
    OptionSpec::new("guest_tracing", Kind::Flag),
    OptionSpec::new("enable_debug", Kind::Flag),
    OptionSpec::new("enable_annotations", Kind::List(Items::Patterns)),
];

const AGENT: &[OptionSpec] = &[
    OptionSpec::new("enable_debug", Kind::Flag),
    OptionSpec::new("log_level", Kind::Choice(&["trace", "debug", "info", "warn", "error", "critical"])),
    OptionSpec::new("kernel_modules", Kind::List(Items::KernelModules)).by("agent.kernel_modules"),
    OptionSpec::new("debug_console_enabled", Kind::Flag),
    OptionSpec::new("dial_timeout_ms", Kind::Number { min: 1, max: 60_000 }).unit("milliseconds"),
    OptionSpec::new("reconnect_timeout_ms", Kind::Number { min: 100, max: DAY * 1000 }).unit("milliseconds"),
    OptionSpec::new("create_container_timeout", seconds(1, DAY)).unit("seconds").by("runtime.create_container_timeout"),
    OptionSpec::new("request_timeout", seconds(1, DAY)).unit("seconds"),
    OptionSpec::new("container_pipe_size", Kind::Number { min: 0, max: 1 << 20 })
        .unit("bytes")
        .by("agent.container_pipe_size"),
];

const FACTORY: &[OptionSpec] = &[
    OptionSpec::new("enable_template", Kind::Flag),
    OptionSpec::new("template_path", Kind::Path(PathRule { may_be_empty: false, may_be_name: false, globs: None })),
    OptionSpec::new("vm_cache_number", Kind::Number { min: 0, max: 1024 }),
    OptionSpec::new("vm_cache_endpoint", Kind::Path(PathRule { may_be_empty: false, may_be_name: false, globs: None })),
];

/// Why a value may not stand where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    Type { expected: String, found: String },
    Value { allowed: String },
}

impl Kind {
    /// The type in words, with an article.
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            Self::Flag => "true or false",
            Self::Number { .. } | Self::PowerOfTwo { .. } => "a whole number",
            Self::Decimal { .. } => "a number",
            Self::Text | Self::Choice(_) | Self::Path(_) | Self::KernelParams => "a string",
            Self::List(_) => "a list of strings",
        }
    }

    /// Checks a value by itself; what depends on other values comes after all layers are merged.
    pub(crate) fn check(self, value: &Value) -> Result<(), Problem> {
        let wrong_type = || Problem::Type { expected: self.type_name().to_owned(), found: found(value) };
        match self {
            Self::Flag => value.as_bool().map(drop).ok_or_else(wrong_type),
            Self::Number { min, max } => {
                let number = value.as_integer().ok_or_else(wrong_type)?;
                allow((min..=max).contains(&number), || format!("{min} to {max}"))
            }
            Self::PowerOfTwo { min, max } => {
                let number = value.as_integer().ok_or_else(wrong_type)?;
                let power = u64::try_from(number).is_ok_and(u64::is_power_of_two);
                allow(power && (min..=max).contains(&number), || format!("a power of two from {min} to {max}"))
            }
            Self::Decimal { min, max } => {
                let number = decimal(value).ok_or_else(wrong_type)?;
                allow((min..=max).contains(&number), || format!("{min} to {max}"))
            }
            Self::Text => {
                let text = value.as_str().ok_or_else(wrong_type)?;
                allow(is_line(text), || "one line without control characters".to_owned())
            }
            Self::Choice(words) => {
                let word = value.as_str().ok_or_else(wrong_type)?;
                allow(words.contains(&word), || words.join(", "))
            }
            Self::Path(rule) => {
                let text = value.as_str().ok_or_else(wrong_type)?;
                allow(rule.admits(text), || rule.in_words().to_owned())
            }
            Self::KernelParams => {
                let text = value.as_str().ok_or_else(wrong_type)?;
                match text.parse::<KernelParams>() {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Problem::Value { allowed: format!("a kernel command line ({error})") }),
                }
            }
            Self::List(items) => {
                for item in value.as_array().ok_or_else(wrong_type)? {
                    let text = item.as_str().ok_or_else(|| Problem::Type {
                        expected: self.type_name().to_owned(),
                        found: format!("a list with {}", found(item)),
                    })?;
                    items.check(text)?;
                }
                Ok(())
            }
        }
    }
}

impl PathRule {
    fn admits(self, text: &str) -> bool {
        if text.is_empty() {
            return self.may_be_empty;
        }
        is_line(text) && (text.starts_with('/') || (self.may_be_name && !text.contains('/')))
    }

    fn in_words(self) -> &'static str {
        match (self.may_be_empty, self.may_be_name) {
            (true, _) => "an absolute path, or \"\" for none",
            (false, true) => "an absolute path, or a name that is searched in PATH",
            (false, false) => "an absolute path",
        }
    }
}

impl Items {
    fn check(self, text: &str) -> Result<(), Problem> {
        match self {
            Self::Patterns => match crate::annotations::pattern(text) {
                Ok(_) => Ok(()),
                Err(error) => Err(Problem::Value { allowed: format!("regular expressions; {error}") }),
            },
            Self::Globs => allow(text.starts_with('/') && is_line(text), || "globs of absolute paths".to_owned()),
            Self::KernelModules => allow(is_line(text) && !text.trim().is_empty(), || {
                "\"name parameter=value ...\" for each module".to_owned()
            }),
            Self::Features => allow(FEATURES.contains(&text), || match FEATURES {
                [] => "an empty list: this version has no experimental feature".to_owned(),
                known => known.join(", "),
            }),
        }
    }
}

fn allow(allowed: bool, words: impl FnOnce() -> String) -> Result<(), Problem> {
    if allowed { Ok(()) } else { Err(Problem::Value { allowed: words() }) }
}

fn is_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn decimal(value: &Value) -> Option<f64> {
    // 255 is the largest of these numbers, so that a cast of what is larger loses nothing that matters.
    value.as_float().or_else(|| value.as_integer().map(|number| number as f64))
}

/// A value's type in words, with an article.
pub(crate) fn found(value: &Value) -> String {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_stands_twice_in_a_table() {
        for table in TABLES {
            let mut keys: Vec<_> = table.options().map(|option| option.key).collect();
            let all = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), all, "{}", table.name);
        }
    }

    #[test]
    fn the_globs_that_a_path_names_are_an_option_of_its_table() {
        for table in TABLES {
            for option in table.options() {
                if let Kind::Path(PathRule { globs: Some(globs), .. }) = option.kind {
                    assert_eq!(table.option(globs).map(|o| o.kind), Some(Kind::List(Items::Globs)), "{globs}");
                }
            }
        }
    }

    #[test]
    fn what_admits_or_names_host_paths_has_no_annotation() {
        for option in TABLES.iter().flat_map(TableSpec::options) {
            if matches!(option.kind, Kind::List(Items::Globs | Items::Patterns)) {
                assert_eq!(option.annotation, None, "{}", option.key);
            }
        }
    }

    #[test]
    fn a_queue_size_must_be_a_power_of_two() {
        let kind = Kind::PowerOfTwo { min: 16, max: 1024 };
        assert_eq!(kind.check(&Value::Integer(512)), Ok(()));
        for bad in [0, -16, 24, 2048] {
            assert!(matches!(kind.check(&Value::Integer(bad)), Err(Problem::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn a_path_is_absolute_or_a_name_where_a_name_is_allowed() {
        let rule = PathRule { may_be_empty: false, may_be_name: true, globs: None };
        assert!(rule.admits("/usr/bin/x") && rule.admits("x") && !rule.admits("./x") && !rule.admits(""));
        assert!(!rule.admits("/usr/\nbin"));
    }
}
