//! The actix shell of the Container actor.

use super::exec::ExecEntry;
use super::messages::{
    CloseStdin, Created, CreationFailed, Delete, Describe, Description, Exec, MachineEnded, Pause, ProcessExited,
    Processes, Resize, Resume, Signal, Start, StartExec, Stats, Update, Wait,
};
use super::state::{ContainerState, Request as Asked, Verdict, verdict};
use super::{ContainerHandle, Exit};
use crate::actors::hook::RunHooks;
use crate::actors::network::{Reason, Rescan};
use crate::actors::runtime::{Ask, Envelope, Pending, Request, now, spawned, tell};
use crate::agent::{AgentClient, AgentStdio};
use crate::error::{ErrorKind, OpError};
use crate::events::ContainerEvents;
use crate::hooks::Phase;
use crate::ids::{ContainerId, ExecId};
use crate::oci::{OciState, Status, guest_resources};
use crate::pipeline::UndoStack;
use crate::pipeline::create::{CreatedContainer, FrontDoor, RootfsMount};
use crate::state::{ContainerRecord, ProcessId, Store};
use crate::stdio::{HostStdio, Pumps, StdioNames, StdioOwner};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WeakAddr};
use nix::sys::signal::Signal as Signo;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What an actor for a container that is being created starts with.
#[derive(Debug)]
pub struct ContainerSetup {
    /// Its id.
    pub id: ContainerId,
    /// Its bundle, for descriptions.
    pub bundle: String,
    /// Its streams' names, for descriptions.
    pub stdio: StdioNames,
    /// The process that stands in for it.
    pub stand_in: Option<ProcessId>,
    /// Cancels its creation.
    pub cancel: CancellationToken,
    /// Where its record is kept.
    pub store: Store,
    /// Runs its poststart hooks.
    pub hooks: Ask<RunHooks>,
    /// What its root is made of, for the event of its creation.
    pub rootfs: Vec<RootfsMount>,
    /// Who hears what becomes of it.
    pub front: FrontDoor,
    /// For a sandbox's first container: looks for what was added to its network since the creation.
    pub rescan: Option<Ask<Rescan>>,
}

/// A container.
#[derive(Debug)]
pub struct ContainerActor {
    setup: ContainerSetup,
    state: watch::Sender<ContainerState>,
    exit: watch::Sender<Option<Exit>>,
    execs: HashMap<ExecId, ExecEntry>,
    /// SIGKILL has been accepted: whatever else comes, the process ends.
    killed: bool,
    events: ContainerEvents,
    /// From `Created` on.
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    agent: AgentClient,
    record: ContainerRecord,
    parts: Parts,
    undo: UndoStack,
}

#[derive(Debug, Clone)]
struct Parts {
    hooks: Option<oci_spec::runtime::Hooks>,
    netns: crate::actors::network::SandboxNetns,
    oci_state: OciState,
}

impl ContainerActor {
    /// Starts the actor of a container that is being created. Only from the actors' thread.
    pub fn launch(setup: ContainerSetup) -> (actix::Addr<Self>, ContainerHandle) {
        let events = ContainerEvents::new(setup.front.events.clone(), setup.id.as_str());
        let actor = Self {
            setup,
            state: watch::Sender::new(ContainerState::Creating),
            killed: false,
            events,
            exit: watch::Sender::new(None),
            execs: HashMap::new(),
            made: None,
        };
        let address = actor.start();
        let handle = ContainerHandle {
            start: Ask::actor(address.clone()),
            exec: Ask::actor(address.clone()),
            start_exec: Ask::actor(address.clone()),
            signal: Ask::actor(address.clone()),
            wait: Ask::actor(address.clone()),
            resize: Ask::actor(address.clone()),
            close_stdin: Ask::actor(address.clone()),
            update: Ask::actor(address.clone()),
            stats: Ask::actor(address.clone()),
            processes: Ask::actor(address.clone()),
            pause: Ask::actor(address.clone()),
            resume: Ask::actor(address.clone()),
            delete: Ask::actor(address.clone()),
            describe: Ask::actor(address.clone()),
        };
        (address, handle)
    }

    fn id(&self) -> &str {
        self.setup.id.as_str()
    }

    /// The process that the world outside is told: the stand-in, or the supervisor.
    fn pid(&self) -> u32 {
        self.setup.stand_in.and_then(|process| u32::try_from(process.pid).ok()).unwrap_or_else(std::process::id)
    }

