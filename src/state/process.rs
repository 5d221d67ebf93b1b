//! A process, told from a later one with the same number.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read as _;
use std::sync::OnceLock;

/// More than a line of /proc/PID/stat has: 52 numbers and a name.
const STAT_LIMIT: usize = 2048;

/// A process id together with its start time, which no other process of that number shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number in the host's PID namespace.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The living process `pid`, or `None` when there is none (a zombie is none: it can do nothing any more).
    pub fn of(pid: i32) -> Option<Self> {
        let mut stat = [0; STAT_LIMIT];
        // The kernel gives it whole to one read.
        let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut stat).ok()?;
        // The command name may hold spaces, parentheses and any byte: fields count from the last ')'.
        let stat = String::from_utf8_lossy(&stat[..length]);
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start_time: fields.get(19)?.parse().ok()? })
    }

    /// This process.
    pub fn current() -> Self {
        static SELF: OnceLock<ProcessId> = OnceLock::new();
        let pid = std::process::id().cast_signed();
        let read = || Self::of(pid).unwrap_or(Self { pid, start_time: 0 });
        let known = *SELF.get_or_init(read);
        // A child that was forked has its parent's memory.
        if known.pid == pid { known } else { read() }
    }

    /// Whether it still lives.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends `signal` if it still lives; a process that is gone is no error.
    pub fn signal(self, signal: nix::sys::signal::Signal) {
        if self.is_alive() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_one_with_another_start_time_does_not() {
        let me = ProcessId::current();
        assert!(me.is_alive());
        assert!(!ProcessId { start_time: me.start_time + 1, ..me }.is_alive());
    }
}
