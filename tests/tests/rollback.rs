//! A creation that fails at any of its steps leaves the host as it was.

use std::time::Duration;

use stockade_tests::harness::{Bundle, HostState, Stockade};

/// The steps before the hooks, by which no hook has run.
const BEFORE_THE_HOOKS: [&str; 9] = [
    "bundle",
    "configuration",
    "begin-cgroup",
    "reserve-id",
    "stdio",
    "rootfs",
    "factory",
    "share",
    "network-namespace",
];

/// Lets the step fail when it is done, so that its own work is undone as well.
fn fails_at(stockade: &Stockade, step: &str) {
    let before = HostState::capture(stockade);
    let id = stockade.id(step);
    let witness = stockade.folder().join(format!("{step}.stopped"));
    let bundle = Bundle::builder()
        .shell("true")
        .bind(stockade.folder(), "/mnt", &["ro"])
        .shell_hook("prestart", "cat >/dev/null")
        .shell_hook("poststop", &format!("cat >{}", witness.display()))
        .build()
        .unwrap();
    let mut command = stockade.create_cmd(&id, &bundle, &[]);
    command.args(["--inject-failure", step]);
    let failure = stockade.spawn(command).wait(Duration::from_secs(90)).failure();
    assert!(failure.contains(step) && failure.contains("injected"), "{step}: {failure}");
    before.assert_same(stockade);
    // The hooks began from their own step on.
    assert_eq!(
        witness.exists(),
        !BEFORE_THE_HOOKS.contains(&step),
        "{step}: poststop hooks run once the first hook began"
    );
}

#[test]
fn a_failure_before_the_machine_leaves_nothing() {
    let stockade = Stockade::new();
    for step in BEFORE_THE_HOOKS.into_iter().chain(["hooks"]) {
        fails_at(&stockade, step);
    }
}

#[test]
fn a_failure_once_the_machine_runs_leaves_nothing() {
    let stockade = Stockade::new();
    for step in ["cgroup", "machine", "begin-join-cgroup", "agent", "join-cgroup"] {
        fails_at(&stockade, step);
    }
}

#[test]
fn a_failure_once_the_files_are_shared_leaves_nothing() {
    let stockade = Stockade::new();
    for step in ["share-files", "container"] {
        fails_at(&stockade, step);
    }
}

#[test]
fn a_failure_at_the_end_leaves_nothing() {
    let stockade = Stockade::new();
    for step in ["one-container", "commit"] {
        fails_at(&stockade, step);
    }
}

#[test]
fn without_an_injected_failure_the_same_creation_succeeds() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("control");
    // What the tests above rely on: without a failure at a step the same creation succeeds.
    let bundle = Bundle::shell("true").unwrap();
    let mut command = stockade.create_cmd(&id, &bundle, &[]);
    command.args(["--inject-failure", "no-such-step"]);
    let _ = stockade.spawn(command).wait(Duration::from_secs(90)).ok();
    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
}
