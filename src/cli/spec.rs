//! `stockade spec`.

use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a config.json to start from
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory that it is written to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

impl Arguments {
    pub(super) fn run(self) -> super::Outcome {
        let path = self.bundle.join("config.json");
        let text = serde_json::to_string_pretty(&crate::oci::default_spec())?;
        let mut file = match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("{} exists already; remove it first", path.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        };
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
