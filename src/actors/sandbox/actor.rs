//! The actix shell of the Sandbox actor.

use super::SandboxHandle;
use super::messages::{
    AgentLost, Containers, CreateContainer, CreateSandbox, DeleteContainer, FindContainer, GuestMetrics, Inspect,
    OutOfMemory, PauseSandbox, ResizeSandbox, ResumeSandbox, SandboxStats, StopSandbox, VmExited,
};
use super::state::{Request as Asked, SandboxState, allowed};
use crate::actors::container::{
    ContainerActor, ContainerHandle, ContainerSetup, ContainerState, Created, CreationFailed, Delete, Describe,
    MachineEnded,
};
use crate::actors::factory::{FactoryStatus, Status as AskFactoryStatus};
use crate::actors::network::{DescribeNetwork, Reason, Rescan};
use crate::actors::runtime::{Ask, Envelope, Pending, Request, message_times, now, spawned, tell};
use crate::agent::AgentClient;
use crate::error::{ErrorKind, OpError};
use crate::ids::{ContainerId, SandboxId};
use crate::pipeline::create::{
    CreateRequest, CreatedContainer, CreatedSandbox, Facilities, create_container, create_sandbox,
};
use crate::pipeline::{Runner, SharedJournal, Timeline, UndoFailure};
use crate::stdio::process_end;
use actix::fut::wrap_future;
use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, WeakAddr};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stockade_hypervisor::{Hypervisor, StopDeadlines};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// From one report of the guest's about lack of memory to the next that is listened to.
const OOM_PAUSE: Duration = Duration::from_millis(200);

/// What the actor starts with.
#[derive(Debug)]
pub struct SandboxSetup {
    /// The sandbox.
    pub id: SandboxId,
    /// What its pipelines use.
    pub facilities: Arc<Facilities>,
    /// What is written down.
    pub journal: SharedJournal,
    /// The factory, for `inspect`.
    pub factory: Ask<AskFactoryStatus>,
    /// For tests: `--inject-failure`.
    pub inject_failure: Option<String>,
}

/// The sandbox.
#[derive(Debug)]
pub struct SandboxActor {
    setup: SandboxSetup,
    state: watch::Sender<SandboxState>,
    children: BTreeMap<ContainerId, Child>,
    made: Option<CreatedSandbox>,
    leftovers: Vec<String>,
}

#[derive(Debug)]
struct Child {
    address: Addr<ContainerActor>,
    handle: ContainerHandle,
    timeline: Timeline,
    /// Somebody's deletion is under way.
    leaving: bool,
}

impl SandboxActor {
    /// Starts the actor. Only from the actors' thread. The receiver sees each state; `Gone` is the last.
    pub fn launch(setup: SandboxSetup) -> (SandboxHandle, watch::Receiver<SandboxState>) {
        let state = watch::Sender::new(SandboxState::Empty);
        let seen = state.subscribe();
        let actor = Self { setup, state, children: BTreeMap::new(), made: None, leftovers: Vec::new() };
        (SandboxHandle::new(&actor.start()), seen)
    }

    fn state(&self) -> SandboxState {
        *self.state.borrow()
    }

    fn enter(&self, state: SandboxState) {
        tracing::info!(from = ?self.state(), to = ?state, "sandbox");
        self.state.send_replace(state);
    }

    /// Starts the actor of a container that is about to be created, and the means to cancel it.
    fn adopt(&mut self, request: &CreateRequest) -> (Addr<ContainerActor>, Runner) {
        let first = self.made.is_none();
        let cancel = CancellationToken::new();
        let timeline = Timeline::begin();
        let (address, handle) = ContainerActor::launch(ContainerSetup {
            id: request.id.clone(),
            bundle: request.bundle.display().to_string(),
            stdio: request.stdio.clone(),
            stand_in: request.stand_in,
            cancel: cancel.clone(),
            store: self.setup.facilities.store.clone(),
            hooks: self.setup.facilities.hooks.clone(),
            rootfs: request.rootfs.clone(),
            front: self.setup.facilities.front.clone(),
            rescan: first.then(|| self.setup.facilities.rescan_network.clone()),
        });
        let child = Child { address: address.clone(), handle, timeline: timeline.clone(), leaving: false };
        self.children.insert(request.id.clone(), child);
        let runner = Runner {
            cancel,
            deadline: Instant::now() + request.limit,
            timeline,
            inject_failure: self.setup.inject_failure.clone(),
        };
        (address, runner)
    }

