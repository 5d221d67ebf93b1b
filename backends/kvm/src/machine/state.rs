//! A machine's state as values that can be written down. The memory is not among them: it is a file of its own.

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use super::Size;

/// The version of [`MachineState`]. Another version is refused: a saved machine is made again rather than translated.
pub const STATE_VERSION: u32 = 2;

/// A paused machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// What was configured.
    pub size: Size,
    /// KVM's devices.
    pub chips: ChipState,
    /// The vCPUs that were made, by their number; those that were never plugged are missing.
    pub vcpus: Vec<VcpuState>,
    /// The numbers of those that the guest has.
    pub plugged_vcpus: Vec<u8>,
    /// The serial console's registers.
    pub serial: SerialRegisters,
    /// The devices.
    pub slots: Vec<SlotState>,
    /// Slots whose device was taken away after the guest's driver had let go of it: they can be used again.
    pub released_slots: Vec<u8>,
    /// Slots whose device was taken away and which the guest may still hold.
    pub retired_slots: Vec<u8>,
}

/// What KVM itself emulates, beside the vCPUs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipState {
    /// The two PICs and the IOAPIC.
    pub irqchips: Vec<kvm_irqchip>,
    /// The guest's clock.
    pub clock: kvm_clock_data,
}

/// One vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of KVM's interface")]
pub struct VcpuState {
    /// Its number, which is its APIC identifier too.
    pub index: u8,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: kvm_xsave,
    pub xcrs: kvm_xcrs,
    pub msrs: Vec<kvm_msr_entry>,
    pub lapic: kvm_lapic_state,
    pub mp_state: kvm_mp_state,
    pub events: kvm_vcpu_events,
    pub debug_regs: kvm_debugregs,
    /// The rate of its time stamp counter in kHz.
    pub tsc_khz: u32,
}

/// The serial console's registers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of the 16550's registers")]
pub struct SerialRegisters {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub in_buffer: Vec<u8>,
}

/// A device and the slot that it is in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotState {
    /// The slot.
    pub slot: u8,
    /// The state of the transport, queues and device.
    pub device: serde_json::Value,
}
