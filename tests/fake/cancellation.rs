//! A creation that is ended from outside.

use crate::harness::{PATIENCE, Sandbox, eventually, run, run_without_waiting};
use std::process::Command;
use std::time::{Duration, Instant};
use stockade::actors::container::{ContainerState, Pause, Signal, Start, Wait};
use stockade::actors::sandbox::{Inspect, PauseSandbox, SandboxState};
use stockade::error::ErrorKind;
use stockade::oci::Status;
use stockade::state::ProcessId;
use stockade_hypervisor::ExitCause;

fn kill() -> Signal {
    Signal { exec: None, signal: 9, all: false }
}

/// The agent's calls that a creation may hang in.
const CALLS: [&str; 3] = ["version", "create_sandbox", "create_container"];

async fn hangs_in(sandbox: &Sandbox, call: &str) {
    eventually(call, || sandbox.agent.calls().iter().any(|made| made.starts_with(call))).await;
}

#[test]
fn state_is_answered_and_nothing_else_is_done_while_creating() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.hang("create_container");
        let id = sandbox.id.clone();
        let asked = async {
            hangs_in(&sandbox, "create_container").await;
            assert_eq!(sandbox.state_of(&id).await, ContainerState::Creating);
            assert_eq!(sandbox.record(&id).status, Status::Creating);
            let container = sandbox.find(&id).await;
            let denied = container.start.ask(Start {}).await.unwrap_err();
            assert_eq!(denied.kind(), ErrorKind::FailedPrecondition);
            assert!(container.pause.ask(Pause {}).await.is_err());
            assert!(sandbox.handle.pause.ask(PauseSandbox {}).await.is_err());
            assert!(sandbox.add(sandbox.request("other", |_| {})).await.is_err());
            let seen = sandbox.handle.inspect.ask(Inspect {}).await.unwrap();
            assert_eq!(seen["state"], "creating");
            container.signal.ask(kill()).await.unwrap();
        };
        let (created, ()) = tokio::join!(sandbox.create(sandbox.first()), asked);
        assert_eq!(created.unwrap_err().kind(), ErrorKind::Cancelled);
        sandbox.leaves_nothing("a kill").await;
    });
}

#[test]
fn kill_and_delete_cancel_a_creation_wherever_it_hangs() {
    run(async |root| {
        for call in CALLS {
            for delete in [false, true] {
                let sandbox = Sandbox::new(&root);
                sandbox.agent.hang(call);
                let id = sandbox.id.clone();
                let ended = async {
                    hangs_in(&sandbox, call).await;
                    if delete {
                        sandbox.delete(&id).await.unwrap();
                        assert_eq!(*sandbox.state.borrow(), SandboxState::Gone, "{call}");
                        sandbox.leaves_nothing(call).await;
                    } else {
                        sandbox.find(&id).await.signal.ask(kill()).await.unwrap();
                    }
                };
                let (created, ()) = tokio::join!(sandbox.create(sandbox.first()), ended);
                assert_eq!(created.unwrap_err().kind(), ErrorKind::Cancelled, "{call}");
                sandbox.leaves_nothing(call).await;
            }
        }
    });
}

#[test]
fn a_creation_whose_time_is_up_is_rolled_back() {
    for call in CALLS {
        run_without_waiting(async |root| {
            let sandbox = Sandbox::new(&root);
            sandbox.agent.hang(call);
            let mut request = sandbox.first();
            request.limit = Duration::from_secs(5);
            let error = sandbox.create(request).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.one_line());
            sandbox.leaves_nothing(call).await;
        });
    }
}

#[test]
fn an_agent_that_answers_nothing_any_more_does_not_keep_the_creation() {
    run_without_waiting(async |root| {
        let sandbox = Sandbox::new(&root);
        for call in ["create_container", "remove_container", "destroy_sandbox"] {
            sandbox.agent.hang(call);
        }
        let mut request = sandbox.first();
        request.limit = Duration::from_secs(5);
        let begin = tokio::time::Instant::now();
        let error = sandbox.create(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.one_line());
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
        assert!(sandbox.backends.machine().is_some_and(|machine| machine.exit().borrow().is_some()));
    });
}

