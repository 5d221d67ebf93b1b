//! What the Network actor is asked.

use crate::actors::runtime::Request;
use crate::network::{GuestNetwork, Model, Plan};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The namespace that the sandbox's processes and hooks run in.
#[derive(Debug, Clone)]
pub struct SandboxNetns {
    /// The open namespace; `None` when the sandbox has none of its own (`disable_new_netns`).
    pub descriptor: Option<Arc<OwnedFd>>,
    /// Whether we made it.
    pub ours: bool,
}

/// Join the namespace that the spec names, or create one.
#[derive(Debug)]
pub struct PrepareNetns {
    /// The path in the spec's network namespace entry; `None` or empty: create one.
    pub path: Option<PathBuf>,
}

impl Request for PrepareNetns {
    type Answer = SandboxNetns;
    const NAME: &'static str = "PrepareNetns";
}

/// Let go of it. Idempotent.
#[derive(Debug)]
pub struct ReleaseNetns;

impl Request for ReleaseNetns {
    type Answer = ();
    const NAME: &'static str = "ReleaseNetns";
}

/// Look at what the namespace holds now, and plan how to connect it. Touches nothing.
#[derive(Debug)]
pub struct ScanNetwork {
    /// By which means.
    pub model: Model,
}

/// What is to be connected, and what the guest is to be told.
#[derive(Debug, Default)]
pub struct PlannedNetwork {
    /// One an endpoint.
    pub plans: Vec<Plan>,
    /// The guest's interfaces, routes and neighbours.
    pub guest: GuestNetwork,
}

impl Request for ScanNetwork {
    type Answer = PlannedNetwork;
    const NAME: &'static str = "ScanNetwork";
}

/// Carry plans out, all of them or none. Their undo has been written down.
#[derive(Debug)]
pub struct AttachNetwork {
    /// What [`ScanNetwork`] answered.
    pub plans: Vec<Plan>,
}

/// One connected endpoint.
#[derive(Debug)]
pub struct AttachedEndpoint {
    /// Of the guest's interface.
    pub mac: [u8; 6],
    /// In bytes.
    pub mtu: u16,
    /// One a queue.
    pub queues: Vec<Arc<OwnedFd>>,
}

impl Request for AttachNetwork {
    type Answer = Vec<AttachedEndpoint>;
    const NAME: &'static str = "AttachNetwork";
}

/// Undo what was attached, or what these plans may have attached. Idempotent.
#[derive(Debug)]
pub struct DetachNetwork {
    /// What [`ScanNetwork`] answered.
    pub plans: Vec<Plan>,
}

impl Request for DetachNetwork {
    type Answer = ();
    const NAME: &'static str = "DetachNetwork";
}
