//! How the front door reaches the Sandbox actor: typed asks, no address.

use super::SandboxActor;
use super::messages::{
    Containers, CreateContainer, CreateSandbox, DeleteContainer, FindContainer, GuestMetrics, Inspect, PauseSandbox,
    ResizeSandbox, ResumeSandbox, SandboxStats, StopSandbox,
};
use crate::actors::runtime::Ask;

/// The requests that the front door may make of the sandbox.
#[derive(Debug, Clone)]
pub struct SandboxHandle {
    /// [`CreateSandbox`]
    pub create_sandbox: Ask<CreateSandbox>,
    /// [`CreateContainer`]
    pub create_container: Ask<CreateContainer>,
    /// [`FindContainer`]
    pub find: Ask<FindContainer>,
    /// [`DeleteContainer`]
    pub delete: Ask<DeleteContainer>,
    /// [`StopSandbox`]
    pub stop: Ask<StopSandbox>,
    /// [`PauseSandbox`]
    pub pause: Ask<PauseSandbox>,
    /// [`ResumeSandbox`]
    pub resume: Ask<ResumeSandbox>,
    /// [`ResizeSandbox`]
    pub resize: Ask<ResizeSandbox>,
    /// [`SandboxStats`]
    pub stats: Ask<SandboxStats>,
    /// [`Containers`]
    pub containers: Ask<Containers>,
    /// [`GuestMetrics`]
    pub guest_metrics: Ask<GuestMetrics>,
    /// [`Inspect`]
    pub inspect: Ask<Inspect>,
}

impl SandboxHandle {
    pub(super) fn new(address: &actix::Addr<SandboxActor>) -> Self {
        Self {
            create_sandbox: Ask::actor(address.clone()),
            create_container: Ask::actor(address.clone()),
            find: Ask::actor(address.clone()),
            delete: Ask::actor(address.clone()),
            stop: Ask::actor(address.clone()),
            pause: Ask::actor(address.clone()),
            resume: Ask::actor(address.clone()),
            resize: Ask::actor(address.clone()),
            stats: Ask::actor(address.clone()),
            containers: Ask::actor(address.clone()),
            guest_metrics: Ask::actor(address.clone()),
            inspect: Ask::actor(address.clone()),
        }
    }
}
