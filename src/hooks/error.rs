//! Why a hook failed.

use super::Phase;
use std::io;
use std::path::PathBuf;

/// Why a hook failed, in one line with the end of what it printed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Its path leads nowhere.
    #[error("{phase} hook {path:?} cannot be found")]
    Missing {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its path leads to something that is no program.
    #[error("{phase} hook {path:?} is not an executable file")]
    NotExecutable {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
    },
    /// A word of it cannot be handed over.
    #[error("{phase} hook {path:?}: a zero byte in its path, arguments or environment")]
    ZeroByte {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
    },
    /// The system could not start or watch it.
    #[error("{phase} hook {path:?}: cannot {step}")]
    Start {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with another status than 0.
    #[error("{phase} hook {path:?} ended with status {status}{}", said(output))]
    Failed {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
        /// Its exit status.
        status: i32,
        /// The end of what it printed.
        output: String,
    },
    /// A signal ended it.
    #[error("{phase} hook {path:?} was ended by signal {signal}{}", said(output))]
    Signalled {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
        /// The signal's number.
        signal: i32,
        /// The end of what it printed.
        output: String,
    },
    /// Its time was over; it and its descendants were killed.
    #[error("{phase} hook {path:?} was killed: it was not done after {seconds} s{}", said(output))]
    TimedOut {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
        /// Its limit.
        seconds: u64,
        /// The end of what it printed.
        output: String,
    },
    /// The caller gave up; it and its descendants were killed.
    #[error("{phase} hook {path:?} was cancelled")]
    Cancelled {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
    },
    /// The keeper was killed by someone else.
    #[error("{phase} hook {path:?}: the process that watched it was killed")]
    Lost {
        /// When.
        phase: Phase,
        /// Which.
        path: PathBuf,
    },
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}
