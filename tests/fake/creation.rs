//! What goes well.

use crate::harness::{Sandbox, run};
use serde_json::json;
use stockade::actors::container::{ContainerState, Start, Wait};
use stockade::actors::sandbox::{Inspect, SandboxState};
use stockade::error::ErrorKind;
use stockade::oci::Status;
use stockade_hypervisor::Operation;

#[test]
fn a_container_is_created_started_ends_and_is_deleted() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        let id = sandbox.id.clone();
        assert_eq!(*sandbox.state.borrow(), SandboxState::Empty);
        sandbox.create(sandbox.first()).await.unwrap();
        assert_eq!(*sandbox.state.borrow(), SandboxState::Up);
        assert_eq!(sandbox.state_of(&id).await, ContainerState::Created);
        assert_eq!(sandbox.record(&id).status, Status::Created);

        let container = sandbox.find(&id).await;
        container.start.ask(Start {}).await.unwrap();
        assert_eq!(sandbox.state_of(&id).await, ContainerState::Running);
        assert_eq!(container.start.ask(Start {}).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert_eq!(sandbox.delete(&id).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);

        sandbox.agent.end(&id, "", 7);
        for _ in 0..2 {
            assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 7);
        }
        assert_eq!(sandbox.record(&id).status, Status::Stopped);
        assert_eq!(sandbox.record(&id).exit_status, Some(7));

        assert_eq!(sandbox.delete(&id).await.unwrap().unwrap().status, 7);
        assert_eq!(*sandbox.state.borrow(), SandboxState::Gone);
        assert_eq!(sandbox.backends.control().calls(), [Operation::Prepare, Operation::Start, Operation::Stop]);
        let mut calls = sandbox.agent.calls();
        // These are asked at once.
        calls[..3].sort();
        let expected = [
            "create_sandbox".to_owned(),
            "set_guest_date_time".into(),
            "version".into(),
            format!("create_container {id}"),
            format!("start_container {id}"),
            // It ends what is left of the container.
            "destroy_sandbox".into(),
        ];
        assert_eq!(calls, expected);
        drop(container);
        sandbox.leaves_nothing("a whole life").await;
    });
}

#[test]
fn a_container_with_a_poststop_hook_is_removed_in_the_guest_before_the_hook_runs() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        let id = sandbox.id.clone();
        // It waits until the test has seen what the guest was asked up to then.
        let (began, go_on) = (root.join("began"), root.join("go-on"));
        let script = format!("touch {}; until [ -e {} ]; do sleep 0.01; done", began.display(), go_on.display());
        let request = sandbox.request(&id, |spec| {
            spec["hooks"] = json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
        });
        sandbox.create(request).await.unwrap();
        let look = async {
            while !began.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let calls = sandbox.agent.calls();
            std::fs::write(&go_on, "").unwrap();
            calls
        };
        let (deleted, calls) = tokio::join!(sandbox.delete(&id), look);
        deleted.unwrap();
        assert!(calls.contains(&format!("remove_container {id}")), "{calls:?}");
        assert!(!calls.contains(&"destroy_sandbox".to_owned()), "{calls:?}");
        sandbox.leaves_nothing("a container with a poststop hook").await;
    });
}

#[test]
fn what_must_be_undone_is_written_down_while_the_sandbox_lives() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let written = sandbox.journal().join("\n");
        for part in
            ["control group", "network namespace", "unmount", "end the virtual machine", "let the guest end", "remove"]
        {
            assert!(written.contains(part), "{part} is not in:\n{written}");
        }
        let seen = sandbox.handle.inspect.ask(Inspect {}).await.unwrap();
        assert_eq!(seen["undo"].as_array().unwrap().len(), sandbox.journal().len());
        sandbox.delete(&sandbox.id).await.unwrap();
        assert_eq!(sandbox.journal(), Vec::<String>::new());
    });
}

#[test]
fn a_container_that_was_never_started_can_be_deleted() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        sandbox.delete(&sandbox.id).await.unwrap();
        assert_eq!(*sandbox.state.borrow(), SandboxState::Gone);
        sandbox.leaves_nothing("a deletion before the start").await;
    });
}

#[test]
fn a_sandbox_is_created_once() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        let (one, two) = tokio::join!(sandbox.create(sandbox.first()), sandbox.create(sandbox.first()));
        one.unwrap();
        assert_eq!(two.unwrap_err().kind(), ErrorKind::AlreadyExists);
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("a second creation").await;
    });
}

#[test]
fn a_start_that_the_guest_refuses_leaves_a_container_that_can_be_deleted() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.refuse("start_container");
        sandbox.create(sandbox.first()).await.unwrap();
        let id = sandbox.id.clone();
        let error = sandbox.find(&id).await.start.ask(Start {}).await.unwrap_err();
        assert!(error.one_line().contains("refused by the test"), "{}", error.one_line());
        assert_eq!(sandbox.state_of(&id).await, ContainerState::Created);
        assert_eq!(sandbox.record(&id).status, Status::Created);
        sandbox.delete(&id).await.unwrap();
        sandbox.leaves_nothing("a refused start").await;
    });
}
