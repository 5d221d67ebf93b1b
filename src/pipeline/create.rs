//! The creation of a sandbox with its first container, and of a further container: which steps, in which order.

use super::steps::{
    AskFactory, BeginCgroup, BeginJoin, Bundle, Commit, ConnectAgent, ConnectNetwork, CreateInGuest, CreationHooks,
    GuestReady, Machine, MachineBegun, MakeShare, OneContainer, OpenStdio, PrepareNamespace, ReadBundle, RescanNetwork,
    ReserveId, ResolveRootfs, Rootfs, SetGuestNetwork, ShareFiles, StartMachine, guest_share, sandbox_shm,
};
use super::{Runner, SharedJournal, StepFailure, UndoFailure, UndoStack};
use crate::actors::factory::{Acquire, Acquired};
use crate::actors::hook::RunHooks;
use crate::actors::network::{
    ConnectGuest, DescribeNetwork, DetachNetwork, NetworkOptions, PrepareNetns, ReleaseNetns, Rescan, SandboxNetns,
};
use crate::actors::runtime::Ask;
use crate::agent::{AgentClient, GuestSandbox};
use crate::cgroup::SandboxCgroup;
use crate::error::{ErrorKind, OpError};
use crate::events::Events;
use crate::hypervisor::{Backends, ChosenBackend};
use crate::ids::{ContainerId, SandboxId};
use crate::oci::{ContainerType, NetworkRequest, OCI_VERSION, OciState, Status};
use crate::state::{ContainerRecord, ProcessId, SandboxRecord, Store};
use crate::stdio::{HostStdio, StdioNames, StdioOwner};
use oci_spec::runtime::Hooks;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stockade_config::{Backend, Config, Loaded, apply_annotations, chosen_hypervisor};

/// What a front door asks for.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The container's id.
    pub id: ContainerId,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Mounts that make up its root; none: the root is there.
    pub rootfs: Vec<RootfsMount>,
    /// Its streams.
    pub stdio: StdioNames,
    /// The process that stands in for it.
    pub stand_in: Option<ProcessId>,
    /// `cgroupsPath` has systemd's form.
    pub systemd_cgroup: bool,
    /// How long the whole creation may take.
    pub limit: Duration,
    /// Where the timeline is written to.
    pub timeline: Option<PathBuf>,
}

/// One mount of a root file system, as containerd gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMount {
    /// The file system's type.
    pub kind: String,
    /// Its source.
    pub source: String,
    /// Its options.
    pub options: Vec<String>,
}

/// Who asks the supervisor, and hears what becomes of containers. The default is the command line.
#[derive(Debug, Clone, Default)]
pub struct FrontDoor {
    /// containerd's namespace; empty: no containerd.
    pub namespace: String,
    /// A symlink to the supervisor's socket.
    pub link: Option<PathBuf>,
    /// Where containers' events are told.
    pub events: Events,
}

/// What all pipelines of a supervisor use.
#[derive(Debug)]
pub struct Facilities {
    /// The records.
    pub store: Store,
    /// The configuration before annotations.
    pub config: Loaded,
    /// The machines.
    pub backends: Arc<dyn Backends>,
    /// The Network actor.
    pub prepare_netns: Ask<PrepareNetns>,
    /// The Network actor.
    pub release_netns: Ask<ReleaseNetns>,
    /// The Network actor.
    pub rescan_network: Ask<Rescan>,
    /// The Network actor.
    pub connect_guest: Ask<ConnectGuest>,
    /// The Network actor.
    pub detach_network: Ask<DetachNetwork>,
    /// The Network actor.
    pub describe_network: Ask<DescribeNetwork>,
    /// The Hook actor.
    pub hooks: Ask<RunHooks>,
    /// The Factory actor.
    pub factory: Ask<Acquire>,
    /// Who asks.
    pub front: FrontDoor,
}

/// A sandbox that is up. Whoever holds it unwinds `undo`.
#[derive(Debug)]
pub struct CreatedSandbox {
    /// Its machine.
    pub machine: Machine,
    /// Its agent.
    pub guest: GuestReady,
    /// Its network namespace.
    pub netns: SandboxNetns,
    /// The directories of its control group on the host, one a hierarchy.
    pub cgroup: Vec<PathBuf>,
    /// Its configuration, annotations included.
    pub config: Config,
    /// The share on the host.
    pub share: PathBuf,
    /// How its machine came to be.
    pub acquired: Acquired,
    /// How to undo it, without its containers.
    pub undo: UndoStack,
}

