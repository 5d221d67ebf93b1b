//! Devices that are plugged into the boards that take them.

use crate::fixture::Board;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use stockade_hypervisor::contract::{Machine, guest};
use stockade_hypervisor::{DeviceConfig, HypervisorError, NetQueueFds, StopDeadlines};
use stockade_qemu::MachineType;

/// A network interface of the host's that goes with its descriptor.
fn tap() -> Arc<std::os::fd::OwnedFd> {
    crate::tap::open().expect("a tap device can be made")
}

async fn interfaces_at_the_boot_and_later(board: Board) {
    let interface =
        |last| DeviceConfig::Net { mac: [2, 0, 0, 0, 0, last], queues: NetQueueFds(vec![tap()]), mtu: 1500 };
    let Machine { hypervisor, mut config, keep: _keep } = board.with_options(board.options());
    config.devices.push(interface(1));
    hypervisor.prepare(config).await.unwrap();
    hypervisor.start().await.unwrap();
    hypervisor.add_device(interface(2)).await.unwrap();
    // One whose descriptor is no tap is refused, and leaves its id and bus place free.
    let null: Arc<std::os::fd::OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
    let bad = DeviceConfig::Net { mac: [2, 0, 0, 0, 0, 3], queues: NetQueueFds(vec![null]), mtu: 1500 };
    let error = hypervisor.add_device(bad).await.unwrap_err();
    assert!(matches!(error, HypervisorError::Refused { .. }), "{error}");
    hypervisor.add_device(interface(3)).await.unwrap();
    hypervisor.stop(StopDeadlines::NOW).await.unwrap();
}

#[tokio::test]
async fn q35_has_a_network_interface_from_the_boot_and_another_is_plugged() {
    interfaces_at_the_boot_and_later(Board(MachineType::Q35)).await;
}

#[tokio::test]
async fn pc_has_a_network_interface_from_the_boot_and_another_is_plugged() {
    interfaces_at_the_boot_and_later(Board(MachineType::Pc)).await;
}

/// As many as a PCI bus has places: the bridge itself is on the bus above.
const PLACES: usize = 32;

fn disk(directory: &Path, text: &str) -> DeviceConfig {
    let path = directory.join(text);
    std::fs::write(&path, format!("{text:512}")).unwrap();
    DeviceConfig::Block { path, read_only: true }
}

#[tokio::test]
async fn q35_takes_disks_until_its_bridge_is_full_and_gives_their_places_back() {
    let board = Board(MachineType::Q35);
    let Machine { hypervisor, config, keep: _keep } = board.with_options(board.options());
    let directory = config.run_dir.clone();
    hypervisor.prepare(config).await.unwrap();
    hypervisor.start().await.unwrap();
    let mut guest = guest::connect(&board, hypervisor.as_ref()).await;
    let mut disks = Vec::new();
    let full = loop {
        let text = format!("disk {:02}.", disks.len());
        match hypervisor.add_device(disk(&directory, &text)).await {
            Ok(id) => disks.push((id, text)),
            Err(error) => break error,
        }
        assert!(disks.len() <= PLACES, "more disks than places");
    };
    assert!(matches!(full, HypervisorError::Refused { .. }), "{full}");
    assert!(disks.len() >= PLACES - 1, "only {} disks: {full}", disks.len());
    for (_, text) in &disks {
        let name = guest::ask(&mut guest, &format!("disk {text}")).await;
        assert!(name.starts_with("vd"), "{name}");
    }
    let (id, _) = disks.swap_remove(7);
    hypervisor.remove_device(&id).await.unwrap();
    hypervisor.add_device(disk(&directory, "late.")).await.unwrap();
    let name = guest::ask(&mut guest, "disk late.").await;
    assert!(name.starts_with("vd"), "{name}");
    hypervisor.stop(StopDeadlines::NOW).await.unwrap();
}
