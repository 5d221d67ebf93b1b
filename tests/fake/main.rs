//! The `fake` tier: whole creations, lives and deletions through the real actors and the real pipeline, with a machine
//! and an agent made of code. Needs root, and neither QEMU nor a guest. Nothing here waits but on what must happen.

#![allow(clippy::unwrap_used, reason = "a test that fails shall say where")]

mod cancellation;
mod creation;
mod events;
mod failures;
mod harness;
mod life;
mod network;
mod pod;