impl CreatedSandbox {
    /// What a further container needs of it.
    pub fn for_containers(&self) -> SharedSandbox {
        SharedSandbox {
            machine: self.machine.clone(),
            agent: self.guest.agent.clone(),
            netns: self.netns.clone(),
            config: self.config.clone(),
            share: self.share.clone(),
        }
    }
}

/// What containers need of their sandbox.
#[derive(Debug, Clone)]
pub struct SharedSandbox {
    machine: Machine,
    agent: AgentClient,
    netns: SandboxNetns,
    config: Config,
    share: PathBuf,
}

/// A container whose process waits to be started. Whoever holds it unwinds `undo`.
#[derive(Debug)]
pub struct CreatedContainer {
    /// Its record, as written.
    pub record: ContainerRecord,
    /// The agent of its sandbox.
    pub agent: AgentClient,
    /// Its opened streams.
    pub stdio: HostStdio,
    /// The bundle's hooks.
    pub hooks: Option<Hooks>,
    /// Where they run.
    pub netns: SandboxNetns,
    /// The state that hooks read, with the status `created`.
    pub oci_state: OciState,
    /// How to undo it.
    pub undo: UndoStack,
}

/// Makes a sandbox and its first container.
///
/// # Errors
/// The failed step and its cause; everything is undone.
pub async fn create_sandbox(
    facilities: Arc<Facilities>,
    id: SandboxId,
    journal: SharedJournal,
    request: CreateRequest,
    runner: Runner,
) -> Result<(CreatedSandbox, CreatedContainer), OpError> {
    let mut sandbox_undo = UndoStack::new(journal.clone());
    let mut container_undo = UndoStack::new(journal.clone());
    let steps =
        sandbox_steps(&facilities, &id, journal, request, &runner, &mut sandbox_undo, &mut container_undo).await;
    match steps {
        Ok((sandbox, container)) => Ok((sandbox.with(sandbox_undo), container.with(container_undo))),
        Err(failure) => {
            let mut left = container_undo.unwind().await;
            left.extend(sandbox_undo.unwind().await);
            Err(failed(failure, &left))
        }
    }
}

/// Makes a further container in a sandbox.
///
/// # Errors
/// The failed step and its cause; everything of the container is undone.
pub async fn create_container(
    facilities: Arc<Facilities>,
    id: SandboxId,
    journal: SharedJournal,
    sandbox: SharedSandbox,
    request: CreateRequest,
    runner: Runner,
) -> Result<CreatedContainer, OpError> {
    let mut undo = UndoStack::new(journal);
    match container_steps(&facilities, &id, sandbox, request, &runner, &mut undo).await {
        Ok(container) => Ok(container.with(undo)),
        Err(failure) => Err(failed(failure, &undo.unwind().await)),
    }
}

/// The cause, and beside it what could not be undone.
fn failed(failure: StepFailure, left: &[UndoFailure]) -> OpError {
    let error = OpError::from(failure);
    if left.is_empty() {
        return error;
    }
    let left: Vec<_> = left.iter().map(|left| format!("{} ({})", left.what, left.error.one_line())).collect();
    let kind = error.kind();
    OpError::new(kind, format!("{}; and could not: {}", error.one_line(), left.join("; ")))
}

struct SandboxDraft {
    machine: Machine,
    guest: GuestReady,
    netns: SandboxNetns,
    cgroup: Vec<PathBuf>,
    config: Config,
    share: PathBuf,
    acquired: Acquired,
}

impl SandboxDraft {
    fn with(self, undo: UndoStack) -> CreatedSandbox {
        let Self { machine, guest, netns, cgroup, config, share, acquired } = self;
        CreatedSandbox { machine, guest, netns, cgroup, config, share, acquired, undo }
    }
}

struct ContainerDraft {
    record: ContainerRecord,
    agent: AgentClient,
    stdio: HostStdio,
    hooks: Option<Hooks>,
    netns: SandboxNetns,
    oci_state: OciState,
}

impl ContainerDraft {
    fn with(self, undo: UndoStack) -> CreatedContainer {
        let Self { record, agent, stdio, hooks, netns, oci_state } = self;
        CreatedContainer { record, agent, stdio, hooks, netns, oci_state, undo }
    }
}

