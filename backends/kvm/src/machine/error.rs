//! Why a machine could not do what was asked.

use std::io;

use crate::loader::LoadError;

/// Why an operation on a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration makes no sense.
    #[error("cannot use the machine's configuration: {option}: {problem}")]
    Config {
        /// The field.
        option: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The kernel or what belongs to it cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// This KVM lacks something.
    #[error("this KVM cannot run the machine: it has no {0}")]
    Capability(&'static str),
    /// A call on KVM failed.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another call on the host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// All places for devices are taken, or not to be used again.
    #[error("all {0} slots for devices are taken, or were left by a device that the guest's driver had not let go of")]
    NoSlot(usize),
    /// No device is in the slot.
    #[error("no device is in slot {0}")]
    EmptySlot(u8),
    /// The slot holds a device, or held one that the guest has seen.
    #[error("slot {0} is not free")]
    SlotTaken(u8),
    /// The device cannot be made part of the machine.
    #[error("cannot attach the device")]
    Device(#[source] Box<crate::virtio::transport::TransportError>),
    /// The machine is not in a state for this.
    #[error("cannot {operation} a machine that is {state}")]
    State {
        /// What was asked.
        operation: &'static str,
        /// What the machine is.
        state: &'static str,
    },
    /// The saved state is not of this kind of machine.
    #[error("cannot take the saved state on: {0}")]
    SavedState(String),
    /// A vCPU's thread does not answer.
    #[error("vCPU {0} has not stopped in time")]
    VcpuStuck(u8),
}
