//! The tests that need more than one crate, and what they share: one folder a tier, and the [`harness`].

pub mod harness;
