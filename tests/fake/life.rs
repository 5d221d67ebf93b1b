//! What happens to containers that exist.

use crate::harness::{Sandbox, run};
use std::process::Command;
use stockade::actors::container::{
    ContainerState, Delete, Describe, Exec, Pause, Resume, Signal, Start, StartExec, Wait,
};
use stockade::actors::sandbox::SandboxState;
use stockade::error::ErrorKind;
use stockade::ids::ExecId;
use stockade::oci::Status;
use stockade::state::ProcessId;
use stockade::stdio::StdioNames;
use stockade_hypervisor::{ExitCause, Operation, ProcessRole};

async fn running(root: &std::path::Path) -> Sandbox {
    let sandbox = Sandbox::new(root);
    sandbox.create(sandbox.first()).await.unwrap();
    sandbox.find(&sandbox.id).await.start.ask(Start {}).await.unwrap();
    sandbox
}

#[test]
fn the_machines_crash_stops_its_container_and_the_record_says_so() {
    run(async |root| {
        let sandbox = running(&root).await;
        let id = sandbox.id.clone();
        let container = sandbox.find(&id).await;
        sandbox.backends.control().crash(ExitCause::Signal { process: ProcessRole::Hypervisor, signal: 9 });
        assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 137);
        sandbox.reaches(SandboxState::Down).await;
        crate::harness::eventually("a record", || sandbox.record(&id).status == Status::Stopped).await;
        assert_eq!(sandbox.record(&id).exit_status, Some(137));
        assert!(sandbox.add(sandbox.request("other", |_| {})).await.is_err());
        sandbox.delete(&id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a crash").await;
    });
}

#[test]
fn a_kill_during_the_start_ends_the_container_with_its_signal_and_does_not_fail_the_start() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.slow_start();
        sandbox.create(sandbox.first()).await.unwrap();
        let container = sandbox.find(&sandbox.id).await;
        let start = container.start.clone();
        let starting = tokio::spawn(async move { start.ask(Start {}).await });
        let asked = format!("start_container {}", sandbox.id);
        crate::harness::eventually("a start", || sandbox.agent.was_asked(&asked)).await;
        let state = container.describe.ask(Describe { exec: None }).await.unwrap().state;
        assert_eq!((state, state.status()), (ContainerState::Starting, Status::Created));
        let again = container.start.ask(Start {}).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::FailedPrecondition);
        container.signal.ask(Signal { exec: None, signal: 9, all: false }).await.unwrap();
        starting.await.unwrap().unwrap();
        assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 137);
        sandbox.delete(&sandbox.id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a kill during the start").await;
    });
}

#[test]
fn a_start_that_fails_leaves_the_container_created() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        sandbox.agent.refuse("start_container");
        sandbox.create(sandbox.first()).await.unwrap();
        let container = sandbox.find(&sandbox.id).await;
        assert!(container.start.ask(Start {}).await.is_err());
        let state = container.describe.ask(Describe { exec: None }).await.unwrap().state;
        assert_eq!(state, ContainerState::Created);
        sandbox.delete(&sandbox.id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a failed start").await;
    });
}

#[test]
fn an_agent_that_is_lost_ends_the_machine() {
    run(async |root| {
        let sandbox = running(&root).await;
        let id = sandbox.id.clone();
        let container = sandbox.find(&id).await;
        sandbox.agent.vanish();
        sandbox.reaches(SandboxState::Down).await;
        assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 137);
        assert!(sandbox.backends.control().calls().contains(&Operation::Stop));
        sandbox.delete(&id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("the agent's loss").await;
    });
}

#[test]
fn the_end_of_the_stand_in_kills_its_container() {
    run(async |root| {
        let sandbox = Sandbox::new(&root);
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut request = sandbox.first();
        request.stand_in = Some(ProcessId::of(process.id().cast_signed()).unwrap());
        sandbox.create(request).await.unwrap();
        let container = sandbox.find(&sandbox.id).await;
        container.start.ask(Start {}).await.unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 137);
        sandbox.delete(&sandbox.id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("the stand-in's end").await;
    });
}

