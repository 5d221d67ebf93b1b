//! Step 4: the network namespace, before the machine, whose processes run in it.

use crate::actors::network::{PrepareNetns, ReleaseNetns, SandboxNetns};
use crate::actors::runtime::Ask;
use crate::error::OpError;
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use std::path::PathBuf;

/// Joins the namespace that the spec names, or creates one.
#[derive(Debug)]
pub struct PrepareNamespace {
    /// Prepares it.
    pub prepare: Ask<PrepareNetns>,
    /// Lets go of it.
    pub release: Ask<ReleaseNetns>,
    /// The path in the spec.
    pub path: Option<PathBuf>,
}

impl Step for PrepareNamespace {
    type Output = SandboxNetns;
    const NAME: &'static str = "network-namespace";

    async fn run(self, undo: &mut UndoStack) -> Result<SandboxNetns, OpError> {
        let record = UndoRecord::Live { what: "release the network namespace".into() };
        undo.push_live(record, Release(self.release))?;
        self.prepare.ask(PrepareNetns { path: self.path }).await
    }
}

struct Release(Ask<ReleaseNetns>);

#[async_trait::async_trait]
impl LiveUndo for Release {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.0.ask(ReleaseNetns).await
    }
}
