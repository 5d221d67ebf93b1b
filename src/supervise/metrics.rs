//! A container's counters in containerd's two forms.
//!
//! The guest counts with control groups of version 2. A host that has version 1 gets the form of version 1, since what
//! reads it (cAdvisor, the kubelet's summaries) expects the same of all its containers; what version 2 does not count
//! stays 0.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use std::collections::BTreeMap;
use stockade_agent_protocol::agent::{BlkioStatsEntry, MemoryData, MemoryStats, StatsContainerResponse};

/// The counters as containerd reads them.
pub(super) fn encode(stats: &StatsContainerResponse, version_2: bool) -> containerd_shim_protos::protobuf::Result<Any> {
    if version_2 { any(&of_version_2(stats)) } else { any(&of_version_1(stats)) }
}

fn any<M: MessageFull>(message: &M) -> containerd_shim_protos::protobuf::Result<Any> {
    let type_url = M::descriptor().full_name().to_owned();
    Ok(Any { type_url, value: message.write_to_bytes()?, ..Any::default() })
}

fn count(memory: &MemoryStats, key: &str) -> u64 {
    memory.stats.get(key).copied().unwrap_or_default()
}

fn of_version_2(stats: &StatsContainerResponse) -> v2::Metrics {
    let group = stats.cgroup_stats.get_or_default();
    let (cpu, memory) = (group.cpu_stats.get_or_default(), group.memory_stats.get_or_default());
    let (usage, throttling) = (cpu.cpu_usage.get_or_default(), cpu.throttling_data.get_or_default());
    let (data, swap) = (memory.usage.get_or_default(), memory.swap_usage.get_or_default());
    let pids = group.pids_stats.get_or_default();
    let count = |key| count(memory, key);
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat { current: pids.current, limit: pids.limit, ..Default::default() }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: usage.total_usage / 1000,
            user_usec: usage.usage_in_usermode / 1000,
            system_usec: usage.usage_in_kernelmode / 1000,
            nr_periods: throttling.periods,
            nr_throttled: throttling.throttled_periods,
            throttled_usec: throttling.throttled_time / 1000,
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: count("anon"),
            file: count("file"),
            kernel_stack: count("kernel_stack"),
            slab: count("slab"),
            sock: count("sock"),
            shmem: count("shmem"),
            file_mapped: count("file_mapped"),
            file_dirty: count("file_dirty"),
            file_writeback: count("file_writeback"),
            anon_thp: count("anon_thp"),
            inactive_anon: count("inactive_anon"),
            active_anon: count("active_anon"),
            inactive_file: count("inactive_file"),
            active_file: count("active_file"),
            unevictable: count("unevictable"),
            slab_reclaimable: count("slab_reclaimable"),
            slab_unreclaimable: count("slab_unreclaimable"),
            pgfault: count("pgfault"),
            pgmajfault: count("pgmajfault"),
            pgrefill: count("pgrefill"),
            pgscan: count("pgscan"),
            pgsteal: count("pgsteal"),
            pgactivate: count("pgactivate"),
            pgdeactivate: count("pgdeactivate"),
            pglazyfree: count("pglazyfree"),
            pglazyfreed: count("pglazyfreed"),
            thp_fault_alloc: count("thp_fault_alloc"),
            thp_collapse_alloc: count("thp_collapse_alloc"),
            usage: data.usage,
            usage_limit: data.limit,
            max_usage: data.max_usage,
            swap_usage: swap.usage,
            swap_limit: swap.limit,
            swap_max_usage: swap.max_usage,
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents { max: data.failcnt, ..Default::default() }),
        io: MessageField::some(v2::IOStat { usage: devices(stats), ..Default::default() }),
        hugetlb: group
            .hugetlb_stats
            .iter()
            .map(|(size, pages)| v2::HugeTlbStat {
                current: pages.usage,
                max: pages.max_usage,
                pagesize: size.clone(),
                failcnt: pages.failcnt,
                ..Default::default()
            })
            .collect(),
        network: stats
            .network_stats
            .iter()
            .map(|interface| v2::NetworkStat {
                name: interface.name.clone(),
                rx_bytes: interface.rx_bytes,
                rx_packets: interface.rx_packets,
                rx_errors: interface.rx_errors,
                rx_dropped: interface.rx_dropped,
                tx_bytes: interface.tx_bytes,
                tx_packets: interface.tx_packets,
                tx_errors: interface.tx_errors,
                tx_dropped: interface.tx_dropped,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

/// Version 2 has one entry a device, the agent's protocol one a device and direction.
fn devices(stats: &StatsContainerResponse) -> Vec<v2::IOEntry> {
    let mut found: BTreeMap<(u64, u64), v2::IOEntry> = BTreeMap::new();
    let block = stats.cgroup_stats.get_or_default().blkio_stats.get_or_default();
    let mut add = |entries: &[BlkioStatsEntry], bytes: bool| {
        for entry in entries {
            let device = found.entry((entry.major, entry.minor)).or_default();
            (device.major, device.minor) = (entry.major, entry.minor);
            match (entry.op.as_str(), bytes) {
                ("Read", true) => device.rbytes = entry.value,
                ("Write", true) => device.wbytes = entry.value,
                ("Read", false) => device.rios = entry.value,
                ("Write", false) => device.wios = entry.value,
                _ => {}
            }
        }
    };
    add(&block.io_service_bytes_recursive, true);
    add(&block.io_serviced_recursive, false);
    found.into_values().collect()
}

fn of_version_1(stats: &StatsContainerResponse) -> v1::Metrics {
    let group = stats.cgroup_stats.get_or_default();
    let (cpu, memory) = (group.cpu_stats.get_or_default(), group.memory_stats.get_or_default());
    let (usage, throttling) = (cpu.cpu_usage.get_or_default(), cpu.throttling_data.get_or_default());
    let (pids, block) = (group.pids_stats.get_or_default(), group.blkio_stats.get_or_default());
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat { current: pids.current, limit: pids.limit, ..Default::default() }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: usage.total_usage,
                kernel: usage.usage_in_kernelmode,
                user: usage.usage_in_usermode,
                per_cpu: usage.percpu_usage.clone(),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_time,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(memory_of_version_1(memory)),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: block.io_service_bytes_recursive.iter().map(block_entry).collect(),
            io_serviced_recursive: block.io_serviced_recursive.iter().map(block_entry).collect(),
            ..Default::default()
        }),
        hugetlb: group
            .hugetlb_stats
            .iter()
            .map(|(size, pages)| v1::HugetlbStat {
                usage: pages.usage,
                max: pages.max_usage,
                failcnt: pages.failcnt,
                pagesize: size.clone(),
                ..Default::default()
            })
            .collect(),
        network: stats
            .network_stats
            .iter()
            .map(|interface| v1::NetworkStat {
                name: interface.name.clone(),
                rx_bytes: interface.rx_bytes,
                rx_packets: interface.rx_packets,
                rx_errors: interface.rx_errors,
                rx_dropped: interface.rx_dropped,
                tx_bytes: interface.tx_bytes,
                tx_packets: interface.tx_packets,
                tx_errors: interface.tx_errors,
                tx_dropped: interface.tx_dropped,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

/// The names of version 1 for what version 2 counts. Its counters are of the whole hierarchy, so both of version 1's
/// rows are the same.
fn memory_of_version_1(memory: &MemoryStats) -> v1::MemoryStat {
    let count = |key| count(memory, key);
    let entry = |data: &MemoryData| {
        MessageField::some(v1::MemoryEntry {
            limit: data.limit,
            usage: data.usage,
            max: data.max_usage,
            failcnt: data.failcnt,
            ..Default::default()
        })
    };
    v1::MemoryStat {
        cache: memory.cache,
        total_cache: memory.cache,
        rss: count("anon"),
        total_rss: count("anon"),
        rss_huge: count("anon_thp"),
        total_rss_huge: count("anon_thp"),
        mapped_file: count("file_mapped"),
        total_mapped_file: count("file_mapped"),
        dirty: count("file_dirty"),
        total_dirty: count("file_dirty"),
        writeback: count("file_writeback"),
        total_writeback: count("file_writeback"),
        pg_fault: count("pgfault"),
        total_pg_fault: count("pgfault"),
        pg_maj_fault: count("pgmajfault"),
        total_pg_maj_fault: count("pgmajfault"),
        inactive_anon: count("inactive_anon"),
        total_inactive_anon: count("inactive_anon"),
        active_anon: count("active_anon"),
        total_active_anon: count("active_anon"),
        inactive_file: count("inactive_file"),
        total_inactive_file: count("inactive_file"),
        active_file: count("active_file"),
        total_active_file: count("active_file"),
        unevictable: count("unevictable"),
        total_unevictable: count("unevictable"),
        hierarchical_memory_limit: memory.usage.limit,
        hierarchical_swap_limit: memory.swap_usage.limit,
        usage: entry(memory.usage.get_or_default()),
        swap: entry(memory.swap_usage.get_or_default()),
        kernel: entry(memory.kernel_usage.get_or_default()),
        ..Default::default()
    }
}

fn block_entry(entry: &BlkioStatsEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry {
        op: entry.op.clone(),
        device: String::new(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Message;
    use stockade_agent_protocol::agent::{BlkioStats, CgroupStats, CpuStats, CpuUsage, NetworkStats, PidsStats};

    fn stats() -> StatsContainerResponse {
        let entry =
            |op: &str, value| BlkioStatsEntry { major: 8, minor: 1, op: op.into(), value, ..Default::default() };
        let memory = MemoryStats {
            cache: 4096,
            usage: Some(MemoryData { usage: 8192, limit: 1 << 20, ..Default::default() }).into(),
            stats: [("anon".to_owned(), 77), ("pgfault".to_owned(), 5)].into(),
            ..Default::default()
        };
        let group = CgroupStats {
            cpu_stats: Some(CpuStats {
                cpu_usage: Some(CpuUsage { total_usage: 3_000_000, usage_in_usermode: 2_000, ..Default::default() })
                    .into(),
                ..Default::default()
            })
            .into(),
            memory_stats: Some(memory).into(),
            pids_stats: Some(PidsStats { current: 3, limit: 9, ..Default::default() }).into(),
            blkio_stats: Some(BlkioStats {
                io_service_bytes_recursive: vec![entry("Read", 10), entry("Write", 20)],
                io_serviced_recursive: vec![entry("Read", 1), entry("Discard", 2)],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let network = NetworkStats { name: "eth0".into(), rx_bytes: 6, ..Default::default() };
        StatsContainerResponse { cgroup_stats: Some(group).into(), network_stats: vec![network], ..Default::default() }
    }

    #[test]
    fn a_host_of_version_2_reads_microseconds_and_one_entry_a_device() {
        let any = encode(&stats(), true).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec, metrics.pids.current), (3000, 2, 3));
        assert_eq!((metrics.memory.anon, metrics.memory.usage, metrics.memory.usage_limit), (77, 8192, 1 << 20));
        let io: Vec<_> = metrics.io.usage.iter().map(|io| (io.major, io.rbytes, io.wbytes, io.rios, io.wios)).collect();
        assert_eq!(io, [(8, 10, 20, 1, 0)]);
        assert_eq!(metrics.network.first().map(|eth| eth.rx_bytes), Some(6));
    }

    #[test]
    fn a_host_of_version_1_reads_the_old_names() {
        let any = encode(&stats(), false).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage.total, metrics.memory.usage.usage), (3_000_000, 8192));
        assert_eq!((metrics.memory.total_rss, metrics.memory.total_cache, metrics.memory.pg_fault), (77, 4096, 5));
        assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 2);
        assert_eq!(metrics.pids.limit, 9);
    }

    #[test]
    fn a_guest_that_says_nothing_is_a_row_of_zeros() {
        for version_2 in [true, false] {
            assert!(encode(&StatsContainerResponse::new(), version_2).is_ok());
        }
    }
}
