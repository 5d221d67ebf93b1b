//! Creation as a pipeline of steps that is undone in reverse when one fails. No actix here.
//!
//! ```text
//!   step 1 ─▶ step 2 ─▶ … ─▶ step n ─▶ commit: the undo stacks are given to the actors; deletion runs them for good
//!     │          │               │
//!     └──────────┴─── error, cancellation, deadline ──▶ unwind: newest first, never stopping at an error
//! ```
//! A step writes down how to undo a thing before it does the thing ([`UndoStack::push`]), so a step may be abandoned at
//! any await, and a killed supervisor can be cleaned up after. Steps take what they need and return what they made:
//! the order of [`create`] is checked by the compiler.

pub mod create;
mod runner;
pub mod steps;
mod timeline;
mod undo;

pub use runner::{Abandon, Runner, Step, StepFailure};
pub use timeline::{Timeline, TimelineEntry};
use undo::perform;
pub use undo::{LiveUndo, SharedJournal, UndoFailure, UndoStack};
