//! What is on disk: which sandboxes and containers exist, and how to undo what was done for them.
//!
//! ```text
//! <root>/                         default /run/stockade, mode 0711
//!   containers/<id>.json          ContainerRecord: also the container-id -> sandbox-id mapping
//!   sandboxes/<id>/               one directory a sandbox, mode 0700, made by exactly one supervisor
//!     sandbox.json                SandboxRecord
//!     journal.jsonl               Journal: what to undo, newest last
//!     api.sock                    the supervisor's ttrpc socket
//!     shared/, vsock.sock, …      the machine's own
//! ```
//! Every file is JSON with a `version`, written beside and renamed over (so a reader sees the old or the new, whole).

mod atomic;
mod journal;
mod process;
mod records;
pub mod recovery;
mod store;
mod time;

pub use atomic::write_atomically;
pub(crate) use journal::unmount;
pub use journal::{Journal, JournalEntry, UndoRecord};
pub use process::ProcessId;
pub use records::{ContainerRecord, SandboxRecord};
pub use store::{StateError, Store};

/// Now, as records write it: RFC 3339, UTC, nanoseconds.
pub fn now() -> String {
    time::now_rfc3339()
}
