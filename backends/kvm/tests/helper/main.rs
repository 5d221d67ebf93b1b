//! What the tests run beside the test program: as process 1 of a machine it is /init of the contract's guest, with the verb
//! `vmm` it is the machine's process, with `escape` that process in the hands of its guest, with `supervise` a supervisor to
//! kill.

mod escape;
mod supervise;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("vmm") => stockade_kvm::vmm::main(args),
        Some("escape") => escape::run(args),
        Some("supervise") => supervise::run(args),
        // The machine's process is the first of its namespace too, so this comes last.
        _ if std::process::id() == 1 => stockade_contract_guest::init(),
        _ => {
            eprintln!("this program serves the tests only");
            ExitCode::FAILURE
        }
    }
}