    fn hypervisor(&self, asked: Asked) -> Result<Arc<dyn Hypervisor>, OpError> {
        allowed(self.state(), asked)?;
        let gone = || OpError::new(ErrorKind::FailedPrecondition, "the sandbox has no virtual machine");
        self.made.as_ref().map(|made| made.machine.hypervisor.clone()).ok_or_else(gone)
    }

    fn machine_call<R, F>(
        &self,
        span: tracing::Span,
        asked: Asked,
        call: impl FnOnce(Arc<dyn Hypervisor>) -> F + Send + 'static,
    ) -> Pending<Self, R>
    where
        R: Request,
        F: Future<Output = Result<R::Answer, OpError>> + Send + 'static,
    {
        match self.hypervisor(asked) {
            Ok(hypervisor) => spawned::<_, R, _>(span, async move { call(hypervisor).await }),
            Err(error) => now::<_, R>(Err(error)),
        }
    }
}

impl Actor for SandboxActor {
    type Context = Context<Self>;
}

/// A creation whose stand-in is killed, or whose caller goes away with it, is cancelled.
fn cancel_with_stand_in(request: &CreateRequest, runner: &Runner) -> Option<tokio::task::AbortHandle> {
    let stand_in = request.stand_in?;
    let cancel = runner.cancel.clone();
    let watcher = tokio::spawn(async move {
        process_end(stand_in.pid).await;
        tracing::warn!(pid = stand_in.pid, "the container's stand-in ended during the creation; cancelling it");
        cancel.cancel();
    });
    Some(watcher.abort_handle())
}

/// Writes the timeline where the caller asked for it; a failure to do so is the caller's loss only.
fn write_timeline(request: &Option<std::path::PathBuf>, timeline: &Timeline) {
    if let Some(path) = request
        && let Err(error) = std::fs::write(path, timeline.to_json_lines())
    {
        tracing::warn!(%error, path = %path.display(), "cannot write the timeline");
    }
}

impl Handler<Envelope<CreateSandbox>> for SandboxActor {
    type Result = Pending<Self, CreateSandbox>;

    fn handle(&mut self, message: Envelope<CreateSandbox>, _: &mut Context<Self>) -> Self::Result {
        let request = *message.request.request;
        if let Err(error) = allowed(self.state(), Asked::CreateSandbox) {
            return now::<_, CreateSandbox>(Err(error));
        }
        self.enter(SandboxState::Creating);
        let (child, runner) = self.adopt(&request);
        let watcher = cancel_with_stand_in(&request, &runner);
        let (id, timeline_path, timeline) = (request.id.clone(), request.timeline.clone(), runner.timeline.clone());
        let work = create_sandbox(
            self.setup.facilities.clone(),
            self.setup.id.clone(),
            self.setup.journal.clone(),
            request,
            runner,
        );
        // The pipeline owns its undo stacks. They come over in one piece, or everything is undone already.
        let (sender, receiver) = tokio::sync::oneshot::channel::<Result<_, OpError>>();
        let task = tracing::Instrument::instrument(
            async move {
                let result = work.await;
                if let Some(watcher) = watcher {
                    watcher.abort();
                }
                write_timeline(&timeline_path, &timeline);
                if let Err(Ok((sandbox, container))) = sender.send(result) {
                    // The actor is gone: nobody owns what was made.
                    discard(sandbox, container).await;
                }
            },
            message.span,
        );
        tokio::spawn(task);
        let waiting = wrap_future::<_, Self>(receiver);
        Box::pin(waiting.map(move |result, actor, context| {
            match result.unwrap_or_else(|_| Err(OpError::new(ErrorKind::Internal, "the creation's task died"))) {
                Ok((sandbox, container)) => {
                    watch_machine(context.address(), &sandbox);
                    actor.made = Some(sandbox);
                    tell(&child, Created { parts: Box::new(container) });
                    actor.enter(SandboxState::Up);
                    Ok(())
                }
                Err(error) => {
                    tell(&child, CreationFailed {});
                    actor.children.remove(&id);
                    actor.enter(SandboxState::Gone);
                    Err(error)
                }
            }
        }))
    }
}