    fn allowed(&self, request: Asked) -> Result<(), OpError> {
        match verdict(self.id(), *self.state.borrow(), request) {
            Verdict::Accept | Verdict::Ignore => Ok(()),
            Verdict::Deny(error) => Err(error),
            Verdict::Cancel => Err(OpError::new(ErrorKind::FailedPrecondition, "the creation is being cancelled")),
        }
    }

    fn made(&self) -> Result<&Made, OpError> {
        self.made.as_ref().ok_or_else(|| {
            OpError::new(ErrorKind::FailedPrecondition, format!("container {} has no machine any more", self.setup.id))
        })
    }

    /// The one place where the state changes: the watchers see it, and the record on disk follows.
    fn enter(&mut self, state: ContainerState) {
        tracing::info!(container = self.id(), from = ?*self.state.borrow(), to = ?state, "state");
        self.state.send_replace(state);
        let Some(made) = &mut self.made else { return };
        if state == ContainerState::Gone {
            return;
        }
        let written = (made.record.status, made.record.exit_status);
        made.record.status = state.status();
        made.record.exit_status = self.exit.borrow().map(|exit| exit.status);
        // As after a creation, whose last step has written it.
        if written == (made.record.status, made.record.exit_status) {
            return;
        }
        if let Err(error) = self.setup.store.write_container(&made.record) {
            // The supervisor still knows; only a reader of the disk after its death would not.
            tracing::error!(%error, "cannot write the container's record");
        }
    }

    fn stopped(&mut self, exit: Exit) {
        if self.exit.borrow().is_some() {
            return;
        }
        self.exit.send_replace(Some(exit));
        let pid = self.pid();
        for (id, entry) in &mut self.execs {
            // The kernel ends a PID namespace's processes with its first one.
            if entry.state == ContainerState::Running && entry.exit.borrow().is_none() {
                entry.state = ContainerState::Stopped;
                let exit = Exit::killed();
                entry.exit.send_replace(Some(exit));
                self.events.exited(Some(id.clone()), exit, pid);
            }
        }
        if !matches!(*self.state.borrow(), ContainerState::Gone | ContainerState::Creating) {
            self.enter(ContainerState::Stopped);
            self.events.exited(None, exit, pid);
        }
    }

    fn exec(&mut self, id: &ExecId) -> Result<&mut ExecEntry, OpError> {
        let missing = || OpError::new(ErrorKind::NotFound, format!("process {id} does not exist"));
        self.execs.get_mut(id).ok_or_else(missing)
    }

    fn agent_for(&self, exec: Option<&ExecId>) -> Result<(AgentClient, String, String), OpError> {
        let exec_id = exec.map(|id| id.as_str().to_owned()).unwrap_or_default();
        Ok((self.made()?.agent.clone(), self.id().to_owned(), exec_id))
    }

    /// Asks the agent something about this container, if the table allows it.
    fn with_agent<R, F>(
        &self,
        span: tracing::Span,
        asked: Asked,
        call: impl FnOnce(AgentClient, String) -> F + Send + 'static,
    ) -> Pending<Self, R>
    where
        R: Request,
        F: Future<Output = Result<R::Answer, OpError>> + Send + 'static,
    {
        let allowed = self.allowed(asked).and_then(|()| self.agent_for(None));
        match allowed {
            Ok((agent, id, _)) => spawned::<_, R, _>(span, async move { call(agent, id).await }),
            Err(error) => now::<_, R>(Err(error)),
        }
    }
}

impl Actor for ContainerActor {
    type Context = Context<Self>;
}

/// Waits for a process in the guest, drains its output, and tells the actor.
fn watch_process(
    actor: WeakAddr<ContainerActor>,
    agent: AgentClient,
    container: String,
    exec: Option<ExecId>,
    host: HostStdio,
) {
    let exec_id = exec.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
    let pumps = Pumps::start(Arc::new(AgentStdio::new(agent.clone(), container.clone(), exec_id.clone())), host);
    tokio::spawn(async move {
        let exit = match agent.wait_process(&container, &exec_id).await {
            Ok(status) => {
                pumps.drain().await;
                Exit::now(status)
            }
            Err(error) => {
                tracing::warn!(error = error.one_line(), "lost the process; it counts as killed");
                drop(pumps);
                Exit::killed()
            }
        };
        if let Some(actor) = actor.upgrade() {
            tell(&actor, ProcessExited { exec, exit });
        }
    });
}

impl Handler<Envelope<Created>> for ContainerActor {
    type Result = Pending<Self, Created>;

