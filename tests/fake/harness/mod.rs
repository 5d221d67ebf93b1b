//! A sandbox of the real actors and the real pipeline, on a machine and an agent made of code.
//!
//! The thread that makes one gets a mount namespace of its own, and the runtime's threads inherit it: tests that share
//! a process do not see each other's mounts, and the host sees none. Needs root.

mod agent;
mod backends;

pub(crate) use agent::FakeAgent;
pub(crate) use backends::FakeBackends;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::Actor;
use serde_json::{Value, json};
use stockade::actors::container::{ContainerHandle, ContainerState, Describe, Exit};
use stockade::actors::factory::FactoryActor;
use stockade::actors::hook::HookActor;
use stockade::actors::network::NetworkActor;
use stockade::actors::runtime::Ask;
use stockade::actors::sandbox::{
    CreateContainer, CreateSandbox, DeleteContainer, FindContainer, SandboxActor, SandboxHandle, SandboxSetup,
    SandboxState,
};
use stockade::error::OpError;
use stockade::events::{EventQueue, Events};
use stockade::network::NetworkNamespace;
use stockade::pipeline::SharedJournal;
use stockade::pipeline::create::{CreateRequest, Facilities, FrontDoor};
use stockade::state::{ContainerRecord, Journal, Store};
use stockade::stdio::StdioNames;
use stockade_config::Loaded;
use tokio::sync::watch;

/// What any wait of a test may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One sandbox and its host: a root directory, bundles, a machine and an agent that do as they are told.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The actor.
    pub(crate) handle: SandboxHandle,
    /// Its states.
    pub(crate) state: watch::Receiver<SandboxState>,
    /// The records.
    pub(crate) store: Store,
    /// The machines.
    pub(crate) backends: Arc<FakeBackends>,
    /// The agent in them.
    pub(crate) agent: FakeAgent,
    /// Its id.
    pub(crate) id: String,
    told: Mutex<EventQueue>,
    root: PathBuf,
}

/// Runs `test` where actors can be started, with a directory of its own for everything.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F) {
    run_on(system, test);
}

/// As [`run`], with a clock that jumps to the next timer when nothing else is to do. Not for what other processes do.
pub(crate) fn run_without_waiting<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F) {
    let paused = || {
        actix::System::with_tokio_rt(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
        })
    };
    run_on(paused, test);
}

fn run_on<F: Future<Output = ()>>(system: impl FnOnce() -> actix::SystemRunner, test: impl FnOnce(PathBuf) -> F) {
    stockade::storage::private_mount_namespace().expect("a mount namespace (this tier needs root)");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().canonicalize().expect("it exists");
    system().block_on(test(path));
}

/// A system as the supervisor's.
pub(crate) fn system() -> actix::SystemRunner {
    actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
    })
}

impl Sandbox {
    /// A sandbox that nobody has created yet, below `root`. Only where actors can be started.
    pub(crate) fn new(root: &Path) -> Self {
        Self::failing_at(root, None)
    }

    /// One whose creations fail after this step.
    pub(crate) fn failing_at(root: &Path, step: Option<&str>) -> Self {
        // Tests may share a process, and with it the names of control groups.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("pod{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self::named(root.join(&id), id, step)
    }

    /// One whose records are beside those of other sandboxes in the same `root`.
    #[allow(dead_code, reason = "the benchmark that shares this file needs it")]
    pub(crate) fn beside_others(root: &Path, id: &str) -> Self {
        Self::named(root.to_owned(), id.to_owned(), None)
    }

    fn named(root: PathBuf, id: String, step: Option<&str>) -> Self {
        std::fs::create_dir_all(&root).expect("a directory");
        let mut config = Loaded::built_in();
        let (kernel, initrd) = (root.join("vmlinuz"), root.join("initrd.img"));
        for file in [&kernel, &initrd] {
            std::fs::write(file, "not really").expect("a file");
        }
        let machine = &mut config.config.hypervisor.qemu.machine;
        machine.kernel = kernel;
        machine.initrd = Some(initrd);
        machine.stop_timeout = Duration::from_secs(2);
        let agent = FakeAgent::default();
        let backends = Arc::new(FakeBackends::new(agent.clone()));
        let store = Store::new(root.join("state"));
        let (events, told) = Events::channel();
        let name = id.parse().expect("an id");
        store.make_sandbox_dir(&name).expect("a directory");
        let journal = SharedJournal::new(Journal::new(store.journal_file(&name)));
        let ahead = std::thread::spawn(NetworkNamespace::create);
        let network = NetworkActor::new(journal.clone(), Some(ahead)).start();
        let factory = FactoryActor::default().start();
        let facilities = Facilities {
            store: store.clone(),
            config,
            backends: backends.clone(),
            prepare_netns: Ask::actor(network.clone()),
            release_netns: Ask::actor(network.clone()),
            rescan_network: Ask::actor(network.clone()),
            connect_guest: Ask::actor(network.clone()),
            detach_network: Ask::actor(network.clone()),
            describe_network: Ask::actor(network),
            hooks: Ask::actor(HookActor.start()),
            factory: Ask::actor(factory.clone()),
            front: FrontDoor { events, ..FrontDoor::default() },
        };
        let (handle, state) = SandboxActor::launch(SandboxSetup {
            id: name,
            facilities: Arc::new(facilities),
            journal,
            factory: Ask::actor(factory),
            inject_failure: step.map(str::to_owned),
        });
        Self { handle, state, store, backends, agent, id, told: Mutex::new(told), root }
    }

