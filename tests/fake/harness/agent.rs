//! An agent made of code: it answers the contract over ttrpc, notes what it is asked, and refuses or hangs when told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use stockade_agent_protocol::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest,
    GetOOMEventRequest, OOMEvent, PauseContainerRequest, ReadStreamRequest, ReadStreamResponse, RemoveContainerRequest,
    ResumeContainerRequest, Routes, SetGuestDateTimeRequest, SignalProcessRequest, StartContainerRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest, WaitProcessRequest, WaitProcessResponse,
};
use stockade_agent_protocol::agent_ttrpc::{AgentService, create_agent_service};
use stockade_agent_protocol::empty::Empty;
use stockade_agent_protocol::health::{CheckRequest, VersionCheckResponse};
use stockade_agent_protocol::health_ttrpc::{Health, create_health};
use stockade_agent_protocol::network::ReleaseInterfaceRequest;
use stockade_agent_protocol::network_ttrpc::{Network, create_network};
use stockade_agent_protocol::types::Interface;
use stockade_hypervisor::ExitCause;
use stockade_hypervisor::fake::{Cut, FakeControl};
use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

type ProcessKey = (String, String);

#[derive(Default)]
struct Inner {
    calls: Vec<String>,
    refused: BTreeSet<&'static str>,
    hanging: BTreeSet<&'static str>,
    slow_start: bool,
    processes: BTreeMap<ProcessKey, watch::Sender<Option<i32>>>,
    machine: Option<FakeControl>,
    connections: Vec<Cut>,
}

/// The agent. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct FakeAgent(Arc<Mutex<Inner>>);

impl fmt::Debug for FakeAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAgent").field("calls", &self.calls()).finish()
    }
}

impl FakeAgent {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while it is held")
    }

    /// Lets every call of this name fail.
    pub(crate) fn refuse(&self, call: &'static str) {
        self.inner().refused.insert(call);
    }

    /// Leaves every call of this name without an answer.
    pub(crate) fn hang(&self, call: &'static str) {
        self.inner().hanging.insert(call);
    }

    /// Lets a start take until its process has been killed; then it fails.
    pub(crate) fn slow_start(&self) {
        self.inner().slow_start = true;
    }

    /// What was asked so far, without the endless waits: `name` or `name container[/exec]`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.inner().calls.clone()
    }

    /// Whether a call was made, by its whole text.
    pub(crate) fn was_asked(&self, call: &str) -> bool {
        self.inner().calls.iter().any(|made| made == call)
    }

    /// Lets a process end by itself; an empty exec id is the container's first.
    pub(crate) fn end(&self, container: &str, exec: &str, status: i32) {
        if let Some(process) = self.inner().processes.get(&(container.to_owned(), exec.to_owned())) {
            process.send_replace(Some(status));
        }
    }

    /// Cuts its connections, as an agent that crashes in a machine that goes on.
    pub(crate) fn vanish(&self) {
        self.inner().connections.clear();
    }

    pub(super) fn let_go(&self) {
        self.inner().machine = None;
    }

    pub(super) fn lives_in(&self, machine: FakeControl) {
        self.inner().machine = Some(machine);
    }

    pub(super) fn serve(&self, port: u32, stream: UnixStream) {
        if port != 1024 {
            return;
        }
        let agent = self.clone();
        let (stream, cut) = Cut::before(stream).expect("a second descriptor");
        self.inner().connections.push(cut);
        tokio::spawn(async move {
            use futures::StreamExt as _;
            let one = futures::stream::once(async { Ok::<_, std::io::Error>(stream) });
            let mut server = Server::new()
                .add_listener(Listener::new(one.chain(futures::stream::pending())))
                .register_service(create_agent_service(Arc::new(agent.clone())))
                .register_service(create_network(Arc::new(agent.clone())))
                .register_service(create_health(Arc::new(agent)));
            server.start().await.expect("a server");
            pending::<()>().await;
        });
    }

    async fn asked(&self, call: &'static str, about: &str) -> ttrpc::Result<()> {
        let (refused, hanging) = {
            let mut inner = self.inner();
            inner.calls.push(format!("{call} {about}").trim_end().to_owned());
            (inner.refused.contains(call), inner.hanging.contains(call))
        };
        if hanging {
            pending::<()>().await;
        }
        if refused { Err(status(ttrpc::Code::INTERNAL, "refused by the test")) } else { Ok(()) }
    }

    async fn ended(&self, container: &str, exec: &str) -> ttrpc::Result<i32> {
        let key = (container.to_owned(), exec.to_owned());
        let process = self.inner().processes.get(&key).map(watch::Sender::subscribe);
        let mut process = process.ok_or_else(|| status(ttrpc::Code::NOT_FOUND, "no such process"))?;
        let ended = process.wait_for(Option::is_some).await.map(|status| *status);
        ended.ok().flatten().ok_or_else(|| status(ttrpc::Code::NOT_FOUND, "the process was removed"))
    }

    fn begin(&self, container: &str, exec: &str) {
        let key = (container.to_owned(), exec.to_owned());
        self.inner().processes.insert(key, watch::Sender::new(None));
    }
}

