//! `stockade features`.

use super::table::print_json;
use std::process::ExitCode;

/// Print what this program knows of the OCI runtime specification, as JSON
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn run(self) -> super::Outcome {
        print_json(&crate::oci::features())?;
        Ok(ExitCode::SUCCESS)
    }
}
