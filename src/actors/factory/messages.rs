//! What the Factory actor is asked.

use crate::actors::runtime::Request;

/// A machine for a sandbox, if one exists that fits.
#[derive(Debug)]
pub struct Acquire {
    /// `[factory] enable_template`
    pub template: bool,
    /// `[factory] vm_cache_number`
    pub cache: u32,
}

/// What the factory has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acquired {
    /// Nothing: boot a machine, for this reason.
    ColdBoot {
        /// In words.
        reason: String,
    },
}

impl Request for Acquire {
    type Answer = Acquired;
    const NAME: &'static str = "Acquire";
}

/// What the factory holds.
#[derive(Debug)]
pub struct Status;

/// How many machines are ready, and how acquiring went so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct FactoryStatus {
    /// Machines that wait.
    pub ready: u32,
    /// Sandboxes that booted cold.
    pub cold_boots: u64,
    /// The reason for the last one.
    pub last_reason: Option<String>,
}

impl Request for Status {
    type Answer = FactoryStatus;
    const NAME: &'static str = "FactoryStatus";
}
