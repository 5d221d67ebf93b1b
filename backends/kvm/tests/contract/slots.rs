//! Devices that come and go, and the slots that they come into.

use std::fs;
use std::path::PathBuf;

use stockade_hypervisor::contract::{guest, started};
use stockade_hypervisor::{DeviceConfig, DeviceId, Hypervisor, HypervisorError, StopDeadlines};
use stockade_kvm::machine::SLOTS;
use tokio::io::BufReader;
use tokio::net::UnixStream;

use crate::fixture::Monitor;

/// A file that a disk of the guest is to be: its text, and zeros.
pub(crate) fn file(directory: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = directory.path().join(text);
    let mut content = text.as_bytes().to_vec();
    content.resize(64 << 10, 0);
    fs::write(&path, content).unwrap();
    path
}

pub(crate) async fn plug(machine: &dyn Hypervisor, path: PathBuf) -> Result<DeviceId, HypervisorError> {
    machine.add_device(DeviceConfig::Block { path, read_only: true }).await
}

/// Waits for the guest's disk that begins with `text`, and tells its name in the guest.
pub(crate) async fn disk(guest: &mut BufReader<UnixStream>, text: &str) -> String {
    let disk = guest::ask(guest, &format!("disk {text}")).await;
    assert!(disk.starts_with("vd"), "{text}: {disk}");
    disk
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_guest_has_let_go_of_is_used_again() {
    let (machine, _keep) = started(&Monitor).await;
    let mut guest = guest::connect(&Monitor, machine.as_ref()).await;
    let directory = tempfile::tempdir().unwrap();
    for number in 0..SLOTS + 8 {
        // None begins with another's text.
        let text = format!("disk-{number:03}");
        let device = plug(machine.as_ref(), file(&directory, &text)).await.unwrap_or_else(|e| panic!("{text}: {e}"));
        let disk = disk(&mut guest, &text).await;
        assert_eq!(guest::ask(&mut guest, &format!("release {disk}")).await, "released", "{text}");
        machine.remove_device(&device).await.unwrap();
    }
    // Where one was released, two find room beside each other too.
    for text in ["one of two", "two of two"] {
        plug(machine.as_ref(), file(&directory, text)).await.unwrap();
        disk(&mut guest, text).await;
    }
    machine.stop(StopDeadlines::NOW).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_device_the_guest_still_holds_is_not_used_again() {
    let (machine, _keep) = started(&Monitor).await;
    let mut guest = guest::connect(&Monitor, machine.as_ref()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "held");
    let mut plugs = 0;
    let refused = loop {
        let device = match plug(machine.as_ref(), path.clone()).await {
            Ok(device) => device,
            Err(error) => break error,
        };
        if plugs == 0 {
            disk(&mut guest, "held").await;
        }
        machine.remove_device(&device).await.unwrap();
        plugs += 1;
        assert!(plugs < SLOTS, "the share, the agent's sockets and randomness have slots too");
    };
    assert!(refused.to_string().contains("slots"), "{refused}");
    assert_eq!(guest::ask(&mut guest, "echo on").await, "on");
    machine.stop(StopDeadlines::NOW).await.unwrap();
}
