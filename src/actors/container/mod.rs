//! One Container actor each: a container's state machine, its processes and their streams.
//!
//! ```text
//!   Creating ──created──▶ Created ──Start──▶ Running ◀──Pause/Resume──▶ Paused
//!      │                     │                  │                         │
//!      │ Kill, Delete:       │  exit            │ exit                    │ exit, machine's end
//!      │ cancel, roll back   └────────┬─────────┴─────────────────────────┘
//!      ▼                              ▼
//!     Gone ◀───────Delete────────  Stopped
//! ```
//! The exit is decided by the guest's wait for the process; then the output is drained with a deadline; then the exit
//! is published. The end of the machine is an exit with status 137.

mod actor;
mod exec;
mod exit;
mod handle;
mod messages;
mod state;

pub use actor::{ContainerActor, ContainerSetup};
pub use exit::Exit;
pub use handle::ContainerHandle;
pub use messages::{
    CloseStdin, Created, CreationFailed, Delete, Describe, Description, Exec, MachineEnded, Pause, ProcessExited,
    Processes, Resize, Resume, Signal, Start, StartExec, Stats, Update, Wait,
};
pub use state::{ContainerState, Request, Verdict, verdict};
