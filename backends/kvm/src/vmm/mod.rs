//! The process of a machine, `stockade vmm`: jailed, with the machine and all its devices inside.
//!
//! ```text
//!   start ─▶ Begin from the control socket ─▶ jail ─▶ machine and devices ─▶ Ready ─▶ serve ─▶ Exited, exit 0
//!     └───────────┴── an error: Exited with its words, exit 1 ──┘                │
//!                                             a panic: its words on stderr, exit 101
//! ```
//! It ends when the guest does, when it is told to, and when the control socket's other end is closed. Its log lines go to
//! standard error, which the supervisor reads.

mod build;
mod log;
mod serve;
mod snapshot;

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use stockade_devices::fs::FsError as ShareError;
use stockade_devices::jail::JailError;
use stockade_devices::one_line;
use stockade_devices::vsock::MuxerError;

use crate::control::{self, Begin, Event, ExitReason, FromVmm, PacketError, ToVmm, bounded};
use crate::devices::fs::FsError;
use crate::jail::{self, Jail, JailConfig};
use crate::machine::MachineError;
use crate::sys;

/// The exit status after a panic, as Rust's own is.
const PANIC_STATUS: i32 = 101;

/// Why the process ended without its machine's doing.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The arguments make no sense.
    #[error("the arguments must be control=NUMBER, the number of an open descriptor; they are {0:?}")]
    Arguments(Vec<String>),
    /// A descriptor is not there, or is named twice.
    #[error("there is no descriptor {number} to take")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The supervisor said something that makes no sense.
    #[error("the control socket is of no use")]
    Control(#[from] PacketError),
    /// The first message was no description of a machine, or a later one was.
    #[error("a control message came out of order")]
    OutOfOrder,
    /// The jail could not be closed.
    #[error("cannot enter the jail")]
    Jail(#[from] JailError),
    /// The machine could not be made or changed.
    #[error("the machine failed")]
    Machine(#[from] MachineError),
    /// The share could not be opened.
    #[error("cannot serve the share")]
    Share(#[from] ShareError),
    /// The share's device could not be made.
    #[error("cannot make the share's device")]
    ShareDevice(#[from] FsError),
    /// The vsock device could not be made.
    #[error("cannot make the vsock device")]
    Vsock(#[from] MuxerError),
    /// A device could not be made.
    #[error("cannot make the {device} device")]
    Device {
        /// Which.
        device: &'static str,
        /// What it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A call on the host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Names the call that failed.
fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> VmmError {
    move |source| VmmError::Host { what, source: source.into() }
}

/// What `stockade vmm` does; `arguments` are those after the verb. To be called by the process's only thread.
pub fn main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    sys::keep_memory_small();
    let arguments: Vec<String> = arguments.into_iter().collect();
    let control = match control_socket(&arguments) {
        Ok(control) => control,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", one_line(&error));
            return ExitCode::FAILURE;
        }
    };
    exit_on_panic();
    log::start();
    match run(&control) {
        Ok(never) => match never {},
        Err(VmmError::Control(PacketError::Closed)) => {
            // The supervisor is gone, so nobody wants to know.
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = one_line(&error);
            let _ = writeln!(io::stderr(), "{message}");
            tell(&control, ExitReason::Failed { message: bounded(&message) });
            ExitCode::FAILURE
        }
    }
}

/// Tells the supervisor why the machine has ended, if it is still there.
fn tell(control: &OwnedFd, reason: ExitReason) {
    let _ = control::send(control.as_fd(), &FromVmm::Event(Event::Exited { reason }), &[]);
}

/// The control socket, by its argument.
///
/// # Errors
/// It is not named, or not open.
pub fn control_socket(arguments: &[String]) -> Result<OwnedFd, VmmError> {
    let number = match arguments {
        [only] => only.strip_prefix("control=").and_then(|number| number.parse().ok()),
        _ => None,
    };
    let number = number.ok_or_else(|| VmmError::Arguments(arguments.to_vec()))?;
    sys::adopt(number).map_err(|source| VmmError::Descriptor { number, source })
}

/// From the first message to the machine's end, which ends the process: nothing of a machine that has ended is worth
/// waiting for.
fn run(control: &OwnedFd) -> Result<Infallible, VmmError> {
    // Blocked before there are threads, so that none of them is interrupted by it.
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().map_err(host("block SIGTERM"))?;
    let signals = SignalFd::with_flags(&term, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(host("make a descriptor for SIGTERM"))?;

    let (begin, jail, jailed) = begin(control, &[signals.as_raw_fd()])?;
    let mut machine = build::build(begin, &jail, jailed)?;
    jail.give_up_privileges()?;
    control::send(control.as_fd(), &FromVmm::Event(Event::Ready), &[])?;
    sys::unmap_start_up_code();
    let reason = serve::serve(control, &signals, &mut machine, &jail)?;
    tell(control, reason);
    sys::exit_now(0)
}

/// Takes the description, and enters the jail with what it names.
///
/// # Errors
/// The supervisor is gone or sends nonsense, or the jail cannot be closed. The process must end then.
pub fn begin(control: &OwnedFd, keep: &[RawFd]) -> Result<(Begin, Jail, stockade_devices::jail::Jailed), VmmError> {
    let (ToVmm::Begin(begin), _) = control::receive::<ToVmm>(control.as_fd())? else {
        return Err(VmmError::OutOfOrder);
    };
    let writes_files = begin.share.is_some() || begin.disks.iter().any(|(_, disk, _)| !disk.read_only);
    // The largest file that it is given to write is the one that the guest's memory is saved to.
    let memory = begin.memory.bytes().saturating_add(begin.hotplug_memory.bytes());
    let config = JailConfig {
        share: begin.share.as_ref().map(|share| share.root.clone()),
        keep: begin.descriptors().chain(keep.iter().copied()).chain([control.as_raw_fd()]).collect(),
        user: begin.user,
        seccomp: begin.seccomp,
        vcpu_hotplug: begin.max_vcpus > begin.vcpus,
        file_size: (!writes_files).then_some(memory),
    };
    let (jail, jailed) = jail::enter(&config)?;
    Ok((*begin, jail, jailed))
}

/// A panic on any thread ends the process, after the usual message: nothing here may go on half alive.
fn exit_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        sys::exit_now(PANIC_STATUS);
    }));
}
