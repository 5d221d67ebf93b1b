//! The contract suite on real machines of the built-in monitor, and what is particular to this backend. Needs a KVM that
//! runs stock guests.
//!
//! The guest is the project's own kernel and initrd with another /init laid over it.

mod failures;
mod fixture;
mod processes;
mod slots;

use fixture::Monitor;

mod kvm {
    use super::*;
    stockade_hypervisor::hypervisor_contract!(Monitor);
}
