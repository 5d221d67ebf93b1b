//! The network of sandboxes: what [`stockade_network`] knows of it, as this crate's own.

pub use stockade_network::{
    AttachOptions, Attachment, GuestInterface, GuestNeighbour, GuestNetwork, GuestRoute, Limits, Mark, Model,
    NetnsError, Network, NetworkError, NetworkNamespace, Plan, Undo, endpoints, ensure_loopback, plan, run_in,
    run_in_async,
};