    /// The topics of the events that were told since the last call.
    #[allow(dead_code, reason = "the benchmark that shares this file does not need it")]
    pub(crate) fn topics(&self) -> Vec<&'static str> {
        let mut told = self.told.lock().expect("no panic while it is held");
        std::iter::from_fn(|| told.waiting()).map(|event| event.topic).collect()
    }

    /// A request for the sandbox's first container.
    pub(crate) fn first(&self) -> CreateRequest {
        self.request(&self.id, |_| {})
    }

    /// Creates the sandbox with its first container.
    pub(crate) async fn create(&self, request: CreateRequest) -> Result<(), OpError> {
        self.handle.create_sandbox.ask(CreateSandbox { request: Box::new(request) }).await
    }

    /// Creates a further container.
    pub(crate) async fn add(&self, request: CreateRequest) -> Result<(), OpError> {
        self.handle.create_container.ask(CreateContainer { request: Box::new(request) }).await
    }

    /// Deletes a container.
    pub(crate) async fn delete(&self, id: &str) -> Result<Option<Exit>, OpError> {
        self.handle.delete.ask(DeleteContainer { id: id.parse().expect("an id") }).await
    }

    /// A container that exists, or is being created.
    pub(crate) async fn find(&self, id: &str) -> ContainerHandle {
        self.handle.find.ask(FindContainer { id: id.parse().expect("an id") }).await.expect("it exists")
    }

    /// A container's state.
    pub(crate) async fn state_of(&self, id: &str) -> ContainerState {
        self.find(id).await.describe.ask(Describe { exec: None }).await.expect("described").state
    }

    /// A container's record on disk.
    pub(crate) fn record(&self, id: &str) -> ContainerRecord {
        self.store.container(&id.parse().expect("an id")).expect("a record")
    }

    /// Fails with what is left on the host. Only an actor's last descriptors may take a moment.
    pub(crate) async fn leaves_nothing(&self, after: &str) {
        assert_eq!(
            self.leftovers(),
            Vec::<String>::new(),
            "after {after}; the agent was asked {:?}",
            self.agent.calls()
        );
        let netns = self.backends.let_go();
        self.agent.let_go();
        eventually("no descriptor of the network namespace", || netns.as_deref().is_none_or(|name| !is_open(name)))
            .await;
    }

    /// A request for the container `id`, from a bundle that is made here; `change` may change its config.json.
    pub(crate) fn request(&self, id: &str, change: impl FnOnce(&mut Value)) -> CreateRequest {
        let bundle = self.root.join("bundles").join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).expect("a root file system");
        let mut spec = serde_json::to_value(stockade::oci::default_spec()).expect("a document");
        spec["process"]["terminal"] = false.into();
        spec["linux"]["cgroupsPath"] = format!("/{}{id}", group_prefix()).into();
        if id != self.id {
            spec["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": self.id,
            });
        }
        change(&mut spec);
        std::fs::write(bundle.join("config.json"), spec.to_string()).expect("written");
        CreateRequest {
            id: id.parse().expect("an id"),
            bundle,
            rootfs: Vec::new(),
            stdio: StdioNames::default(),
            stand_in: None,
            systemd_cgroup: false,
            limit: PATIENCE,
            timeline: None,
        }
    }

    /// Where the sandbox's files are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.store.sandbox_dir(&self.id.parse().expect("an id"))
    }

    /// The undo records on disk, in words, oldest first.
    pub(crate) fn journal(&self) -> Vec<String> {
        let journal = Journal::load(self.directory().join("journal.jsonl")).expect("a journal that can be read");
        journal.entries().iter().map(|entry| entry.record.describe()).collect()
    }

    /// Waits for a state of the sandbox.
    pub(crate) async fn reaches(&self, wanted: SandboxState) {
        let mut state = self.state.clone();
        let reached = tokio::time::timeout(PATIENCE, state.wait_for(|state| *state == wanted)).await;
        reached.unwrap_or_else(|_| panic!("not {wanted:?} but {:?}", *self.state.borrow())).expect("an actor");
    }

    /// What of this sandbox, and of the containers below its root, is left on the host, in words.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self.journal().into_iter().map(|entry| format!("journal: {entry}")).collect();
        let containers = self.store.container_ids().expect("a directory");
        left.extend(containers.iter().map(|id| format!("record of {id}")));
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
        let root = self.root.display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount: {line}")));
        if let Some(machine) = self.backends.machine()
            && machine.exit().borrow().is_none()
            && machine.state() != stockade_hypervisor::VmState::New
            && machine.state() != stockade_hypervisor::VmState::Prepared
        {
            left.push(format!("machine: {}", machine.state()));
        }
        let shared = self.directory().join("shared");
        let files = std::fs::read_dir(shared).into_iter().flatten().flatten();
        left.extend(files.map(|file| format!("file: {}", file.path().display())));
        let suffix = format!("/{}{}", group_prefix(), self.id);
        left.extend(cgroups().into_iter().filter(|path| path.ends_with(&suffix)).map(|path| format!("cgroup: {path}")));
        left
    }
}

/// Whether a descriptor of this process leads to `name`.
fn is_open(name: &str) -> bool {
    let open = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| target.as_os_str() == name)
}

/// What the names of this process's control groups begin with. They have no parent in common, whose end would be nobody's.
fn group_prefix() -> String {
    format!("stockade-fake-{}-", std::process::id())
}

/// The control groups that this process's sandboxes have made.
fn cgroups() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then_some(point)
    });
    let groups = hierarchies.flat_map(|path| std::fs::read_dir(path).into_iter().flatten().flatten());
    let groups = groups.filter(|entry| entry.file_name().to_string_lossy().starts_with(&group_prefix()));
    groups.map(|entry| entry.path().display().to_string()).collect()
}

/// Waits until `holds`.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not so in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
