//! What is particular to machines that are processes.

use crate::fixture::{Board, KERNEL};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use stockade_contract_guest::machines::{die_with_supervisor, guest};
use stockade_hypervisor::contract::{Machine, slowness};
use stockade_hypervisor::{ExitCause, HypervisorError, ProcessRole, StopDeadlines, VmState};
use stockade_qemu::{MachineType, QemuBackend, QemuOptions};

fn board() -> Board {
    Board(MachineType::Microvm)
}

#[test]
fn a_missing_qemu_says_what_to_install() {
    let options = QemuOptions { binary: "qemu-system-none".into(), ..board().options() };
    let error = QemuBackend::new(options).unwrap_err().to_string();
    assert!(error.contains("path") && error.contains("apt-get install qemu-system-x86"), "{error}");
}

#[tokio::test]
async fn an_option_that_qemu_refuses_is_reported_in_its_words() {
    let options = QemuOptions { cpu_features: "no-such-feature=on".to_owned(), ..board().options() };
    let Machine { hypervisor, config, keep: _keep } = board().with_options(options);
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err();
    let HypervisorError::Exited { cause: ExitCause::Status { process, message, .. }, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*process, ProcessRole::Hypervisor);
    assert!(message.contains("no-such-feature"), "{message}");
}

#[tokio::test]
async fn a_device_process_that_cannot_begin_is_the_cause() {
    let options = QemuOptions { stockade_exe: "/bin/false".into(), ..board().options() };
    let Machine { hypervisor, config, keep: _keep } = board().with_options(options);
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err();
    let HypervisorError::Exited { cause: ExitCause::Status { process, status, .. }, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*process, *status), (ProcessRole::Devices, 1));
    assert_eq!(hypervisor.state(), VmState::Stopped);
}

#[tokio::test]
async fn a_device_process_that_is_missing_is_named() {
    let options = QemuOptions { stockade_exe: "/nonexistent/stockade".into(), ..board().options() };
    let Machine { hypervisor, config, keep: _keep } = board().with_options(options);
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/stockade"), "{error}");
}

#[tokio::test]
async fn a_network_namespace_that_is_none_fails_the_start() {
    let Machine { hypervisor, mut config, keep: _keep } = board().with_options(board().options());
    config.netns = Some(Arc::new(File::open("/dev/null").unwrap().into()));
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err().to_string();
    assert!(error.contains("network namespace"), "{error}");
    assert!(hypervisor.processes().is_empty());
}

#[tokio::test]
async fn sigterm_from_outside_is_a_signal_and_not_a_stop() {
    let Machine { hypervisor, config, keep: _keep } = board().with_options(board().options());
    hypervisor.prepare(config).await.unwrap();
    hypervisor.start().await.unwrap();
    let pid = hypervisor.processes().first().unwrap().pid;
    assert!(std::process::Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    let mut exit = hypervisor.exit();
    let exit = tokio::time::timeout(Duration::from_secs(10) * slowness(), exit.wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap();
    let expected = ExitCause::Signal { process: ProcessRole::Hypervisor, signal: 15 };
    assert_eq!(exit.as_ref().unwrap().cause, expected);
}

#[tokio::test]
async fn a_caller_that_gives_up_a_start_can_still_stop_it() {
    let Machine { hypervisor, config, keep: _keep } = board().with_options(board().options());
    hypervisor.prepare(config).await.unwrap();
    let _given_up = tokio::time::timeout(Duration::from_millis(1), hypervisor.start()).await;
    hypervisor.stop(StopDeadlines::NOW).await.unwrap();
    assert_eq!(hypervisor.state(), VmState::Stopped);
    assert!(hypervisor.processes().is_empty());
}

#[test]
fn a_killed_supervisor_takes_both_processes_along() {
    let directory = tempfile::tempdir().unwrap();
    let mut supervisor = std::process::Command::new(crate::fixture::HELPER);
    supervisor
        .arg("supervise")
        .args([&guest(KERNEL).join(KERNEL), directory.path()])
        .arg(crate::fixture::accelerator());
    die_with_supervisor(&mut supervisor, 2, Duration::from_secs(2) * slowness());
}