#[test]
fn the_end_of_the_stand_in_cancels_its_creation() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.hang("create_container");
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut request = sandbox.first();
        request.stand_in = Some(ProcessId::of(process.id().cast_signed()).unwrap());
        let ended = async {
            hangs_in(&sandbox, "create_container").await;
            process.kill().unwrap();
            process.wait().unwrap();
        };
        let (created, ()) = tokio::join!(sandbox.create(request), ended);
        assert_eq!(created.unwrap_err().kind(), ErrorKind::Cancelled);
        sandbox.leaves_nothing("the stand-in's end").await;
    });
}

#[test]
fn the_machines_end_during_a_creation_is_its_failure() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.hang("create_container");
        let ended = async {
            hangs_in(&sandbox, "create_container").await;
            sandbox.backends.control().crash(ExitCause::GuestPanic);
        };
        let (created, ()) = tokio::join!(sandbox.create(sandbox.first()), ended);
        created.unwrap_err();
        sandbox.leaves_nothing("the machine's end").await;
    });
}

#[test]
fn a_hook_that_runs_is_ended_with_its_creation() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        let (id, running) = (sandbox.id.clone(), root.join("running"));
        let request = sandbox.request(&id, |spec| {
            let command = format!("touch {}; exec sleep 1000", running.display());
            spec["hooks"] = serde_json::json!({"createRuntime": [
                {"path": "/bin/sh", "args": ["sh", "-c", command], "env": ["PATH=/usr/bin:/bin"]}]});
        });
        let ended = async {
            eventually("the hook runs", || running.exists()).await;
            sandbox.delete(&id).await.unwrap();
        };
        let begin = Instant::now();
        let (created, ()) = tokio::join!(sandbox.create(request), ended);
        assert_eq!(created.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(begin.elapsed() < PATIENCE);
        sandbox.leaves_nothing("a cancelled hook").await;
    });
}

/// Lets the others run for about this long.
async fn a_moment(length: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < length {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_delete_at_any_moment_of_a_creation_leaves_nothing() {
    run(async |root| {
        let mut outcomes = [0, 0];
        for moment in 0..60 {
            let sandbox = Sandbox::new(&root);
            let id = sandbox.id.clone();
            let deleted = async {
                sandbox.reaches(SandboxState::Creating).await;
                a_moment(Duration::from_micros(150 * moment)).await;
                sandbox.delete(&id).await.unwrap();
                assert_eq!(*sandbox.state.borrow(), SandboxState::Gone);
            };
            let (created, ()) = tokio::join!(sandbox.create(sandbox.first()), deleted);
            outcomes[usize::from(created.is_ok())] += 1;
            sandbox.leaves_nothing(&format!("a delete at {moment}; created: {created:?}")).await;
        }
        assert!(outcomes[0] > 0, "no creation was cancelled");
    });
}

#[test]
fn a_kill_at_any_moment_of_a_creation_takes_effect() {
    run(async |root| {
        for moment in 0..60 {
            let sandbox = Sandbox::new(&root);
            let id = sandbox.id.clone();
            let killed = async {
                sandbox.reaches(SandboxState::Creating).await;
                a_moment(Duration::from_micros(150 * moment)).await;
                let container = sandbox.find(&id).await;
                container.signal.ask(kill()).await.unwrap();
                container.wait.ask(Wait { exec: None }).await.unwrap().status
            };
            let (created, status) = tokio::join!(sandbox.create(sandbox.first()), killed);
            assert_eq!(status, 137);
            if created.is_ok() {
                sandbox.delete(&id).await.unwrap();
            }
            sandbox.leaves_nothing(&format!("a kill at {moment}")).await;
        }
    });
}
