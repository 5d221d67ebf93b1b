//! `stockade create`.

use super::creation::{CreationOptions, create};
use super::globals::Context;
use crate::stand_in::Signals;
use std::process::ExitCode;

/// Create a container: its virtual machine runs, its process does not yet
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    options: CreationOptions,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let signals = Signals::block()?;
        create(context, &self.options, true, &signals)?;
        Ok(ExitCode::SUCCESS)
    }
}
