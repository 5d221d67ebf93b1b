//! Stockade runs every OCI container, or pod, inside its own virtual machine. This library is the host side: the
//! supervisor with its actors, and the front doors to it. The hypervisors are in `backends/`, the guest's side in `agent/`.

pub mod actors;
pub mod agent;
pub mod api;
pub mod cgroup;
pub mod cli;
pub mod error;
pub mod events;
pub mod hooks;
pub mod hypervisor;
pub mod ids;
pub mod metrics;
pub mod network;
pub mod oci;
pub mod pipeline;
pub mod shim;
pub mod stand_in;
pub mod state;
pub mod stdio;
pub mod storage;
pub mod supervise;