    fn handle(&mut self, message: Envelope<Created>, context: &mut Context<Self>) -> Self::Result {
        let CreatedContainer { record, agent, stdio, hooks, netns, oci_state, undo } = *message.request.parts;
        watch_process(context.address().downgrade(), agent.clone(), self.id().to_owned(), None, stdio);
        self.made = Some(Made { agent, record, parts: Parts { hooks, netns, oci_state }, undo });
        self.enter(ContainerState::Created);
        self.events.created(&self.setup.bundle, &self.setup.rootfs, &self.setup.stdio, self.pid());
        if self.setup.cancel.is_cancelled() {
            // A kill that came after the last step: it was answered, so it must take effect.
            tell(&context.address(), Signal { exec: None, signal: Signo::SIGKILL as u32, all: true });
        }
        if let Some(stand_in) = self.setup.stand_in {
            watch_stand_in(context.address().downgrade(), stand_in, self.exit.subscribe());
        }
        now::<_, Created>(Ok(()))
    }
}

/// The stand-in that is killed takes its container with it, as a container's own process would.
fn watch_stand_in(actor: WeakAddr<ContainerActor>, stand_in: ProcessId, mut exit: watch::Receiver<Option<Exit>>) {
    tokio::spawn(async move {
        let ended = crate::stdio::process_end(stand_in.pid);
        tokio::select! {
            _ = exit.wait_for(Option::is_some) => return,
            () = ended => {}
        }
        if exit.borrow().is_none()
            && let Some(actor) = actor.upgrade()
        {
            tracing::warn!(pid = stand_in.pid, "the container's stand-in has ended; killing the container");
            tell(&actor, Signal { exec: None, signal: Signo::SIGKILL as u32, all: true });
        }
    });
}

impl Handler<Envelope<CreationFailed>> for ContainerActor {
    type Result = Pending<Self, CreationFailed>;

    fn handle(&mut self, _: Envelope<CreationFailed>, _: &mut Context<Self>) -> Self::Result {
        self.exit.send_replace(Some(Exit::killed()));
        self.enter(ContainerState::Gone);
        now::<_, CreationFailed>(Ok(()))
    }
}

impl Handler<Envelope<ProcessExited>> for ContainerActor {
    type Result = Pending<Self, ProcessExited>;

    fn handle(&mut self, message: Envelope<ProcessExited>, _: &mut Context<Self>) -> Self::Result {
        let ProcessExited { exec, exit } = message.request;
        match exec {
            None => {
                tracing::info!(container = self.id(), status = exit.status, "the container's process has ended");
                self.stopped(exit);
            }
            Some(id) => {
                let pid = self.pid();
                if let Some(entry) = self.execs.get_mut(&id) {
                    entry.state = ContainerState::Stopped;
                    if entry.exit.send_if_modified(|known| known.is_none() && known.replace(exit).is_none()) {
                        self.events.exited(Some(id), exit, pid);
                    }
                }
            }
        }
        now::<_, ProcessExited>(Ok(()))
    }
}

impl Handler<Envelope<MachineEnded>> for ContainerActor {
    type Result = Pending<Self, MachineEnded>;

    fn handle(&mut self, message: Envelope<MachineEnded>, _: &mut Context<Self>) -> Self::Result {
        if self.exit.borrow().is_none() {
            tracing::warn!(container = self.id(), cause = message.request.cause, "ended with its machine");
        }
        self.stopped(Exit::killed());
        now::<_, MachineEnded>(Ok(()))
    }
}

impl Handler<Envelope<Start>> for ContainerActor {
    type Result = Pending<Self, Start>;

    fn handle(&mut self, message: Envelope<Start>, _: &mut Context<Self>) -> Self::Result {
        let ready = self.allowed(Asked::Start).and_then(|()| Ok((self.agent_for(None)?, self.made()?.parts.clone())));
        let ((agent, id, _), parts) = match ready {
            Ok(ready) => ready,
            Err(error) => return now::<_, Start>(Err(error)),
        };
        self.enter(ContainerState::Starting);
        self.events.starting(None);
        let hooks = self.setup.hooks.clone();
        let rescan = self.setup.rescan.clone();
        let span = message.span.clone();
        let started = spawned::<Self, Start, _>(message.span, async move {
            if let Some(rescan) = rescan {
                rescan.ask(Rescan { reason: Reason::Start }).await?;
            }
            agent.start_container(&id).await
        });
        Box::pin(started.then(move |result, actor, _| match actor.started(result) {
            Ok(()) => spawned::<Self, Start, _>(span, async move {
                run_poststart(hooks, parts).await;
                Ok(())
            }),
            Err(error) => now::<_, Start>(Err(error)),
        }))
    }
}