async fn discard(sandbox: CreatedSandbox, container: CreatedContainer) {
    log_failures(container.undo.unwind().await);
    log_failures(sandbox.undo.unwind().await);
}

fn log_failures(failures: Vec<UndoFailure>) {
    for failure in failures {
        tracing::error!(what = failure.what, error = failure.error.one_line(), "left behind");
    }
}

/// Turns the machine's exit, and the agent's silence, into events for the actor.
fn watch_machine(actor: Addr<SandboxActor>, sandbox: &CreatedSandbox) {
    let mut exit = sandbox.machine.hypervisor.exit();
    let weak = actor.downgrade();
    tokio::spawn(async move {
        if let Ok(Some(exit)) = exit.wait_for(Option::is_some).await.map(|exit| exit.clone())
            && let Some(actor) = weak.upgrade()
        {
            tell(&actor, VmExited { exit });
        }
    });
    let (weak, agent, mut exit) = (actor.downgrade(), sandbox.guest.agent.clone(), sandbox.machine.hypervisor.exit());
    tokio::spawn(async move {
        let cause = tokio::select! {
            _ = exit.wait_for(Option::is_some) => return,
            cause = lost(&agent, &weak) => cause,
        };
        if let Some(actor) = weak.upgrade() {
            tell(&actor, AgentLost { cause });
        }
    });
}

