//! What can be wrong with a configuration, each as one line that says where.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file, as it was looked up.
    pub path: PathBuf,
    /// Counted from 1.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// Why a configuration was not taken. `Display` is one line without the source.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or drop-in directory that could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file that is not text.
    #[error("the configuration {} is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A file beyond what any configuration needs.
    #[error("the configuration {} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest that is read.
        limit: u64,
    },
    /// Broken TOML.
    #[error("{at}: {message}")]
    Syntax {
        /// Where the parser stopped.
        at: Location,
        /// What it expected.
        message: String,
    },
    /// A key or table that does not exist.
    #[error("{at}: unknown key {key}{hint}")]
    UnknownKey {
        /// Where the key stands.
        at: Location,
        /// Its full path, such as `hypervisor.qemu.default_memroy`.
        key: String,
        /// What to write in its place, with a separator before it; empty when nothing comes near.
        hint: String,
    },
    /// A value of another type.
    #[error("{at}: {key} must be {expected}, not {found}")]
    WrongType {
        /// Where the value stands.
        at: Location,
        /// The key's full path.
        key: String,
        /// The type in words.
        expected: String,
        /// What stands there, in words.
        found: String,
    },
    /// A value of the right type that is not allowed.
    #[error("{at}: {key} = {value}: allowed is {allowed}")]
    OutOfRange {
        /// Where it came from: a place in a file, or `annotation …`.
        at: String,
        /// The key's full path.
        key: String,
        /// The value as TOML.
        value: String,
        /// What may stand there, in words.
        allowed: String,
    },
    /// Two values that exclude each other.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// A checked value that the typed configuration does not take: a defect of Stockade.
    #[error("the checked configuration does not fit the options that it is for")]
    Mismatch(#[source] toml::de::Error),
}

/// Two values that exclude each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {key} = {value} does not go with {other_key} = {other_value} ({other_at}): {reason}")]
pub struct Conflict {
    /// Where the first value came from.
    pub at: String,
    /// The first key's full path.
    pub key: String,
    /// Its value as TOML.
    pub value: String,
    /// Where the other value came from.
    pub other_at: String,
    /// The other key's full path.
    pub other_key: String,
    /// Its value as TOML.
    pub other_value: String,
    /// Why they exclude each other.
    pub reason: &'static str,
}