async fn sandbox_steps(
    facilities: &Arc<Facilities>,
    id: &SandboxId,
    journal: SharedJournal,
    request: CreateRequest,
    runner: &Runner,
    sandbox_undo: &mut UndoStack,
    container_undo: &mut UndoStack,
) -> Result<(SandboxDraft, ContainerDraft), StepFailure> {
    let store = &facilities.store;
    let directory = store.sandbox_dir(id);
    let read = ReadBundle {
        id: request.id.to_string(),
        bundle: request.bundle.clone(),
        seccomp: !facilities.config.config.runtime.disable_guest_seccomp,
        vcpus: None,
        hook_timeout: facilities.config.config.runtime.default_hook_timeout,
    };
    let bundle = runner.run(read, container_undo).await?;
    let (config, backend, begun_machine) =
        runner.run(Configure { facilities, bundle: &bundle }, container_undo).await?;
    let joined = match &bundle.network {
        NetworkRequest::Join(path) => Some(path.clone()),
        NetworkRequest::Create | NetworkRequest::Host => None,
    };
    let prepare = PrepareNamespace {
        prepare: facilities.prepare_netns.clone(),
        release: facilities.release_netns.clone(),
        path: joined.clone(),
        stand_in: request.stand_in.map(|stand_in| stand_in.pid),
        options: network_options(&config, backend.backend),
    };
    let namespace = runner.run(prepare, sandbox_undo).await?;
    let begin = BeginCgroup {
        id: id.to_string(),
        path: bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()),
        systemd: request.systemd_cgroup,
        journal,
        stand_in: request.stand_in,
    };
    let begun = runner.run(begin, sandbox_undo).await?;
    let (reserved, stdio, rootfs) = host_side(facilities, id, &request, &bundle, runner, container_undo).await?;
    let factory = &config.factory;
    let ask = AskFactory {
        factory: facilities.factory.clone(),
        template: factory.enable_template,
        cache: factory.vm_cache_number,
    };
    let acquired = runner.run(ask, sandbox_undo).await?;
    let share = runner.run(MakeShare { directory: directory.join("shared") }, sandbox_undo).await?;
    let netns = runner.run(namespace, sandbox_undo).await?;
    let hooks = creation_hooks(facilities, &request, &bundle, &netns, runner);
    runner.run(hooks, container_undo).await?;
    let connect = ConnectNetwork {
        rescan: facilities.rescan_network.clone(),
        detach: facilities.detach_network.clone(),
        used: joined.is_some() || bundle.spec.hooks().as_ref().is_some_and(runs_before_the_machine),
    };
    let interfaces = runner.run(connect, sandbox_undo).await?;
    let cgroup = runner.run(begun, sandbox_undo).await?;
    let start = StartMachine {
        begun: begun_machine,
        config: config.clone(),
        backend: backend.clone(),
        sandbox: id.clone(),
        directory,
        share: share.clone(),
        interfaces,
        netns: netns.descriptor.clone(),
        memory_cgroups: cgroup.iter().flat_map(SandboxCgroup::memory_procs).collect(),
    };
    let machine = runner.run(start, sandbox_undo).await?;
    let join = BeginJoin { cgroup, processes: machine.hypervisor.processes(), stand_in: request.stand_in };
    let joining = runner.run(join, sandbox_undo).await?;
    let connect = ConnectAgent {
        hypervisor: machine.hypervisor.clone(),
        ready: machine.agent_ready.clone(),
        agent: config.agent.kata.clone(),
        machine: config.machine(backend.backend).clone(),
        sandbox: guest_sandbox(id, &config, &backend, &bundle),
    };
    let guest = runner.run(connect, sandbox_undo).await?;
    let cgroup = runner.run(joining, sandbox_undo).await?;
    let tell = SetGuestNetwork {
        connect: facilities.connect_guest.clone(),
        machine: machine.hypervisor.clone(),
        agent: guest.agent.clone(),
        devices: machine.interfaces.clone(),
    };
    runner.run(tell, sandbox_undo).await?;
    let sandbox = SandboxDraft { machine, guest, netns, cgroup, config, share, acquired };
    let shared = SharedSandbox {
        machine: sandbox.machine.clone(),
        agent: sandbox.guest.agent.clone(),
        netns: sandbox.netns.clone(),
        config: sandbox.config.clone(),
        share: sandbox.share.clone(),
    };
    in_guest(&shared, &request, &bundle, rootfs, runner, container_undo).await?;
    runner.run(OneContainer { made: 1 }, container_undo).await?;
    let commit = Commit {
        store: store.clone(),
        container: reserved,
        sandbox: Some(SandboxRecord {
            id: id.clone(),
            supervisor: ProcessId::current(),
            backend: Some(backend.backend.to_string()),
            created: crate::state::now(),
            link: facilities.front.link.clone(),
        }),
    };
    let record = runner.run(commit, container_undo).await?;
    let container = draft(record, &shared, stdio, &request, &bundle);
    Ok((sandbox, container))
}

