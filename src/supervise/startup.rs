//! What a front door tells a new supervisor, and what it hears back.

use crate::events::Target;
use crate::ids::SandboxId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One line of words.
    #[default]
    Text,
    /// One JSON object a line, with runc's keys `level`, `msg` and `time`.
    Json,
}

/// Everything a supervisor needs to begin; sent as one JSON document on its start-up socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Startup {
    /// The state root.
    pub root: PathBuf,
    /// The sandbox to serve.
    pub sandbox: SandboxId,
    /// The effective configuration with the origin of its values, before the sandbox's annotations.
    pub config: stockade_config::Loaded,
    /// The sandbox will need a network namespace that does not exist yet.
    pub new_netns: bool,
    /// Where log lines go; `None`: `supervisor.log` in the sandbox's directory.
    pub log: Option<PathBuf>,
    /// How they are written.
    pub log_format: LogFormat,
    /// Whether debug lines are written.
    pub debug: bool,
    /// For tests: the pipeline step that fails when it is done (`--inject-failure`).
    pub inject_failure: Option<String>,
    /// For containerd's shim: who asks and listens. `None`: the command line.
    pub containerd: Option<Containerd>,
}

/// The containerd that a supervisor works for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Containerd {
    /// The namespace of its that the sandbox is in.
    pub namespace: String,
    /// A short name for the supervisor's socket, to be made and removed by the supervisor: a symlink.
    pub link: PathBuf,
    /// Where events go; `None`: nowhere, as CRI-O asks for none.
    pub events: Option<Target>,
}

/// The supervisor's one answer on its start-up socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartupAnswer {
    /// The ttrpc socket is listening.
    Ready,
    /// It could not start, and nothing is left of it.
    Failed {
        /// Why, in one line.
        message: String,
    },
}
