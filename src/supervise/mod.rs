//! The supervisor process: one per sandbox. It starts the actors and serves them over ttrpc until nothing is left.

pub mod launch;
mod log;
mod metrics;
mod serve;
mod service;
pub mod startup;
mod status;
mod v1;

pub use launch::{LaunchError, enter, launch};
pub use serve::run;
