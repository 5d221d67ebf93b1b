//! The virtual machine as KVM has it: memory slots, interrupt controllers, clock.

mod sys;

use std::io;
use std::os::fd::OwnedFd;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES,
    KvmIrqRouting, MsrList, kvm_cpuid_entry2, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irqchip,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use sys::Access;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::{ChipState, MachineError};
use crate::memory::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::registers::RegisterPages;
use crate::memory::{GuestMemory, Memory};

/// What cannot be done without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "memory of user space (KVM_CAP_USER_MEMORY)"),
    (Cap::ReadonlyMem, "memory that guests cannot write (KVM_CAP_READONLY_MEM)"),
    (Cap::Irqchip, "interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts by descriptor (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications by descriptor (KVM_CAP_IOEVENTFD)"),
    (Cap::ExtCpuid, "identification of processors (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "a way to stop vCPUs (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::AdjustClock, "a clock that can be set (KVM_CAP_ADJUST_CLOCK)"),
    (Cap::Xcrs, "extended control registers (KVM_CAP_XCRS)"),
];

/// The inputs of KVM's IOAPIC.
const IOAPIC_INPUTS: u32 = 24;

/// What a call on KVM failed with.
pub(crate) fn kvm_error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |error| MachineError::Kvm { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// A virtual machine and the memory that it runs in.
#[derive(Debug)]
pub(crate) struct Vm {
    // Dropped before the memory and the registers.
    fd: VmFd,
    memory: Memory,
    registers: RegisterPages,
    host: Host,
}

/// What KVM here can do.
#[derive(Debug)]
pub(crate) struct Host {
    /// What it can tell guests that their processors are.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// The model-specific registers that belong to a vCPU's state.
    pub(crate) msrs: Vec<u32>,
    /// The local APIC has the deadline timer.
    pub(crate) tsc_deadline: bool,
    /// Writes to ports can be kept until the next exit.
    pub(crate) coalesced_ports: bool,
}

/// A virtual machine without memory.
#[derive(Debug)]
pub(crate) struct EmptyVm {
    fd: VmFd,
    host: Host,
}

impl EmptyVm {
    /// Makes one on the open /dev/kvm.
    pub(crate) fn new(kvm: OwnedFd) -> Result<Self, MachineError> {
        let kvm = sys::open(kvm);
        for (cap, what) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(MachineError::Capability(what));
            }
        }
        let host = Host {
            cpuid: kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .map_err(kvm_error("tell which processors it supports"))?
                .as_slice()
                .to_vec(),
            msrs: kvm
                .get_msr_index_list()
                .as_ref()
                .map(MsrList::as_slice)
                .map_err(|error| kvm_error("list the model-specific registers")(*error))?
                .to_vec(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            coalesced_ports: kvm.check_extension(Cap::CoalescedPio),
        };
        Ok(Self { fd: make(&kvm)?, host })
    }

    /// Gives it the `memory`, and the `registers` of devices.
    pub(crate) fn with(self, memory: Memory, registers: RegisterPages) -> Result<Vm, MachineError> {
        let Self { fd, host } = self;
        let regions = memory.regions().map(|(range, address)| (range, address, Access::Write));
        let pages = (registers.range(), registers.address(), Access::Read);
        for (slot, (range, address, access)) in (0..).zip(regions.chain([pages])) {
            sys::map(&fd, slot, &range, address, access).map_err(kvm_error("map the guest's memory"))?;
        }
        Ok(Vm { fd, memory, registers, host })
    }
}

impl Vm {
    /// The guest's memory.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The guest's memory as devices see it.
    pub(crate) fn guest_memory(&self) -> &GuestMemory {
        self.memory.guest()
    }

    /// The registers of devices as the guest reads them.
    pub(crate) fn registers(&self) -> &RegisterPages {
        &self.registers
    }

    /// What KVM can do.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The descriptor, for devices.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Makes a vCPU.
    pub(crate) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, MachineError> {
        self.fd.create_vcpu(u64::from(index)).map_err(kvm_error("make a vCPU"))
    }

    /// A descriptor that raises the interrupt `gsi` when written, once each time: an edge.
    pub(crate) fn interrupt(&self, gsi: u32) -> Result<EventFd, MachineError> {
        let fd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|source| MachineError::Host { what: "make an event descriptor", source })?;
        self.fd.register_irqfd(&fd, gsi).map_err(kvm_error("raise interrupts by a descriptor"))?;
        Ok(fd)
    }

    /// Keeps writes to `port` until the next exit, where KVM can.
    pub(crate) fn coalesce_port(&self, port: u16) -> Result<(), MachineError> {
        if self.host.coalesced_ports {
            self.fd
                .register_coalesced_mmio(IoEventAddress::Pio(u64::from(port)), 1)
                .map_err(kvm_error("keep writes to a port"))?;
        }
        Ok(())
    }

    /// The state of what KVM emulates, when no vCPU runs.
    pub(crate) fn save(&self) -> Result<ChipState, MachineError> {
        let mut irqchips = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(kvm_error("tell the state of an interrupt controller"))?;
            irqchips.push(chip);
        }
        let clock = self.fd.get_clock().map_err(kvm_error("tell the guest's clock"))?;
        Ok(ChipState { irqchips, clock })
    }

    /// Takes on what [`Vm::save`] gave.
    pub(crate) fn restore(&self, state: &ChipState) -> Result<(), MachineError> {
        for chip in &state.irqchips {
            self.fd.set_irqchip(chip).map_err(kvm_error("set the state of an interrupt controller"))?;
        }
        self.set_clock(state)
    }

    /// Lets the guest's clock go on from where it was saved.
    pub(crate) fn set_clock(&self, state: &ChipState) -> Result<(), MachineError> {
        // The flags say how the value was taken; none means: this value, from now on.
        let clock = kvm_bindings::kvm_clock_data { clock: state.clock.clock, ..Default::default() };
        self.fd.set_clock(&clock).map_err(kvm_error("set the guest's clock"))
    }
}

/// Makes the machine, its interrupt controllers and what the processor's vendor wants.
fn make(kvm: &Kvm) -> Result<VmFd, MachineError> {
    let fd = loop {
        match kvm.create_vm() {
            // A signal may come while KVM waits for its own threads.
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(kvm_error("make a virtual machine"))?,
        }
    };
    fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm_error("set its page for real mode"))?;
    let tss = usize::try_from(KVM_TSS).unwrap_or(usize::MAX);
    fd.set_tss_address(tss).map_err(kvm_error("set its pages for the task state"))?;
    fd.create_irq_chip().map_err(kvm_error("make interrupt controllers"))?;
    // Interrupts go to the IOAPIC alone. The PICs that KVM makes along with it never hear of any: nobody sets them up on
    // this machine, and as they come out of reset they would hand interrupts on under the wrong vectors.
    let mut routes = Vec::new();
    for gsi in 0..IOAPIC_INPUTS {
        let mut route = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        route.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi };
        routes.push(route);
    }
    let routes = KvmIrqRouting::from_entries(&routes).map_err(|_| MachineError::Capability("room for interrupts"))?;
    fd.set_gsi_routing(&routes).map_err(kvm_error("route interrupts"))?;
    Ok(fd)
}
