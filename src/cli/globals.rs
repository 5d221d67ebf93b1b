//! The options before any verb, and what every verb needs from them.

use super::report::Reporter;
use crate::state::Store;
use crate::supervise::startup::LogFormat;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use stockade_config::{Config, Loaded, Lookup};

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// One line of words.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Options that every verb has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Globals {
    /// Directory of the state; best on a file system that a reboot empties
    #[arg(long, global = true, value_name = "DIR", env = "STOCKADE_ROOT", default_value = "/run/stockade")]
    pub root: PathBuf,
    /// File that errors are written to as well, and that a new sandbox's supervisor logs to
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// File that a new sandbox's supervisor logs to, in place of --log
    #[arg(long, global = true, value_name = "FILE")]
    pub supervisor_log: Option<PathBuf>,
    /// Form of the lines in --log
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: Format,
    /// Log what a developer wants to know
    #[arg(long, global = true)]
    pub debug: bool,
    /// Configuration file; by default STOCKADE_CONFIG, /etc/stockade/stockade.toml or /usr/share/stockade/stockade.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A bundle's cgroupsPath is systemd's "slice:prefix:name"
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Taken for compatibility; Stockade needs root
    #[arg(long, global = true, value_name = "VALUE", hide = true)]
    pub rootless: Option<String>,
    /// Let the creation fail when this step of its pipeline is done
    #[arg(long, global = true, value_name = "STEP", hide = true)]
    pub inject_failure: Option<String>,
}

impl Globals {
    pub(super) fn log_format(&self) -> LogFormat {
        match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        }
    }
}

/// What a verb works with.
#[derive(Debug)]
pub(super) struct Context {
    pub globals: Globals,
    pub store: Store,
    pub report: Reporter,
    /// This program's own loop. One thread: descriptors are made inheritable for single children, and signals blocked.
    pub runtime: tokio::runtime::Runtime,
}

impl Context {
    pub(super) fn new(mut globals: Globals, report: Reporter) -> anyhow::Result<Self> {
        // The supervisor and the stand-in have other working directories.
        globals.root = absolute(&globals.root)?;
        for log in [&mut globals.log, &mut globals.supervisor_log] {
            *log = log.as_deref().map(absolute).transpose()?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let store = Store::new(&globals.root);
        Ok(Self { globals, store, report, runtime })
    }

    /// The effective configuration, before annotations.
    pub(super) fn config(&self) -> anyhow::Result<Loaded> {
        Ok(Config::load(&Lookup::from_process(self.globals.config.clone()))?)
    }
}

/// `path` from the root on, symlinks as they are.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))
}
