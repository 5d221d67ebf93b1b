//! The life of a supervisor.

use super::log;
use super::service::TaskService;
use super::startup::{Startup, StartupAnswer};
use super::v1::V1Service;
use crate::actors::factory::FactoryActor;
use crate::actors::hook::HookActor;
use crate::actors::network::{NamespaceAhead, NetworkActor};
use crate::actors::runtime::Ask;
use crate::actors::sandbox::{SandboxActor, SandboxSetup, SandboxState};
use crate::error::{ErrorKind, OpError};
use crate::events::{Events, Publisher};
use crate::hypervisor::{Backends, BuiltIn};
use crate::network::NetworkNamespace;
use crate::pipeline::SharedJournal;
use crate::pipeline::create::{Facilities, FrontDoor};
use crate::state::{ProcessId, SandboxRecord, Store, UndoRecord};
use crate::storage::private_mount_namespace;
use actix::Actor;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use stockade_hypervisor::hybrid_vsock;
use tokio::sync::watch;
use tracing::Level;

/// A supervisor that nobody asks to create anything ends after this time.
const UNUSED: Duration = Duration::from_secs(30);
/// What the last answers get to leave the socket.
const FLUSH: Duration = Duration::from_secs(2);
/// How long a supervisor with nothing left waits for containerd to say that it may end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long it tries to tell containerd the last events.
const LAST_EVENTS: Duration = Duration::from_secs(3);

/// Serves one sandbox until nothing is left of it. The answer goes to `answer` once the socket listens, or it failed.
pub fn run(startup: Startup, answer: OwnedFd) -> ExitCode {
    let mut answer = File::from(answer);
    let mut tell = |message: &StartupAnswer| {
        let bytes = serde_json::to_vec(message).unwrap_or_default();
        answer.write_all(&bytes).is_ok()
    };
    let store = Store::new(&startup.root);
    let link = startup.containerd.as_ref().map(|containerd| containerd.link.clone());
    let Prepared { directory, listener, netns } = match prepare(&startup, &store) {
        Ok(ready) => ready,
        Err(error) => {
            tell(&StartupAnswer::Failed { message: error.one_line() });
            return ExitCode::FAILURE;
        }
    };
    if tell(&StartupAnswer::Ready) {
        drop(answer);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "the supervisor is ready");
        for (key, origin) in startup.config.without_effect() {
            tracing::warn!("the option {key} ({origin}) has no effect in this version");
        }
        let built_in = BuiltIn { executable: PathBuf::from("/proc/self/exe") };
        serve(startup, &store, listener, netns, Arc::new(built_in));
    }
    finish(&directory, link.as_deref());
    ExitCode::SUCCESS
}

/// What a supervisor has before it has actors.
struct Prepared {
    directory: PathBuf,
    listener: UnixListener,
    netns: Option<NamespaceAhead>,
}

/// Everything before the actors: after an error nothing is left.
fn prepare(startup: &Startup, store: &Store) -> Result<Prepared, OpError> {
    private_mount_namespace()
        .map_err(|error| OpError::internal("cannot make a mount namespace (is this root?)", error))?;
    // The first thread there is: the mount namespace is every later thread's too.
    let ahead = startup.new_netns && !startup.config.config.runtime.disable_new_netns;
    let netns = ahead.then(|| std::thread::spawn(NetworkNamespace::create));
    crate::hypervisor::look_ahead(&startup.config.config);
    let directory = store.make_sandbox_dir(&startup.sandbox)?;
    let prepared = (|| {
        let record = SandboxRecord {
            id: startup.sandbox.clone(),
            supervisor: ProcessId::current(),
            backend: None,
            created: crate::state::now(),
            link: startup.containerd.as_ref().map(|containerd| containerd.link.clone()),
        };
        store.write_sandbox(&record)?;
        let log_path = startup.log.clone().unwrap_or_else(|| directory.join("supervisor.log"));
        let level = level(startup);
        log::start(&log_path, startup.log_format, level, &startup.sandbox)
            .map_err(|error| OpError::internal(format!("cannot log to {}", log_path.display()), error))?;
        let socket = store.api_socket(&startup.sandbox);
        // The directory is 0700, so root alone gets in.
        let listener = hybrid_vsock::bind(&socket)
            .map_err(|error| OpError::internal(format!("cannot listen on {}", socket.display()), error))?;
        if let Some(link) = &record.link {
            make_link(link, &socket)
                .map_err(|error| OpError::internal(format!("cannot make the symlink {}", link.display()), error))?;
        }
        Ok(listener)
    })();
    match prepared {
        Ok(listener) => Ok(Prepared { directory, listener, netns }),
        Err(error) => {
            // Ours, and nothing in it but what was just written.
            let _ = UndoRecord::RemoveTree { path: directory }.perform();
            Err(error)
        }
    }
}