impl ContainerActor {
    /// The guest has answered a Start. The process may have ended before that.
    fn started(&mut self, result: Result<(), OpError>) -> Result<(), OpError> {
        // A process that was killed while it was being started is one that ran: its status tells of the signal.
        let result = if self.killed { Ok(()) } else { result };
        self.events.started(None, result.is_ok(), self.pid());
        if *self.state.borrow() == ContainerState::Starting {
            self.enter(if result.is_ok() { ContainerState::Running } else { ContainerState::Created });
        }
        result
    }
}

/// OCI runtime specification, life cycle: a poststart hook that fails is logged, and the container goes on.
async fn run_poststart(runner: Ask<RunHooks>, parts: Parts) {
    let hooks = parts.hooks.and_then(|hooks| hooks.poststart().clone()).unwrap_or_default();
    if hooks.is_empty() {
        return;
    }
    let request = RunHooks {
        phase: Phase::Poststart,
        hooks,
        state: OciState { status: Status::Running, ..parts.oci_state },
        netns: parts.netns.descriptor,
        cancel: CancellationToken::new(),
    };
    if let Err(error) = runner.ask(request).await {
        tracing::warn!(error = error.one_line(), "a poststart hook failed");
    }
}

impl Handler<Envelope<Exec>> for ContainerActor {
    type Result = Pending<Self, Exec>;

    fn handle(&mut self, message: Envelope<Exec>, _: &mut Context<Self>) -> Self::Result {
        let Exec { id, process, stdio, stand_in } = message.request;
        let registered = self.allowed(Asked::Exec).and_then(|()| {
            if self.execs.contains_key(&id) {
                return Err(OpError::new(ErrorKind::AlreadyExists, format!("process {id} exists already")));
            }
            self.events.exec_added(&id);
            self.execs.insert(id, ExecEntry::new(process, stdio, stand_in));
            Ok(())
        });
        now::<_, Exec>(registered)
    }
}

impl Handler<Envelope<StartExec>> for ContainerActor {
    type Result = Pending<Self, StartExec>;

    fn handle(&mut self, message: Envelope<StartExec>, context: &mut Context<Self>) -> Self::Result {
        let id = message.request.id;
        let ready = self.allowed(Asked::Exec).and_then(|()| {
            let (agent, container, _) = self.agent_for(None)?;
            let entry = self.exec(&id)?;
            if entry.state != ContainerState::Created {
                let what = format!("process {id} has been started already");
                return Err(OpError::new(ErrorKind::FailedPrecondition, what));
            }
            entry.state = ContainerState::Running;
            Ok((agent, container, entry.process.clone(), entry.stdio.clone(), entry.stand_in))
        });
        let (agent, container, process, stdio, stand_in) = match ready {
            Ok(ready) => ready,
            Err(error) => return now::<_, StartExec>(Err(error)),
        };
        let pid = stand_in.and_then(|process| u32::try_from(process.pid).ok()).unwrap_or_else(|| self.pid());
        self.events.starting(Some(id.clone()));
        let owner = StdioOwner { container: container.clone(), namespace: self.setup.front.namespace.clone() };
        let weak = context.address().downgrade();
        let exec_id = id.clone();
        let started = spawned::<Self, StartExec, _>(message.span, async move {
            let host = HostStdio::open(&stdio, &owner).await?;
            agent.exec_process(&container, exec_id.as_str(), &process).await?;
            watch_process(weak, agent, container, Some(exec_id), host);
            Ok(())
        });
        Box::pin(started.map(move |result, actor, _| {
            if result.is_err() {
                actor.execs.remove(&id);
            }
            actor.events.started(Some(id), result.is_ok(), pid);
            result
        }))
    }
}

impl Handler<Envelope<Signal>> for ContainerActor {
    type Result = Pending<Self, Signal>;

