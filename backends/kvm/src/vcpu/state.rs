//! A vCPU's state, in the order that KVM wants it read and set.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::VcpuFd;

use crate::machine::{MachineError, VcpuState};
use crate::vm::kvm_error;

/// The deadline of the local APIC's timer. Set after the time stamp counter, which it is a value of.
const TSC_DEADLINE: u32 = 0x6e0;
/// How many registers one call takes.
const MSRS_AT_A_TIME: usize = 128;

/// Reads the state of a vCPU that does not run. `msrs` are the registers that KVM lists; those that it cannot read for this
/// vCPU are not part of its state.
pub(super) fn save(index: u8, fd: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, MachineError> {
    // First, because KVM works off what is pending for the local APIC when it is asked for this.
    let mp_state = fd.get_mp_state().map_err(kvm_error("tell a vCPU's run state"))?;
    let regs = fd.get_regs().map_err(kvm_error("tell a vCPU's registers"))?;
    let sregs = fd.get_sregs().map_err(kvm_error("tell a vCPU's system registers"))?;
    let xsave = fd.get_xsave().map_err(kvm_error("tell a vCPU's extended state"))?;
    let xcrs = fd.get_xcrs().map_err(kvm_error("tell a vCPU's extended control registers"))?;
    let debug_regs = fd.get_debug_regs().map_err(kvm_error("tell a vCPU's debug registers"))?;
    let lapic = fd.get_lapic().map_err(kvm_error("tell a vCPU's local APIC"))?;
    let tsc_khz = fd.get_tsc_khz().map_err(kvm_error("tell the rate of a vCPU's time stamp counter"))?;
    let msrs = read_msrs(fd, msrs)?;
    let events = fd.get_vcpu_events().map_err(kvm_error("tell a vCPU's pending events"))?;
    Ok(VcpuState { index, regs, sregs, xsave, xcrs, msrs, lapic, mp_state, events, debug_regs, tsc_khz })
}

/// Sets the state of a vCPU that has not run yet.
pub(super) fn restore(fd: &VcpuFd, state: &VcpuState) -> Result<(), MachineError> {
    if fd.get_tsc_khz().is_ok_and(|khz| khz != state.tsc_khz) {
        fd.set_tsc_khz(state.tsc_khz).map_err(kvm_error("set the rate of a vCPU's time stamp counter"))?;
    }
    fd.set_mp_state(state.mp_state).map_err(kvm_error("set a vCPU's run state"))?;
    fd.set_regs(&state.regs).map_err(kvm_error("set a vCPU's registers"))?;
    fd.set_sregs(&state.sregs).map_err(kvm_error("set a vCPU's system registers"))?;
    set_xsave(fd, &state.xsave)?;
    fd.set_xcrs(&state.xcrs).map_err(kvm_error("set a vCPU's extended control registers"))?;
    fd.set_debug_regs(&state.debug_regs).map_err(kvm_error("set a vCPU's debug registers"))?;
    fd.set_lapic(&state.lapic).map_err(kvm_error("set a vCPU's local APIC"))?;
    write_msrs(fd, state.msrs.iter().filter(|msr| msr.index != TSC_DEADLINE))?;
    write_msrs(fd, state.msrs.iter().filter(|msr| msr.index == TSC_DEADLINE))?;
    fd.set_vcpu_events(&state.events).map_err(kvm_error("set a vCPU's pending events"))
}

fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), MachineError> {
    super::sys::set_xsave(fd, xsave).map_err(kvm_error("set a vCPU's extended state"))
}

/// Reads registers; one that KVM refuses ends a call early, and is left out.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, MachineError> {
    let mut left = indices;
    let mut found = Vec::new();
    while !left.is_empty() {
        let some = &left[..left.len().min(MSRS_AT_A_TIME)];
        let wanted: Vec<_> = some.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = to_kvm(&wanted)?;
        let count = fd.get_msrs(&mut msrs).map_err(kvm_error("tell a vCPU's model-specific registers"))?;
        found.extend_from_slice(msrs.as_slice().get(..count).unwrap_or(&[]));
        let done = if count < some.len() { count + 1 } else { count };
        left = &left[done..];
    }
    Ok(found)
}

/// Sets registers, and fails for one that KVM refuses.
pub(super) fn write_msrs<'a>(fd: &VcpuFd, msrs: impl Iterator<Item = &'a kvm_msr_entry>) -> Result<(), MachineError> {
    let msrs: Vec<_> = msrs.copied().collect();
    for some in msrs.chunks(MSRS_AT_A_TIME) {
        let count = fd.set_msrs(&to_kvm(some)?).map_err(kvm_error("set a vCPU's model-specific registers"))?;
        if let Some(refused) = some.get(count) {
            return Err(MachineError::Kvm {
                what: "set all of a vCPU's model-specific registers",
                source: io::Error::other(format!("register {:#x} takes no {:#x}", refused.index, refused.data)),
            });
        }
    }
    Ok(())
}

fn to_kvm(msrs: &[kvm_msr_entry]) -> Result<Msrs, MachineError> {
    Msrs::from_entries(msrs).map_err(|_| MachineError::Capability("room for the model-specific registers"))
}
