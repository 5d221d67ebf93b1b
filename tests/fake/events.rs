//! What containerd is told, and in which order.

use crate::harness::{Sandbox, eventually, run};
use stockade::actors::container::{Delete, Exec, Pause, Resume, Signal, Start, StartExec, Wait};
use stockade::ids::ExecId;
use stockade::stdio::StdioNames;
use stockade_hypervisor::ExitCause;

fn exec_request(id: &ExecId) -> Exec {
    let process = Box::new(stockade::oci::default_spec().process().clone().expect("a process"));
    Exec { id: id.clone(), process, stdio: StdioNames::default(), stand_in: None }
}

#[test]
fn a_life_with_a_further_process_and_a_pause_is_told_in_containerds_order() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let container = sandbox.find(&sandbox.id).await;
        container.start.ask(Start {}).await.unwrap();
        assert_eq!(sandbox.topics(), ["/tasks/create", "/tasks/start"]);
        let id: ExecId = "e".parse().unwrap();
        container.exec.ask(exec_request(&id)).await.unwrap();
        container.start_exec.ask(StartExec { id: id.clone() }).await.unwrap();
        sandbox.agent.end(&sandbox.id, "e", 3);
        assert_eq!(container.wait.ask(Wait { exec: Some(id.clone()) }).await.unwrap().status, 3);
        container.delete.ask(Delete { exec: Some(id), with_sandbox: false }).await.unwrap();
        container.pause.ask(Pause {}).await.unwrap();
        container.resume.ask(Resume {}).await.unwrap();
        assert_eq!(
            sandbox.topics(),
            ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/paused", "/tasks/resumed"]
        );
        container.signal.ask(Signal { exec: None, signal: 9, all: true }).await.unwrap();
        container.wait.ask(Wait { exec: None }).await.unwrap();
        sandbox.delete(&sandbox.id).await.unwrap();
        assert_eq!(sandbox.topics(), ["/tasks/exit", "/tasks/delete"]);
        drop(container);
        sandbox.leaves_nothing("a life that was told").await;
    });
}

#[test]
fn a_kill_during_the_start_is_told_after_the_start() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.slow_start();
        sandbox.create(sandbox.first()).await.unwrap();
        let container = sandbox.find(&sandbox.id).await;
        let start = container.start.clone();
        let starting = tokio::spawn(async move { start.ask(Start {}).await });
        let asked = format!("start_container {}", sandbox.id);
        eventually("a start", || sandbox.agent.was_asked(&asked)).await;
        container.signal.ask(Signal { exec: None, signal: 9, all: false }).await.unwrap();
        starting.await.unwrap().unwrap();
        container.wait.ask(Wait { exec: None }).await.unwrap();
        assert_eq!(sandbox.topics(), ["/tasks/create", "/tasks/start", "/tasks/exit"]);
        sandbox.delete(&sandbox.id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a kill that was told").await;
    });
}

#[test]
fn the_machines_end_is_an_exit_of_each_process_and_a_creation_that_fails_is_told_to_nobody() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.first()).await.unwrap();
        let container = sandbox.find(&sandbox.id).await;
        container.start.ask(Start {}).await.unwrap();
        let id: ExecId = "e".parse().unwrap();
        container.exec.ask(exec_request(&id)).await.unwrap();
        container.start_exec.ask(StartExec { id }).await.unwrap();
        sandbox.agent.refuse("create_container");
        assert!(sandbox.add(sandbox.request("app", |_| {})).await.is_err());
        assert_eq!(sandbox.topics(), ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"]);
        sandbox.backends.control().crash(ExitCause::GuestPanic);
        container.wait.ask(Wait { exec: None }).await.unwrap();
        let mut told = Vec::new();
        eventually("two exits", || {
            told.extend(sandbox.topics());
            told.len() >= 2
        })
        .await;
        assert_eq!(told, ["/tasks/exit", "/tasks/exit"]);
        sandbox.delete(&sandbox.id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a crash that was told").await;
    });
}