/// Returns when the agent's connection has broken. Meanwhile it hears of containers that ran out of memory.
async fn lost(agent: &AgentClient, actor: &WeakAddr<SandboxActor>) -> String {
    loop {
        match agent.next_oom().await {
            Ok(container) => {
                // The guest says so, and may say anything, as often as it likes.
                if let (Some(actor), Ok(container)) = (actor.upgrade(), container.parse()) {
                    tell(&actor, OutOfMemory { container });
                }
                tokio::time::sleep(OOM_PAUSE).await;
            }
            Err(error) if error.kind() == ErrorKind::Unimplemented => return agent.closed().await,
            Err(error) => {
                if let Err(gone) = agent.version().await {
                    return gone.one_line();
                }
                tracing::debug!(error = error.one_line(), "asking for out-of-memory events again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

impl Handler<Envelope<CreateContainer>> for SandboxActor {
    type Result = Pending<Self, CreateContainer>;

    fn handle(&mut self, message: Envelope<CreateContainer>, _: &mut Context<Self>) -> Self::Result {
        let request = *message.request.request;
        let ready = allowed(self.state(), Asked::CreateContainer).and_then(|()| {
            if self.children.contains_key(&request.id) {
                return Err(crate::state::StateError::Exists(request.id.clone()).into());
            }
            if self.children.iter().any(|(id, child)| child.leaving && id.as_str() == self.setup.id.as_str()) {
                return Err(OpError::new(ErrorKind::FailedPrecondition, "the sandbox is being deleted"));
            }
            let gone = || OpError::new(ErrorKind::FailedPrecondition, "the sandbox has no virtual machine");
            self.made.as_ref().map(CreatedSandbox::for_containers).ok_or_else(gone)
        });
        let shared = match ready {
            Ok(shared) => shared,
            Err(error) => return now::<_, CreateContainer>(Err(error)),
        };
        let (child, runner) = self.adopt(&request);
        let watcher = cancel_with_stand_in(&request, &runner);
        let (id, timeline_path, timeline) = (request.id.clone(), request.timeline.clone(), runner.timeline.clone());
        let work = create_container(
            self.setup.facilities.clone(),
            self.setup.id.clone(),
            self.setup.journal.clone(),
            shared,
            request,
            runner,
        );
        let (sender, receiver) = tokio::sync::oneshot::channel::<Result<_, OpError>>();
        let task = tracing::Instrument::instrument(
            async move {
                let result = work.await;
                if let Some(watcher) = watcher {
                    watcher.abort();
                }
                write_timeline(&timeline_path, &timeline);
                if let Err(Ok(container)) = sender.send(result) {
                    let container: CreatedContainer = container;
                    log_failures(container.undo.unwind().await);
                }
            },
            message.span,
        );
        tokio::spawn(task);
        let waiting = wrap_future::<_, Self>(receiver);
        Box::pin(waiting.map(move |result, actor, _| {
            match result.unwrap_or_else(|_| Err(OpError::new(ErrorKind::Internal, "the creation's task died"))) {
                Ok(container) => {
                    tell(&child, Created { parts: Box::new(container) });
                    if actor.state() == SandboxState::Down {
                        tell(&child, MachineEnded { cause: "its machine ended during the creation".into() });
                    }
                    Ok(())
                }
                Err(error) => {
                    tell(&child, CreationFailed {});
                    actor.children.remove(&id);
                    Err(error)
                }
            }
        }))
    }
}

impl Handler<Envelope<FindContainer>> for SandboxActor {
    type Result = Pending<Self, FindContainer>;

    fn handle(&mut self, message: Envelope<FindContainer>, _: &mut Context<Self>) -> Self::Result {
        let id = message.request.id;
        let missing = || OpError::new(ErrorKind::NotFound, format!("container {id} does not exist"));
        now::<_, FindContainer>(self.children.get(&id).map(|child| child.handle.clone()).ok_or_else(missing))
    }
}

impl Handler<Envelope<DeleteContainer>> for SandboxActor {
    type Result = Pending<Self, DeleteContainer>;

    fn handle(&mut self, message: Envelope<DeleteContainer>, _: &mut Context<Self>) -> Self::Result {
        let id = message.request.id;
        let is_first = id.as_str() == self.setup.id.as_str();
        let others: Vec<_> = self.children.keys().filter(|other| **other != id).map(ToString::to_string).collect();
        let handle = match self.children.get_mut(&id) {
            None => {
                let what = format!("container {id} does not exist");
                return now::<_, DeleteContainer>(Err(OpError::new(ErrorKind::NotFound, what)));
            }
            Some(_) if is_first && !others.is_empty() => {
                let what = format!("sandbox {id} still has the containers {}; delete them first", others.join(", "));
                return now::<_, DeleteContainer>(Err(OpError::new(ErrorKind::FailedPrecondition, what)));
            }
            Some(child) if child.leaving => {
                let what = format!("container {id} is being deleted already");
                return now::<_, DeleteContainer>(Err(OpError::new(ErrorKind::FailedPrecondition, what)));
            }
            Some(child) => {
                child.leaving = true;
                child.handle.clone()
            }
        };
        let deleted = spawned::<Self, DeleteContainer, _>(message.span.clone(), async move {
            // All the others are gone, and no more are made.
            handle.delete.ask(Delete { exec: None, with_sandbox: is_first }).await
        });
        let span = message.span;
        Box::pin(deleted.then(move |result, actor, _| {
            let denied = matches!(&result, Err(error) if error.kind() == ErrorKind::FailedPrecondition);
            if denied {
                if let Some(child) = actor.children.get_mut(&id) {
                    child.leaving = false;
                }
                return now::<_, DeleteContainer>(result);
            }
            if let Err(error) = &result {
                actor.leftovers.push(error.one_line());
            }
            // A creation that was cancelled has removed itself, and its sandbox.
            actor.children.remove(&id);
            if !actor.children.is_empty() || actor.state() == SandboxState::Gone {
                return now::<_, DeleteContainer>(result);
            }
            actor.enter(SandboxState::Leaving);
            let made = actor.made.take();
            let unwound = spawned::<Self, DeleteContainer, _>(span, async move {
                let failures = match made {
                    Some(made) => made.undo.unwind().await,
                    None => Vec::new(),
                };
                match failures.into_iter().next() {
                    None => result,
                    Some(failure) => Err(failure.error.within(format!("cannot {}", failure.what))),
                }
            });
            Box::pin(unwound.map(|result, actor, _| {
                if let Err(error) = &result {
                    actor.leftovers.push(error.one_line());
                }
                actor.enter(SandboxState::Gone);
                result
            }))
        }))
    }
}

impl Handler<Envelope<StopSandbox>> for SandboxActor {
    type Result = Pending<Self, StopSandbox>;

    fn handle(&mut self, message: Envelope<StopSandbox>, _: &mut Context<Self>) -> Self::Result {
        self.machine_call::<StopSandbox, _>(message.span, Asked::Stop, |hypervisor| async move {
            hypervisor.stop(StopDeadlines::NOW).await?;
            Ok(())
        })
    }
}

impl Handler<Envelope<PauseSandbox>> for SandboxActor {
    type Result = Pending<Self, PauseSandbox>;

    fn handle(&mut self, message: Envelope<PauseSandbox>, _: &mut Context<Self>) -> Self::Result {
        let paused = self.machine_call::<PauseSandbox, _>(message.span, Asked::Pause, |hypervisor| async move {
            Ok(hypervisor.pause().await?)
        });
        Box::pin(paused.map(|result, actor, _| {
            if result.is_ok() && actor.state() == SandboxState::Up {
                actor.enter(SandboxState::Paused);
            }
            result
        }))
    }
}

impl Handler<Envelope<ResumeSandbox>> for SandboxActor {
    type Result = Pending<Self, ResumeSandbox>;

    fn handle(&mut self, message: Envelope<ResumeSandbox>, _: &mut Context<Self>) -> Self::Result {
        let resumed = self.machine_call::<ResumeSandbox, _>(message.span, Asked::Resume, |hypervisor| async move {
            Ok(hypervisor.resume().await?)
        });
        let rescan = self.setup.facilities.rescan_network.clone();
        Box::pin(resumed.map(move |result, actor, _| {
            if result.is_ok() && actor.state() == SandboxState::Paused {
                actor.enter(SandboxState::Up);
                // What changed meanwhile could not be told to a guest that stood still.
                tokio::spawn(async move {
                    if let Err(error) = rescan.ask(Rescan { reason: Reason::Event }).await {
                        tracing::warn!(error = error.one_line(), "the guest's network may not be up to date");
                    }
                });
            }
            result
        }))
    }
}

impl Handler<Envelope<ResizeSandbox>> for SandboxActor {
    type Result = Pending<Self, ResizeSandbox>;

    fn handle(&mut self, message: Envelope<ResizeSandbox>, _: &mut Context<Self>) -> Self::Result {
        let to = message.request.to;
        self.machine_call::<ResizeSandbox, _>(message.span, Asked::Machine, move |hypervisor| async move {
            Ok(hypervisor.resize(to).await?)
        })
    }
}

impl Handler<Envelope<SandboxStats>> for SandboxActor {
    type Result = Pending<Self, SandboxStats>;

    fn handle(&mut self, message: Envelope<SandboxStats>, _: &mut Context<Self>) -> Self::Result {
        self.machine_call::<SandboxStats, _>(message.span, Asked::Machine, |hypervisor| async move {
            Ok(hypervisor.metrics().await?)
        })
    }
}

impl Handler<Envelope<Containers>> for SandboxActor {
    type Result = Pending<Self, Containers>;

    fn handle(&mut self, _: Envelope<Containers>, _: &mut Context<Self>) -> Self::Result {
        now::<_, Containers>(Ok(self.children.keys().cloned().collect()))
    }
}

impl Handler<Envelope<GuestMetrics>> for SandboxActor {
    type Result = Pending<Self, GuestMetrics>;

    fn handle(&mut self, message: Envelope<GuestMetrics>, _: &mut Context<Self>) -> Self::Result {
        let gone = || OpError::new(ErrorKind::FailedPrecondition, "the sandbox has no guest");
        let ready = allowed(self.state(), Asked::Machine);
        match ready.and_then(|()| self.made.as_ref().map(|made| made.guest.agent.clone()).ok_or_else(gone)) {
            Ok(agent) => spawned::<_, GuestMetrics, _>(message.span, async move { agent.metrics().await }),
            Err(error) => now::<_, GuestMetrics>(Err(error)),
        }
    }
}

impl Handler<Envelope<VmExited>> for SandboxActor {
    type Result = Pending<Self, VmExited>;

    fn handle(&mut self, message: Envelope<VmExited>, _: &mut Context<Self>) -> Self::Result {
        let cause = message.request.exit.cause.to_string();
        if matches!(self.state(), SandboxState::Up | SandboxState::Paused) {
            tracing::error!(cause, "the virtual machine has ended");
            self.enter(SandboxState::Down);
        }
        for child in self.children.values() {
            tell(&child.address, MachineEnded { cause: cause.clone() });
        }
        now::<_, VmExited>(Ok(()))
    }
}

impl Handler<Envelope<OutOfMemory>> for SandboxActor {
    type Result = Pending<Self, OutOfMemory>;

    fn handle(&mut self, message: Envelope<OutOfMemory>, _: &mut Context<Self>) -> Self::Result {
        let container = message.request.container;
        if self.children.contains_key(&container) {
            tracing::warn!(%container, "the guest's kernel killed a process for lack of memory");
            self.setup.facilities.front.events.out_of_memory(container.as_str());
        }
        now::<_, OutOfMemory>(Ok(()))
    }
}

impl Handler<Envelope<AgentLost>> for SandboxActor {
    type Result = Pending<Self, AgentLost>;

    fn handle(&mut self, message: Envelope<AgentLost>, _: &mut Context<Self>) -> Self::Result {
        if !matches!(self.state(), SandboxState::Up | SandboxState::Paused) {
            return now::<_, AgentLost>(Ok(()));
        }
        tracing::error!(cause = message.request.cause, "the guest's agent is lost; ending the virtual machine");
        self.machine_call::<AgentLost, _>(message.span, Asked::Stop, |hypervisor| async move {
            hypervisor.stop(StopDeadlines::NOW).await?;
            Ok(())
        })
    }
}

impl Handler<Envelope<Inspect>> for SandboxActor {
    type Result = Pending<Self, Inspect>;

    fn handle(&mut self, message: Envelope<Inspect>, _: &mut Context<Self>) -> Self::Result {
        let children: Vec<_> = self
            .children
            .iter()
            .map(|(id, child)| (id.clone(), child.handle.describe.clone(), child.timeline.clone()))
            .collect();
        let mut document = json!({
            "id": self.setup.id,
            "state": self.state(),
            "supervisor_pid": std::process::id(),
            "undo": self.setup.journal.describe(),
            "leftovers": self.leftovers,
            "machine": null,
        });
        let machine = self.made.as_ref().map(|made| {
            document["machine"] = json!({
                "backend": made.machine.backend,
                "state": made.machine.hypervisor.state(),
                "capabilities": made.machine.hypervisor.capabilities(),
                "processes": made.machine.hypervisor.processes(),
                "agent_version": made.guest.version,
                "start": made.acquired,
                "network_namespace_is_ours": made.netns.ours,
                "control_group": made.cgroup,
            });
            made.machine.hypervisor.clone()
        });
        let factory = self.setup.factory.clone();
        let network = self.setup.facilities.describe_network.clone();
        spawned::<_, Inspect, _>(message.span, async move {
            document["network"] = json!(network.ask(DescribeNetwork).await.ok());
            if let Some(Ok(metrics)) = optional(machine.as_ref().map(|machine| machine.metrics())).await {
                document["machine"]["metrics"] = json!(metrics);
            }
            let factory: Result<FactoryStatus, OpError> = factory.ask(AskFactoryStatus).await;
            document["factory"] = json!(factory.ok());
            let mut containers = serde_json::Map::new();
            for (id, describe, timeline) in children {
                let state = describe.ask(Describe { exec: None }).await;
                let entry = json!({
                    "state": state.as_ref().map_or(ContainerState::Gone, |description| description.state),
                    "bundle": state.as_ref().ok().map(|description| description.bundle.clone()),
                    "execs": state.as_ref().map_or(0, |description| description.execs.len()),
                    "exit_status": state.as_ref().ok().and_then(|description| description.exit).map(|exit| exit.status),
                    "timeline": timeline.entries(),
                });
                containers.insert(id.to_string(), entry);
            }
            document["containers"] = containers.into();
            document["messages"] = json!(message_times());
            Ok(document)
        })
    }
}

async fn optional<F: Future>(future: Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}
