//! `stockade metrics`.

use super::client::{self, SHORT_CALL, answer};
use super::globals::Context;
use super::table::print;
use crate::api::MetricsRequest;
use crate::ids::SandboxId;
use crate::metrics::Families;
use crate::state::Store;
use crate::state::recovery::{self, Supervision};
use std::process::ExitCode;
use ttrpc::context::with_duration;

/// Print the figures of all sandboxes of this node, those of containerd's namespaces too, in Prometheus' text format
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let mut all = Families::default();
        for store in stores(&context.store) {
            for sandbox in store.sandbox_ids()? {
                if !matches!(recovery::supervision(&store, &sandbox), Ok(Supervision::Alive)) {
                    continue;
                }
                match context.runtime.block_on(of_sandbox(&store, &sandbox)) {
                    Ok(text) => all.merge(Families::parse(&text)),
                    // One that hangs, or has just ended, must not hide the others.
                    Err(error) => context.report.warning(&format!("{:#}", anyhow::Error::from(error))),
                }
            }
        }
        print(all.text().trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The root, and those of containerd's namespaces below it.
fn stores(root: &Store) -> Vec<Store> {
    let namespaces = std::fs::read_dir(root.root().join("containerd")).into_iter().flatten().flatten();
    let mut paths: Vec<_> = namespaces.map(|entry| entry.path()).collect();
    paths.sort();
    std::iter::once(root.clone()).chain(paths.into_iter().map(Store::new)).collect()
}

async fn of_sandbox(store: &Store, sandbox: &SandboxId) -> Result<String, client::CallError> {
    let connection = client::connect(store, sandbox).await?;
    let result = connection.supervisor.metrics(with_duration(SHORT_CALL), &MetricsRequest::default()).await;
    Ok(answer("Metrics", result)?.text)
}
