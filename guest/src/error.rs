//! What can go wrong while a guest is made.

use std::io;
use std::path::{Path, PathBuf};

/// A guest could not be made. `Display` says what was tried; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The operation, as a verb: "read", "write", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A Debian tool is not installed.
    #[error("cannot start '{program}': install the Debian package '{package}'")]
    ToolMissing {
        /// The program's name.
        program: String,
        /// The package that brings it.
        package: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A Debian tool ended with a failure.
    #[error("'{command}' failed ({status}): {message}")]
    ToolFailed {
        /// The command line.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The end of what it wrote to stderr.
        message: String,
    },
    /// apt knows no such kernel.
    #[error("apt lists no kernel for the package '{package}': run 'apt-get update', or name another package")]
    NoKernelPackage {
        /// The package that was asked for.
        package: String,
    },
    /// What a package manager printed lacks a field.
    #[error("apt's record of the package '{package}' has no field '{field}'")]
    PackageField {
        /// The package.
        package: String,
        /// The missing field.
        field: &'static str,
    },
    /// A downloaded package is not the one that apt's signed lists describe.
    #[error("{} has SHA-256 {actual}, but apt lists {expected}", path.display())]
    PackageHash {
        /// The downloaded file.
        path: PathBuf,
        /// The sum in apt's lists.
        expected: String,
        /// The file's own sum.
        actual: String,
    },
    /// An unpacked kernel package lacks something.
    #[error("the kernel package unpacked in {} has no {what}", path.display())]
    PackageContent {
        /// Where it was unpacked.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A module that the guest cannot do without is neither there nor built in.
    #[error("kernel {release} has no module '{module}', nor is it built in")]
    ModuleMissing {
        /// The kernel release.
        release: String,
        /// The module.
        module: String,
    },
    /// A module's file is not an ELF object with a `.modinfo` section.
    #[error("{} is not a kernel module", path.display())]
    ModuleFormat {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: object::read::Error,
    },
    /// A kernel image does not have the x86 boot protocol's shape.
    #[error("{} is not a bzImage: {reason}", path.display())]
    KernelFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Compressed data is damaged or of an unknown kind.
    #[error("cannot decompress {}: {reason}", path.display())]
    Decompress {
        /// The file that holds the data.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent is not a static x86-64 program.
    #[error("the agent {} is not a static x86-64 ELF program: {reason}", path.display())]
    AgentFormat {
        /// The agent's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is too large for the archive's format.
    #[error("'{name}' is too large for an initrd")]
    ArchiveEntry {
        /// The entry's name.
        name: String,
    },
    /// The guest's record of itself cannot be read.
    #[error("{} is not a manifest of a guest", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl GuestError {
    /// A mapper for `map_err` that names the operation and its file.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
