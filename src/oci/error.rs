//! What can be wrong with a bundle, each in one line that says where.

use std::io;
use std::path::PathBuf;

/// Why a bundle or its specification is refused. A bundle's fields are named as in config.json.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The bundle's directory cannot be looked at.
    #[error("bundle {path:?} cannot be opened")]
    Bundle {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bundle is a directory.
    #[error("bundle {path:?} is not a directory")]
    BundleNotDirectory {
        /// As given.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{path:?} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody's specification is that large.
    #[error("{path:?} is larger than {} bytes", super::MAX_CONFIG_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not JSON, or not an OCI specification.
    #[error("{path:?}{}: {}{what}", place(*line, *column), field_prefix(field))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1; 0 when the place is not known.
        line: usize,
        /// From 1; 0 when the place is not known.
        column: usize,
        /// The field, as `process.args[0]`; empty when the text is not JSON.
        field: String,
        /// What is wrong.
        what: String,
    },
    /// No or another version of the OCI runtime specification.
    #[error("ociVersion {version:?} is not supported: {} to {}", super::OCI_VERSION_MIN, super::OCI_VERSION_MAX)]
    Version {
        /// As given.
        version: String,
    },
    /// A field without which there is no container.
    #[error("{field} is missing in config.json")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A path that must begin with `/`.
    #[error("{field} {path:?} is not an absolute path")]
    NotAbsolute {
        /// The field.
        field: String,
        /// As given.
        path: PathBuf,
    },
    /// A value with a zero byte, which no system call can take.
    #[error("{field} contains a zero byte")]
    ZeroByte {
        /// The field.
        field: String,
    },
    /// The container's root cannot be looked at.
    #[error("root.path {path:?} cannot be opened")]
    Root {
        /// Joined to the bundle.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A root is a directory.
    #[error("root.path {path:?} is not a directory")]
    RootNotDirectory {
        /// Joined to the bundle.
        path: PathBuf,
    },
    /// A relative root whose real place is elsewhere.
    #[error("root.path {path:?} leaves the bundle: it is {real:?}")]
    RootLeavesBundle {
        /// As given.
        path: PathBuf,
        /// Where it leads.
        real: PathBuf,
    },
    /// A bind mount whose source cannot be looked at.
    #[error("source {path:?} of the mount at {destination:?} cannot be opened")]
    MountSource {
        /// The source.
        path: PathBuf,
        /// Where it should be mounted.
        destination: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bind mount without a source.
    #[error("the bind mount at {destination:?} has no source")]
    NoMountSource {
        /// Where it should be mounted.
        destination: PathBuf,
    },
    /// A device of the host, which the guest does not have.
    #[error(
        "source {path:?} of the mount at {destination:?} is a device of the host, which a virtual machine does not have"
    )]
    MountDevice {
        /// The source.
        path: PathBuf,
        /// Where it should be mounted.
        destination: PathBuf,
    },
    /// A file system that only the host could mount.
    #[error(
        "type {kind:?} of the mount at {destination:?} is not supported: mount it on the host and give it as a bind mount"
    )]
    MountType {
        /// As given.
        kind: String,
        /// Where it should be mounted.
        destination: PathBuf,
    },
    /// An entry that stands twice where once is allowed.
    #[error("{field} lists {value:?} twice")]
    Duplicate {
        /// The list.
        field: &'static str,
        /// The entry.
        value: String,
    },
    /// A number out of its range.
    #[error("{field} is {value}: {allowed}")]
    Range {
        /// The field.
        field: String,
        /// As given.
        value: i128,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A text that means nothing in its place.
    #[error("{field} {value:?} is not allowed: {allowed}")]
    Value {
        /// The field.
        field: String,
        /// As given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Something of the OCI that cannot be had in a virtual machine, or not here.
    #[error("{field} is not supported: {reason}")]
    Unsupported {
        /// The field.
        field: String,
        /// Why.
        reason: &'static str,
    },
    /// A container of a pod that does not say which.
    #[error(
        "annotation {annotation:?} says that this is a container of a pod, but no annotation names the pod's sandbox"
    )]
    NoSandboxId {
        /// The annotation that gave the type.
        annotation: &'static str,
    },
}

fn place(line: usize, column: usize) -> String {
    if line == 0 { String::new() } else { format!(" line {line}, column {column}") }
}

fn field_prefix(field: &str) -> String {
    if field.is_empty() || field == "." { String::new() } else { format!("{field}: ") }
}
