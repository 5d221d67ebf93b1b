//! A vCPU: its registers, and the thread that runs it.
//!
//! ```text
//!              resume                    pause (a kick brings it out of the guest)
//!   Parked ───────────────▶ Running ───────────────▶ Parked
//!      │                       │
//!      │ end                   │ end, or the machine has ended
//!      ▼                       ▼
//!    Ended ◀──────────────── Ended
//! ```
//! Others order by [`Vcpu::want`] and see the answer in [`Vcpu::wait_parked`]. Whoever needs the registers takes them when
//! the vCPU is parked; a running one holds its own lock.

mod cpuid;
mod registers;
mod state;
mod sys;

pub(crate) use registers::write_tables;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use crate::bus::Bus;
use crate::machine::{Events, ExitCounters, ExitKind, MachineError, MachineEvent, ResetCause, VcpuHook, VcpuState};
use crate::serial::SerialConsole;
use crate::vm::{Vm, kvm_error};

/// What a vCPU's thread has on its stack is small: a device's register, at most a device that begins or stops.
const STACK: usize = 256 << 10;

/// What a vCPU reaches outside of the guest.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Who answers at ports.
    pub(crate) ports: Arc<Bus>,
    /// Who answers at memory addresses.
    pub(crate) mmio: Arc<Bus>,
    /// Whose bytes KVM keeps.
    pub(crate) serial: Arc<Mutex<SerialConsole>>,
    /// Where the machine's end is told.
    pub(crate) events: Events,
    /// Counts exits.
    pub(crate) exits: Arc<ExitCounters>,
}

/// What a vCPU's thread shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Wait.
    Parked,
    /// Run the guest.
    Running,
    /// Return.
    Ended,
}

#[derive(Debug)]
struct Control {
    wanted: Wanted,
    runs: bool,
}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: u8,
    fd: Mutex<VcpuFd>,
    control: Mutex<Control>,
    changed: Condvar,
    // Its memory is what the vCPU runs in.
    vm: Arc<Vm>,
}

/// The thread that runs a vCPU. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    vcpu: Arc<Vcpu>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Makes vCPU `index` of a machine that has `max_vcpus` at most. It waits for its start signal as real ones do.
    pub(crate) fn new(vm: &Arc<Vm>, index: u8, max_vcpus: u8) -> Result<Arc<Self>, MachineError> {
        let mut fd = vm.create_vcpu(index)?;
        let host = vm.host();
        let topology = cpuid::Topology { index, max_vcpus, tsc_deadline: host.tsc_deadline };
        let leaves = cpuid::to_kvm(&cpuid::for_vcpu(&host.cpuid, topology))
            .map_err(|_| MachineError::Capability("room for the processor's identification"))?;
        fd.set_cpuid2(&leaves).map_err(kvm_error("tell a vCPU what it is"))?;
        if host.coalesced_ports {
            fd.map_coalesced_mmio_ring().map_err(kvm_error("show the writes that it keeps"))?;
        }
        Ok(Arc::new(Self {
            index,
            fd: Mutex::new(fd),
            control: Mutex::new(Control { wanted: Wanted::Parked, runs: false }),
            changed: Condvar::new(),
            vm: Arc::clone(vm),
        }))
    }

    /// Its number.
    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    /// Lets it begin at `entry`, in 64-bit mode, with the tables that [`write_tables`] wrote.
    pub(crate) fn begin_at(&self, entry: u64) -> Result<(), MachineError> {
        let fd = self.registers();
        let mut sregs = fd.get_sregs().map_err(kvm_error("tell a vCPU's system registers"))?;
        registers::enter_long_mode(&mut sregs);
        fd.set_sregs(&sregs).map_err(kvm_error("set a vCPU's system registers"))?;
        fd.set_regs(&registers::general(entry)).map_err(kvm_error("set a vCPU's registers"))?;
        fd.set_fpu(&registers::floating_point()).map_err(kvm_error("set a vCPU's floating point registers"))
    }

    /// Sets the model-specific registers that firmware would have set.
    pub(crate) fn set_firmware_registers(&self) -> Result<(), MachineError> {
        state::write_msrs(&self.registers(), registers::model_specific().iter())
    }

    /// Its state; it is parked.
    pub(crate) fn save(&self) -> Result<VcpuState, MachineError> {
        state::save(self.index, &self.registers(), &self.vm.host().msrs)
    }

    /// Takes on a saved state, before its first instruction.
    pub(crate) fn restore(&self, state: &VcpuState) -> Result<(), MachineError> {
        state::restore(&self.registers(), state)
    }

    /// Tells the guest that time has passed without it, so that it does not take the pause for a hang of its own.
    pub(crate) fn tell_paused(&self) {
        // Fails for a guest that has no such clock yet, which then cannot mind.
        let _ = self.registers().kvmclock_ctrl();
    }

    fn registers(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's life.
    fn live(&self, surroundings: &Surroundings) {
        loop {
            let mut control = self.control();
            control.runs = false;
            self.changed.notify_all();
            while control.wanted == Wanted::Parked {
                control = self.changed.wait(control).unwrap_or_else(PoisonError::into_inner);
            }
            if control.wanted == Wanted::Ended {
                return;
            }
            control.runs = true;
            drop(control);
            self.run(surroundings);
        }
    }

    /// Runs the guest until something else is wanted.
    fn run(&self, surroundings: &Surroundings) {
        let mut guard = self.registers();
        let (_kickable, fd) = sys::Kickable::new(&mut guard);
        // From here on a kick is not lost; one that came before has left its order behind.
        loop {
            if self.control().wanted != Wanted::Running {
                return;
            }
            while let Step::Continue = step(fd, surroundings) {}
            fd.set_kvm_immediate_exit(0);
            surroundings.exits.count(ExitKind::Interrupted);
            if surroundings.events.ended() {
                let mut control = self.control();
                // The order to end may have come already, and stands.
                if control.wanted == Wanted::Running {
                    control.wanted = Wanted::Parked;
                }
            }
        }
    }
}

