//! containerd's door: the program `containerd-shim-stockade-v2`, which is this one by another name.
//!
//! ```text
//! containerd ── … start ──> shim ── starts, or finds the pod's ──> supervisor ── serves the Task service, sends events
//!     │           <── address ──┘                                      ▲
//!     ├── Create, Start, … ───────────────────────────────────────────┘
//!     └── … delete ─> shim ── cleans up what a supervisor left, says how the container ended
//! ```
//! Both commands end at once; what stays is the supervisor, one for each pod, which outlives containerd. State is kept
//! apart for each of containerd's namespaces, since ids are unique only within one.

mod arguments;
mod bootstrap;
mod delete;
mod place;
mod start;

pub use arguments::{Action, Arguments, ArgumentsError};
pub use place::Place;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// What the program is called when it is containerd's shim: `containerd-shim-`, a name, `-v2`.
const PREFIX: &str = "containerd-shim-";

/// Whether a program of this name is the shim.
pub fn is_shim(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name.to_str().is_some_and(|name| name.starts_with(PREFIX))
}

/// Runs the shim's command in `arguments`, the program's name left out.
///
/// What containerd reads goes to standard output, and on failure one line to standard error; it shows both.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to hear that standard error is closed.
            let _ = writeln!(std::io::stderr(), "{}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let arguments = Arguments::parse(arguments)?;
    let answer = match arguments.action {
        Action::Version => format!("stockade {}\n", env!("CARGO_PKG_VERSION")).into_bytes(),
        Action::Start => start::start(&arguments)?,
        Action::Delete => delete::delete(&arguments)?,
    };
    std::io::stdout().write_all(&answer)?;
    Ok(())
}

fn one_line(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_shim_by_its_name() {
        for name in ["containerd-shim-stockade-v2", "/usr/bin/containerd-shim-stockade-kvm-v2"] {
            assert!(is_shim(OsStr::new(name)), "{name}");
        }
        for name in ["stockade", "/usr/bin/stockade", "/containerd-shim-x/stockade", ""] {
            assert!(!is_shim(OsStr::new(name)), "{name}");
        }
    }
}
