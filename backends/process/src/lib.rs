//! What every machine that is a host process needs, whichever monitor runs in it.
//!
//! - [`life`]: the machine's states, and what it keeps of itself; [`devices`]: the names of its devices;
//! - [`start`] and [`stop`]: what starting its processes needs, and ending them by a ladder;
//! - [`process`]: spawns it so that it dies with the supervisor, watches and reaps it, keeps its last words;
//! - [`console`]: the guest's console, as lines and as a log file;
//! - [`usage`]: what a process has used up;
//! - [`probe`]: whether KVM can run a stock guest here.
//!
//! All unsafe code is in `sys` and `probe::sys`.

pub mod console;
pub mod devices;
pub mod life;
pub mod probe;
pub mod process;
pub mod start;
pub mod stop;
mod sys;
pub mod usage;
