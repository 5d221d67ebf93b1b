//! A lab host's init, a static program in its initrd; and, started by that, the runner that obeys the other end.

mod boot;
mod runner;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        boot::run();
    }
    match runner::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
