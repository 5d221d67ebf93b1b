//! What is particular to machines that are jailed processes.

use std::time::Duration;

use stockade_hypervisor::contract::{Fixture, Machine, slowness, started};
use stockade_hypervisor::{ExitCause, HypervisorError, ProcessRole, StopDeadlines, VmState};
use stockade_kvm::backend::KvmOptions;

use crate::fixture::Monitor;

#[tokio::test]
async fn sigterm_from_outside_is_a_signal_and_not_a_stop() {
    let (hypervisor, _keep) = started(&Monitor).await;
    let pid = hypervisor.processes().first().unwrap().pid;
    assert!(std::process::Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    let mut exit = hypervisor.exit();
    let exit = tokio::time::timeout(Duration::from_secs(60) * slowness(), exit.wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap();
    let expected = ExitCause::Signal { process: ProcessRole::Hypervisor, signal: 15 };
    assert_eq!(exit.as_ref().unwrap().cause, expected);
}

#[tokio::test]
async fn a_kernel_that_is_none_is_reported_in_the_monitors_words() {
    let mut machine = Monitor.machine();
    Monitor.break_start(&mut machine);
    let Machine { hypervisor, config, keep: _keep } = machine;
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err();
    let HypervisorError::Exited { cause: ExitCause::Status { process, status, message }, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*process, *status), (ProcessRole::Hypervisor, 1));
    assert!(message.contains("kernel"), "{message}");
    assert_eq!(hypervisor.state(), VmState::Stopped);
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let options = KvmOptions { stockade_exe: "/nonexistent/stockade".into(), ..Monitor::options() };
    let Machine { hypervisor, config, keep: _keep } = Monitor::with_options(options);
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/stockade"), "{error}");
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_the_cause() {
    let options = KvmOptions { stockade_exe: "/bin/false".into(), ..Monitor::options() };
    let Machine { hypervisor, config, keep: _keep } = Monitor::with_options(options);
    hypervisor.prepare(config).await.unwrap();
    let error = hypervisor.start().await.unwrap_err();
    assert!(matches!(&error, HypervisorError::Exited { cause: ExitCause::Status { status: 1, .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_caller_that_gives_up_a_start_can_still_stop_it() {
    let Machine { hypervisor, config, keep: _keep } = Monitor.machine();
    hypervisor.prepare(config).await.unwrap();
    let _given_up = tokio::time::timeout(Duration::from_millis(1), hypervisor.start()).await;
    hypervisor.stop(StopDeadlines::NOW).await.unwrap();
    assert_eq!(hypervisor.state(), VmState::Stopped);
    assert!(hypervisor.processes().is_empty());
}
