//! How others reach a Container actor: typed asks, no address.

use super::messages::{
    CloseStdin, Delete, Describe, Exec, Pause, Processes, Resize, Resume, Signal, Start, StartExec, Stats, Update, Wait,
};
use crate::actors::runtime::Ask;

/// The requests that the front door may make of one container.
#[derive(Debug, Clone)]
pub struct ContainerHandle {
    /// [`Start`]
    pub start: Ask<Start>,
    /// [`Exec`]
    pub exec: Ask<Exec>,
    /// [`StartExec`]
    pub start_exec: Ask<StartExec>,
    /// [`Signal`]
    pub signal: Ask<Signal>,
    /// [`Wait`]
    pub wait: Ask<Wait>,
    /// [`Resize`]
    pub resize: Ask<Resize>,
    /// [`CloseStdin`]
    pub close_stdin: Ask<CloseStdin>,
    /// [`Update`]
    pub update: Ask<Update>,
    /// [`Stats`]
    pub stats: Ask<Stats>,
    /// [`Processes`]
    pub processes: Ask<Processes>,
    /// [`Pause`]
    pub pause: Ask<Pause>,
    /// [`Resume`]
    pub resume: Ask<Resume>,
    /// [`Delete`] of an exec. A whole container goes by the Sandbox actor, which may have to go with it.
    pub delete: Ask<Delete>,
    /// [`Describe`]
    pub describe: Ask<Describe>,
}
