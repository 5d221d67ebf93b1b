//! The Sandbox actor owns the machine, the agent's connection, the sandbox's state and its containers' addresses.
//!
//! ```text
//!   Empty ──CreateSandbox──▶ Creating ──▶ Up ──machine's end──▶ Down
//!                               │          │  ◀─Pause/Resume─▶     │
//!                               │ failed,  │ last container        │ last container
//!                               │ cancelled│ deleted               │ deleted
//!                               ▼          ▼                       ▼
//!                             Gone ◀─── Leaving ◀──────────────────┘     Gone: the supervisor ends
//! ```

mod actor;
mod handle;
mod messages;
mod state;

pub use actor::{SandboxActor, SandboxSetup};
pub use handle::SandboxHandle;
pub use messages::{
    AgentLost, Containers, CreateContainer, CreateSandbox, DeleteContainer, FindContainer, GuestMetrics, Inspect,
    OutOfMemory, PauseSandbox, ResizeSandbox, ResumeSandbox, SandboxStats, StopSandbox, VmExited,
};
pub use state::{Request, SandboxState, allowed};
