//! The contract between the supervisor and the agent in the guest: messages, ttrpc client and server.
//!
//! The contract is Kata's by wire (package `grpc`, services `AgentService` and `Health`), plus two
//! services of this project's own (`stockade.agent.v1.Processes` and `stockade.agent.v1.Network`).
#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    reason = "the included modules are generated; the comments of the .proto files describe them"
)]

include!(concat!(env!("OUT_DIR"), "/contract.rs"));

/// The empty answer of most calls.
pub mod empty {
    pub use protobuf::well_known_types::empty::Empty;
}

#[warn(missing_docs, missing_debug_implementations, clippy::or_fun_call)]
pub mod oci_convert;

/// The line that this project's agent writes to the guest's console when it serves calls. Who waits for an agent may ask it
/// at once then; other agents do not write it.
pub const READY: &str = "stockade-agent: ready";
