//! The calls.

use super::network;
use crate::error::{ErrorKind, OpError};
use crate::network::{GuestInterface, GuestNeighbour, GuestRoute, Mac};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stockade_agent_protocol::agent::{
    AddARPNeighborsRequest, CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetMetricsRequest, GetOOMEventRequest, KernelModule, PauseContainerRequest, ReadStreamRequest,
    RemoveContainerRequest, ResumeContainerRequest, SetGuestDateTimeRequest, SignalProcessRequest,
    StartContainerRequest, StatsContainerRequest, StatsContainerResponse, Storage, TtyWinResizeRequest,
    UpdateContainerRequest, UpdateInterfaceRequest, UpdateRoutesRequest, WaitProcessRequest, WriteStreamRequest,
};
use stockade_agent_protocol::agent_ttrpc::AgentServiceClient;
use stockade_agent_protocol::health::{CheckRequest, VersionCheckResponse};
use stockade_agent_protocol::health_ttrpc::HealthClient;
use stockade_agent_protocol::network::ReleaseInterfaceRequest;
use stockade_agent_protocol::network_ttrpc::NetworkClient;
use stockade_agent_protocol::oci_convert::{self, ConvertError};
use stockade_agent_protocol::processes::{ListProcessesRequest, ProcessInfo};
use stockade_agent_protocol::processes_ttrpc::ProcessesClient;
use tokio::net::UnixStream;
use ttrpc::context::Context;

/// Longer than any container lives: a call that waits for an event has no deadline of its own.
const NO_DEADLINE: Duration = Duration::ZERO;

/// How this project's agent calls all processes of a container.
const EVERY_PROCESS: &str = "*";
/// For an agent that cannot be waited on: how often it is asked whether it lives.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A connection to one guest's agent. Clones share it.
#[derive(Clone)]
pub struct AgentClient {
    agent: AgentServiceClient,
    health: HealthClient,
    network: NetworkClient,
    processes: ProcessesClient,
    /// For calls that should answer at once.
    request_timeout: Duration,
    /// For CreateContainer, which may wait for devices.
    create_timeout: Duration,
    /// The next that the guest hears of is its sandbox's end.
    leaving: Arc<AtomicBool>,
    /// A container is left to that end.
    container_left: Arc<AtomicBool>,
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentClient").field("request_timeout", &self.request_timeout).finish_non_exhaustive()
    }
}

/// What [`AgentClient::create_sandbox`] tells the guest.
#[derive(Debug, Default)]
pub struct GuestSandbox {
    /// The sandbox's id.
    pub id: String,
    /// Its host name; empty: the guest's own.
    pub hostname: String,
    /// Lines of resolv.conf; none: the containers' own.
    pub dns: Vec<String>,
    /// All containers share one PID namespace.
    pub shared_pidns: bool,
    /// A directory of hooks in the guest; empty: none.
    pub hook_path: String,
    /// "name param=value …" each.
    pub kernel_modules: Vec<String>,
    /// Mounted for the whole sandbox, in order.
    pub storages: Vec<Storage>,
}