/// What every container has on the host before it is made in the guest: its name, its streams, its root.
async fn host_side(
    facilities: &Facilities,
    id: &SandboxId,
    request: &CreateRequest,
    bundle: &Bundle,
    runner: &Runner,
    undo: &mut UndoStack,
) -> Result<(ContainerRecord, HostStdio, Rootfs), StepFailure> {
    let reserve = ReserveId { store: facilities.store.clone(), record: record(id, request, bundle) };
    let reserved = runner.run(reserve, undo).await?;
    let stdio = runner.run(open_stdio(facilities, request), undo).await?;
    let resolve =
        ResolveRootfs { spec: bundle.spec.clone(), bundle: request.bundle.clone(), mounts: request.rootfs.clone() };
    let rootfs = runner.run(resolve, undo).await?;
    Ok((reserved, stdio, rootfs))
}

async fn container_steps(
    facilities: &Arc<Facilities>,
    id: &SandboxId,
    sandbox: SharedSandbox,
    request: CreateRequest,
    runner: &Runner,
    undo: &mut UndoStack,
) -> Result<ContainerDraft, StepFailure> {
    let store = &facilities.store;
    let read = ReadBundle {
        id: request.id.to_string(),
        bundle: request.bundle.clone(),
        seccomp: !sandbox.config.runtime.disable_guest_seccomp,
        vcpus: None,
        hook_timeout: sandbox.config.runtime.default_hook_timeout,
    };
    let bundle = runner.run(read, undo).await?;
    runner.run(SameSandbox { sandbox: id, bundle: &bundle }, undo).await?;
    let (reserved, stdio, rootfs) = host_side(facilities, id, &request, &bundle, runner, undo).await?;
    in_guest(&sandbox, &request, &bundle, rootfs, runner, undo).await?;
    // The original runs a further container's hooks once it exists in the guest; their failure removes it.
    let hooks = creation_hooks(facilities, &request, &bundle, &sandbox.netns, runner);
    runner.run(hooks, undo).await?;
    if bundle.spec.hooks().as_ref().is_some_and(runs_before_the_machine) {
        runner.run(RescanNetwork { rescan: facilities.rescan_network.clone() }, undo).await?;
    }
    let commit = Commit { store: store.clone(), container: reserved, sandbox: None };
    let record = runner.run(commit, undo).await?;
    Ok(draft(record, &sandbox, stdio, &request, &bundle))
}

fn open_stdio(facilities: &Facilities, request: &CreateRequest) -> OpenStdio {
    let owner = StdioOwner { container: request.id.to_string(), namespace: facilities.front.namespace.clone() };
    OpenStdio { names: request.stdio.clone(), owner }
}

/// Shares the container's files and makes it in the guest.
async fn in_guest(
    sandbox: &SharedSandbox,
    request: &CreateRequest,
    bundle: &Bundle,
    rootfs: Rootfs,
    runner: &Runner,
    undo: &mut UndoStack,
) -> Result<(), StepFailure> {
    let files = ShareFiles {
        share: sandbox.share.clone(),
        id: request.id.to_string(),
        rootfs,
        mounts: bundle.guest.mounts.clone(),
    };
    let shared = runner.run(files, undo).await?;
    // Hooks that run after the container's deletion find it deleted in the guest too.
    let after =
        bundle.spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref()).is_some_and(|list| !list.is_empty());
    let guest_hooks = sandbox.config.machine(sandbox.machine.backend.backend).guest_hook_path.is_some();
    let create = CreateInGuest {
        goes_with_sandbox: !after && !guest_hooks && shared.storages.is_empty(),
        agent: sandbox.agent.clone(),
        exit: sandbox.machine.hypervisor.exit(),
        id: request.id.to_string(),
        guest: bundle.guest.clone(),
        storages: shared.storages,
    };
    runner.run(create, undo).await
}

fn record(id: &SandboxId, request: &CreateRequest, bundle: &Bundle) -> ContainerRecord {
    ContainerRecord {
        id: request.id.clone(),
        sandbox: id.clone(),
        bundle: request.bundle.clone(),
        stand_in: request.stand_in,
        status: Status::Creating,
        created: crate::state::now(),
        exit_status: None,
        annotations: bundle.annotations.clone(),
        oci_version: bundle.spec.version().clone(),
        owner: "root".into(),
    }
}

fn oci_state(request: &CreateRequest, bundle: &Bundle, status: Status) -> OciState {
    OciState {
        oci_version: OCI_VERSION.into(),
        id: request.id.to_string(),
        status,
        pid: Some(request.stand_in.unwrap_or_else(ProcessId::current).pid),
        bundle: request.bundle.clone(),
        annotations: bundle.annotations.clone(),
    }
}

