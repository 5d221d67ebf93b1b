//! The machine's process in the hands of its guest: in the same jail, and on a thread of a given kind under its filter, it
//! tries one way out. The supervisor is told of what came of it as of a failed machine, unless the kernel was quicker.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Command, ExitCode};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stockade_kvm::control::{self, Answer, Event, ExitReason, FromVmm, Request, Sized, ToVmm};
use stockade_kvm::jail::Jail;
use stockade_kvm::virtio::ThreadKind;
use stockade_kvm::vmm;

use crate::sys;

type Failure = Box<dyn std::error::Error>;

/// `args`: the thread, the attempt, what it is aimed at, and the control socket.
pub(crate) fn run(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let [thread, attempt, target, control] = args.as_slice() else { return ExitCode::FAILURE };
    match serve(thread, attempt, target, control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(thread: &str, attempt: &str, target: &str, control: &str) -> Result<(), Failure> {
    let control = vmm::control_socket(&[control.to_owned()])?;
    let (begin, jail, _jailed) = vmm::begin(&control, &[])?;
    // The file server's thread begins while the process is privileged, as in a machine.
    let (order, go) = std::sync::mpsc::channel::<()>();
    let on_thread = {
        let (thread, attempt, target, jail) = (thread.to_owned(), attempt.to_owned(), target.to_owned(), jail.clone());
        std::thread::spawn(move || {
            if thread != "main" {
                confine(&thread, &jail).expect("the thread is confined");
                go.recv().expect("the order comes");
                return outcome(try_to(&attempt, &target));
            }
            String::new()
        })
    };
    jail.give_up_privileges()?;
    control::send(control.as_fd(), &FromVmm::Event(Event::Ready), &[])?;
    let (message, _) = control::receive::<ToVmm>(control.as_fd())?;
    let ToVmm::Request { id, request: Request::Start } = message else {
        return Err(format!("{message:?} is no start").into());
    };
    if thread == "main" {
        jail.main()?;
    }
    let size = Sized { vcpus: begin.vcpus, memory: begin.memory };
    control::send(control.as_fd(), &FromVmm::Answer { id, answer: Answer::Sized(size) }, &[])?;
    if attempt == "wait" {
        // For the supervisor's end, which closes the socket.
        let _end = control::receive::<ToVmm>(control.as_fd());
        return Ok(());
    }
    let message = if thread == "main" {
        outcome(try_to(attempt, target))
    } else {
        order.send(())?;
        on_thread.join().map_err(|_| "the thread panicked")?
    };
    let reason = ExitReason::Failed { message };
    control::send(control.as_fd(), &FromVmm::Event(Event::Exited { reason }), &[])?;
    Ok(())
}

fn confine(thread: &str, jail: &Jail) -> Result<(), Failure> {
    let kind = match thread {
        "vcpu" => return Ok(jail.vcpu()?),
        "devices" => ThreadKind::Devices,
        "vsock" => ThreadKind::Vsock,
        "block" => ThreadKind::Block,
        "net" => ThreadKind::Net,
        "fs" => ThreadKind::Fs,
        other => return Err(format!("there is no thread {other}").into()),
    };
    Ok(jail.thread(kind)?)
}

fn outcome(tried: io::Result<()>) -> String {
    match tried {
        Ok(()) => "escaped".to_owned(),
        Err(error) => format!("refused: {error}"),
    }
}

fn try_to(attempt: &str, target: &str) -> io::Result<()> {
    let pid = || target.parse().map(Pid::from_raw).map_err(io::Error::other);
    match attempt {
        "open" => File::open(target).map(drop),
        "connect" => UnixStream::connect(target).map(drop),
        "connect-abstract" => UnixStream::connect_addr(&SocketAddr::from_abstract_name(target)?).map(drop),
        "inet" => std::net::UdpSocket::bind("127.0.0.1:0").map(drop),
        "fork" => sys::fork(),
        "exec" => Err(std::os::unix::process::CommandExt::exec(&mut Command::new(target))),
        "ptrace" => sys::trace(pid()?.as_raw()),
        "signal" => kill(pid()?, Signal::SIGTERM).map_err(Into::into),
        "mount" => {
            let none: Option<&str> = None;
            mount(Some("none"), target, Some("tmpfs"), MsFlags::empty(), none).map_err(Into::into)
        }
        "unshare" => unshare(CloneFlags::CLONE_NEWUSER).map_err(Into::into),
        "become-root" => sys::become_root(),
        "executable-memory" => sys::executable_memory(),
        "kvm-run" => sys::kvm_run(),
        "io-uring" => sys::bare(libc::SYS_io_uring_setup),
        "bpf" => sys::bare(libc::SYS_bpf),
        "open-by-handle" => sys::bare(libc::SYS_open_by_handle_at),
        "pidfd-open" => sys::bare(libc::SYS_pidfd_open),
        // A descriptor that the supervisor had and did not pass on.
        "descriptor" => {
            let number = target.parse().map_err(io::Error::other)?;
            nix::fcntl::fcntl(number, nix::fcntl::FcntlArg::F_GETFD).map(drop).map_err(Into::into)
        }
        other => Err(io::Error::other(format!("there is no attempt {other}"))),
    }
}
