//! The network of sandboxes: what [`stockade_network`] knows of it, as this crate's own.

pub use stockade_network::{
    AttachOptions, Attachment, Change, Endpoint, EndpointId, GuestAddress, GuestInterface, GuestNeighbour,
    GuestNetwork, GuestRoute, Limits, Mac, Mark, Model, NetnsError, Network, NetworkError, NetworkNamespace, Plan,
    Scan, Undo, Watch, diff, plan, run_in, run_in_async,
};
