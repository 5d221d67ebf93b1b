//! Opening the container's standard streams, early: a stream that is not there must not cost a boot.

use crate::error::OpError;
use crate::pipeline::{Step, UndoStack};
use crate::stdio::{HostStdio, StdioNames, StdioOwner};

/// Opens them. They close when the creation fails.
#[derive(Debug)]
pub struct OpenStdio {
    /// Their names.
    pub names: StdioNames,
    /// Whose they are.
    pub owner: StdioOwner,
}

impl Step for OpenStdio {
    type Output = HostStdio;
    const NAME: &'static str = "stdio";

    async fn run(self, _: &mut UndoStack) -> Result<HostStdio, OpError> {
        HostStdio::open(&self.names, &self.owner).await
    }
}
