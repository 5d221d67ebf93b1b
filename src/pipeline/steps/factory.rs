//! Step 3: ask the factory for a machine that exists already. It never fails a creation.

use crate::actors::factory::{Acquire, Acquired};
use crate::actors::runtime::Ask;
use crate::error::OpError;
use crate::pipeline::{Step, UndoStack};

/// Asks the factory.
#[derive(Debug)]
pub struct AskFactory {
    /// The factory.
    pub factory: Ask<Acquire>,
    /// `[factory] enable_template`
    pub template: bool,
    /// `[factory] vm_cache_number`
    pub cache: u32,
}

impl Step for AskFactory {
    type Output = Acquired;
    const NAME: &'static str = "factory";

    async fn run(self, _: &mut UndoStack) -> Result<Acquired, OpError> {
        let request = Acquire { template: self.template, cache: self.cache };
        let acquired = self.factory.ask(request).await.unwrap_or_else(|error| {
            tracing::warn!(error = error.one_line(), "the factory failed; booting a machine");
            Acquired::ColdBoot { reason: error.one_line() }
        });
        let Acquired::ColdBoot { reason } = &acquired;
        tracing::debug!(reason, "cold boot");
        Ok(acquired)
    }
}
