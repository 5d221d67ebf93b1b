//! A small client of Kubernetes' container runtime interface, for containerd's CRI plugin: what a kubelet says, as far as
//! the tests need it.

use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use protobuf::Message;
use tokio::runtime::Runtime;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// The messages.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all, reason = "generated code")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(rust_2018_idioms, unused, nonstandard_style, reason = "generated code")]
pub mod messages {
    include!(concat!(env!("OUT_DIR"), "/cri/cri.rs"));
}

use super::RemoteCommand;
use messages::{
    AttachRequest, ContainerRequest, ContainerStats, ContainerStatsResponse, ContainerStatus, ContainerStatusResponse,
    CreateContainerRequest, CreateContainerResponse, Empty, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    PodSandboxRequest, RunPodSandboxRequest, RunPodSandboxResponse, StopContainerRequest, StreamResponse,
    UpdateContainerResourcesRequest,
};

/// How long a call may take, a boot under emulation included.
const LIMIT: Duration = Duration::from_secs(120);

/// A connection to a CRI plugin.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to the socket at `path`, when a call is made.
    ///
    /// # Panics
    /// When there can be no such connection.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::try_from(format!("unix://{}", path.display())).expect("a path is an address");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// The plugin's.
    pub fn run_pod(&self, request: RunPodSandboxRequest) -> Result<String, Status> {
        self.call("RunPodSandbox", request).map(|response: RunPodSandboxResponse| response.pod_sandbox_id)
    }

    /// StopPodSandbox, then RemovePodSandbox.
    ///
    /// # Errors
    /// The plugin's.
    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = PodSandboxRequest { pod_sandbox_id: id.to_owned(), ..PodSandboxRequest::default() };
        self.call::<_, Empty>("StopPodSandbox", request.clone())?;
        self.call::<_, Empty>("RemovePodSandbox", request).map(drop)
    }

    /// CreateContainer, then StartContainer.
    ///
    /// # Errors
    /// The plugin's.
    pub fn run_container(&self, request: CreateContainerRequest) -> Result<String, Status> {
        let created: CreateContainerResponse = self.call("CreateContainer", request)?;
        self.call::<_, Empty>("StartContainer", container(&created.container_id))?;
        Ok(created.container_id)
    }

    /// StopContainer: SIGTERM, and after ten seconds SIGKILL.
    ///
    /// # Errors
    /// The plugin's.
    pub fn stop_container(&self, id: &str) -> Result<(), Status> {
        let request =
            StopContainerRequest { container_id: id.to_owned(), timeout: 10, ..StopContainerRequest::default() };
        self.call::<_, Empty>("StopContainer", request).map(drop)
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The plugin's.
    pub fn remove_container(&self, id: &str) -> Result<(), Status> {
        self.call::<_, Empty>("RemoveContainer", container(id)).map(drop)
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The plugin's.
    pub fn status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let response: ContainerStatusResponse = self.call("ContainerStatus", container(id))?;
        Ok(response.status.unwrap_or_default())
    }

    /// ContainerStats.
    ///
    /// # Errors
    /// The plugin's.
    pub fn stats(&self, id: &str) -> Result<ContainerStats, Status> {
        let response: ContainerStatsResponse = self.call("ContainerStats", container(id))?;
        Ok(response.stats.unwrap_or_default())
    }

    /// UpdateContainerResources.
    ///
    /// # Errors
    /// The plugin's.
    pub fn update(&self, request: UpdateContainerResourcesRequest) -> Result<(), Status> {
        self.call::<_, Empty>("UpdateContainerResources", request).map(drop)
    }

    /// ReopenContainerLog.
    ///
    /// # Errors
    /// The plugin's.
    pub fn reopen_log(&self, id: &str) -> Result<(), Status> {
        self.call::<_, Empty>("ReopenContainerLog", container(id)).map(drop)
    }

    /// ExecSync of a line of shell: its status, and what it wrote.
    ///
    /// # Errors
    /// The plugin's.
    pub fn exec(&self, id: &str, script: &str) -> Result<(i32, String), Status> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 60,
            ..ExecSyncRequest::default()
        };
        let response: ExecSyncResponse = self.call("ExecSync", request)?;
        let text = [response.stdout, response.stderr].concat();
        Ok((response.exit_code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Exec of a line of shell, with a terminal or without: its streams.
    ///
    /// # Errors
    /// The plugin's.
    pub fn exec_streams(&self, id: &str, script: &str, tty: bool) -> Result<RemoteCommand, Status> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            // A terminal has one output.
            stderr: !tty,
            ..ExecRequest::default()
        };
        let response: StreamResponse = self.call("Exec", request)?;
        Ok(RemoteCommand::open(&response.url))
    }

    /// Attach to a container without a terminal: its streams.
    ///
    /// # Errors
    /// The plugin's.
    pub fn attach(&self, id: &str) -> Result<RemoteCommand, Status> {
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            stdout: true,
            stderr: true,
            ..AttachRequest::default()
        };
        let response: StreamResponse = self.call("Attach", request)?;
        Ok(RemoteCommand::open(&response.url))
    }

    fn call<T: Message, U: Message>(&self, method: &'static str, request: T) -> Result<U, Status> {
        self.runtime.block_on(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).expect("a path");
            let mut request = Request::new(request);
            request.set_timeout(super::wait::scaled(LIMIT));
            Ok(client.unary(request, path, Protobuf::<T, U>(PhantomData)).await?.into_inner())
        })
    }
}

fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..ContainerRequest::default() }
}

/// rust-protobuf's messages in gRPC.
struct Protobuf<T, U>(PhantomData<(T, U)>);

impl<T: Message, U: Message> Codec for Protobuf<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Encoding<T>;
    type Decoder = Encoding<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoding(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Encoding(PhantomData)
    }
}

struct Encoding<M>(PhantomData<M>);

impl<M: Message> Encoder for Encoding<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, message: M, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = message.write_to_bytes().map_err(|error| Status::internal(error.to_string()))?;
        bytes::BufMut::put_slice(buffer, &bytes);
        Ok(())
    }
}

impl<M: Message> Decoder for Encoding<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = bytes::Buf::copy_to_bytes(buffer, bytes::Buf::remaining(buffer));
        M::parse_from_bytes(&bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
