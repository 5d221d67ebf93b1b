//! containerd's Task service: translates to messages, nothing else.

use super::status::to_ttrpc;
use crate::actors::container::{
    CloseStdin, ContainerHandle, ContainerState, Delete, Describe, Exec, Exit, Pause, Resize, Resume, Signal, Start,
    StartExec, Stats, Update, Wait,
};
use crate::actors::sandbox::{
    CreateContainer, CreateSandbox, DeleteContainer, FindContainer, SandboxHandle, SandboxState,
};
use crate::api::TaskOptions;
use crate::error::{ErrorKind, OpError};
use crate::ids::{ContainerId, ExecId, SandboxId};
use crate::pipeline::create::{CreateRequest, RootfsMount};
use crate::state::ProcessId;
use crate::stdio::StdioNames;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::Task;
use oci_spec::runtime::{LinuxResources, Process};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use ttrpc::asynchronous::TtrpcContext;

const NO_CHECKPOINTS: &str = "checkpoints are not supported: a container's state is its machine's";

/// Translates containerd's Task service to messages.
#[derive(Debug, Clone)]
pub(super) struct TaskService {
    pub(super) sandbox_id: SandboxId,
    pub(super) sandbox: SandboxHandle,
    /// `[runtime] create_timeout`
    pub(super) create_limit: Duration,
    /// The sandbox's states.
    pub(super) state: watch::Receiver<SandboxState>,
    /// How many calls that may end the supervisor have not been answered yet.
    pub(super) calls: watch::Sender<usize>,
    /// Whether containerd has said that it is done with this supervisor.
    pub(super) dismissed: watch::Sender<bool>,
}

/// A call that is being answered.
struct Call<'a>(&'a watch::Sender<usize>);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

impl TaskService {
    fn call(&self) -> Call<'_> {
        self.calls.send_modify(|calls| *calls += 1);
        Call(&self.calls)
    }

    async fn find(&self, id: &str) -> Result<ContainerHandle, OpError> {
        let id: ContainerId = id.parse()?;
        self.sandbox.find.ask(FindContainer { id }).await
    }

    fn create_request(&self, context: &TtrpcContext, request: CreateTaskRequest) -> Result<CreateRequest, OpError> {
        let options = TaskOptions::parse(request.options.as_ref())
            .map_err(|error| OpError::because(ErrorKind::InvalidArgument, "cannot use the runtime's options", error))?
            .own;
        if !request.checkpoint.is_empty() {
            return Err(OpError::new(ErrorKind::Unimplemented, NO_CHECKPOINTS));
        }
        let limits = [
            (options.timeout_ms > 0).then(|| Duration::from_millis(options.timeout_ms)),
            u64::try_from(context.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos),
            Some(self.create_limit),
        ];
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            let what = format!("the bundle {:?} is not an absolute path", request.bundle);
            return Err(OpError::new(ErrorKind::InvalidArgument, what));
        }
        Ok(CreateRequest {
            id: request.id.parse()?,
            bundle,
            rootfs: request
                .rootfs
                .into_iter()
                .map(|mount| RootfsMount { kind: mount.type_, source: mount.source, options: mount.options })
                .collect(),
            stdio: StdioNames {
                terminal: request.terminal,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            },
            stand_in: stand_in(options.stand_in_pid)?,
            systemd_cgroup: options.systemd_cgroup,
            // The client's limit is the whole creation's: its rollback begins when the client stops waiting.
            limit: limits.into_iter().flatten().min().unwrap_or(self.create_limit),
            timeline: (!options.timeline.is_empty()).then(|| PathBuf::from(&options.timeline)),
        })
    }
}

fn stand_in(pid: i32) -> Result<Option<ProcessId>, OpError> {
    if pid == 0 {
        return Ok(None);
    }
    let gone = || OpError::new(ErrorKind::InvalidArgument, format!("the stand-in process {pid} does not exist"));
    ProcessId::of(pid).map(Some).ok_or_else(gone)
}

fn exec_id(text: &str) -> Result<Option<ExecId>, OpError> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

fn timestamp(time: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(Timestamp::from(time))
}

fn pid_of(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

/// The process that containerd is told when there is no stand-in: the supervisor.
fn pid_or_supervisor(pid: i32) -> u32 {
    if pid > 0 { pid_of(pid) } else { std::process::id() }
}

fn status(state: ContainerState) -> Status {
    match state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => Status::CREATED,
        ContainerState::Running => Status::RUNNING,
        ContainerState::Paused => Status::PAUSED,
        ContainerState::Stopped | ContainerState::Gone => Status::STOPPED,
    }
}

fn json<T: serde::de::DeserializeOwned>(any: Option<&Any>, what: &str) -> Result<T, OpError> {
    let any = any.ok_or_else(|| OpError::new(ErrorKind::InvalidArgument, format!("no {what} is given")))?;
    serde_json::from_slice(&any.value)
        .map_err(|error| OpError::because(ErrorKind::InvalidArgument, format!("cannot read the {what}"), error))
}

