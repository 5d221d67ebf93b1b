//! A container's figures.

use std::fs;

use stockade_agent_protocol::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, NetworkStats,
    PidsStats, StatsContainerRequest, StatsContainerResponse, ThrottlingData,
};

use super::error::RpcError;
use crate::cgroup::Cgroup;
use crate::sandbox::Sandbox;

pub(super) fn container(
    sandbox: &Sandbox,
    request: &StatsContainerRequest,
) -> Result<StatsContainerResponse, RpcError> {
    let container = sandbox.container(&request.container_id)?;
    let cgroup = &container.cgroup;
    let stats = CgroupStats {
        cpu_stats: Some(cpu(cgroup)).into(),
        memory_stats: Some(memory(cgroup)).into(),
        pids_stats: Some(PidsStats {
            current: cgroup.number("pids.current").unwrap_or_default(),
            limit: cgroup.number("pids.max").unwrap_or_default(),
            ..Default::default()
        })
        .into(),
        blkio_stats: Some(block_io(&cgroup.read("io.stat").unwrap_or_default())).into(),
        hugetlb_stats: huge_pages(cgroup),
        ..Default::default()
    };
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    Ok(StatsContainerResponse {
        cgroup_stats: Some(stats).into(),
        network_stats: network(&devices),
        ..Default::default()
    })
}

fn cpu(cgroup: &Cgroup) -> CpuStats {
    let stat = cgroup.pairs("cpu.stat");
    let count = |key: &str| stat.get(key).copied().unwrap_or_default();
    let nanoseconds = |key: &str| count(key).saturating_mul(1000);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: nanoseconds("usage_usec"),
            usage_in_kernelmode: nanoseconds("system_usec"),
            usage_in_usermode: nanoseconds("user_usec"),
            ..Default::default()
        })
        .into(),
        throttling_data: Some(ThrottlingData {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn memory(cgroup: &Cgroup) -> MemoryStats {
    let stats = cgroup.pairs("memory.stat");
    let count = |key: &str| stats.get(key).copied().unwrap_or_default();
    let data = |kind: &str| MemoryData {
        usage: cgroup.number(&format!("{kind}.current")).unwrap_or_default(),
        max_usage: cgroup.number(&format!("{kind}.peak")).unwrap_or_default(),
        failcnt: cgroup.pairs(&format!("{kind}.events")).get("max").copied().unwrap_or_default(),
        limit: cgroup.number(&format!("{kind}.max")).unwrap_or(u64::MAX),
        ..Default::default()
    };
    let kernel = MemoryData { usage: count("kernel_stack") + count("slab"), limit: u64::MAX, ..Default::default() };
    MemoryStats {
        cache: count("file"),
        usage: Some(data("memory")).into(),
        swap_usage: Some(data("memory.swap")).into(),
        kernel_usage: Some(kernel).into(),
        use_hierarchy: true,
        stats: stats.clone(),
        ..Default::default()
    }
}

/// Lines such as `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn block_io(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let numbers = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = numbers.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let entry = |op: &str| BlkioStatsEntry { major, minor, op: op.to_owned(), value, ..Default::default() };
            match key {
                "rbytes" => stats.io_service_bytes_recursive.push(entry("Read")),
                "wbytes" => stats.io_service_bytes_recursive.push(entry("Write")),
                "dbytes" => stats.io_service_bytes_recursive.push(entry("Discard")),
                "rios" => stats.io_serviced_recursive.push(entry("Read")),
                "wios" => stats.io_serviced_recursive.push(entry("Write")),
                "dios" => stats.io_serviced_recursive.push(entry("Discard")),
                _ => {}
            }
        }
    }
    stats
}

fn huge_pages(cgroup: &Cgroup) -> std::collections::HashMap<String, HugetlbStats> {
    ["64KB", "2MB", "32MB", "1GB"]
        .into_iter()
        .filter_map(|size| {
            let usage = cgroup.number(&format!("hugetlb.{size}.current"))?;
            let failcnt = cgroup.pairs(&format!("hugetlb.{size}.events")).get("max").copied().unwrap_or_default();
            Some((size.to_owned(), HugetlbStats { usage, failcnt, ..Default::default() }))
        })
        .collect()
}

/// The containers share the guest's network, so that each is told the same.
fn network(text: &str) -> Vec<NetworkStats> {
    text.lines()
        .filter_map(|line| {
            let (name, counts) = line.split_once(':')?;
            let counts: Vec<u64> = counts.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let count = |index: usize| counts.get(index).copied().unwrap_or_default();
            Some(NetworkStats {
                name: name.trim().to_owned(),
                rx_bytes: count(0),
                rx_packets: count(1),
                rx_errors: count(2),
                rx_dropped: count(3),
                tx_bytes: count(8),
                tx_packets: count(9),
                tx_errors: count(10),
                tx_dropped: count(11),
                ..Default::default()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_figures_are_told_apart_by_direction() {
        let stats = block_io("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nbad line\n");
        let bytes: Vec<_> = stats.io_service_bytes_recursive.iter().map(|e| (e.op.as_str(), e.value)).collect();
        assert_eq!(bytes, [("Read", 1), ("Write", 2), ("Discard", 5)]);
        assert_eq!(stats.io_serviced_recursive.len(), 3);
        assert_eq!(stats.io_serviced_recursive.first().map(|e| e.major), Some(254));
    }

    #[test]
    fn network_figures_are_read_by_interface() {
        let text = "Inter-| Receive\n face |bytes\n  lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let list = network(text);
        assert_eq!(list.len(), 1);
        let lo = list.first().expect("lo");
        assert_eq!((lo.name.as_str(), lo.rx_bytes, lo.tx_bytes, lo.tx_dropped), ("lo", 1, 5, 8));
    }
}
