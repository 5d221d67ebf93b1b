//! The state machine, the exit, and that nothing is left.

use super::snapshots::snapshots;
use super::{Fixture, Machine, exit, finish, gone, is_wrong_state, limit, prepared, started, within};
use crate::{
    DeviceConfig, DeviceId, ExitCause, Hypervisor, HypervisorError, ProcessRole, ResizeRequest, StopDeadlines,
    VmConfig, VmProcess, VmState,
};
use std::path::Path;
use std::time::Duration;

/// Quits in order, without asking the guest.
const QUIT: StopDeadlines =
    StopDeadlines { guest: Duration::ZERO, quit: Duration::from_secs(5), term: Duration::from_secs(5) };

fn a_disk() -> DeviceConfig {
    DeviceConfig::Block { path: "/proc/self/exe".into(), read_only: true }
}

/// Calls everything and checks that exactly what the state forbids is refused.
async fn all_refused_but_allowed(hypervisor: &dyn Hypervisor, config: &VmConfig) {
    use crate::Operation as O;
    let state = hypervisor.state();
    let nowhere = Path::new("/nonexistent/saved");
    let check = |operation: O, refused: bool| {
        assert!(refused, "{operation:?} must be refused in state {state}");
        assert_eq!(hypervisor.state(), state, "a refused {operation:?} changed the state");
    };
    for operation in [
        O::Prepare,
        O::Start,
        O::Pause,
        O::Resume,
        O::AddDevice,
        O::RemoveDevice,
        O::Resize,
        O::Metrics,
        O::AgentChannel,
        O::Save,
        O::Restore,
    ] {
        if state.allows(operation) {
            continue;
        }
        let refused = match operation {
            O::Prepare => is_wrong_state(&within(hypervisor.prepare(config.clone())).await),
            O::Start => is_wrong_state(&within(hypervisor.start()).await),
            O::Pause => is_wrong_state(&within(hypervisor.pause()).await),
            O::Resume => is_wrong_state(&within(hypervisor.resume()).await),
            O::AddDevice => is_wrong_state(&within(hypervisor.add_device(a_disk())).await),
            O::RemoveDevice => is_wrong_state(&within(hypervisor.remove_device(&DeviceId("none".to_owned()))).await),
            O::Resize => is_wrong_state(&within(hypervisor.resize(ResizeRequest::default())).await),
            O::Metrics => is_wrong_state(&within(hypervisor.metrics()).await),
            O::AgentChannel => is_wrong_state(&hypervisor.agent_channel()),
            // The state comes first, so nothing is said of a directory that is not there.
            O::Save | O::Restore => match snapshots(hypervisor) {
                Some(snapshots) if operation == O::Save => is_wrong_state(&within(snapshots.save(nowhere)).await),
                Some(snapshots) => is_wrong_state(&within(snapshots.restore(nowhere)).await),
                // There is nothing to call.
                None => true,
            },
            O::Stop => true,
        };
        check(operation, refused);
    }
}

pub(super) async fn every_operation_in_a_wrong_state_is_refused(fixture: &dyn Fixture) {
    let Machine { hypervisor, config, keep: _keep } = fixture.machine();
    let vm = hypervisor.as_ref();
    assert_eq!(vm.state(), VmState::New);
    all_refused_but_allowed(vm, &config).await;
    within(vm.prepare(config.clone())).await.expect("a good configuration is taken");
    assert_eq!(vm.state(), VmState::Prepared);
    all_refused_but_allowed(vm, &config).await;
    within(vm.start()).await.expect("a prepared machine starts");
    assert_eq!(vm.state(), VmState::Running);
    all_refused_but_allowed(vm, &config).await;
    within(vm.pause()).await.expect("a running machine pauses");
    assert_eq!(vm.state(), VmState::Paused);
    all_refused_but_allowed(vm, &config).await;
    finish(vm, &vm.processes()).await;
    assert_eq!(vm.state(), VmState::Stopped);
    all_refused_but_allowed(vm, &config).await;
}

pub(super) async fn stop_before_the_start_says_that_it_never_ran(fixture: &dyn Fixture) {
    let (vm, _keep) = prepared(fixture).await;
    assert_eq!(vm.processes(), [], "a machine that has not started has no processes");
    assert_eq!(finish(vm.as_ref(), &[]).await.cause, ExitCause::NeverStarted);
    assert_eq!(exit(vm.as_ref()).await.cause, ExitCause::NeverStarted);
    assert!(is_wrong_state(&within(vm.start()).await));
}

