//! `stockade completions`.

use std::io;
use std::process::ExitCode;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Arguments {
    pub(super) fn run(self) -> super::Outcome {
        clap_complete::generate(self.shell, &mut super::command(), "stockade", &mut io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
