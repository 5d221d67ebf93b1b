//! A creation that fails, at each step and in each way, leaves nothing.

use crate::harness::{Sandbox, run, run_without_waiting};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use stockade::actors::sandbox::SandboxState;
use stockade::error::ErrorKind;
use stockade_hypervisor::fake::AgentMode;
use stockade_hypervisor::{ExitCause, HypervisorError, Operation};

/// The steps of a sandbox's creation, in order.
const STEPS: [&str; 22] = [
    "bundle",
    "configuration",
    "begin-network-namespace",
    "begin-cgroup",
    "reserve-id",
    "stdio",
    "rootfs",
    "factory",
    "share",
    "network-namespace",
    "hooks",
    "network",
    "cgroup",
    "machine",
    "begin-join-cgroup",
    "agent",
    "join-cgroup",
    "guest-network",
    "share-files",
    "container",
    "one-container",
    "commit",
];

/// A bundle with all that has to be undone: hooks, and volumes that are a directory and a file.
fn rich(spec: &mut Value, notes: &Path) {
    let (directory, file) = (notes.with_extension("directory"), notes.with_extension("file"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(&file, "content").unwrap();
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for source in [directory, file] {
        mounts.push(json!({"destination": format!("/volumes/{}", mounts.len()), "type": "bind",
            "source": source, "options": ["rbind", "ro"]}));
    }
    let note = |word: &str| {
        let command = format!("echo {word} >> {}", notes.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", command]}])
    };
    spec["hooks"] =
        json!({"prestart": note("prestart"), "createRuntime": note("create"), "poststop": note("poststop")});
}

fn position(calls: &[String], call: &str) -> usize {
    calls.iter().position(|made| made == call).unwrap_or_else(|| panic!("{call} is not among {calls:?}"))
}

#[test]
fn a_failure_after_any_step_undoes_everything_in_reverse() {
    run(async |root| {
        for (index, step) in STEPS.into_iter().enumerate() {
            let sandbox = Sandbox::failing_at(&root, Some(step));
            let id = sandbox.id.clone();
            let notes = root.join(format!("{id}.notes"));
            let error = sandbox.create(sandbox.request(&id, |spec| rich(spec, &notes))).await.unwrap_err();
            assert!(error.one_line().starts_with(&format!("step {step}: ")), "{step}: {}", error.one_line());
            assert!(!error.one_line().contains("could not"), "{}", error.one_line());
            assert_eq!(*sandbox.state.borrow(), SandboxState::Gone, "{step}");
            let noted = std::fs::read_to_string(&notes).unwrap_or_default();
            let hooked = index >= STEPS.iter().position(|step| *step == "hooks").unwrap();
            assert_eq!(noted, if hooked { "prestart\ncreate\npoststop\n" } else { "" }, "{step}");
            let calls = sandbox.agent.calls();
            if index >= STEPS.iter().position(|step| *step == "container").unwrap() {
                let made = position(&calls, &format!("create_container {id}"));
                let removed = position(&calls, &format!("remove_container {id}"));
                assert!(made < removed && removed < position(&calls, "destroy_sandbox"), "{step}: {calls:?}");
            }
            let machine = index >= STEPS.iter().position(|step| *step == "machine").unwrap();
            assert_eq!(sandbox.backends.prepared(), machine, "{step}");
            sandbox.leaves_nothing(step).await;
        }
    });
}

#[test]
fn what_the_agent_refuses_undoes_everything() {
    run(async |root| {
        for (call, step) in [("version", "agent"), ("create_sandbox", "agent"), ("create_container", "container")] {
            let sandbox = Sandbox::new(&root);
            sandbox.agent.refuse(call);
            let error = sandbox.create(sandbox.first()).await.unwrap_err();
            assert!(error.one_line().starts_with(&format!("step {step}: ")), "{}", error.one_line());
            assert!(error.one_line().contains("refused by the test"), "{}", error.one_line());
            sandbox.leaves_nothing(call).await;
        }
    });
}

#[test]
fn a_guest_whose_clock_cannot_be_set_is_used_all_the_same() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.refuse("set_guest_date_time");
        sandbox.create(sandbox.first()).await.unwrap();
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("a clock that is not set").await;
    });
}

#[test]
fn a_machine_that_does_not_come_up_undoes_everything() {
    run(async |root| {
        for operation in [Operation::Prepare, Operation::Start] {
            let sandbox = Sandbox::new(&root);
            sandbox.backends.script(move |machine| {
                let cause = ExitCause::GuestPanic;
                machine.fail_once(operation, move || HypervisorError::Exited { operation, cause: cause.clone() });
            });
            let error = sandbox.create(sandbox.first()).await.unwrap_err();
            assert!(error.one_line().starts_with("step machine: "), "{}", error.one_line());
            sandbox.leaves_nothing("a machine that does not come up").await;
        }
    });
}

#[test]
fn a_machine_that_dies_before_its_agent_answers_is_an_error_at_once() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.backends.script(|machine| machine.set_agent_mode(AgentMode::Silent));
        let died = async {
            sandbox.reaches(SandboxState::Creating).await;
            crate::harness::eventually("a machine", || {
                sandbox.backends.machine().is_some_and(|machine| machine.agent_channel().is_ok())
            })
            .await;
            sandbox.backends.control().crash(ExitCause::GuestPanic);
        };
        let (created, ()) = tokio::join!(sandbox.create(sandbox.first()), died);
        let text = created.unwrap_err().one_line();
        assert!(text.contains("panicked"), "{text}");
        sandbox.leaves_nothing("a machine that died").await;
    });
}

#[test]
fn a_guest_that_never_answers_is_given_up_at_the_limit() {
    for mode in [AgentMode::Silent, AgentMode::Refuse] {
        run_without_waiting(async |root| {
            let sandbox = Sandbox::new(&root);
            sandbox.backends.script(move |machine| machine.set_agent_mode(mode));
            let mut request = sandbox.first();
            request.limit = Duration::from_secs(3600);
            let error = sandbox.create(request).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.one_line());
            sandbox.leaves_nothing("a guest that never answers").await;
        });
    }
}

#[test]
fn a_hook_that_fails_undoes_everything_and_poststop_still_runs() {
    run(async |root| {
        for phase in ["prestart", "createRuntime"] {
            let sandbox = Sandbox::new(&root);
            let notes = root.join(format!("{}.notes", sandbox.id));
            let request = sandbox.request(&sandbox.id, |spec| {
                rich(spec, &notes);
                spec["hooks"][phase] = json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}]);
            });
            let error = sandbox.create(request).await.unwrap_err();
            assert!(error.one_line().starts_with("step hooks: "), "{}", error.one_line());
            assert!(std::fs::read_to_string(&notes).unwrap().ends_with("poststop\n"));
            assert!(!sandbox.backends.prepared(), "the machine comes after the hooks");
            sandbox.leaves_nothing(phase).await;
        }
    });
}

#[test]
fn an_undo_that_fails_stops_nothing_and_stays_written_down() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.refuse("create_container");
        sandbox.agent.refuse("remove_container");
        let error = sandbox.create(sandbox.first()).await.unwrap_err();
        let left = format!("remove the container {} in the guest", sandbox.id);
        assert!(error.one_line().contains(&left), "{}", error.one_line());
        assert_eq!(sandbox.leftovers(), [format!("journal: {left}")]);
    });
}