fn status(code: ttrpc::Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.to_owned()))
}

fn process(container: &str, exec: &str) -> String {
    if exec.is_empty() { container.to_owned() } else { format!("{container}/{exec}") }
}

#[async_trait]
impl AgentService for FakeAgent {
    async fn create_sandbox(&self, _: &TtrpcContext, _: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        self.asked("create_sandbox", "").await.map(|()| Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.asked("destroy_sandbox", "").await?;
        // As a guest that powers off: the machine ends, and the connection with it.
        let machine = self.inner().machine.clone();
        if let Some(machine) = machine {
            machine.crash(ExitCause::GuestShutdown);
        }
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> ttrpc::Result<Empty> {
        self.asked("create_container", &request.container_id).await?;
        self.begin(&request.container_id, "");
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.asked("start_container", &request.container_id).await?;
        if self.inner().slow_start {
            self.ended(&request.container_id, "").await?;
            return Err(status(ttrpc::Code::INTERNAL, "the process has ended"));
        }
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        self.asked("remove_container", &request.container_id).await?;
        self.inner().processes.retain(|(container, _), _| *container != request.container_id);
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.asked("exec_process", &process(&request.container_id, &request.exec_id)).await?;
        self.begin(&request.container_id, &request.exec_id);
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.asked("signal_process", &process(&request.container_id, &request.exec_id)).await?;
        let ended = i32::try_from(request.signal).map_or(255, |signal| 128 + signal);
        for ((container, exec), process) in &self.inner().processes {
            // "*" is every process of the container.
            if *container == request.container_id && (*exec == request.exec_id || request.exec_id == "*") {
                process.send_replace(Some(ended));
            }
        }
        Ok(Empty::new())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        let mut answer = WaitProcessResponse::new();
        answer.status = self.ended(&request.container_id, &request.exec_id).await?;
        Ok(answer)
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.asked("pause_container", &request.container_id).await.map(|()| Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.asked("resume_container", &request.container_id).await.map(|()| Empty::new())
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.ended(&request.container_id, &request.exec_id).await?;
        Err(status(ttrpc::Code::OUT_OF_RANGE, "eof"))
    }

    async fn read_stderr(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.ended(&request.container_id, &request.exec_id).await?;
        Err(status(ttrpc::Code::OUT_OF_RANGE, "eof"))
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.asked("close_stdin", &process(&request.container_id, &request.exec_id)).await.map(|()| Empty::new())
    }

    async fn update_interface(&self, _: &TtrpcContext, request: UpdateInterfaceRequest) -> ttrpc::Result<Interface> {
        let interface = request.interface.unwrap_or_default();
        let addresses = interface.IPAddresses.iter().map(|address| format!(" {}", address.address));
        let about = std::iter::once(interface.name.clone()).chain(addresses).collect::<String>();
        self.asked("update_interface", &about).await.map(|()| interface)
    }

    async fn update_routes(&self, _: &TtrpcContext, request: UpdateRoutesRequest) -> ttrpc::Result<Routes> {
        let routes = request.routes.unwrap_or_default();
        let about: Vec<_> = routes.Routes.iter().map(|route| route.dest.clone()).collect();
        self.asked("update_routes", &about.join(" ")).await.map(|()| routes)
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, _: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        self.asked("set_guest_date_time", "").await.map(|()| Empty::new())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        pending().await
    }
}

#[async_trait]
impl Health for FakeAgent {
    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        self.asked("version", "").await?;
        let mut answer = VersionCheckResponse::new();
        answer.agent_version = "fake".into();
        Ok(answer)
    }
}

#[async_trait]
impl Network for FakeAgent {
    async fn release_interface(&self, _: &TtrpcContext, request: ReleaseInterfaceRequest) -> ttrpc::Result<Empty> {
        self.asked("release_interface", &format!("{} {}", request.name, request.hw_addr)).await.map(|()| Empty::new())
    }
}