impl AgentClient {
    /// Speaks to the agent on a connected stream.
    pub fn new(stream: UnixStream, request_timeout: Duration, create_timeout: Duration) -> Self {
        let client = ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::new(stream));
        Self {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client.clone()),
            network: NetworkClient::new(client.clone()),
            processes: ProcessesClient::new(client),
            request_timeout,
            create_timeout,
            leaving: Arc::default(),
            container_left: Arc::default(),
        }
    }

    /// Notes that the guest's sandbox ends next.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Leaves a container to the end of the guest's sandbox. `false`: that does not come next, and it must be removed.
    pub fn leave_container(&self) -> bool {
        let leaving = self.leaving.load(Ordering::Acquire);
        self.container_left.fetch_or(leaving, Ordering::AcqRel);
        leaving
    }

    /// Whether a container is left to the end of the guest's sandbox.
    pub fn has_left_container(&self) -> bool {
        self.container_left.load(Ordering::Acquire)
    }

    fn soon(&self) -> Context {
        ttrpc::context::with_duration(self.request_timeout)
    }

    /// The versions of the contract and of the agent.
    ///
    /// # Errors
    /// The guest does not answer.
    pub async fn version(&self) -> Result<VersionCheckResponse, OpError> {
        self.health.version(self.soon(), &CheckRequest::new()).await.map_err(failed("ask for the agent's version"))
    }

    /// Sets up what the sandbox's containers share.
    ///
    /// # Errors
    /// The guest refused; its words are in the chain.
    pub async fn create_sandbox(&self, sandbox: GuestSandbox) -> Result<(), OpError> {
        let mut request = CreateSandboxRequest::new();
        request.sandbox_id = sandbox.id;
        request.hostname = sandbox.hostname;
        request.dns = sandbox.dns;
        request.sandbox_pidns = sandbox.shared_pidns;
        request.guest_hook_path = sandbox.hook_path;
        request.storages = sandbox.storages;
        request.kernel_modules = sandbox.kernel_modules.iter().filter_map(|line| kernel_module(line)).collect();
        let context = ttrpc::context::with_duration(self.create_timeout);
        self.agent.create_sandbox(context, &request).await.map(drop).map_err(failed("set up the sandbox in the guest"))
    }

    /// Gives the guest's interface with a MAC address its name, MTU and addresses; `known` is the name that it was given
    /// before, if it was.
    ///
    /// # Errors
    /// The guest refused, or has no such interface in time.
    pub async fn update_interface(&self, interface: &GuestInterface, known: Option<&str>) -> Result<(), OpError> {
        let mut request = UpdateInterfaceRequest::new();
        request.interface = Some(network::interface(interface, known)).into();
        let answer = self.agent.update_interface(self.soon(), &request).await;
        answer.map(drop).map_err(failed("set up a network interface in the guest"))
    }

    /// Has the guest's kernel let go of an interface whose device is about to be taken away.
    ///
    /// # Errors
    /// The guest refused, or its agent does not know the call.
    pub async fn release_interface(&self, name: &str, mac: Mac) -> Result<(), OpError> {
        let mut request = ReleaseInterfaceRequest::new();
        request.name = name.to_owned();
        request.hw_addr = mac.to_string();
        let answer = self.network.release_interface(self.soon(), &request).await;
        answer.map(drop).map_err(failed("release a network interface in the guest"))
    }

    /// Replaces all the guest's routes but those that its kernel makes for its addresses.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn update_routes(&self, routes: &[GuestRoute]) -> Result<(), OpError> {
        let mut request = UpdateRoutesRequest::new();
        request.routes = Some(network::routes(routes)).into();
        self.agent.update_routes(self.soon(), &request).await.map(drop).map_err(failed("set the guest's routes"))
    }

    /// Adds entries to the guest's neighbour table.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn add_neighbours(&self, neighbours: &[GuestNeighbour]) -> Result<(), OpError> {
        if neighbours.is_empty() {
            return Ok(());
        }
        let mut request = AddARPNeighborsRequest::new();
        request.neighbors = Some(network::neighbors(neighbours)).into();
        let answer = self.agent.add_arp_neighbors(self.soon(), &request).await;
        answer.map(drop).map_err(failed("set the guest's neighbours"))
    }

    /// Sets the guest's clock to the host's: there may be no RTC.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn set_clock(&self) -> Result<(), OpError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut request = SetGuestDateTimeRequest::new();
        request.Sec = now.as_secs().cast_signed();
        request.Usec = i64::from(now.subsec_micros());
        self.agent.set_guest_date_time(self.soon(), &request).await.map(drop).map_err(failed("set the guest's clock"))
    }

    /// Asks the guest to end all containers, to write everything to its disks, and then to power off by itself.
    ///
    /// # Errors
    /// The guest does not answer, which a guest that is gone does not.
    pub async fn destroy_sandbox(&self, limit: Duration) -> Result<(), OpError> {
        let context = ttrpc::context::with_duration(limit);
        let request = DestroySandboxRequest::new();
        self.agent.destroy_sandbox(context, &request).await.map(drop).map_err(failed("let the guest end its sandbox"))
    }

    /// Makes a container; its process waits for [`start_container`](Self::start_container).
    ///
    /// # Errors
    /// The guest refused.
    pub async fn create_container(
        &self,
        id: &str,
        spec: &Spec,
        storages: Vec<Storage>,
        shared_pidns: bool,
    ) -> Result<(), OpError> {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = id.to_owned();
        request.OCI = Some(oci_convert::spec_to_proto(spec).map_err(untranslatable)?).into();
        request.storages = storages;
        request.sandbox_pidns = shared_pidns;
        let context = ttrpc::context::with_duration(self.create_timeout);
        let answer = self.agent.create_container(context, &request).await;
        answer.map(drop).map_err(failed("create the container in the guest"))
    }

    /// Lets a container's process run.
    ///
    /// # Errors
    /// The guest refused: the program is missing or not executable, a hook failed.
    pub async fn start_container(&self, id: &str) -> Result<(), OpError> {
        let mut request = StartContainerRequest::new();
        request.container_id = id.to_owned();
        self.agent.start_container(self.soon(), &request).await.map(drop).map_err(failed("start the container"))
    }

    /// Removes a container and whatever of it still runs.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn remove_container(&self, id: &str, limit: Duration) -> Result<(), OpError> {
        let mut request = RemoveContainerRequest::new();
        request.container_id = id.to_owned();
        request.timeout = u32::try_from(limit.as_secs().max(1)).unwrap_or(u32::MAX);
        let context = ttrpc::context::with_duration(limit + Duration::from_secs(1));
        let answer = self.agent.remove_container(context, &request).await;
        answer.map(drop).map_err(failed("remove the container in the guest"))
    }

    /// Starts a further process in a container.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn exec_process(&self, id: &str, exec_id: &str, process: &Process) -> Result<(), OpError> {
        let mut request = ExecProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.process = Some(oci_convert::process_to_proto(process).map_err(untranslatable)?).into();
        self.agent.exec_process(self.soon(), &request).await.map(drop).map_err(failed("start the process"))
    }

    /// Sends a signal. An empty `exec_id` with SIGKILL ends the whole container.
    ///
    /// # Errors
    /// No such process, or it ended.
    pub async fn signal_process(&self, id: &str, exec_id: &str, signal: u32) -> Result<(), OpError> {
        let mut request = SignalProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.agent.signal_process(self.soon(), &request).await.map(drop).map_err(failed("send the signal"))
    }

    /// Sends a signal to every process of a container; with an agent that cannot, to its first one.
    ///
    /// # Errors
    /// No such container, or the kernel refuses.
    pub async fn signal_container(&self, id: &str, signal: u32) -> Result<(), OpError> {
        match self.signal_process(id, EVERY_PROCESS, signal).await {
            // Kata's agent has no name for all of them.
            Err(error) if error.kind() == ErrorKind::NotFound => self.signal_process(id, "", signal).await,
            answer => answer,
        }
    }

    /// Waits for the end of a process, as long as it takes; answers its status, 128 + n for signal n.
    ///
    /// # Errors
    /// No such process, or the agent is gone.
    pub async fn wait_process(&self, id: &str, exec_id: &str) -> Result<u32, OpError> {
        let mut request = WaitProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let context = ttrpc::context::with_duration(NO_DEADLINE);
        let answer = self.agent.wait_process(context, &request).await.map_err(failed("wait for the process"))?;
        Ok(u32::from(u8::try_from(answer.status).unwrap_or(u8::MAX)))
    }

    /// Changes the limits of a container.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn update_container(&self, id: &str, resources: &LinuxResources) -> Result<(), OpError> {
        let mut request = UpdateContainerRequest::new();
        request.container_id = id.to_owned();
        request.resources = Some(oci_convert::resources_to_proto(resources).map_err(untranslatable)?).into();
        self.agent.update_container(self.soon(), &request).await.map(drop).map_err(failed("update the container"))
    }

    /// Counters of a container.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn stats_container(&self, id: &str) -> Result<StatsContainerResponse, OpError> {
        let mut request = StatsContainerRequest::new();
        request.container_id = id.to_owned();
        self.agent.stats_container(self.soon(), &request).await.map_err(failed("read the container's counters"))
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn pause_container(&self, id: &str) -> Result<(), OpError> {
        let mut request = PauseContainerRequest::new();
        request.container_id = id.to_owned();
        self.agent.pause_container(self.soon(), &request).await.map(drop).map_err(failed("pause the container"))
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// The guest refused.
    pub async fn resume_container(&self, id: &str) -> Result<(), OpError> {
        let mut request = ResumeContainerRequest::new();
        request.container_id = id.to_owned();
        self.agent.resume_container(self.soon(), &request).await.map(drop).map_err(failed("resume the container"))
    }

    /// Sets the size of a terminal, in characters.
    ///
    /// # Errors
    /// No such process, or it has no terminal.
    pub async fn resize_terminal(&self, id: &str, exec_id: &str, columns: u32, rows: u32) -> Result<(), OpError> {
        let mut request = TtyWinResizeRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.row = rows;
        request.column = columns;
        self.agent.tty_win_resize(self.soon(), &request).await.map(drop).map_err(failed("resize the terminal"))
    }

    /// What the guest says of itself, in Prometheus' text format.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] from an agent that has no figures.
    pub async fn metrics(&self) -> Result<String, OpError> {
        let answer = self.agent.get_metrics(self.soon(), &GetMetricsRequest::new()).await;
        answer.map(|answer| answer.metrics).map_err(failed("read the guest's figures"))
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] from an agent that is not ours.
    pub async fn list_processes(&self, id: &str) -> Result<Vec<ProcessInfo>, OpError> {
        let mut request = ListProcessesRequest::new();
        request.container_id = id.to_owned();
        let answer =
            self.processes.list_processes(self.soon(), &request).await.map_err(failed("list the processes"))?;
        Ok(answer.processes)
    }

    /// Waits for the next container that ran out of memory; answers its id.
    ///
    /// # Errors
    /// The agent is gone, or cannot tell.
    pub async fn next_oom(&self) -> Result<String, OpError> {
        let context = ttrpc::context::with_duration(NO_DEADLINE);
        let answer = self.agent.get_oom_event(context, &GetOOMEventRequest::new()).await;
        answer.map(|event| event.container_id).map_err(failed("wait for an out-of-memory event"))
    }

    /// Returns when the agent does not answer any more, asking every few seconds.
    pub async fn closed(&self) -> String {
        loop {
            tokio::time::sleep(PROBE_INTERVAL).await;
            if let Err(error) = self.version().await {
                return error.one_line();
            }
        }
    }

    pub(super) async fn write_stdin(&self, id: &str, exec_id: &str, data: Vec<u8>) -> Result<(), OpError> {
        let mut request = WriteStreamRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.data = data;
        let context = ttrpc::context::with_duration(NO_DEADLINE);
        self.agent.write_stdin(context, &request).await.map(drop).map_err(failed("write to the process's input"))
    }

    pub(super) async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), OpError> {
        let mut request = CloseStdinRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.agent.close_stdin(self.soon(), &request).await.map(drop).map_err(failed("close the process's input"))
    }

    /// One read of a stream; an error status OUT_OF_RANGE is its end.
    pub(super) async fn read_stream(
        &self,
        id: &str,
        exec_id: &str,
        limit: usize,
        error_stream: bool,
    ) -> Result<Option<Vec<u8>>, OpError> {
        let mut request = ReadStreamRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.len = u32::try_from(limit).unwrap_or(u32::MAX);
        let context = ttrpc::context::with_duration(NO_DEADLINE);
        let answer = if error_stream {
            self.agent.read_stderr(context, &request).await
        } else {
            self.agent.read_stdout(context, &request).await
        };
        match answer {
            Ok(answer) if answer.data.is_empty() => Ok(None),
            Ok(answer) => Ok(Some(answer.data)),
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::OUT_OF_RANGE => Ok(None),
            // Kata's own agent ends a stream with an INTERNAL status that says so.
            Err(ttrpc::Error::RpcStatus(status)) if status.message().to_ascii_lowercase().contains("eof") => Ok(None),
            Err(error) => Err(failed("read the process's output")(error)),
        }
    }
}

