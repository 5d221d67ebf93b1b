//! The client of the guest's agent: one function a call, a deadline on each. The guest is not trusted: its answers are
//! bounded by ttrpc (4 MiB), and its words are shown, never obeyed.

mod calls;
mod connect;
mod network;
mod streams;

pub use calls::{AgentClient, GuestSandbox};
pub use connect::{AGENT_PORT, LOG_PORT, dial};
pub use streams::AgentStdio;
