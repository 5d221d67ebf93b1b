//! Further containers of a sandbox.

use crate::harness::{Sandbox, eventually, run};
use serde_json::json;
use stockade::actors::container::{ContainerState, Signal, Start, Wait};
use stockade::actors::sandbox::SandboxState;
use stockade::error::ErrorKind;
use stockade_hypervisor::ExitCause;

#[test]
fn a_further_container_comes_and_goes_and_the_sandbox_stays() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let before = sandbox.journal();
        sandbox.add(sandbox.request("app", |_| {})).await.unwrap();
        let app = sandbox.find("app").await;
        app.start.ask(Start {}).await.unwrap();
        assert_eq!(sandbox.state_of("app").await, ContainerState::Running);
        assert_eq!(sandbox.state_of(&sandbox.id).await, ContainerState::Created);
        app.signal.ask(Signal { exec: None, signal: 9, all: true }).await.unwrap();
        assert_eq!(app.wait.ask(Wait { exec: None }).await.unwrap().status, 137);
        sandbox.delete("app").await.unwrap();
        assert_eq!(sandbox.journal(), before);
        assert_eq!(*sandbox.state.borrow(), SandboxState::Up);
        sandbox.delete(&sandbox.id).await.unwrap();
        drop(app);
        sandbox.leaves_nothing("a further container").await;
    });
}

#[test]
fn a_sandbox_with_further_containers_is_not_deleted() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        sandbox.add(sandbox.request("app", |_| {})).await.unwrap();
        let refused = sandbox.delete(&sandbox.id).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        assert!(refused.one_line().contains("app"), "{}", refused.one_line());
        sandbox.delete("app").await.unwrap();
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("a refused delete").await;
    });
}

#[test]
fn a_further_container_that_fails_leaves_the_sandbox_as_it_was() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let before = sandbox.journal();
        let fails = json!([{"path": "/bin/false"}]);
        let bad = [
            (
                "same-sandbox",
                sandbox.request("app", |spec| {
                    spec["annotations"]["io.kubernetes.cri.sandbox-id"] = "another".into();
                }),
            ),
            ("rootfs", sandbox.request("app2", |spec| spec["root"]["path"] = "nowhere".into())),
            ("hooks", sandbox.request("app3", |spec| spec["hooks"] = json!({"createRuntime": fails}))),
        ];
        for (step, request) in bad {
            let error = sandbox.add(request).await.unwrap_err();
            let expected = if step == "rootfs" { "root" } else { step };
            assert!(error.one_line().contains(expected), "{step}: {}", error.one_line());
            assert_eq!(sandbox.journal(), before, "{step}");
        }
        sandbox.agent.refuse("create_container");
        let error = sandbox.add(sandbox.request("app4", |_| {})).await.unwrap_err();
        assert!(error.one_line().starts_with("step container: "), "{}", error.one_line());
        assert_eq!(sandbox.journal(), before);
        assert_eq!(*sandbox.state.borrow(), SandboxState::Up);
        assert_eq!(sandbox.store.container_ids().unwrap().len(), 1);
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("further containers that failed").await;
    });
}

#[test]
fn an_id_is_used_once_in_a_sandbox() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let (one, two) =
            tokio::join!(sandbox.add(sandbox.request("app", |_| {})), sandbox.add(sandbox.request("app", |_| {})));
        one.unwrap();
        assert_eq!(two.unwrap_err().kind(), ErrorKind::AlreadyExists);
        sandbox.delete("app").await.unwrap();
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("an id that was taken").await;
    });
}

#[test]
fn a_further_container_that_is_deleted_while_it_is_created_is_gone() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let before = sandbox.journal();
        sandbox.agent.hang("create_container");
        let deleted = async {
            eventually("the call", || sandbox.agent.was_asked("create_container app")).await;
            sandbox.delete("app").await.unwrap();
        };
        let (created, ()) = tokio::join!(sandbox.add(sandbox.request("app", |_| {})), deleted);
        assert_eq!(created.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(sandbox.journal(), before);
        assert_eq!(*sandbox.state.borrow(), SandboxState::Up);
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("a cancelled further container").await;
    });
}

#[test]
fn the_machines_end_stops_every_container() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        sandbox.add(sandbox.request("app", |_| {})).await.unwrap();
        let (first, app) = (sandbox.find(&sandbox.id).await, sandbox.find("app").await);
        first.start.ask(Start {}).await.unwrap();
        sandbox.backends.control().crash(ExitCause::GuestPanic);
        for container in [&first, &app] {
            assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 137);
        }
        sandbox.delete("app").await.unwrap();
        sandbox.delete(&sandbox.id).await.unwrap();
        drop((first, app));
        sandbox.leaves_nothing("the machine's end").await;
    });
}
