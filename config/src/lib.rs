//! Stockade's configuration.
//!
//! ```text
//!   built-in defaults  <  stockade.toml  <  stockade.d/*.toml in name order  <  the pod's annotations
//! ```
//!
//! Each layer overrides the one before, key by key, and each value remembers where it came from. [`schema`] lists every
//! option with what it may hold; [`options`] gives the typed values with their defaults; a test holds the two, and the
//! shipped `stockade.toml`, together.
//!
//! [`Config::load`] reads the files, [`apply_annotations`] lays a sandbox's annotations over them, and
//! [`Loaded::effective`] is what `stockade config` prints.

mod annotations;
mod document;
mod effective;
mod error;
mod kernel_params;
mod layers;
mod nearest;
pub mod options;
pub mod schema;

pub use annotations::{AnnotationError, apply_annotations, chosen_hypervisor};
pub use effective::{Effective, Entry};
pub use error::{ConfigError, Conflict, Location};
pub use kernel_params::{
    AGENT_LOG_PORT, DEBUG_CONSOLE_PORT, ImageRoot, KernelParam, KernelParams, KernelParamsError, MAX_COMMAND_LINE,
    guest_kernel_params,
};
pub use layers::{Loaded, Lookup, Origin};
pub use options::{
    Accelerator, AgentLogLevel, AgentOptions, AgentTables, Backend, BlockDeviceDriver, Config, FactoryOptions,
    HypervisorChoice, HypervisorTables, InternetworkingModel, KvmOptions, LogLevel, MachineOptions, MachineType,
    QemuOptions, RootfsType, RuntimeOptions, SharedFs,
};
pub use stockade_hypervisor::{MiB, ShareCache, StopDeadlines};
