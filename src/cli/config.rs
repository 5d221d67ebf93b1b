//! `stockade config`.

use super::globals::Context;
use super::table::print;
use std::process::ExitCode;
use stockade_config::Loaded;

/// Show the configuration that is in force, and where each value comes from
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The built-in defaults, without any file
    #[arg(long)]
    default: bool,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let loaded = if self.default { Loaded::built_in() } else { context.config()? };
        let effective = loaded.effective();
        let text = if self.json { effective.to_json()? } else { effective.to_toml() };
        print(text.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
