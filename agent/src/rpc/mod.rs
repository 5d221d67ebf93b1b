//! The agent's calls. This file only says who answers which; the answers are in the files beside it.

mod container;
mod copy_file;
mod error;
mod guest;
mod metrics;
mod process;
mod processes;
mod sandbox;
mod stats;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use stockade_agent_protocol::agent::*;
use stockade_agent_protocol::agent_ttrpc::{AgentService, create_agent_service};
use stockade_agent_protocol::csi::VolumeStatsResponse;
use stockade_agent_protocol::empty::Empty;
use stockade_agent_protocol::health::health_check_response::ServingStatus;
use stockade_agent_protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use stockade_agent_protocol::health_ttrpc::{Health, create_health};
use stockade_agent_protocol::network::ReleaseInterfaceRequest;
use stockade_agent_protocol::network_ttrpc::{Network, create_network};
use stockade_agent_protocol::processes::{ListProcessesRequest, ListProcessesResponse};
use stockade_agent_protocol::processes_ttrpc::{Processes, create_processes};
use stockade_agent_protocol::types;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};

pub(crate) use error::RpcError;

use crate::sandbox::Sandbox;

/// The contract's version, as Kata's runtimes expect it.
const CONTRACT_VERSION: &str = "0.0.1";

type Answer<T> = ttrpc::Result<T>;

#[derive(Clone)]
struct Calls(Arc<Sandbox>);

/// All services, ready to be registered with a server.
pub(crate) fn services(sandbox: &Arc<Sandbox>) -> Vec<HashMap<String, Service>> {
    let calls = Arc::new(Calls(Arc::clone(sandbox)));
    vec![
        create_agent_service(Arc::clone(&calls) as Arc<_>),
        create_health(Arc::clone(&calls) as Arc<_>),
        create_network(Arc::clone(&calls) as Arc<_>),
        create_processes(calls),
    ]
}

/// Runs work to its end even if the caller goes away: half a change is worse than an unwanted one.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T, RpcError>> + Send + 'static) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(e) => Err(RpcError::new(Code::INTERNAL, format!("the call was given up: {e}")).into()),
    }
}

fn empty((): ()) -> Empty {
    Empty::new()
}

/// Declares calls that this agent answers with "unimplemented".
macro_rules! unimplemented_calls {
    ($($method:ident($request:ty) -> $answer:ty = $name:literal;)*) => {$(
        // What `async_trait` makes of an `async fn`, which it does not see inside a macro.
        fn $method<'a, 'b, 'c>(
            &'a self,
            _: &'b TtrpcContext,
            _: $request,
        ) -> Pin<Box<dyn Future<Output = Answer<$answer>> + Send + 'c>>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            let text = concat!($name, " is not implemented by this agent");
            Box::pin(std::future::ready(Err(RpcError::new(Code::UNIMPLEMENTED, text).into())))
        }
    )*};
}

