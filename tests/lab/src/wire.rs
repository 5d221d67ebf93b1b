//! What the two ends of a lab say to each other: one JSON value a line, over a virtio-serial port.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The name of the port, as QEMU gives it to the guest.
pub const PORT: &str = "stockade.lab";
/// The 9p tag of the host's root.
pub const ROOT_TAG: &str = "host";
/// The 9p tag of the folder that the lab may write to.
pub const OUT_TAG: &str = "out";
/// The variable on the kernel's command line, and so in init's environment, with the path of that folder: the same
/// inside as outside.
pub const OUT_VARIABLE: &str = "STOCKADE_LAB_OUT";
/// A runner that lives says so this often, in seconds.
pub const ALIVE_SECONDS: u64 = 5;

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Comes back in each report of it.
    pub id: u64,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the environment.
    pub environment: BTreeMap<String, String>,
    /// The working directory.
    pub directory: PathBuf,
    /// Milliseconds until it is killed.
    pub limit: u64,
}

/// What the runner in the lab says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It can take jobs.
    Ready,
    /// It lives.
    Alive,
    /// A job wrote this to one of its output streams.
    Output {
        /// The job's.
        id: u64,
        /// Bytes that are no UTF-8 are replaced.
        text: String,
    },
    /// A job ended.
    Ended {
        /// The job's.
        id: u64,
        /// How.
        end: End,
    },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// It took longer than its limit, and was killed.
    TimedOut,
    /// It could not be started, and why.
    NotStarted(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let report = Report::Output { id: 1, text: "a\nb\u{0}".into() };
        let line = serde_json::to_string(&report).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
    }
}
