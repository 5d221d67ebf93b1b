//! Serving the supervisor's requests and the machine's events, until the machine ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::signalfd::SignalFd;
use stockade_devices::one_line;
use stockade_hypervisor::MiB;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::build::{self, Built};
use super::snapshot;
use super::{VmmError, host};
use crate::control::{self, Added, Answer, Counters, Event, ExitReason, FromVmm, Request, Sized, ToVmm, bounded};
use crate::jail::Jail;
use crate::machine::{MachineError, MachineEvent};
use crate::sys;

/// What is waited for; the tokens of epoll.
const CONTROL: u64 = 0;
const EVENTS: u64 = 1;
const SIGNALS: u64 = 2;

/// After so long without a request the guest is taken to have started, in milliseconds.
const SETTLED_AFTER: i32 = 10_000;

/// Serves until the end, and says what it was.
pub(super) fn serve(
    control: &OwnedFd,
    signals: &SignalFd,
    built: &mut Built,
    jail: &Jail,
) -> Result<ExitReason, VmmError> {
    let events = built.machine.events();
    let epoll = Epoll::new().map_err(host("make an epoll descriptor"))?;
    for (fd, token) in [(control.as_raw_fd(), CONTROL), (events.as_raw_fd(), EVENTS), (signals.as_raw_fd(), SIGNALS)] {
        epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
            .map_err(host("watch a descriptor"))?;
    }
    let mut wait_for = SETTLED_AFTER;
    loop {
        let mut ready = [EpollEvent::default(); 3];
        let count = match epoll.wait(wait_for, &mut ready) {
            Ok(0) => {
                // Neither will be run again what served the guest's boot.
                sys::unmap_start_up_code();
                wait_for = -1;
                continue;
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(host("wait for requests")(error)),
        };
        let is_ready = |token| ready.iter().take(count).any(|event| event.data() == token);
        // What ended the machine goes before what is asked of it.
        while let Some(event) = events.take() {
            match event {
                MachineEvent::Shutdown => return Ok(ExitReason::Shutdown),
                MachineEvent::Reset(_) => return Ok(ExitReason::Reset),
                MachineEvent::Panic => control::send(control.as_fd(), &FromVmm::Event(Event::Panicked), &[])?,
                MachineEvent::DeviceFailed { slot, kind, problem } => {
                    // One that was taken away meanwhile has no name, and nobody who misses it.
                    if let Some(device) = built.name_of(slot) {
                        let problem = bounded(&format!("{kind:?} device: {problem}"));
                        let event = Event::DeviceFailed { device: device.to_owned(), problem };
                        control::send(control.as_fd(), &FromVmm::Event(event), &[])?;
                    }
                }
                MachineEvent::Failed(message) => return Ok(ExitReason::Failed { message: bounded(&message) }),
            }
        }
        if is_ready(SIGNALS)
            && let Ok(Some(signal)) = signals.read_signal()
        {
            return Ok(ExitReason::Signal(i32::try_from(signal.ssi_signo).unwrap_or(0)));
        }
        if is_ready(CONTROL)
            && let Some(reason) = request(control, built, jail)?
        {
            return Ok(reason);
        }
    }
}

/// Takes one request and answers it; `Some` when it was the order to end.
fn request(control: &OwnedFd, built: &mut Built, jail: &Jail) -> Result<Option<ExitReason>, VmmError> {
    let (message, descriptors) = control::receive::<ToVmm>(control.as_fd())?;
    let ToVmm::Request { id, request } = message else { return Err(VmmError::OutOfOrder) };
    let quit = request == Request::Quit;
    let answer = if quit { Answer::Done } else { answer(request, descriptors, built, jail)? };
    control::send(control.as_fd(), &FromVmm::Answer { id, answer }, &[])?;
    Ok(quit.then_some(ExitReason::Quit))
}

/// Does what is asked. What fails is answered; an error here is one that the process cannot go on after.
fn answer(request: Request, descriptors: Vec<OwnedFd>, built: &mut Built, jail: &Jail) -> Result<Answer, VmmError> {
    let machine = &mut built.machine;
    let done = |result: Result<(), MachineError>| match result {
        Ok(()) => Answer::Done,
        Err(error) => failed(&error),
    };
    Ok(match request {
        Request::Start => {
            let started = machine.start();
            // From here on the guest runs, on threads that are confined; this one starts none of those any more.
            jail.main()?;
            match started {
                Ok(()) => size(built),
                Err(error) => failed(&error),
            }
        }
        Request::Pause => done(machine.pause()),
        Request::Resume => done(machine.resume()),
        Request::Add { id, device } => add(id, device, descriptors, built, jail),
        Request::Remove { id } => match built.slots.get(&id) {
            None => Answer::Failed { message: "there is no such device".to_owned() },
            Some(slot) => match machine.detach(*slot) {
                Ok(()) => {
                    built.slots.remove(&id);
                    Answer::Done
                }
                Err(error) => failed(&error),
            },
        },
        Request::Resize { vcpus, memory } => resize(vcpus, memory, built),
        Request::Counters => {
            let devices = machine.device_counts().into_iter().filter_map(|device| {
                let name = built.slots.iter().find(|(_, slot)| **slot == device.slot)?.0.clone();
                Some((name, [device.counts.requests, device.counts.errors, device.counts.malformed]))
            });
            let devices = devices.collect();
            Answer::Counters(Box::new(Counters { exits: machine.exits().total(), devices }))
        }
        Request::Balloon { size } => match &built.balloon {
            Some(balloon) => {
                balloon.set_target(size);
                Answer::Done
            }
            None => Answer::Unsupported { reason: "it has no balloon".to_owned() },
        },
        Request::Save => match snapshot::save(built, descriptors) {
            Ok(()) => Answer::Done,
            Err(error) => failed(&error),
        },
        Request::PowerButton => {
            Answer::Unsupported { reason: "it has no power button: the guest's agent is to be asked".to_owned() }
        }
        // Answered by the caller.
        Request::Quit => Answer::Done,
    })
}

/// Changes the machine's size. Answers with what the guest is offered: it takes its time to use it.
fn resize(vcpus: Option<u8>, memory: Option<MiB>, built: &mut Built) -> Answer {
    if let Some(memory) = memory.filter(|memory| *memory != built.memory()) {
        let Some(plug) = &built.plug else {
            return Answer::Unsupported { reason: "it has the memory of its boot".to_owned() };
        };
        let Some(more) = memory.0.checked_sub(built.boot_memory.0) else {
            return Answer::Failed { message: format!("{memory} is less than it booted with") };
        };
        if let Err(error) = plug.request(MiB(more).bytes()) {
            return failed(&error);
        }
    }
    let vcpus = match vcpus.map(|count| built.machine.resize_vcpus(count)).transpose() {
        Ok(count) => count.unwrap_or_else(|| built.machine.vcpus()),
        Err(error) => return failed(&error),
    };
    Answer::Sized(Sized { vcpus, memory: built.memory() })
}

/// The machine's size now.
fn size(built: &Built) -> Answer {
    Answer::Sized(Sized { vcpus: built.machine.vcpus(), memory: built.memory() })
}

/// Plugs a device in.
fn add(id: String, device: Added, descriptors: Vec<OwnedFd>, built: &mut Built, jail: &Jail) -> Answer {
    if built.slots.contains_key(&id) {
        return Answer::Failed { message: "there is such a device already".to_owned() };
    }
    let made = match device {
        Added::Disk(disk) => build::disk(&id, disk, descriptors, jail),
        Added::Network(network) => build::network(network, descriptors),
    };
    let attached = made.and_then(|device| Ok(built.machine.attach(device)?));
    match attached {
        Ok(slot) => {
            built.slots.insert(id, slot);
            Answer::Done
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Answer {
    Answer::Failed { message: bounded(&one_line(error)) }
}
