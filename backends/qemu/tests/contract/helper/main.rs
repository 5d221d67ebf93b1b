//! What the contract tests run beside QEMU, in one program so that they need no other package: as process 1 it is /init
//! of the contract's guest, with the verb `vhost-user` it is the device process, with `supervise` a supervisor to kill.

mod supervise;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return stockade_contract_guest::init();
    }
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("vhost-user") => stockade_devices::vhost_user::main(args),
        Some("supervise") => supervise::run(args),
        _ => {
            eprintln!("this program serves the contract tests only");
            ExitCode::FAILURE
        }
    }
}