/// Lets `link` lead to `socket`, whatever it led to.
fn make_link(link: &Path, socket: &Path) -> io::Result<()> {
    if let Some(directory) = link.parent() {
        // Whoever may go through it may ask every supervisor anything.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(socket, link),
    }
}

fn level(startup: &Startup) -> Level {
    use stockade_config::LogLevel;
    if startup.debug {
        return Level::DEBUG;
    }
    match startup.config.config.runtime.effective_log_level() {
        LogLevel::Trace => Level::TRACE,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    }
}

fn serve(
    startup: Startup,
    store: &Store,
    listener: UnixListener,
    netns: Option<NamespaceAhead>,
    backends: Arc<dyn Backends>,
) {
    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(16)
            .enable_all()
            .build()
            .expect("a runtime can be made in a process that has just started")
    });
    system.block_on(async {
        let front = front_door(&startup);
        let events = front.events.clone();
        let (sandbox, state) = start_actors(&startup, store, netns, backends, front);
        let task = TaskService {
            sandbox_id: startup.sandbox.clone(),
            sandbox: sandbox.clone(),
            state: state.clone(),
            create_limit: startup.config.config.runtime.create_timeout,
            calls: watch::Sender::new(0),
            dismissed: watch::Sender::new(false),
        };
        let v1 = V1Service { sandbox_id: startup.sandbox.clone(), sandbox };
        // The command line knows a supervisor's end by the process's; containerd wants to be asked.
        let farewell = startup.containerd.as_ref().map(|_| FAREWELL);
        if let Err(error) = serve_until_gone(listener, task, v1, state, farewell).await {
            tracing::error!(error = error.one_line(), "cannot serve");
        }
        events.flush(LAST_EVENTS).await;
    });
}

/// Who asks and listens; where it is a containerd, its events are on their way from now on.
fn front_door(startup: &Startup) -> FrontDoor {
    let Some(containerd) = &startup.containerd else { return FrontDoor::default() };
    let events = match &containerd.events {
        Some(target) => {
            let (events, queue) = Events::channel();
            tokio::spawn(Publisher::new(queue, target.clone(), &containerd.namespace).run());
            events
        }
        None => Events::default(),
    };
    FrontDoor { namespace: containerd.namespace.clone(), link: Some(containerd.link.clone()), events }
}