impl VcpuThread {
    /// Starts the thread, parked, after `hook` ran on it.
    pub(crate) fn start(vcpu: Arc<Vcpu>, surroundings: Surroundings, hook: VcpuHook) -> Result<Self, MachineError> {
        let failed = |what| move |source| MachineError::Host { what, source };
        sys::install_handler().map_err(failed("install a signal handler"))?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let on_thread = Arc::clone(&vcpu);
        let body = move || {
            let outcome = hook.run();
            let begins = outcome.is_ok();
            // The receiver waits in the function that started this thread.
            let _ = sender.send(outcome);
            if begins {
                on_thread.live(&surroundings);
            }
        };
        let name = format!("vcpu{}", vcpu.index);
        let thread =
            Builder::new().name(name).stack_size(STACK).spawn(body).map_err(failed("start a vCPU's thread"))?;
        let outcome = receiver.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended before it began")));
        outcome.map_err(failed("prepare a vCPU's thread"))?;
        Ok(Self { vcpu, thread: Some(thread) })
    }

    /// The vCPU.
    pub(crate) fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// Says what it shall do, and brings it out of the guest when that is not to run.
    pub(crate) fn want(&self, wanted: Wanted) {
        self.vcpu.control().wanted = wanted;
        self.vcpu.changed.notify_all();
        if wanted != Wanted::Running
            && let Some(thread) = &self.thread
        {
            // Fails when the thread has ended, which is as good.
            let _ = thread.kill(sys::kick_signal());
        }
    }

    /// Waits until it does not run.
    pub(crate) fn wait_parked(&self, deadline: Instant) -> Result<(), MachineError> {
        let mut control = self.vcpu.control();
        while control.runs {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(MachineError::VcpuStuck(self.vcpu.index));
            }
            control = self.vcpu.changed.wait_timeout(control, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.want(Wanted::Ended);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the guest goes on.
enum Step {
    Continue,
    Look,
}

/// Runs the guest to its next exit, and serves it.
fn step(fd: &mut VcpuFd, surroundings: &Surroundings) -> Step {
    let Surroundings { ports, mmio, serial, events, exits } = surroundings;
    let outcome = fd.run();
    let end = |event| {
        events.push(event);
        Step::Look
    };
    match outcome {
        Ok(VcpuExit::IoOut(port, data)) => {
            // The order of the guest's writes is kept: first those that KVM kept, then this one. The data lies in a page
            // of the vCPU's, which the next call on it may change.
            let mut copy = [0; 8];
            let len = data.len().min(copy.len());
            copy[..len].copy_from_slice(&data[..len]);
            drain(fd, serial);
            exits.count(ports.write(u64::from(port), &copy[..len]).unwrap_or(ExitKind::OtherPort));
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            exits.count(ports.read(u64::from(port), data).unwrap_or(ExitKind::OtherPort));
            drain(fd, serial);
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            exits.count(mmio.write(address, data).unwrap_or(ExitKind::OtherMmio));
            drain(fd, serial);
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            exits.count(mmio.read(address, data).unwrap_or(ExitKind::OtherMmio));
            drain(fd, serial);
        }
        Ok(VcpuExit::Shutdown) => return end(MachineEvent::Reset(ResetCause::TripleFault)),
        Ok(VcpuExit::Intr) => return Step::Look,
        Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => exits.count(ExitKind::Other),
        Ok(VcpuExit::FailEntry(reason, _)) => {
            return end(MachineEvent::Failed(format!("the processor does not enter the guest (reason {reason:#x})")));
        }
        Ok(VcpuExit::InternalError) => {
            return end(MachineEvent::Failed("KVM cannot run an instruction of the guest".to_owned()));
        }
        Ok(other) => return end(MachineEvent::Failed(format!("the guest left for an unknown reason: {other:?}"))),
        Err(error) if error.errno() == libc::EINTR => {
            drain(fd, serial);
            return Step::Look;
        }
        // A vCPU that has got its start signal.
        Err(error) if error.errno() == libc::EAGAIN => {}
        Err(error) => {
            let error = io::Error::from_raw_os_error(error.errno());
            return end(MachineEvent::Failed(format!("KVM cannot run the guest: {error}")));
        }
    }
    if events.ended() { Step::Look } else { Step::Continue }
}

/// Takes the bytes for the serial port that KVM has kept.
fn drain(fd: &mut VcpuFd, serial: &Mutex<SerialConsole>) {
    // The ring is one for all vCPUs, and its readers have to take turns.
    let mut console = serial.lock().unwrap_or_else(PoisonError::into_inner);
    let mut any = false;
    while let Ok(Some(write)) = fd.coalesced_mmio_read() {
        let len = usize::try_from(write.len).unwrap_or(0);
        for byte in write.data.iter().take(len) {
            console.transmit(*byte);
            any = true;
        }
    }
    if any {
        console.flush();
    }
}
