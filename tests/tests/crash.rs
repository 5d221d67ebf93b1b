//! Processes of a sandbox that die in any of its states: it is seen at once, and nothing stays.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stockade_tests::harness::{Backend, Bundle, HostState, Stockade, wait};

const SOON: Duration = Duration::from_secs(20);
/// Within this time a container whose machine has died is stopped for everybody who asks.
const SEEN: Duration = Duration::from_secs(2);
/// What a busy machine with emulated processors may add, the asking included.
const SLACK: Duration = Duration::from_secs(2);
const IDLE: &str = "trap 'exit 143' TERM; echo up; while :; do sleep 1; done";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Machine,
    Devices,
    Supervisor,
    StandIn,
}

impl Victim {
    fn pid(self, stockade: &Stockade, id: &str) -> Option<i32> {
        match self {
            Self::Machine => stockade.monitors().first().copied(),
            Self::Devices => stockade.pids(Backend::under_test().devices_process()).first().copied(),
            Self::Supervisor => Some(stockade.supervisor_pid(id)),
            Self::StandIn => stockade.pids("stand-in").first().copied(),
        }
    }

    fn kill(self, stockade: &Stockade, id: &str) {
        let pid = wait::until_some(SOON, || self.pid(stockade, id)).unwrap_or_else(|| panic!("there is no {self:?}"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}

/// Brings a container to `status`, kills `victim`, and looks at what follows.
fn crash(victim: Victim, status: &str) {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("crash");
    let bundle = Bundle::shell(IDLE).unwrap();
    let _ = stockade.create(&id, &bundle, &[]).ok();
    if status != "created" {
        let _ = stockade.start(&id).ok();
    }
    if status == "paused" {
        let _ = stockade.call(["pause", &id]).ok();
    }
    assert_eq!(stockade.status(&id), status);

    victim.kill(&stockade, &id);
    let begin = Instant::now();
    stockade.wait_status(&id, "stopped", SEEN + SLACK);
    println!("{victim:?} killed while {status}: stopped after {:?}", begin.elapsed());
    assert!(!stockade.exec_shell(&id, "true").failure().is_empty());
    if victim == Victim::Supervisor {
        assert!(
            wait::until(SOON, || stockade.pids("").is_empty()),
            "the supervisor's processes outlive it: {:?}",
            HostState::capture(&stockade)
        );
    }
    let _ = stockade.delete(&id, &["--force"]).ok();
    assert_eq!(stockade.status(&id), "none");
    before.assert_same(&stockade);
}

#[test]
fn a_machine_killed_while_the_container_is_created_stops_it() {
    crash(Victim::Machine, "created");
}

#[test]
fn a_machine_killed_while_the_container_runs_stops_it() {
    crash(Victim::Machine, "running");
}

#[test]
fn a_machine_killed_while_the_container_is_paused_stops_it() {
    crash(Victim::Machine, "paused");
}

#[test]
fn devices_killed_while_the_container_is_created_stop_it() {
    crash(Victim::Devices, "created");
}

#[test]
fn devices_killed_while_the_container_runs_stop_it() {
    crash(Victim::Devices, "running");
}

#[test]
fn devices_killed_while_the_container_is_paused_stop_it() {
    crash(Victim::Devices, "paused");
}

#[test]
fn a_supervisor_killed_while_the_container_is_created_takes_all_with_it() {
    crash(Victim::Supervisor, "created");
}

#[test]
fn a_supervisor_killed_while_the_container_runs_takes_all_with_it() {
    crash(Victim::Supervisor, "running");
}

#[test]
fn a_supervisor_killed_while_the_container_is_paused_takes_all_with_it() {
    crash(Victim::Supervisor, "paused");
}

#[test]
fn a_stand_in_killed_while_the_container_runs_takes_it_with_it() {
    crash(Victim::StandIn, "running");
}

#[test]
fn a_guest_whose_kernel_panics_stops_the_container_and_run_returns() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("panic");
    // Without read-only paths the container reaches the kernel's trigger; the agent, as the guest's init, dies with it.
    let bundle = Bundle::builder()
        .shell("echo up; sleep 1; echo c >/proc/sysrq-trigger; sleep 1000")
        .edit(|config| {
            config["linux"]["readonlyPaths"] = serde_json::json!([]);
            config["linux"]["maskedPaths"] = serde_json::json!([]);
        })
        .build()
        .unwrap();
    let running = stockade.start_run(&id, &bundle, &[]);
    assert!(wait::until(Duration::from_secs(90), || running.text() == "up\n"));
    let begin = Instant::now();
    assert_eq!(running.wait(SOON).code(), 137);
    println!("a run whose guest panicked returned after {:?}", begin.elapsed());
    before.assert_same(&stockade);
}

#[test]
fn what_dies_during_a_creation_fails_it_and_nothing_stays() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let bundle = Bundle::shell("true").unwrap();
    for victim in [Victim::Machine, Victim::Devices, Victim::Supervisor, Victim::StandIn] {
        let id = stockade.id("creating");
        let creating = stockade.start_create(&id, &bundle, &[]);
        // The machine's processes are there from the start; now its guest boots.
        assert!(wait::until(SOON, || stockade
            .log()
            .contains(&format!("sandbox={id} [message:CreateSandbox step:machine]"))));
        victim.kill(&stockade, &id);
        let begin = Instant::now();
        let failure = creating.wait(SOON).failure();
        println!("{victim:?} killed during a creation, which failed after {:?}: {failure}", begin.elapsed());
        assert!(begin.elapsed() < wait::scaled(Duration::from_secs(5)), "{victim:?}: {:?}", begin.elapsed());
        assert_eq!(stockade.status(&id), "none");
        before.assert_same(&stockade);
    }
}

#[test]
fn what_dies_during_a_deletion_is_cleaned_up_by_it() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let bundle = Bundle::shell(IDLE).unwrap();
    for victim in [Victim::Machine, Victim::Supervisor] {
        let id = stockade.id("leaving");
        stockade.launch(&id, &bundle);
        let pid = victim.pid(&stockade, &id).unwrap();
        let deleting = stockade.start_call(["delete", "--force", &id]);
        let leaving = format!("sandbox={id} stockade::actors::sandbox::actor: sandbox from=\"Up\" to=\"Leaving\"");
        assert!(wait::until(SOON, || stockade.log().contains(&leaving)));
        // It may be through already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = deleting.wait(SOON).ok();
        assert_eq!(stockade.status(&id), "none");
        before.assert_same(&stockade);
    }
}

#[test]
fn gc_removes_what_a_killed_supervisor_left_and_nothing_of_the_living() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let (dead, living) = (stockade.id("dead"), stockade.id("living"));
    let bundles = [0, 1].map(|_| Bundle::shell(IDLE).unwrap());
    stockade.launch(&dead, &bundles[0]);
    stockade.launch(&living, &bundles[1]);
    Victim::Supervisor.kill(&stockade, &dead);
    assert!(wait::until(SOON, || stockade.pids(&dead).is_empty()));
    let removed = stockade.call(["gc"]).ok().text();
    assert!(removed.contains(&dead) && !removed.contains(&living), "{removed}");
    assert_eq!(stockade.status(&dead), "none");
    assert!(!HostState::capture(&stockade).mentions(&dead));
    assert_eq!(stockade.exec_shell(&living, "echo alive").ok().text(), "alive\n");
    let _ = stockade.delete(&living, &["--force"]).ok();
    before.assert_same(&stockade);
    assert_eq!(stockade.call(["gc"]).ok().text(), "");
    assert!(fs::read_dir(stockade.root().join("sandboxes")).unwrap().next().is_none());
}
