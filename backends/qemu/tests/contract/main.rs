//! The contract suite on real QEMU machines, and what is particular to this backend.
//!
//! The guest is the project's own kernel and initrd with another /init laid over it.

mod fixture;
mod plug;
mod processes;
mod tap;

use fixture::Board;
use stockade_qemu::MachineType;

mod microvm {
    use super::*;
    stockade_hypervisor::hypervisor_contract!(Board(MachineType::Microvm));
}

mod q35 {
    use super::*;
    stockade_hypervisor::hypervisor_contract!(Board(MachineType::Q35));
}

/// pc differs from q35 in its buses.
mod pc {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn devices_plug_as_capabilities_say() {
        stockade_hypervisor::contract::run("devices_plug_as_capabilities_say", &Board(MachineType::Pc)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_agent_is_reached_and_reads_the_share() {
        stockade_hypervisor::contract::run("the_agent_is_reached_and_reads_the_share", &Board(MachineType::Pc)).await;
    }
}
