//! Steps 10 and 11: exactly one container, and the durable record; only then the answer.

use crate::error::{ErrorKind, OpError};
use crate::oci::Status;
use crate::pipeline::{Step, UndoStack};
use crate::state::{ContainerRecord, SandboxRecord, Store};

/// A new sandbox has exactly one container; anything else is a bug of ours.
#[derive(Debug)]
pub struct OneContainer {
    /// The containers that were made for it.
    pub made: usize,
}

impl Step for OneContainer {
    type Output = ();
    const NAME: &'static str = "one-container";

    async fn run(self, _: &mut UndoStack) -> Result<(), OpError> {
        if self.made == 1 {
            return Ok(());
        }
        let what = format!("BUG: a new sandbox has {} containers, not one; please report this", self.made);
        Err(OpError::new(ErrorKind::Internal, what))
    }
}

/// Writes the records as created.
#[derive(Debug)]
pub struct Commit {
    /// Where.
    pub store: Store,
    /// The container's record, as reserved.
    pub container: ContainerRecord,
    /// The sandbox's, if it is new.
    pub sandbox: Option<SandboxRecord>,
}

impl Step for Commit {
    type Output = ContainerRecord;
    const NAME: &'static str = "commit";

    async fn run(mut self, _: &mut UndoStack) -> Result<ContainerRecord, OpError> {
        if let Some(sandbox) = &self.sandbox {
            self.store.write_sandbox(sandbox)?;
        }
        self.container.status = Status::Created;
        self.store.write_container(&self.container)?;
        Ok(self.container)
    }
}
