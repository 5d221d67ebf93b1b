//! One program, several roles; each is handed over to at once.

use std::ffi::OsString;
use std::process::ExitCode;
use stockade::{cli, shim, stand_in, supervise};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| OsString::from("stockade"));
    if shim::is_shim(&program) {
        return shim::main(arguments);
    }
    let verb = arguments.next();
    match verb.as_ref().and_then(|verb| verb.to_str()) {
        Some("supervise") => run_supervisor(),
        Some("stand-in") => stand_in::main(arguments),
        Some("vhost-user") => {
            abort_on_panic();
            // Its arguments are ours, and text.
            stockade_devices::vhost_user::main(arguments.map(|argument| argument.to_string_lossy().into_owned()))
        }
        // It ends itself on a panic, in its own way.
        Some("vmm") => stockade_kvm::vmm::main(arguments.map(|argument| argument.to_string_lossy().into_owned())),
        _ => cli::main([program].into_iter().chain(verb).chain(arguments)),
    }
}

fn run_supervisor() -> ExitCode {
    match supervise::enter() {
        Ok((startup, answer)) => supervise::run(startup, answer),
        Err(error) => {
            eprintln!("stockade: cannot become a supervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Crash-only: one broken device thread must not leave the others serving a guest.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