fn creation_hooks(
    facilities: &Facilities,
    request: &CreateRequest,
    bundle: &Bundle,
    netns: &SandboxNetns,
    runner: &Runner,
) -> CreationHooks {
    CreationHooks {
        runner: facilities.hooks.clone(),
        hooks: bundle.spec.hooks().clone(),
        state: oci_state(request, bundle, Status::Creating),
        netns: netns.clone(),
        cancel: runner.cancel.clone(),
    }
}

/// Whether there are hooks of the kinds that a network is made by.
fn runs_before_the_machine(hooks: &Hooks) -> bool {
    [hooks.prestart(), hooks.create_runtime()].into_iter().flatten().any(|list| !list.is_empty())
}

fn draft(
    record: ContainerRecord,
    sandbox: &SharedSandbox,
    stdio: HostStdio,
    request: &CreateRequest,
    bundle: &Bundle,
) -> ContainerDraft {
    ContainerDraft {
        record,
        agent: sandbox.agent.clone(),
        stdio,
        hooks: bundle.spec.hooks().clone(),
        netns: sandbox.netns.clone(),
        oci_state: oci_state(request, bundle, Status::Created),
    }
}

fn network_options(config: &Config, backend: Backend) -> NetworkOptions {
    let machine = config.machine(backend);
    NetworkOptions {
        model: config.runtime.internetworking_model,
        queues: machine.network_queues,
        rx_rate: machine.rx_rate_limiter_max_rate,
        tx_rate: machine.tx_rate_limiter_max_rate,
        disabled: config.runtime.disable_new_netns,
    }
}

fn guest_sandbox(id: &SandboxId, config: &Config, backend: &ChosenBackend, bundle: &Bundle) -> GuestSandbox {
    GuestSandbox {
        id: id.to_string(),
        hostname: bundle.spec.hostname().clone().unwrap_or_default(),
        dns: bundle.dns.clone(),
        shared_pidns: matches!(bundle.kind, ContainerType::Sandbox) && bundle.guest.shared_pid_namespace,
        hook_path: config
            .machine(backend.backend)
            .guest_hook_path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        kernel_modules: config.agent.kata.kernel_modules.clone(),
        storages: vec![guest_share(), sandbox_shm(bundle.shm_bytes)],
    }
}

/// The second half of step 1: the configuration of this sandbox, and its backend, whose machine is begun.
struct Configure<'a> {
    facilities: &'a Facilities,
    bundle: &'a Bundle,
}

impl super::Step for Configure<'_> {
    type Output = (Config, ChosenBackend, MachineBegun);
    const NAME: &'static str = "configuration";

    async fn run(self, _: &mut UndoStack) -> Result<Self::Output, OpError> {
        let loaded = &self.facilities.config;
        let refused = |error| OpError::because(ErrorKind::InvalidArgument, "cannot use the annotations", error);
        let choice = chosen_hypervisor(loaded, &self.bundle.annotations).map_err(refused)?;
        let backend = self.facilities.backends.choose(choice).await?;
        let config = apply_annotations(loaded, backend.backend, &self.bundle.annotations).map_err(refused)?.config;
        if self.bundle.network == NetworkRequest::Host && !config.runtime.disable_new_netns {
            let what = "host networking is not supported: config.json lists no network namespace; add one to \
                        linux.namespaces, or set [runtime] disable_new_netns for guests without a network";
            return Err(OpError::new(ErrorKind::InvalidArgument, what));
        }
        let begun = MachineBegun::begin(Arc::clone(&self.facilities.backends), &config, &backend);
        Ok((config, backend, begun))
    }
}

/// A pod's container must name the sandbox that it is created in.
struct SameSandbox<'a> {
    sandbox: &'a SandboxId,
    bundle: &'a Bundle,
}

impl super::Step for SameSandbox<'_> {
    type Output = ();
    const NAME: &'static str = "same-sandbox";

    async fn run(self, _: &mut UndoStack) -> Result<(), OpError> {
        match &self.bundle.kind {
            ContainerType::Container { sandbox_id } if sandbox_id == self.sandbox.as_str() => Ok(()),
            ContainerType::Container { sandbox_id } => Err(OpError::new(
                ErrorKind::InvalidArgument,
                format!("the bundle belongs to sandbox {sandbox_id:?}, not to {}", self.sandbox),
            )),
            ContainerType::Sandbox => Err(OpError::new(
                ErrorKind::AlreadyExists,
                format!("sandbox {} has its first container already, and the bundle is a sandbox's", self.sandbox),
            )),
        }
    }
}