pub(super) async fn stop_of_a_new_machine_says_that_it_never_ran(fixture: &dyn Fixture) {
    let Machine { hypervisor, config, keep: _keep } = fixture.machine();
    assert_eq!(finish(hypervisor.as_ref(), &[]).await.cause, ExitCause::NeverStarted);
    assert!(is_wrong_state(&within(hypervisor.prepare(config)).await));
}

pub(super) async fn stop_is_idempotent(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let processes = vm.processes();
    assert_eq!(within(vm.stop(QUIT)).await.expect("it stops").cause, ExitCause::Stopped);
    gone(vm.as_ref(), &processes);
    for _ in 0..2 {
        assert_eq!(within(vm.stop(QUIT)).await.expect("it stops again").cause, ExitCause::Stopped);
    }
    assert_eq!(vm.state(), VmState::Stopped);
}

pub(super) async fn stop_cuts_a_start_short(fixture: &dyn Fixture) {
    let (vm, _keep) = prepared(fixture).await;
    let (start, stop) = within(async { tokio::join!(vm.start(), vm.stop(StopDeadlines::NOW)) }).await;
    // Whichever came first, the machine has ended and both say so.
    let stop = stop.expect("a starting machine can be stopped");
    match start {
        Ok(()) => assert_eq!(stop.cause, ExitCause::Stopped),
        Err(HypervisorError::Exited { cause, .. }) => assert_eq!(cause, stop.cause),
        Err(e) => assert!(matches!(e, HypervisorError::WrongState { .. }), "{e}"),
    }
    assert_eq!(vm.state(), VmState::Stopped);
    gone(vm.as_ref(), &[]);
}

pub(super) async fn concurrent_stops_agree(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let processes = vm.processes();
    let (patient, quick) = within(async { tokio::join!(vm.stop(QUIT), vm.stop(StopDeadlines::NOW)) }).await;
    let (patient, quick) = (patient.expect("it stops"), quick.expect("it stops"));
    assert_eq!(patient, quick);
    assert_eq!(patient.cause, ExitCause::Stopped);
    gone(vm.as_ref(), &processes);
}

pub(super) async fn pause_and_resume_are_idempotent(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    within(vm.resume()).await.expect("a running machine may be resumed");
    for _ in 0..2 {
        within(vm.pause()).await.expect("it pauses");
        assert_eq!(vm.state(), VmState::Paused);
    }
    for _ in 0..2 {
        within(vm.resume()).await.expect("it resumes");
        assert_eq!(vm.state(), VmState::Running);
    }
    within(vm.pause()).await.expect("it pauses again");
    let processes = vm.processes();
    // A paused guest cannot power off: the ladder must not wait for it.
    let exit = within(vm.stop(StopDeadlines { guest: limit() * 2, ..QUIT })).await.expect("a paused machine stops");
    assert_eq!(exit.cause, ExitCause::Stopped);
    gone(vm.as_ref(), &processes);
}

pub(super) async fn a_second_start_is_refused(fixture: &dyn Fixture) {
    let (vm, _keep) = prepared(fixture).await;
    let (first, second) = within(async { tokio::join!(vm.start(), vm.start()) }).await;
    assert!(is_wrong_state(&first) != is_wrong_state(&second), "{first:?}, {second:?}");
    assert!(first.is_ok() || second.is_ok(), "{first:?}, {second:?}");
    assert_eq!(vm.state(), VmState::Running);
    finish(vm.as_ref(), &vm.processes()).await;
}

pub(super) async fn the_exit_is_told_once_and_stays(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let mut early = vm.exit();
    assert_eq!(*early.borrow_and_update(), None);
    finish(vm.as_ref(), &vm.processes()).await;
    within(early.changed()).await.expect("the exit is told");
    let told = early.borrow_and_update().clone();
    assert_eq!(told.as_ref().map(|exit| &exit.cause), Some(&ExitCause::Stopped));
    within(vm.stop(StopDeadlines::NOW)).await.expect("it stops again");
    assert!(!early.has_changed().expect("the machine lives"), "the exit was told twice");
    assert_eq!(*vm.exit().borrow(), told, "a late listener sees it too");
}

