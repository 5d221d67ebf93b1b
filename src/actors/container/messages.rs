//! What a Container actor is asked and told.

use super::{ContainerState, Exit};
use crate::actors::runtime::Request;
use crate::ids::ExecId;
use crate::pipeline::create::CreatedContainer;
use crate::state::ProcessId;
use crate::stdio::StdioNames;
use oci_spec::runtime::{LinuxResources, Process};
use stockade_agent_protocol::agent::StatsContainerResponse;
use stockade_agent_protocol::processes::ProcessInfo;

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
    /// Event: the pipeline has made the container.
    Created {
        /// What it made, with the undo stack: from now on this actor's to unwind.
        parts: Box<CreatedContainer>,
    } -> ()
}
request! {
    /// Event: the pipeline failed, and everything is undone.
    CreationFailed {} -> ()
}
request! {
    /// Event: a process has ended and its output is drained. `exec` is `None` for the container's first process.
    ProcessExited {
        /// Which.
        exec: Option<ExecId>,
        /// How.
        exit: Exit,
    } -> ()
}
request! {
    /// Event: the machine has ended, and the container with it.
    MachineEnded {
        /// Why, for the log.
        cause: String,
    } -> ()
}
request! {
    /// Let the container's process run, then run the poststart hooks.
    Start {} -> ()
}
request! {
    /// Register a further process; [`StartExec`] starts it.
    Exec {
        /// Its id.
        id: ExecId,
        /// What to run.
        process: Box<Process>,
        /// Its streams.
        stdio: StdioNames,
        /// The process that stands in for it on the host, if any.
        stand_in: Option<ProcessId>,
    } -> ()
}
request! {
    /// Start a registered process.
    StartExec {
        /// Which.
        id: ExecId,
    } -> ()
}
request! {
    /// Send a signal.
    Signal {
        /// To this process; `None`: the container's first.
        exec: Option<ExecId>,
        /// Its number.
        signal: u32,
        /// To every process of the container.
        all: bool,
    } -> ()
}
request! {
    /// Wait for the end of a process. May be asked any number of times.
    Wait {
        /// Which; `None`: the container's first.
        exec: Option<ExecId>,
    } -> Exit
}
request! {
    /// Set the size of a terminal, in characters.
    Resize {
        /// Which process's.
        exec: Option<ExecId>,
        /// Characters a line.
        columns: u32,
        /// Lines.
        rows: u32,
    } -> ()
}
request! {
    /// Close the standard input.
    CloseStdin {
        /// Which process's.
        exec: Option<ExecId>,
    } -> ()
}
request! {
    /// Change the limits.
    Update {
        /// The new ones; what is absent stays.
        resources: Box<LinuxResources>,
    } -> ()
}
request! {
    /// Read the counters.
    Stats {} -> StatsContainerResponse
}
request! {
    /// List the processes.
    Processes {} -> Vec<ProcessInfo>
}
request! {
    /// Freeze.
    Pause {} -> ()
}
request! {
    /// Thaw.
    Resume {} -> ()
}
request! {
    /// Remove the container (or an ended exec). During the creation: cancel it and wait until it is rolled back.
    Delete {
        /// Only this process; `None`: the container.
        exec: Option<ExecId>,
        /// The sandbox goes next, and with it what the container has in the guest.
        with_sandbox: bool,
    } -> Option<Exit>
}
request! {
    /// What is known of the container or of one of its processes. Answered in every state.
    Describe {
        /// Which process; `None`: the container.
        exec: Option<ExecId>,
    } -> Description
}

/// The answer to [`Describe`].
#[derive(Debug, Clone)]
pub struct Description {
    /// The container's state, or the process's.
    pub state: ContainerState,
    /// The bundle's path.
    pub bundle: String,
    /// The stand-in's process id, 0 for none.
    pub pid: i32,
    /// Its streams.
    pub stdio: StdioNames,
    /// Its end.
    pub exit: Option<Exit>,
    /// The ids of its execs.
    pub execs: Vec<ExecId>,
}
