//! What can go wrong with a control group.

use std::io;
use std::path::PathBuf;

/// Why a sandbox's control group cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The bundle's path leads out of the hierarchy, or to its root.
    #[error("linux.cgroupsPath {path:?} is not allowed: {reason}")]
    Path {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `--systemd-cgroup` with a path of the other form.
    #[error("linux.cgroupsPath {path:?} is not of the form slice:prefix:name, which --systemd-cgroup asks for")]
    SystemdForm {
        /// As given.
        path: PathBuf,
    },
    /// No list of mounts.
    #[error("{path:?} cannot be read")]
    Mounts {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bundle asks for a control group, and no hierarchy took it.
    #[error("control group {path:?} cannot be made in any hierarchy")]
    NoHierarchy {
        /// The path in each hierarchy.
        path: PathBuf,
        /// What the last one said; `None` when the host mounts none.
        #[source]
        source: Option<io::Error>,
    },
    /// A process that is in none of the directories now.
    #[error("process {pid} cannot join the control group {path:?}")]
    Join {
        /// The process.
        pid: i32,
        /// The directory that refused it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `--systemd-cgroup` where systemd does not run.
    #[error("systemd cannot be reached for --systemd-cgroup: {what}")]
    Systemd {
        /// What was tried, or what it answered.
        what: String,
        /// Why, if the system said so.
        #[source]
        source: Option<io::Error>,
    },
    /// A directory that stays.
    #[error("the control group {path:?} cannot be removed")]
    Remove {
        /// The last directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