fn start_actors(
    startup: &Startup,
    store: &Store,
    netns: Option<NamespaceAhead>,
    backends: Arc<dyn Backends>,
    front: FrontDoor,
) -> (crate::actors::sandbox::SandboxHandle, watch::Receiver<SandboxState>) {
    crate::cgroup::look_ahead();
    let journal = SharedJournal::new(crate::state::Journal::new(store.journal_file(&startup.sandbox)));
    let network = NetworkActor::new(journal.clone(), netns).start();
    let hooks = HookActor.start();
    let factory = FactoryActor::default().start();
    let facilities = Facilities {
        store: store.clone(),
        config: startup.config.clone(),
        backends,
        prepare_netns: Ask::actor(network.clone()),
        release_netns: Ask::actor(network.clone()),
        rescan_network: Ask::actor(network.clone()),
        connect_guest: Ask::actor(network.clone()),
        detach_network: Ask::actor(network.clone()),
        describe_network: Ask::actor(network),
        hooks: Ask::actor(hooks),
        factory: Ask::actor(factory.clone()),
        front,
    };
    SandboxActor::launch(SandboxSetup {
        id: startup.sandbox.clone(),
        facilities: Arc::new(facilities),
        journal,
        factory: Ask::actor(factory),
        inject_failure: startup.inject_failure.clone(),
    })
}

async fn serve_until_gone(
    listener: UnixListener,
    task: TaskService,
    v1: V1Service,
    mut state: watch::Receiver<SandboxState>,
    farewell: Option<Duration>,
) -> Result<(), OpError> {
    let (mut busy, mut dismissed) = (task.calls.subscribe(), task.dismissed.subscribe());
    let task = Arc::new(task);
    let failed = |error: std::io::Error| OpError::internal("cannot use the listening socket", error);
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = ttrpc::asynchronous::transport::Listener::try_from(listener).map_err(failed)?;
    let mut server = ttrpc::asynchronous::Server::new()
        .add_listener(listener)
        .register_service(containerd_shim_protos::shim_async::create_task(task.clone()))
        .register_service(task_v2(task))
        .register_service(crate::api::create_supervisor(Arc::new(v1)));
    let serving = |error: ttrpc::Error| OpError::new(ErrorKind::Internal, format!("cannot serve: {error}"));
    server.start().await.map_err(serving)?;
    let used = tokio::select! {
        used = tokio::time::timeout(UNUSED, state.wait_for(|state| *state != SandboxState::Empty)) => used.is_ok(),
        _ = dismissed.wait_for(|dismissed| *dismissed) => false,
    };
    if used {
        // An error means that the actor is gone, and then there is nothing to serve either.
        let _ = state.wait_for(|state| *state == SandboxState::Gone).await;
        if let Some(limit) = farewell {
            let _ = tokio::time::timeout(limit, dismissed.wait_for(|dismissed| *dismissed)).await;
        }
    } else {
        tracing::warn!("nobody asks for a container; ending");
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), busy.wait_for(|calls| *calls == 0)).await;
    // Ends when each connection's writer has written what it was given.
    let _ = tokio::time::timeout(FLUSH, server.shutdown()).await;
    Ok(())
}

/// The Task service by the name that it had up to containerd 1.7. The messages are the same.
fn task_v2(task: Arc<TaskService>) -> HashMap<String, ttrpc::asynchronous::Service> {
    let services = containerd_shim_protos::shim_async::create_task(task);
    services.into_iter().map(|(name, service)| (name.replace(".v3.", ".v2."), service)).collect()
}

/// Removes the directory, unless its journal still holds what could not be undone, and in any case `link`, which leads to
/// a socket that nobody listens on.
fn finish(directory: &Path, link: Option<&Path>) {
    if let Some(link) = link
        && let Err(error) = (UndoRecord::RemoveFile { path: link.to_owned() }).perform()
    {
        tracing::error!(%error, "cannot remove the socket's symlink");
    }
    let journal = crate::state::Journal::load(directory.join("journal.jsonl"));
    match journal {
        Ok(journal) if journal.entries().is_empty() => {
            let record = UndoRecord::RemoveTree { path: directory.to_owned() };
            if let Err(error) = record.perform() {
                tracing::error!(%error, "cannot remove the sandbox's directory");
            }
        }
        Ok(journal) => {
            for entry in journal.entries() {
                tracing::error!(what = entry.record.describe(), "left behind; `stockade gc` tries again");
            }
        }
        Err(error) => tracing::error!(%error, "cannot read the journal; the sandbox's directory stays"),
    }
}
