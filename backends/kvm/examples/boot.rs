//! Boots a kernel in a machine, its console on the standard output, until the guest ends.
//!
//!     boot KERNEL INITRD [memory=MiB] [hotplug-memory=MiB] [vcpus=N] [max-vcpus=N] [append=TEXT] [counters] [cycles=N]
//!
//! `append` is added to the machine's own command line, `counters` prints the exits to user space, and what making the
//! machine took, to the standard error at the end. With `cycles`, the machine is paused and resumed so often, 10 ms apart,
//! while it runs. Ends with 0 after the guest's shutdown, with 2 after its reset, and with 1 after anything else.
//!
//! The guest can ask for things by lines on its console: `host: vcpus N`, `host: attach` (an entropy device), `host: detach`
//! (the last one), `host: move` (the machine is saved, and another one goes on from that).

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stockade_hypervisor::MiB;
use stockade_kvm::devices::rng::Rng;
use stockade_kvm::machine::{
    COMMAND_LINE, Console, Machine, MachineConfig, MachineEvent, RestoreConfig, Size, SlotIndex, VcpuHook,
};
use stockade_kvm::virtio::Threads;

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: boot KERNEL INITRD [memory=MiB] [hotplug-memory=MiB] [vcpus=N] [max-vcpus=N] [append=TEXT] \
                     [counters] [cycles=N]";

struct Options {
    size: Size,
    append: String,
    counters: bool,
    cycles: u32,
}

fn options(arguments: &[String]) -> Outcome<Options> {
    let size = Size { memory: MiB(256), hotplug_memory: MiB(0), vcpus: 1, max_vcpus: 1 };
    let mut options = Options { size, append: String::new(), counters: false, cycles: 0 };
    for argument in arguments {
        match argument.split_once('=').unwrap_or((argument, "")) {
            ("memory", value) => options.size.memory = MiB(value.parse()?),
            ("hotplug-memory", value) => options.size.hotplug_memory = MiB(value.parse()?),
            ("vcpus", value) => options.size.vcpus = value.parse()?,
            ("max-vcpus", value) => options.size.max_vcpus = value.parse()?,
            ("append", value) => options.append = value.to_owned(),
            ("counters", "") => options.counters = true,
            ("cycles", value) => options.cycles = value.parse()?,
            _ => return Err(format!("unknown argument {argument:?}; {USAGE}").into()),
        }
    }
    options.size.max_vcpus = options.size.max_vcpus.max(options.size.vcpus);
    Ok(options)
}

/// The standard output, which is read along for what the guest asks for.
struct Terminal {
    line: Vec<u8>,
    asked: Sender<String>,
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            if let Some(request) = line.trim_end().strip_prefix("host: ") {
                let _ = self.asked.send(request.to_owned());
            }
            self.line.clear();
        }
        io::stdout().write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn console(asked: &Sender<String>) -> Console {
    Console(Box::new(Terminal { line: Vec::new(), asked: asked.clone() }))
}

fn open_kvm() -> Outcome<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into())
}

/// A running machine and what the guest may ask for.
struct Host {
    machine: Machine,
    asked: (Sender<String>, Receiver<String>),
    devices: Vec<SlotIndex>,
}

impl Host {
    fn serve(&mut self, request: &str) -> Outcome<()> {
        let began = Instant::now();
        match request.split_once(' ').unwrap_or((request, "")) {
            ("vcpus", count) => {
                self.machine.resize_vcpus(count.parse()?)?;
            }
            ("attach", _) => self.devices.push(self.machine.attach(Box::new(Rng::new()))?),
            ("detach", _) => {
                let slot = self.devices.pop().ok_or("no device is attached")?;
                self.machine.detach(slot)?;
            }
            ("move", _) => self.move_on()?,
            _ => return Err(format!("the guest asks for {request:?}").into()),
        }
        eprintln!("boot: {request}: done in {:?}, {} vCPUs", began.elapsed(), self.machine.vcpus());
        Ok(())
    }

    /// Saves the machine, ends it, and goes on with another.
    fn move_on(&mut self) -> Outcome<()> {
        self.machine.pause()?;
        let file = tempfile::tempfile()?;
        let state = serde_json::to_string(&self.machine.save(&file)?)?;
        let began = Instant::now();
        let config = RestoreConfig {
            state: serde_json::from_str(&state)?,
            memory: file,
            console: console(&self.asked.0),
            vcpu_hook: VcpuHook::default(),
            threads: Threads::default(),
        };
        self.machine = Machine::restore(open_kvm()?, config)?;
        for slot in &self.devices {
            self.machine.attach_at(*slot, Box::new(Rng::new()))?;
        }
        self.machine.start()?;
        self.machine.resume()?;
        eprintln!("boot: restored in {:?} from {} bytes of state", began.elapsed(), state.len());
        Ok(())
    }

    /// Waits for the machine's end, and serves the guest meanwhile.
    fn run(&mut self) -> Outcome<u8> {
        loop {
            let events = self.machine.events();
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::from(100u8))?;
            match events.take() {
                None => {}
                Some(MachineEvent::Panic) => eprintln!("boot: the guest's kernel panics"),
                Some(MachineEvent::DeviceFailed { slot, kind, problem }) => {
                    eprintln!("boot: the {kind:?} device in slot {} has failed: {problem}", slot.0);
                }
                Some(MachineEvent::Shutdown) => return Ok(0),
                Some(MachineEvent::Reset(cause)) => {
                    eprintln!("boot: the guest was reset: {cause:?}");
                    return Ok(2);
                }
                Some(MachineEvent::Failed(problem)) => return Err(problem.into()),
            }
            while let Ok(request) = self.asked.1.try_recv() {
                self.serve(&request)?;
            }
        }
    }
}

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, rest @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let options = options(rest)?;
    let asked = channel();
    let config = MachineConfig {
        size: options.size,
        kernel: File::open(kernel)?,
        initrd: Some(File::open(initrd)?),
        cmdline: format!("{COMMAND_LINE} {}", options.append),
        console: console(&asked.0),
        vcpu_hook: VcpuHook::default(),
        threads: Threads::default(),
    };
    let began = Instant::now();
    let mut machine = Machine::new(open_kvm()?, config)?;
    let made = began.elapsed();
    machine.start()?;
    let started = began.elapsed();
    for _ in 0..options.cycles {
        std::thread::sleep(Duration::from_millis(10));
        machine.pause()?;
        machine.resume()?;
    }
    let mut host = Host { machine, asked, devices: Vec::new() };
    let code = host.run()?;
    if options.counters {
        let exits = host.machine.exits();
        eprintln!("boot: {} exits: {exits:?}", exits.total());
        eprintln!("boot: made in {made:?}, its vCPUs ran after {started:?}");
    }
    Ok(ExitCode::from(code))
}
