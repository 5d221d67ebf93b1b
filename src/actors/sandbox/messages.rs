//! What the Sandbox actor is asked and told.

use crate::actors::container::{ContainerHandle, Exit};
use crate::actors::runtime::Request;
use crate::ids::ContainerId;
use crate::pipeline::create::CreateRequest;
use stockade_hypervisor::{ResizeRequest, Resized, VmExit, VmMetrics};

macro_rules! request {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),* $(,)? } -> $answer:ty) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type),* }

        impl Request for $name {
            type Answer = $answer;
            const NAME: &'static str = stringify!($name);
        }
    };
}

request! {
    /// Make the sandbox with its first container. Answers when the container is created, or everything is undone.
    CreateSandbox {
        /// The container.
        request: Box<CreateRequest>,
    } -> ()
}
request! {
    /// Make a further container in it.
    CreateContainer {
        /// The container.
        request: Box<CreateRequest>,
    } -> ()
}
request! {
    /// Where a container is reached, also while it is being created.
    FindContainer {
        /// Which.
        id: ContainerId,
    } -> ContainerHandle
}
request! {
    /// Delete a container; with the last one, the sandbox. Answers when nothing is left of it.
    DeleteContainer {
        /// Which.
        id: ContainerId,
    } -> Option<Exit>
}
request! {
    /// End the machine now; the containers are then stopped and can be deleted.
    StopSandbox {} -> ()
}
request! {
    /// Stop the vCPUs.
    PauseSandbox {} -> ()
}
request! {
    /// Let the vCPUs go on.
    ResumeSandbox {} -> ()
}
request! {
    /// Change vCPUs or memory.
    ResizeSandbox {
        /// To what.
        to: ResizeRequest,
    } -> Resized
}
request! {
    /// The counters of the machine's processes.
    SandboxStats {} -> VmMetrics
}
request! {
    /// Which containers there are.
    Containers {} -> Vec<ContainerId>
}
request! {
    /// What the guest says of itself, in Prometheus' text format: not to be believed.
    GuestMetrics {} -> String
}
request! {
    /// Event: the machine has ended.
    VmExited {
        /// How.
        exit: VmExit,
    } -> ()
}
request! {
    /// Event: the guest says that a process was killed for lack of memory.
    OutOfMemory {
        /// In which container; the guest may name one that is not here.
        container: ContainerId,
    } -> ()
}
request! {
    /// Event: the agent does not answer any more though its machine runs.
    AgentLost {
        /// Why we think so.
        cause: String,
    } -> ()
}
request! {
    /// All that is known, as one JSON document. Answered in every state.
    Inspect {} -> serde_json::Value
}