    fn handle(&mut self, message: Envelope<Signal>, _: &mut Context<Self>) -> Self::Result {
        let Signal { exec, signal, all } = message.request;
        match verdict(self.id(), *self.state.borrow(), Asked::Signal { all }) {
            Verdict::Accept => {}
            Verdict::Ignore => return now::<_, Signal>(Ok(())),
            Verdict::Deny(error) => return now::<_, Signal>(Err(error)),
            Verdict::Cancel => {
                self.setup.cancel.cancel();
                return now::<_, Signal>(Ok(()));
            }
        }
        if let Some(id) = &exec {
            match self.exec(id).map(|entry| entry.state) {
                Ok(ContainerState::Running) => {}
                Ok(_) => {
                    let what = format!("process {id} is not running");
                    return now::<_, Signal>(Err(OpError::new(ErrorKind::NotFound, what)));
                }
                Err(error) => return now::<_, Signal>(Err(error)),
            }
        }
        let (agent, id, exec_id) = match self.agent_for(exec.as_ref()) {
            Ok(ready) => ready,
            Err(error) => return now::<_, Signal>(Err(error)),
        };
        let every = all && exec.is_none();
        self.killed |= exec.is_none() && signal == Signo::SIGKILL as u32;
        spawned::<_, Signal, _>(message.span, async move {
            if every {
                agent.signal_container(&id, signal).await
            } else {
                agent.signal_process(&id, &exec_id, signal).await
            }
        })
    }
}

impl Handler<Envelope<Wait>> for ContainerActor {
    type Result = Pending<Self, Wait>;

    fn handle(&mut self, message: Envelope<Wait>, _: &mut Context<Self>) -> Self::Result {
        let mut exit = match &message.request.exec {
            None => self.exit.subscribe(),
            Some(id) => match self.exec(id) {
                Ok(entry) => entry.exit.subscribe(),
                Err(error) => return now::<_, Wait>(Err(error)),
            },
        };
        // Waiting is no work: its span would stay open for the container's whole life.
        spawned::<_, Wait, _>(tracing::Span::none(), async move {
            match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
                Ok(Some(exit)) => Ok(exit),
                _ => Err(OpError::new(ErrorKind::NotFound, "the process was deleted before it ended")),
            }
        })
    }
}

impl Handler<Envelope<Resize>> for ContainerActor {
    type Result = Pending<Self, Resize>;

    fn handle(&mut self, message: Envelope<Resize>, _: &mut Context<Self>) -> Self::Result {
        let Resize { exec, columns, rows } = message.request;
        let exec_id = exec.map(String::from).unwrap_or_default();
        self.with_agent::<Resize, _>(message.span, Asked::Inspect, move |agent, id| async move {
            agent.resize_terminal(&id, &exec_id, columns, rows).await
        })
    }
}

impl Handler<Envelope<CloseStdin>> for ContainerActor {
    type Result = Pending<Self, CloseStdin>;

    fn handle(&mut self, message: Envelope<CloseStdin>, _: &mut Context<Self>) -> Self::Result {
        use crate::stdio::GuestStdio;
        let exec_id = message.request.exec.map(String::from).unwrap_or_default();
        self.with_agent::<CloseStdin, _>(message.span, Asked::Inspect, move |agent, id| async move {
            AgentStdio::new(agent, id, exec_id).close_stdin().await
        })
    }
}

impl Handler<Envelope<Update>> for ContainerActor {
    type Result = Pending<Self, Update>;

    fn handle(&mut self, message: Envelope<Update>, _: &mut Context<Self>) -> Self::Result {
        let mut warnings = Vec::new();
        // As at the creation: engines fill in what they do not set with zeros.
        let resources = guest_resources(&message.request.resources, None, &mut warnings);
        for warning in warnings {
            tracing::warn!(container = %self.setup.id, "{warning}");
        }
        self.with_agent::<Update, _>(message.span, Asked::Update, move |agent, id| async move {
            agent.update_container(&id, &resources).await
        })
    }
}

impl Handler<Envelope<Stats>> for ContainerActor {
    type Result = Pending<Self, Stats>;

    fn handle(&mut self, message: Envelope<Stats>, _: &mut Context<Self>) -> Self::Result {
        self.with_agent::<Stats, _>(message.span, Asked::Inspect, |agent, id| async move {
            agent.stats_container(&id).await
        })
    }
}

impl Handler<Envelope<Processes>> for ContainerActor {
    type Result = Pending<Self, Processes>;

    fn handle(&mut self, message: Envelope<Processes>, _: &mut Context<Self>) -> Self::Result {
        self.with_agent::<Processes, _>(message.span, Asked::Inspect, |agent, id| async move {
            agent.list_processes(&id).await
        })
    }
}

impl Handler<Envelope<Pause>> for ContainerActor {
    type Result = Pending<Self, Pause>;

