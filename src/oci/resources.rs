//! Which limits hold in the guest.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

/// Keeps what means the same in the guest: devices' rules, memory, CPU time, pids and unified keys. Left out, because
/// they are about the host's hardware: block I/O, huge pages, RDMA, network classes and priorities, realtime budgets,
/// and CPU and memory node numbers that the guest does not have. A zero is "not set", as engines write it.
pub fn guest_resources(resources: &LinuxResources, vcpus: Option<u32>, warnings: &mut Vec<String>) -> LinuxResources {
    let mut kept = LinuxResources::default();
    kept.set_devices(resources.devices().clone());
    kept.set_memory((*resources.memory()).map(memory));
    kept.set_cpu(resources.cpu().as_ref().map(|given| cpu(given, vcpus, warnings)));
    kept.set_pids(*resources.pids());
    kept.set_unified(resources.unified().clone());
    let network = resources.network().as_ref();
    let dropped = [
        ("blockIO", resources.block_io().is_some()),
        ("hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty())),
        ("rdma", resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty())),
        ("network", network.is_some_and(|network| network.class_id().is_some() || network.priorities().is_some())),
    ];
    for (name, _) in dropped.iter().filter(|(_, given)| *given) {
        warnings.push(format!("linux.resources.{name} is about the host's hardware: it does not hold in the guest"));
    }
    kept
}

fn memory(given: LinuxMemory) -> LinuxMemory {
    let mut kept = given;
    kept.set_limit(given.limit().filter(|bytes| *bytes != 0));
    kept.set_reservation(given.reservation().filter(|bytes| *bytes != 0));
    kept.set_swap(given.swap().filter(|bytes| *bytes != 0));
    kept
}

fn cpu(given: &LinuxCpu, vcpus: Option<u32>, warnings: &mut Vec<String>) -> LinuxCpu {
    let mut kept = given.clone();
    kept.set_shares(given.shares().filter(|shares| *shares != 0));
    kept.set_quota(given.quota().filter(|quota| *quota != 0));
    kept.set_period(given.period().filter(|period| *period != 0));
    if given.realtime_runtime().is_some_and(|time| time != 0) || given.realtime_period().is_some_and(|time| time != 0) {
        warnings.push("linux.resources.cpu: realtime budgets do not exist in the guest's cgroup2".to_owned());
    }
    kept.set_realtime_runtime(None);
    kept.set_realtime_period(None);
    let last = |list: &str| list.split(',').map(last_of_range).try_fold(0, |most, one| Some(most.max(one?)));
    for (name, list, count) in [("cpus", given.cpus(), vcpus.unwrap_or(0)), ("mems", given.mems(), 1)] {
        let Some(list) = list.as_deref().map(str::trim).filter(|list| !list.is_empty()) else {
            if name == "cpus" {
                kept.set_cpus(None)
            } else {
                kept.set_mems(None)
            };
            continue;
        };
        if last(list).is_none_or(|last| last >= count) {
            warnings
                .push(format!("linux.resources.cpu.{name} {list:?} are numbers that the guest does not have: not set"));
            if name == "cpus" {
                kept.set_cpus(None)
            } else {
                kept.set_mems(None)
            };
        }
    }
    kept
}

/// The highest number of `3` or `1-3`.
fn last_of_range(range: &str) -> Option<u32> {
    range.rsplit('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn guests(given: Value, vcpus: Option<u32>) -> (Value, usize) {
        let mut warnings = Vec::new();
        let kept = guest_resources(&serde_json::from_value(given).expect("resources"), vcpus, &mut warnings);
        (serde_json::to_value(kept).expect("serialises"), warnings.len())
    }

    #[test]
    fn limits_of_the_hosts_hardware_are_left_out() {
        let (kept, warned) = guests(
            json!({"devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 1000, "swap": 0},
                "cpu": {"shares": 1024, "quota": 0, "period": 100_000, "realtimeRuntime": 5}, "pids": {"limit": 5},
                "blockIO": {"weight": 10}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "rdma": {"m": {}},
                "network": {"classID": 1}, "unified": {"memory.high": "1"}}),
            None,
        );
        let wanted = json!({"devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 1000},
            "cpu": {"shares": 1024, "period": 100_000}, "pids": {"limit": 5}, "unified": {"memory.high": "1"}});
        assert_eq!(kept, wanted);
        assert_eq!(warned, 5);
    }

    #[test]
    fn cpu_numbers_stay_only_when_the_guest_has_them() {
        let cases = [
            ("0-1", Some(2), true),
            ("0,1", Some(2), true),
            ("1-2", Some(2), false),
            ("0", None, false),
            ("x", Some(8), false),
        ];
        for (cpus, vcpus, stays) in cases {
            let (kept, warned) = guests(json!({"cpu": {"cpus": cpus, "mems": "0"}}), vcpus);
            assert_eq!(kept["cpu"].get("cpus").is_some(), stays, "{cpus}");
            assert_eq!(kept["cpu"]["mems"], "0");
            assert_eq!(warned, usize::from(!stays));
        }
        let (kept, warned) = guests(json!({"cpu": {"cpus": "", "mems": "1"}}), Some(1));
        assert_eq!((kept, warned), (json!({"cpu": {}}), 1));
    }
}