#[async_trait::async_trait]
impl Task for TaskService {
    async fn create(&self, context: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let _call = self.call();
        let request = Box::new(self.create_request(context, request).map_err(to_ttrpc)?);
        let pid = request.stand_in.map_or(0, |process| process.pid);
        let created = if request.id.as_str() == self.sandbox_id.as_str() {
            self.sandbox.create_sandbox.ask(CreateSandbox { request }).await
        } else {
            self.sandbox.create_container.ask(CreateContainer { request }).await
        };
        created.map_err(to_ttrpc)?;
        let mut response = CreateTaskResponse::new();
        response.pid = pid_or_supervisor(pid);
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let work = async {
            let container = self.find(&request.id).await?;
            let exec = exec_id(&request.exec_id)?;
            match exec.clone() {
                None => container.start.ask(Start {}).await?,
                Some(id) => container.start_exec.ask(StartExec { id }).await?,
            }
            // An exec that has ended and was deleted meanwhile did start.
            Ok(container.describe.ask(Describe { exec }).await.map_or(0, |description| description.pid))
        };
        let pid = work.await.map_err(to_ttrpc)?;
        let mut response = StartResponse::new();
        response.pid = pid_or_supervisor(pid);
        Ok(response)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let work = async {
            let exec = exec_id(&request.exec_id)?;
            self.find(&request.id).await?.describe.ask(Describe { exec }).await
        };
        let description = work.await.map_err(to_ttrpc)?;
        let mut response = StateResponse::new();
        response.id = request.id;
        response.exec_id = request.exec_id;
        response.bundle = description.bundle;
        response.pid = pid_or_supervisor(description.pid);
        response.status = EnumOrUnknown::new(status(description.state));
        response.stdin = description.stdio.stdin;
        response.stdout = description.stdio.stdout;
        response.stderr = description.stdio.stderr;
        response.terminal = description.stdio.terminal;
        if let Some(exit) = description.exit {
            response.exit_status = exit.status;
            response.exited_at = timestamp(exit.at);
        }
        Ok(response)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let work = async {
            let exec = exec_id(&request.exec_id)?;
            self.find(&request.id).await?.wait.ask(Wait { exec }).await
        };
        let exit = work.await.map_err(to_ttrpc)?;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let work = async {
            let exec = exec_id(&request.exec_id)?;
            let signal = Signal { exec, signal: request.signal, all: request.all };
            self.find(&request.id).await?.signal.ask(signal).await
        };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let work = async {
            let process: Box<Process> = json(request.spec.as_ref(), "process")?;
            crate::oci::validate_process(&process)
                .map_err(|error| OpError::because(ErrorKind::InvalidArgument, "cannot start the process", error))?;
            let stdio = StdioNames {
                terminal: request.terminal,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            };
            // A detached exec's streams are its stand-in's.
            let holder = crate::api::parse_descriptor_of_process(&stdio.stdout).map(|(pid, _)| pid);
            let stand_in = holder.and_then(ProcessId::of);
            let exec = Exec { id: request.exec_id.parse()?, process, stdio, stand_in };
            self.find(&request.id).await?.exec.ask(exec).await
        };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let _call = self.call();
        let work = async {
            let container = self.find(&request.id).await?;
            let exec = exec_id(&request.exec_id)?;
            let pid = container.describe.ask(Describe { exec: exec.clone() }).await?.pid;
            let exit: Option<Exit> = match exec {
                Some(_) => container.delete.ask(Delete { exec, with_sandbox: false }).await?,
                None => self.sandbox.delete.ask(DeleteContainer { id: request.id.parse()? }).await?,
            };
            Ok((pid, exit))
        };
        let (pid, exit) = work.await.map_err(to_ttrpc)?;
        let mut response = DeleteResponse::new();
        response.pid = pid_or_supervisor(pid);
        if let Some(exit) = exit {
            response.exit_status = exit.status;
            response.exited_at = timestamp(exit.at);
        }
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let work = async { self.find(&request.id).await?.describe.ask(Describe { exec: None }).await };
        let description = work.await.map_err(to_ttrpc)?;
        let mut response = PidsResponse::new();
        // Whoever asks looks the numbers up on the host, where the guest's mean somebody else.
        if description.exit.is_none() {
            let mut process = ProcessInfo::new();
            process.pid = pid_or_supervisor(description.pid);
            response.processes.push(process);
        }
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let work = async { self.find(&request.id).await?.pause.ask(Pause {}).await };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let work = async { self.find(&request.id).await?.resume.ask(Resume {}).await };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let work = async {
            let exec = exec_id(&request.exec_id)?;
            let size = Resize { exec, columns: request.width, rows: request.height };
            self.find(&request.id).await?.resize.ask(size).await
        };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        if !request.stdin {
            return Ok(Empty::new());
        }
        let work = async {
            let exec = exec_id(&request.exec_id)?;
            self.find(&request.id).await?.close_stdin.ask(CloseStdin { exec }).await
        };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let work = async {
            let resources: Box<LinuxResources> = json(request.resources.as_ref(), "resources")?;
            self.find(&request.id).await?.update.ask(Update { resources }).await
        };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let work = async { self.find(&request.id).await?.stats.ask(Stats {}).await };
        let stats = work.await.map_err(to_ttrpc)?;
        let any = super::metrics::encode(&stats, crate::cgroup::is_version_2())
            .map_err(|error| to_ttrpc(OpError::internal("cannot encode the counters", error)))?;
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(any);
        Ok(response)
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let work = async { self.find(&request.id).await?.describe.ask(Describe { exec: None }).await };
        let description = work.await.map_err(to_ttrpc)?;
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = pid_or_supervisor(description.pid);
        response.version = env!("CARGO_PKG_VERSION").into();
        Ok(response)
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let work = async {
            self.find(&request.id).await?;
            Err(OpError::new(ErrorKind::Unimplemented, NO_CHECKPOINTS))
        };
        work.await.map(|()| Empty::new()).map_err(to_ttrpc)
    }

    /// containerd says so after each deletion. A supervisor with containers left stays, one without ends.
    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        let _call = self.call();
        if matches!(*self.state.borrow(), SandboxState::Empty | SandboxState::Gone) {
            self.dismissed.send_replace(true);
        }
        Ok(Empty::new())
    }
}
