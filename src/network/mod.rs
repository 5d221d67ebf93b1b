//! The network namespaces that sandboxes live in.
//!
//! A thread that changed its namespace is of no more use to anyone, so each change happens on a thread that ends with
//! it: never on the runtime's, never on a pool's.

mod netns;
mod sys;

pub use netns::{NetnsError, NetworkNamespace, ensure_loopback, run_in, run_in_async};