#[test]
fn a_second_delete_beside_the_first_undoes_nothing_twice() {
    run(async |root| {
        for _ in 0..10 {
            let sandbox = Sandbox::new(&root);
            sandbox.create(sandbox.first()).await.unwrap();
            let id = sandbox.id.clone();
            let (one, two) = tokio::join!(sandbox.delete(&id), sandbox.delete(&id));
            one.unwrap();
            let refused = two.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{}", refused.one_line());
            assert_eq!(*sandbox.state.borrow(), SandboxState::Gone);
            let calls = sandbox.agent.calls();
            assert_eq!(calls.iter().filter(|made| *made == "destroy_sandbox").count(), 1, "{calls:?}");
            assert_eq!(sandbox.delete(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
            sandbox.leaves_nothing("two deletes").await;
        }
    });
}

#[test]
fn everybody_who_waits_hears_of_the_end_and_may_ask_again() {
    run(async |root| {
        let sandbox = running(&root).await;
        let id = sandbox.id.clone();
        let container = sandbox.find(&id).await;
        let wait = || container.wait.ask(Wait { exec: None });
        let (one, two, ()) = tokio::join!(wait(), wait(), async { sandbox.agent.end(&id, "", 3) });
        let (one, two, again) = (one.unwrap(), two.unwrap(), wait().await.unwrap());
        assert_eq!((one, two), (two, again));
        assert_eq!(one.status, 3);
        sandbox.delete(&id).await.unwrap();
        assert_eq!(wait().await.unwrap().status, 3);
    });
}

#[test]
fn a_container_is_paused_resumed_and_killed() {
    run(async |root| {
        let sandbox = running(&root).await;
        let id = sandbox.id.clone();
        let container = sandbox.find(&id).await;
        container.pause.ask(Pause {}).await.unwrap();
        assert_eq!(sandbox.record(&id).status, Status::Paused);
        assert!(container.pause.ask(Pause {}).await.is_err());
        container.resume.ask(Resume {}).await.unwrap();
        assert_eq!(sandbox.state_of(&id).await, ContainerState::Running);
        container.signal.ask(Signal { exec: None, signal: 15, all: false }).await.unwrap();
        assert_eq!(container.wait.ask(Wait { exec: None }).await.unwrap().status, 143);
        assert!(container.signal.ask(Signal { exec: None, signal: 15, all: false }).await.is_err());
        container.signal.ask(Signal { exec: None, signal: 9, all: true }).await.unwrap();
        sandbox.delete(&id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a kill").await;
    });
}

fn exec(id: &ExecId) -> Exec {
    let process = stockade::oci::default_spec().process().clone().unwrap();
    Exec { id: id.clone(), process: Box::new(process), stdio: StdioNames::default(), stand_in: None }
}

#[test]
fn a_further_process_is_registered_started_ended_and_removed() {
    run(async |root| {
        let sandbox = running(&root).await;
        let id = sandbox.id.clone();
        let container = sandbox.find(&id).await;
        let name: ExecId = "shell".parse().unwrap();
        let start = || container.start_exec.ask(StartExec { id: name.clone() });
        let state = async || container.describe.ask(Describe { exec: Some(name.clone()) }).await.unwrap().state;
        assert_eq!(start().await.unwrap_err().kind(), ErrorKind::NotFound);
        container.exec.ask(exec(&name)).await.unwrap();
        assert_eq!(container.exec.ask(exec(&name)).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(state().await, ContainerState::Created);
        start().await.unwrap();
        assert_eq!(start().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert_eq!(state().await, ContainerState::Running);
        let delete = || container.delete.ask(Delete { exec: Some(name.clone()), with_sandbox: false });
        assert_eq!(delete().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        container.signal.ask(Signal { exec: Some(name.clone()), signal: 15, all: false }).await.unwrap();
        assert_eq!(container.wait.ask(Wait { exec: Some(name.clone()) }).await.unwrap().status, 143);
        assert_eq!(delete().await.unwrap().unwrap().status, 143);
        assert_eq!(delete().await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(sandbox.state_of(&id).await, ContainerState::Running);
        sandbox.agent.end(&id, "", 0);
        container.wait.ask(Wait { exec: None }).await.unwrap();
        sandbox.delete(&id).await.unwrap();
        drop(container);
        sandbox.leaves_nothing("a further process").await;
    });
}

#[test]
fn a_process_that_the_guest_refuses_is_forgotten_and_its_name_is_free() {
    run(async |root| {
        let sandbox = running(&root).await;
        let container = sandbox.find(&sandbox.id).await;
        let name: ExecId = "shell".parse().unwrap();
        sandbox.agent.refuse("exec_process");
        for _ in 0..2 {
            container.exec.ask(exec(&name)).await.unwrap();
            container.start_exec.ask(StartExec { id: name.clone() }).await.unwrap_err();
        }
        assert!(container.describe.ask(Describe { exec: Some(name) }).await.is_err());
    });
}

#[test]
fn processes_end_with_their_container() {
    run(async |root| {
        let sandbox = running(&root).await;
        let container = sandbox.find(&sandbox.id).await;
        let name: ExecId = "shell".parse().unwrap();
        container.exec.ask(exec(&name)).await.unwrap();
        container.start_exec.ask(StartExec { id: name.clone() }).await.unwrap();
        let wait = container.wait.ask(Wait { exec: Some(name.clone()) });
        sandbox.agent.end(&sandbox.id, "", 0);
        assert_eq!(wait.await.unwrap().status, 137);
        let refused = container.exec.ask(exec(&"late".parse().unwrap())).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    });
}

#[test]
fn a_sandboxs_figures_are_its_own_and_those_of_one_that_does_not_answer_are_left_out() {
    run(async |root| {
        let sandbox = running(&root).await;
        let id = sandbox.id.parse().unwrap();
        let text = stockade::metrics::sandbox(&id, &sandbox.handle).await.text();
        let has = |text: &str, name: &str| text.contains(&format!("{name}{{sandbox=\"{}\"", sandbox.id));
        for name in ["stockade_sandbox_up", "stockade_supervisor_resident_bytes", "stockade_messages_total"] {
            assert!(has(&text, name), "{name}: {text}");
        }
        assert!(has(&text, "stockade_vmm_vcpus") && !has(&text, "stockade_guest_memory_bytes"), "{text}");
        sandbox.backends.control().crash(ExitCause::GuestPanic);
        sandbox.reaches(SandboxState::Down).await;
        let text = stockade::metrics::sandbox(&id, &sandbox.handle).await.text();
        assert!(has(&text, "stockade_sandbox_up") && !has(&text, "stockade_vmm_vcpus"), "{text}");
        sandbox.delete(&sandbox.id).await.unwrap();
        sandbox.leaves_nothing("figures").await;
    });
}
