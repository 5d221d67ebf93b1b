//! The `stockade.v1` service.

use super::status::to_ttrpc;
use crate::actors::container::{Processes, Stats};
use crate::actors::sandbox::{FindContainer, Inspect, SandboxHandle};
use crate::api::{
    ContainerStatsRequest, ContainerStatsResponse, InspectRequest, InspectResponse, MetricsRequest, MetricsResponse,
    Process, ProcessesRequest, ProcessesResponse, Supervisor,
};
use crate::error::OpError;
use crate::ids::SandboxId;
use serde_json::{Value, json};
use stockade_agent_protocol::agent::StatsContainerResponse;
use ttrpc::asynchronous::TtrpcContext;

/// Translates `stockade.v1` to messages.
#[derive(Debug, Clone)]
pub(super) struct V1Service {
    pub(super) sandbox_id: SandboxId,
    pub(super) sandbox: SandboxHandle,
}

#[async_trait::async_trait]
impl Supervisor for V1Service {
    async fn inspect(&self, _: &TtrpcContext, _: InspectRequest) -> ttrpc::Result<InspectResponse> {
        let document = self.sandbox.inspect.ask(Inspect {}).await.map_err(to_ttrpc)?;
        let mut response = InspectResponse::new();
        response.json = document.to_string();
        Ok(response)
    }

    async fn metrics(&self, _: &TtrpcContext, _: MetricsRequest) -> ttrpc::Result<MetricsResponse> {
        let mut response = MetricsResponse::new();
        response.text = crate::metrics::sandbox(&self.sandbox_id, &self.sandbox).await.text();
        Ok(response)
    }

    async fn processes(&self, _: &TtrpcContext, request: ProcessesRequest) -> ttrpc::Result<ProcessesResponse> {
        let listed = async {
            let id = request.id.parse()?;
            self.sandbox.find.ask(FindContainer { id }).await?.processes.ask(Processes {}).await
        };
        let mut response = ProcessesResponse::new();
        for info in listed.await.map_err(to_ttrpc)? {
            let mut process = Process::new();
            process.pid = info.pid;
            process.ppid = info.ppid;
            process.uid = info.uid;
            process.state = info.state;
            process.command = if info.args.is_empty() { info.command } else { info.args.join(" ") };
            response.processes.push(process);
        }
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerStatsRequest) -> ttrpc::Result<ContainerStatsResponse> {
        let read = async {
            let id = request.id.parse()?;
            let stats = self.sandbox.find.ask(FindContainer { id }).await?.stats.ask(Stats {}).await?;
            Ok::<_, OpError>(runc_stats(&stats))
        };
        let mut response = ContainerStatsResponse::new();
        response.json = read.await.map_err(to_ttrpc)?.to_string();
        Ok(response)
    }
}

/// The shape that runc's `events` prints.
fn runc_stats(stats: &StatsContainerResponse) -> Value {
    let group = stats.cgroup_stats.get_or_default();
    let (cpu, memory, pids) =
        (group.cpu_stats.get_or_default(), group.memory_stats.get_or_default(), group.pids_stats.get_or_default());
    let (usage, throttling) = (cpu.cpu_usage.get_or_default(), cpu.throttling_data.get_or_default());
    let data = |data: &stockade_agent_protocol::agent::MemoryData| json!({"usage": data.usage, "max": data.max_usage, "failcnt": data.failcnt, "limit": data.limit});
    json!({
        "cpu": {
            "usage": {
                "total": usage.total_usage,
                "percpu": usage.percpu_usage,
                "kernel": usage.usage_in_kernelmode,
                "user": usage.usage_in_usermode,
            },
            "throttling": {
                "periods": throttling.periods,
                "throttledPeriods": throttling.throttled_periods,
                "throttledTime": throttling.throttled_time,
            },
        },
        "memory": {
            "cache": memory.cache,
            "usage": data(memory.usage.get_or_default()),
            "swap": data(memory.swap_usage.get_or_default()),
            "kernel": data(memory.kernel_usage.get_or_default()),
            "raw": memory.stats.iter().collect::<std::collections::BTreeMap<_, _>>(),
        },
        "pids": {"current": pids.current, "limit": pids.limit},
        "network_interfaces": stats.network_stats.iter().map(|interface| json!({
            "Name": interface.name,
            "RxBytes": interface.rx_bytes,
            "RxPackets": interface.rx_packets,
            "RxErrors": interface.rx_errors,
            "RxDropped": interface.rx_dropped,
            "TxBytes": interface.tx_bytes,
            "TxPackets": interface.tx_packets,
            "TxErrors": interface.tx_errors,
            "TxDropped": interface.tx_dropped,
        })).collect::<Vec<_>>(),
    })
}
