//! `stockade man`.

use anyhow::Context as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write the manual pages, one for each verb
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory that they are written to
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Arguments {
    pub(super) fn run(self) -> super::Outcome {
        let failed = || format!("cannot write manual pages to {}", self.directory.display());
        std::fs::create_dir_all(&self.directory).with_context(failed)?;
        clap_mangen::generate_to(super::command(), &self.directory).with_context(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}
