//! Taking the container's id: from here on `state`, `kill` and `delete` find it.

use crate::error::OpError;
use crate::pipeline::{Step, UndoStack};
use crate::state::{ContainerRecord, Store, UndoRecord};

/// Writes the container's record, with its sandbox: the container-id -> sandbox-id mapping.
#[derive(Debug)]
pub struct ReserveId {
    /// Where.
    pub store: Store,
    /// What, with the status `creating`.
    pub record: ContainerRecord,
}

impl Step for ReserveId {
    type Output = ContainerRecord;
    const NAME: &'static str = "reserve-id";

    async fn run(self, undo: &mut UndoStack) -> Result<ContainerRecord, OpError> {
        // Reserving is what tells ours from another's record, so here the doing comes first; a supervisor that dies
        // in between leaves a record that names its sandbox, and goes with it.
        self.store.reserve_container(&self.record)?;
        let path = self.store.container_file(&self.record.id);
        if let Err(error) = undo.push(UndoRecord::RemoveFile { path }) {
            self.store.remove_container(&self.record.id)?;
            return Err(error);
        }
        Ok(self.record)
    }
}
