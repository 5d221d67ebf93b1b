//! `stockade list`.

use super::container::current;
use super::globals::Context;
use super::state::StateDocument;
use super::table::{columns, print, print_json};
use crate::state::StateError;
use std::process::ExitCode;

/// List the containers under --root
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Form of the list
    #[arg(short, long, value_enum, default_value_t)]
    format: ListFormat,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ListFormat {
    /// For a person.
    #[default]
    Table,
    /// For a program.
    Json,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let ids = context.store.container_ids()?;
        if self.quiet {
            for id in ids {
                print(id.as_str())?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut containers = Vec::new();
        for id in ids {
            match context.runtime.block_on(current(context, &id)) {
                Ok(record) => containers.push(StateDocument::new(record)),
                // Deleted since the ids were read.
                Err(StateError::NoSuchContainer(_)) => {}
                // One damaged record must not hide the others.
                Err(error) => context.report.warning(&format!("{:#}", anyhow::Error::from(error))),
            }
        }
        match self.format {
            ListFormat::Json => print_json(&containers)?,
            ListFormat::Table => print(&table(&containers))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(containers: &[StateDocument]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned).to_vec();
    let rows = containers.iter().map(|container| {
        vec![
            container.id.clone(),
            container.pid.to_string(),
            container.status.to_string(),
            container.bundle.display().to_string(),
            container.created.clone(),
            container.owner.clone(),
        ]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
