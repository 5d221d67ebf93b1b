//! Saving a machine, and going on from what was saved.

use super::guest::{ask, connect, tell};
use super::{Fixture, Machine, exit, finish, gone, is_wrong_state, prepared, started, within};
use crate::{DeviceConfig, ExitCause, Hypervisor, HypervisorError, MiB, Snapshots, StopDeadlines, VmState};
use std::path::Path;

/// The ability, or that it is denied as a whole.
pub(super) fn snapshots(vm: &dyn Hypervisor) -> Option<&dyn Snapshots> {
    let snapshots = vm.snapshots();
    assert_eq!(vm.capabilities().snapshots, snapshots.is_some());
    snapshots
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("the directory can be read").count()
}

/// Starts the fixture's machine, has its guest remember `text`, pauses it, and saves it to `into`.
async fn saved(fixture: &dyn Fixture, text: &str, into: &Path) {
    let (vm, _keep) = started(fixture).await;
    let processes = vm.processes();
    let mut guest = connect(fixture, vm.as_ref()).await;
    assert_eq!(ask(&mut guest, &format!("remember {text}")).await, "yes");
    let snapshots = snapshots(vm.as_ref()).expect("the caller has looked");
    assert!(is_wrong_state(&snapshots.save(into).await), "a machine that runs is not saved");
    assert_eq!(entries(into), 0);
    within(vm.pause()).await.expect("a running machine pauses");
    snapshots.save(into).await.expect("a paused machine is saved");
    assert_eq!(vm.state(), VmState::Paused);
    // The saved machine itself goes on, which what was saved does not notice.
    within(vm.resume()).await.expect("a paused machine goes on");
    assert_eq!(ask(&mut guest, "recall").await, text);
    assert_eq!(ask(&mut guest, "remember something else").await, "yes");
    finish(vm.as_ref(), &processes).await;
}

pub(super) async fn a_saved_machine_goes_on_in_others(fixture: &dyn Fixture) {
    if snapshots(fixture.machine().hypervisor.as_ref()).is_none() {
        return;
    }
    let files = tempfile::tempdir().expect("there is room for a directory");
    saved(fixture, "what it is for", files.path()).await;
    for _ in 0..2 {
        let (vm, _keep) = prepared(fixture).await;
        let snapshots = snapshots(vm.as_ref()).expect("every machine of a fixture can");
        within(snapshots.restore(files.path())).await.expect("a saved machine is taken on");
        assert_eq!(vm.state(), VmState::Paused);
        assert!(is_wrong_state(&within(snapshots.restore(files.path())).await));
        let processes = vm.processes();
        assert_eq!(processes.is_empty(), !fixture.has_processes());
        within(vm.resume()).await.expect("a paused machine goes on");
        let mut guest = connect(fixture, vm.as_ref()).await;
        assert_eq!(ask(&mut guest, "recall").await, "what it is for");
        assert_eq!(ask(&mut guest, "read contract hello").await, "hello from the host");
        if vm.capabilities().block_hotplug {
            let disk = DeviceConfig::Block { path: "/proc/self/exe".into(), read_only: true };
            let id = within(vm.add_device(disk)).await.expect("a machine that goes on takes a device");
            within(vm.remove_device(&id)).await.expect("and gives it back");
        }
        tell(&mut guest, "poweroff").await;
        assert_eq!(exit(vm.as_ref()).await.cause, ExitCause::GuestShutdown);
        gone(vm.as_ref(), &processes);
    }
}

pub(super) async fn a_machine_is_saved_to_an_empty_directory_only(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let Some(snapshots) = snapshots(vm.as_ref()) else { return };
    let directory = tempfile::tempdir().expect("there is room for a directory");
    within(vm.pause()).await.expect("a running machine pauses");
    let missing = directory.path().join("missing");
    let error = within(snapshots.save(&missing)).await.expect_err("no directory is made");
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(!missing.exists());
    std::fs::write(directory.path().join("mine"), "x").expect("a file can be made");
    let error = within(snapshots.save(directory.path())).await.expect_err("nothing is written beside others' files");
    assert!(error.to_string().contains("empty"), "{error}");
    assert_eq!(entries(directory.path()), 1);
    assert_eq!(vm.state(), VmState::Paused);
    finish(vm.as_ref(), &vm.processes()).await;
}

/// Tries to start a machine with what is in `from`, which must fail and leave nothing.
async fn refused(Machine { hypervisor: vm, config, keep: _keep }: Machine, from: &Path) -> HypervisorError {
    within(vm.prepare(config)).await.expect("a good configuration is taken");
    let snapshots = snapshots(vm.as_ref()).expect("every machine of a fixture can");
    let error = within(snapshots.restore(from)).await.expect_err("there is nothing to take on");
    gone(vm.as_ref(), &[]);
    within(vm.stop(StopDeadlines::NOW)).await.expect("it can be stopped whatever it is");
    error
}

pub(super) async fn a_machine_that_was_not_saved_or_is_another_is_not_taken_on(fixture: &dyn Fixture) {
    if snapshots(fixture.machine().hypervisor.as_ref()).is_none() {
        return;
    }
    let files = tempfile::tempdir().expect("there is room for a directory");
    let error = refused(fixture.machine(), files.path()).await;
    assert!(error.to_string().contains(&files.path().display().to_string()), "{error}");

    saved(fixture, "nothing much", files.path()).await;
    let mut larger = fixture.machine();
    larger.config.memory = MiB(larger.config.memory.0 + 128);
    larger.config.max_memory = larger.config.max_memory.max(larger.config.memory);
    let error = refused(larger, files.path()).await.to_string();
    assert!(error.contains("saved") && error.contains("MiB"), "{error}");

    let mut more = fixture.machine();
    more.config.devices.push(DeviceConfig::Block { path: "/proc/self/exe".into(), read_only: true });
    let error = refused(more, files.path()).await.to_string();
    assert!(error.contains("saved") && error.contains("device"), "{error}");

    for entry in std::fs::read_dir(files.path()).expect("the directory can be read") {
        let path = entry.expect("its entries too").path();
        let whole = std::fs::metadata(&path).expect("the file is there").len();
        let file = std::fs::File::options().write(true).open(&path).expect("the file can be written to");
        file.set_len(whole / 2).expect("and cut");
        refused(fixture.machine(), files.path()).await;
        // Cut is cut: whatever is read next fails as well.
    }
}
