//! The actors of one supervisor, each owning its state alone.
//!
//! ```text
//!   front door (supervise/service.rs: ttrpc)
//!        │ asks
//!        ▼
//!   Sandbox ──────────▶ Container (one each)        asks go down only, so they form no cycle;
//!     │  │  ▲                │                       upward go events (VmExited, a container's end)
//!     │  │  └── events ──────┘
//!     │  └─ pipeline task (no actor: owns its undo stacks) ──▶ Network, Hook, Factory
//!     └─ owns: the machine, the agent connection, the sandbox's state
//! ```
//! Each folder has `messages` (typed request -> typed result), `state` (the pure table: may I?), and `actor` (the
//! actix shell and the logic that it calls). actix is named in `actor.rs` files and in [`runtime`] only.

pub mod container;
pub mod factory;
pub mod hook;
pub mod network;
pub mod runtime;
pub mod sandbox;
