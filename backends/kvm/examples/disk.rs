//! Boots a kernel in a machine with an entropy device and disks, its console on the standard output, until the guest ends.
//!
//!     disk KERNEL INITRD [append=TEXT] [memory=MiB] [vcpus=N] [disk=FILE]... [read-only=FILE]... [late=FILE]
//!
//! The disk `late` is put into a device that is there from the beginning, when the guest writes the line "host: insert" on
//! its console, and taken out at "host: eject". At the end, what the devices have counted goes to the standard error. Ends
//! with 0 after the guest's shutdown, with 1 otherwise.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stockade_hypervisor::MiB;
use stockade_kvm::devices::block::{Block, Disk, DiskOptions};
use stockade_kvm::devices::rng::Rng;
use stockade_kvm::machine::{COMMAND_LINE, Console, Machine, MachineConfig, MachineEvent, Size, VcpuHook};
use stockade_kvm::virtio::Threads;

/// Passes the console on, and its lines for the host to the main thread.
struct Watched {
    line: Vec<u8>,
    lines: Sender<String>,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).trim().to_owned();
                if line.starts_with("host: ") {
                    let _ = self.lines.send(line);
                }
                self.line.clear();
            } else if self.line.len() < 256 {
                self.line.push(*byte);
            }
        }
        io::stdout().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn open(path: &str, read_only: bool) -> Result<Disk, Box<dyn Error>> {
    let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
    let name = Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Disk::new(file, &DiskOptions { read_only, serial: name })?)
}

/// Waits for the guest's end, and does what it asks for on its console meanwhile.
fn serve(machine: &mut Machine, lines: &Receiver<String>, mut order: impl FnMut(&str)) -> Result<bool, Box<dyn Error>> {
    let events = machine.events();
    loop {
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_u8))?;
        lines.try_iter().for_each(|line| order(&line));
        match events.take() {
            None => {}
            Some(MachineEvent::Shutdown) => return Ok(true),
            Some(event) => {
                eprintln!("disk: {event:?}");
                if event.ends() {
                    return Ok(false);
                }
            }
        }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, rest @ ..] = arguments.as_slice() else {
        return Err("usage: disk KERNEL INITRD [append=TEXT] [memory=MiB] [vcpus=N] [disk=FILE]... [late=FILE]".into());
    };
    let threads = Threads::default();
    let (mut append, mut blocks, mut late) = (String::new(), Vec::new(), None);
    let mut size = Size { memory: MiB(256), hotplug_memory: MiB(0), vcpus: 1, max_vcpus: 1 };
    for argument in rest {
        match argument.split_once('=').unwrap_or((argument, "")) {
            ("append", value) => append = value.to_owned(),
            ("memory", value) => size.memory = MiB(value.parse()?),
            ("vcpus", value) => size.vcpus = value.parse()?,
            ("disk", value) => blocks.push(Block::new(Some(open(value, false)?), false, threads.clone())?),
            ("read-only", value) => blocks.push(Block::new(Some(open(value, true)?), true, threads.clone())?),
            ("late", value) => {
                let block = Block::new(None, false, threads.clone())?;
                late = Some((value.to_owned(), block.handle()));
                blocks.push(block);
            }
            _ => return Err(format!("unknown argument {argument:?}").into()),
        }
    }
    size.max_vcpus = size.vcpus;
    let (sender, lines) = channel();
    let kvm: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into();
    let mut machine = Machine::new(
        kvm,
        MachineConfig {
            size,
            kernel: OpenOptions::new().read(true).open(kernel)?,
            initrd: Some(OpenOptions::new().read(true).open(initrd)?),
            cmdline: format!("{COMMAND_LINE} {append}"),
            console: Console(Box::new(Watched { line: Vec::new(), lines: sender })),
            vcpu_hook: VcpuHook::default(),
            threads,
        },
    )?;
    machine.attach(Box::new(Rng::new()))?;
    for block in blocks {
        machine.attach(Box::new(block))?;
    }
    machine.start()?;
    let ended = serve(&mut machine, &lines, |line| match (&late, line) {
        (Some((path, handle)), "host: insert") => {
            let outcome = open(path, false).and_then(|disk| Ok(handle.insert(disk)?));
            eprintln!("disk: inserted: {outcome:?}");
        }
        (Some((_, handle)), "host: eject") => eprintln!("disk: ejected: {}", handle.eject().is_some()),
        (_, line) => eprintln!("disk: cannot do '{line}'"),
    })?;
    // The guest's last requests are counted by threads that may be at it still.
    std::thread::sleep(Duration::from_millis(10));
    for counts in machine.device_counts() {
        eprintln!("disk: {counts:?}");
    }
    Ok(if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
