//! The host's control group of a sandbox's processes (the virtual machine's, the stand-in; in a scope of systemd's the
//! supervisor, too). It groups and accounts;
//! limits hold in the guest, so none is set here.
//!
//! ```text
//! place (is it allowed?) --> plan (names the directories that it will make) --journal--> create
//!   --> add_process ... --> remove
//! ```
//! Version 2 has one directory; version 1, and a host with both, one per mounted hierarchy. A hierarchy that we may not
//! write to is skipped.

mod error;
mod hierarchy;
mod path;
mod remove;
mod sandbox;
mod systemd;

pub use error::CgroupError;
pub use remove::{remove_directories, step_out};
pub use sandbox::{CgroupPlace, CgroupPlan, SandboxCgroup, join};

/// Whether the host has control groups of version 2 alone, so that its tools read counters of that kind.
pub fn is_version_2() -> bool {
    hierarchy::mounted().is_ok_and(|found| !found.is_empty() && found.iter().all(|found| found.is_unified()))
}

/// Looks the host's hierarchies up ahead of the first sandbox. What is wrong with them is told when one is asked for.
pub fn look_ahead() {
    _ = hierarchy::mounted();
}