fn kill(process: &VmProcess) {
    let done = std::process::Command::new("kill").args(["-KILL", &process.pid.to_string()]).status();
    assert!(done.expect("kill runs").success(), "{process:?} could not be killed");
}

pub(super) async fn a_killed_process_is_the_cause(fixture: &dyn Fixture) {
    if !fixture.has_processes() {
        return;
    }
    for role in [ProcessRole::Hypervisor, ProcessRole::Devices] {
        let (vm, _keep) = started(fixture).await;
        let processes = vm.processes();
        assert_eq!(processes.first().map(|process| process.role), Some(ProcessRole::Hypervisor));
        let Some(victim) = processes.iter().find(|process| process.role == role) else { continue };
        kill(victim);
        let exit = exit(vm.as_ref()).await;
        assert_eq!(exit.cause, ExitCause::Signal { process: role, signal: 9 });
        assert_eq!(vm.state(), VmState::Stopped);
        gone(vm.as_ref(), &processes);
        assert_eq!(within(vm.stop(QUIT)).await.expect("it stops"), exit);
    }
}

pub(super) async fn a_stop_beside_a_kill_ends_with_one_cause(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let processes = vm.processes();
    let kill_first = async {
        if let Some(process) = processes.first() {
            // Either may come first: then there is nothing left to kill.
            let _ = std::process::Command::new("kill").args(["-KILL", &process.pid.to_string()]).output();
        }
    };
    let (stop, ()) = within(async { tokio::join!(vm.stop(QUIT), kill_first) }).await;
    assert_eq!(stop.expect("it stops"), exit(vm.as_ref()).await);
    gone(vm.as_ref(), &processes);
}

pub(super) async fn a_dropped_machine_leaves_no_process(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let processes = vm.processes();
    drop(vm);
    let all_gone = async {
        while processes.iter().any(super::alive) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(all_gone).await;
}

pub(super) async fn processes_and_metrics_are_those_of_the_run(fixture: &dyn Fixture) {
    let Machine { hypervisor: vm, config, keep: _keep } = fixture.machine();
    let (vcpus, memory) = (config.vcpus, config.memory);
    within(vm.prepare(config)).await.expect("a good configuration is taken");
    within(vm.start()).await.expect("a prepared machine starts");
    let processes = vm.processes();
    assert_eq!(!processes.is_empty(), fixture.has_processes());
    assert!(processes.iter().all(super::alive), "{processes:?}");
    let metrics = within(vm.metrics()).await.expect("a running machine has counters");
    assert_eq!((metrics.vcpus, metrics.memory_bytes), (vcpus, memory.bytes()));
    assert_eq!(metrics.resident_bytes > 0, fixture.has_processes());
    assert_eq!(metrics.exits.is_some(), !metrics.devices.is_empty(), "{metrics:?}");
    assert!(metrics.devices.iter().all(|device| (device.errors, device.malformed) == (0, 0)), "{metrics:?}");
    finish(vm.as_ref(), &processes).await;
}

pub(super) async fn a_failed_start_leaves_nothing(fixture: &dyn Fixture) {
    let mut machine = fixture.machine();
    if !fixture.break_start(&mut machine) {
        return;
    }
    let Machine { hypervisor: vm, config, keep: _keep } = machine;
    let run_dir = config.run_dir.clone();
    within(vm.prepare(config)).await.expect("the fixture's fault shows at the start");
    let error = within(vm.start()).await.expect_err("the start fails");
    assert!(!matches!(error, HypervisorError::WrongState { .. }), "{error}");
    assert_eq!(vm.state(), VmState::Stopped);
    gone(vm.as_ref(), &[]);
    let sockets: Vec<_> = std::fs::read_dir(&run_dir)
        .expect("the run directory is the caller's")
        .filter_map(Result::ok)
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sock"))
        .map(|entry| entry.path())
        .collect();
    assert!(sockets.is_empty(), "{sockets:?} are left");
    let cause = exit(vm.as_ref()).await.cause;
    assert!(!matches!(cause, ExitCause::Stopped), "{cause}");
    within(vm.stop(StopDeadlines::NOW)).await.expect("it can be stopped");
}