fn kernel_module(line: &str) -> Option<KernelModule> {
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut module = KernelModule::new();
    module.name = words.next()?;
    module.parameters = words.collect();
    Some(module)
}

fn untranslatable(error: ConvertError) -> OpError {
    OpError::because(
        ErrorKind::InvalidArgument,
        "the agent's contract cannot express the container's specification",
        error,
    )
}

/// Maps what ttrpc says, once: the guest's own words, without its protocol's wrapping.
fn failed(what: &'static str) -> impl FnOnce(ttrpc::Error) -> OpError {
    move |error| {
        let (kind, message) = match error {
            ttrpc::Error::RpcStatus(status) => {
                let kind = match status.code() {
                    ttrpc::Code::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
                    ttrpc::Code::NOT_FOUND => ErrorKind::NotFound,
                    ttrpc::Code::ALREADY_EXISTS => ErrorKind::AlreadyExists,
                    ttrpc::Code::FAILED_PRECONDITION => ErrorKind::FailedPrecondition,
                    ttrpc::Code::DEADLINE_EXCEEDED => ErrorKind::DeadlineExceeded,
                    ttrpc::Code::UNIMPLEMENTED => ErrorKind::Unimplemented,
                    _ => ErrorKind::Internal,
                };
                (kind, status.message().to_owned())
            }
            // ttrpc's own clock.
            ttrpc::Error::Others(message) if message == "Request deadline elapsed" => {
                (ErrorKind::DeadlineExceeded, "the guest's agent did not answer in time".to_owned())
            }
            other => (ErrorKind::AgentGone, format!("the connection to the guest's agent failed: {other}")),
        };
        OpError::because(kind, format!("cannot {what}"), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_module_line_is_a_name_and_parameters() {
        let module = kernel_module("dummy  numdummies=2 x=y").unwrap();
        assert_eq!(module.name, "dummy");
        assert_eq!(module.parameters, ["numdummies=2", "x=y"]);
        assert!(kernel_module("  ").is_none());
    }
}
