//! The network namespaces that sandboxes live in: what [`stockade_network`] knows of them.

pub use stockade_network::{NetnsError, NetworkNamespace, ensure_loopback, run_in, run_in_async};