#[async_trait]
impl AgentService for Calls {
    async fn create_sandbox(&self, _: &TtrpcContext, r: CreateSandboxRequest) -> Answer<Empty> {
        to_the_end(sandbox::create(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> Answer<Empty> {
        to_the_end(sandbox::destroy(Arc::clone(&self.0))).await.map(empty)
    }
    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> Answer<OOMEvent> {
        Ok(sandbox::oom_event(&self.0).await?)
    }

    async fn create_container(&self, _: &TtrpcContext, r: CreateContainerRequest) -> Answer<Empty> {
        to_the_end(container::create(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn start_container(&self, _: &TtrpcContext, r: StartContainerRequest) -> Answer<Empty> {
        to_the_end(container::start(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn remove_container(&self, _: &TtrpcContext, r: RemoveContainerRequest) -> Answer<Empty> {
        to_the_end(container::remove(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn update_container(&self, _: &TtrpcContext, r: UpdateContainerRequest) -> Answer<Empty> {
        Ok(container::update(&self.0, &r).await.map(empty)?)
    }
    async fn stats_container(&self, _: &TtrpcContext, r: StatsContainerRequest) -> Answer<StatsContainerResponse> {
        Ok(stats::container(&self.0, &r)?)
    }
    async fn pause_container(&self, _: &TtrpcContext, r: PauseContainerRequest) -> Answer<Empty> {
        to_the_end(container::pause(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn resume_container(&self, _: &TtrpcContext, r: ResumeContainerRequest) -> Answer<Empty> {
        to_the_end(container::resume(Arc::clone(&self.0), r)).await.map(empty)
    }

    async fn exec_process(&self, _: &TtrpcContext, r: ExecProcessRequest) -> Answer<Empty> {
        to_the_end(process::exec(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn signal_process(&self, _: &TtrpcContext, r: SignalProcessRequest) -> Answer<Empty> {
        Ok(process::signal(&self.0, &r).map(empty)?)
    }
    async fn wait_process(&self, _: &TtrpcContext, r: WaitProcessRequest) -> Answer<WaitProcessResponse> {
        Ok(process::wait(&self.0, &r).await?)
    }
    async fn write_stdin(&self, _: &TtrpcContext, r: WriteStreamRequest) -> Answer<WriteStreamResponse> {
        Ok(process::write(&self.0, r).await?)
    }
    async fn read_stdout(&self, _: &TtrpcContext, r: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        Ok(process::read(&self.0, &r, process::Stream::Stdout).await?)
    }
    async fn read_stderr(&self, _: &TtrpcContext, r: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        Ok(process::read(&self.0, &r, process::Stream::Stderr).await?)
    }
    async fn close_stdin(&self, _: &TtrpcContext, r: CloseStdinRequest) -> Answer<Empty> {
        Ok(process::close(&self.0, &r).await.map(empty)?)
    }
    async fn tty_win_resize(&self, _: &TtrpcContext, r: TtyWinResizeRequest) -> Answer<Empty> {
        Ok(process::resize(&self.0, &r).map(empty)?)
    }

    async fn update_interface(&self, _: &TtrpcContext, r: UpdateInterfaceRequest) -> Answer<types::Interface> {
        let limit = self.0.options.hotplug_timeout;
        to_the_end(async move { Ok(crate::network::update_interface(r.interface.unwrap_or_default(), limit).await?) })
            .await
    }
    async fn update_routes(&self, _: &TtrpcContext, r: UpdateRoutesRequest) -> Answer<Routes> {
        to_the_end(async move {
            let list = crate::network::update_routes(r.routes.unwrap_or_default().Routes).await?;
            Ok(Routes { Routes: list, ..Default::default() })
        })
        .await
    }
    async fn list_interfaces(&self, _: &TtrpcContext, _: ListInterfacesRequest) -> Answer<Interfaces> {
        to_the_end(async {
            let list = crate::network::list_interfaces().await?;
            Ok(Interfaces { Interfaces: list, ..Default::default() })
        })
        .await
    }
    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> Answer<Routes> {
        to_the_end(async {
            let list = crate::network::list_routes().await?;
            Ok(Routes { Routes: list, ..Default::default() })
        })
        .await
    }
    async fn add_arp_neighbors(&self, _: &TtrpcContext, r: AddARPNeighborsRequest) -> Answer<Empty> {
        to_the_end(
            async move { Ok(crate::network::add_neighbors(r.neighbors.unwrap_or_default().ARPNeighbors).await?) },
        )
        .await
        .map(empty)
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, r: OnlineCPUMemRequest) -> Answer<Empty> {
        to_the_end(guest::online(Arc::clone(&self.0), r)).await.map(empty)
    }
    async fn reseed_random_dev(&self, _: &TtrpcContext, r: ReseedRandomDevRequest) -> Answer<Empty> {
        Ok(guest::reseed(&r.data).map(empty)?)
    }
    async fn set_guest_date_time(&self, _: &TtrpcContext, r: SetGuestDateTimeRequest) -> Answer<Empty> {
        Ok(guest::set_time(&r).map(empty)?)
    }
    async fn get_guest_details(&self, _: &TtrpcContext, r: GuestDetailsRequest) -> Answer<GuestDetailsResponse> {
        Ok(guest::details(&r))
    }
    async fn copy_file(&self, _: &TtrpcContext, r: CopyFileRequest) -> Answer<Empty> {
        to_the_end(async move { copy_file::copy(&r) }).await.map(empty)
    }
    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> Answer<Metrics> {
        Ok(Metrics { metrics: metrics::text(), ..Default::default() })
    }

    unimplemented_calls! {
        update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> Empty = "UpdateEphemeralMounts";
        remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest) -> Empty
            = "RemoveStaleVirtiofsShareMounts";
        get_diagnostic_data(GetDiagnosticDataRequest) -> GetDiagnosticDataResponse = "GetDiagnosticData";
        get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse = "GetIPTables";
        set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse = "SetIPTables";
        mem_agent_memcg_set(MemAgentMemcgConfig) -> Empty = "MemAgentMemcgSet";
        mem_agent_compact_set(MemAgentCompactConfig) -> Empty = "MemAgentCompactSet";
        mem_hotplug_by_probe(MemHotplugByProbeRequest) -> Empty = "MemHotplugByProbe";
        add_swap(AddSwapRequest) -> Empty = "AddSwap";
        add_swap_path(AddSwapPathRequest) -> Empty = "AddSwapPath";
        get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse = "GetVolumeStats";
        resize_volume(ResizeVolumeRequest) -> Empty = "ResizeVolume";
        set_policy(SetPolicyRequest) -> Empty = "SetPolicy";
    }
}

#[async_trait]
impl Health for Calls {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }
    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: CONTRACT_VERSION.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Processes for Calls {
    async fn list_processes(&self, _: &TtrpcContext, r: ListProcessesRequest) -> Answer<ListProcessesResponse> {
        Ok(processes::list(&self.0, &r)?)
    }
}

#[async_trait]
impl Network for Calls {
    async fn release_interface(&self, _: &TtrpcContext, r: ReleaseInterfaceRequest) -> Answer<Empty> {
        to_the_end(async move { Ok(crate::network::release_interface(&r.name, &r.hw_addr).await?) }).await.map(empty)
    }
}