    fn handle(&mut self, message: Envelope<Pause>, _: &mut Context<Self>) -> Self::Result {
        let paused = self.with_agent::<Pause, _>(message.span, Asked::Pause, |agent, id| async move {
            agent.pause_container(&id).await
        });
        Box::pin(paused.map(|result, actor, _| {
            if result.is_ok() && *actor.state.borrow() == ContainerState::Running {
                actor.enter(ContainerState::Paused);
                actor.events.paused();
            }
            result
        }))
    }
}

impl Handler<Envelope<Resume>> for ContainerActor {
    type Result = Pending<Self, Resume>;

    fn handle(&mut self, message: Envelope<Resume>, _: &mut Context<Self>) -> Self::Result {
        let resumed = self.with_agent::<Resume, _>(message.span, Asked::Resume, |agent, id| async move {
            agent.resume_container(&id).await
        });
        Box::pin(resumed.map(|result, actor, _| {
            if result.is_ok() && *actor.state.borrow() == ContainerState::Paused {
                actor.enter(ContainerState::Running);
                actor.events.resumed();
            }
            result
        }))
    }
}

impl Handler<Envelope<Delete>> for ContainerActor {
    type Result = Pending<Self, Delete>;

    fn handle(&mut self, message: Envelope<Delete>, _: &mut Context<Self>) -> Self::Result {
        let Delete { exec, with_sandbox } = message.request;
        if let Some(id) = exec {
            let deleted = self.exec(&id).and_then(|entry| match entry.state {
                ContainerState::Running => {
                    Err(OpError::new(ErrorKind::FailedPrecondition, format!("process {id} is still running")))
                }
                _ => Ok(*entry.exit.borrow()),
            });
            if deleted.is_ok() {
                self.execs.remove(&id);
            }
            return now::<_, Delete>(deleted);
        }
        match verdict(self.id(), *self.state.borrow(), Asked::Delete) {
            Verdict::Accept | Verdict::Ignore => {}
            Verdict::Deny(error) => return now::<_, Delete>(Err(error)),
            Verdict::Cancel => {
                self.setup.cancel.cancel();
                let mut state = self.state.subscribe();
                let span = message.span.clone();
                let decided = spawned::<Self, Delete, _>(message.span, async move {
                    let _ = state.wait_for(|state| *state != ContainerState::Creating).await;
                    Ok(None)
                });
                // The creation may have won the race: then there is a container to remove.
                return Box::pin(decided.then(move |_, actor, _| actor.remove(span, with_sandbox)));
            }
        }
        self.remove(message.span, with_sandbox)
    }
}

impl ContainerActor {
    /// Undoes the container, once.
    fn remove(&mut self, span: tracing::Span, with_sandbox: bool) -> Pending<Self, Delete> {
        let Some(made) = self.made.take() else { return now::<_, Delete>(Ok(*self.exit.borrow())) };
        if with_sandbox {
            made.agent.leave();
        }
        let pid = self.pid();
        if self.exit.send_if_modified(|exit| exit.is_none() && exit.replace(Exit::killed()).is_none()) {
            let exit = self.exit.borrow().unwrap_or_else(Exit::killed);
            self.events.exited(None, exit, pid);
        }
        let exit = *self.exit.borrow();
        self.enter(ContainerState::Gone);
        let unwound = spawned::<Self, Delete, _>(span, async move {
            match made.undo.unwind().await.into_iter().next() {
                None => Ok(exit),
                Some(failure) => Err(failure.error.within(format!("cannot {}", failure.what))),
            }
        });
        Box::pin(unwound.map(move |result, actor, _| {
            actor.events.deleted(exit.unwrap_or_else(Exit::killed), pid);
            result
        }))
    }
}

impl Handler<Envelope<Describe>> for ContainerActor {
    type Result = Pending<Self, Describe>;

    fn handle(&mut self, message: Envelope<Describe>, _: &mut Context<Self>) -> Self::Result {
        let description = match &message.request.exec {
            None => Ok(Description {
                state: *self.state.borrow(),
                bundle: self.setup.bundle.clone(),
                pid: self.setup.stand_in.map_or(0, |process| process.pid),
                stdio: self.setup.stdio.clone(),
                exit: *self.exit.borrow(),
                execs: self.execs.keys().cloned().collect(),
            }),
            Some(id) => {
                let bundle = self.setup.bundle.clone();
                self.exec(id).map(|entry| Description {
                    state: entry.state,
                    bundle,
                    pid: entry.stand_in.map_or(0, |process| process.pid),
                    stdio: entry.stdio.clone(),
                    exit: *entry.exit.borrow(),
                    execs: Vec::new(),
                })
            }
        };
        now::<_, Describe>(description)
    }
}
