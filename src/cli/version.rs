//! `stockade version`, and what `--version` prints.

use super::table::print;
use std::process::ExitCode;
use std::sync::LazyLock;

/// This program's version.
pub(super) const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Print the version of this program and of the OCI runtime specification
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn run(self) -> super::Outcome {
        print(&format!("stockade version {}", long()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The version, then that of the specification on a line of its own, as engines read it.
pub(super) fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{SHORT}\nspec: {}", crate::oci::OCI_VERSION));
    &TEXT
}
