//! Boots a kernel in a machine without devices, its console on the standard output, until the guest ends.
//!
//!     boot KERNEL INITRD [memory=MiB] [vcpus=N] [max-vcpus=N] [append=TEXT] [counters] [cycles=N]
//!
//! `append` is added to the machine's own command line, `counters` prints the exits to user space to the standard error at
//! the end. With `cycles`, the machine is paused and resumed so often, 10 ms apart, while it runs. Ends with 0 after the
//! guest's shutdown, with 2 after its reset, and with 1 after anything else.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stockade_hypervisor::MiB;
use stockade_kvm::machine::{COMMAND_LINE, Console, Events, Machine, MachineConfig, MachineEvent, Size, VcpuHook};
use stockade_kvm::virtio::Threads;

struct Options {
    size: Size,
    append: String,
    counters: bool,
    cycles: u32,
}

fn options(arguments: &[String]) -> Result<Options, Box<dyn Error>> {
    let size = Size { memory: MiB(256), hotplug_memory: MiB(0), vcpus: 1, max_vcpus: 1 };
    let mut options = Options { size, append: String::new(), counters: false, cycles: 0 };
    for argument in arguments {
        match argument.split_once('=').unwrap_or((argument, "")) {
            ("memory", value) => options.size.memory = MiB(value.parse()?),
            ("vcpus", value) => options.size.vcpus = value.parse()?,
            ("max-vcpus", value) => options.size.max_vcpus = value.parse()?,
            ("append", value) => options.append = value.to_owned(),
            ("counters", "") => options.counters = true,
            ("cycles", value) => options.cycles = value.parse()?,
            _ => return Err(format!("unknown argument {argument:?}").into()),
        }
    }
    options.size.max_vcpus = options.size.max_vcpus.max(options.size.vcpus);
    Ok(options)
}

/// Waits for an event, at most so long.
fn wait(events: &Events, limit: PollTimeout) -> Result<Option<MachineEvent>, Box<dyn Error>> {
    poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], limit)?;
    Ok(events.take())
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, rest @ ..] = arguments.as_slice() else {
        return Err("usage: boot KERNEL INITRD [memory=MiB] [vcpus=N] [append=TEXT] [counters] [cycles=N]".into());
    };
    let options = options(rest)?;
    let kvm: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into();
    let mut machine = Machine::new(
        kvm,
        MachineConfig {
            size: options.size,
            kernel: File::open(kernel)?,
            initrd: Some(File::open(initrd)?),
            cmdline: format!("{COMMAND_LINE} {}", options.append),
            console: Console(Box::new(io::stdout())),
            vcpu_hook: VcpuHook::default(),
            threads: Threads::default(),
        },
    )?;
    let events = machine.events();
    machine.start()?;
    for _ in 0..options.cycles {
        std::thread::sleep(Duration::from_millis(10));
        machine.pause()?;
        machine.resume()?;
    }
    let code = loop {
        match wait(&events, PollTimeout::NONE)? {
            None => {}
            Some(MachineEvent::Panic) => eprintln!("boot: the guest's kernel panics"),
            Some(MachineEvent::Shutdown) => break 0,
            Some(MachineEvent::Reset(cause)) => {
                eprintln!("boot: the guest was reset: {cause:?}");
                break 2;
            }
            Some(MachineEvent::Failed(problem)) => {
                eprintln!("boot: {problem}");
                break 1;
            }
        }
    };
    if options.counters {
        let exits = machine.exits();
        eprintln!("boot: {} exits: {exits:?}", exits.total());
    }
    Ok(ExitCode::from(code))
}
