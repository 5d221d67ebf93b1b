//! What `prepare` takes and refuses.

use super::{Fixture, Machine, finish, within};
use crate::{BootSource, DeviceConfig, HypervisorError, MiB, NetQueueFds, ShareCache, VmConfig, VmState};

type Fault = (&'static str, fn(&mut VmConfig));

/// The option that must be named, and how the configuration is broken.
const FAULTS: &[Fault] = &[
    ("kernel", |c| c.kernel.0 = "/nonexistent/vmlinuz".into()),
    ("kernel", |c| c.kernel.0 = "/".into()),
    ("kernel", |c| c.kernel.0 = "/dev/../proc/self/nonexistent".into()),
    ("initrd", |c| c.boot = BootSource::Initrd("/nonexistent/initrd".into())),
    ("image", |c| c.boot = BootSource::Image { image: "/nonexistent/image".into(), initrd: None }),
    ("default_vcpus", |c| c.vcpus = 0),
    ("default_maxvcpus", |c| c.max_vcpus = 0),
    ("default_memory", |c| c.memory = MiB(1)),
    ("default_maxmemory", |c| c.max_memory = MiB(c.memory.0 - 1)),
    ("kernel_params", |c| c.kernel_params.push("a\nb".to_owned())),
    ("kernel_params", |c| c.kernel_params.push("x".repeat(5000))),
    ("guest_cid", |c| c.guest_cid = 2),
    ("run_dir", |c| c.run_dir = "/nonexistent/run".into()),
    ("run_dir", |c| c.run_dir = "relative".into()),
    ("id", |c| c.id = "a/b".to_owned()),
    ("share", |c| c.devices.push(share("contract2", "/nonexistent/share"))),
    ("share", |c| c.devices = vec![share("", "/")]),
    ("share", |c| c.devices = vec![share("a,b", "/")]),
    ("block device", |c| {
        c.devices.push(DeviceConfig::Block { path: "/nonexistent/disk".into(), read_only: true });
    }),
    ("network interface", |c| {
        c.devices.push(DeviceConfig::Net { mac: [2, 0, 0, 0, 0, 1], queues: NetQueueFds(Vec::new()), mtu: 1500 });
    }),
];

fn share(tag: &str, source: &str) -> DeviceConfig {
    DeviceConfig::Share { tag: tag.to_owned(), source: source.into(), cache: ShareCache::Auto }
}

pub(super) async fn bad_configurations_are_refused_by_name(fixture: &dyn Fixture) {
    let Machine { hypervisor, config, keep: _keep } = fixture.machine();
    for (number, (name, fault)) in FAULTS.iter().enumerate() {
        let mut bad = config.clone();
        fault(&mut bad);
        match within(hypervisor.prepare(bad)).await {
            Err(HypervisorError::Config { option, problem }) => {
                assert_eq!(option, *name, "fault {number}: {problem}");
                assert!(!problem.is_empty());
            }
            other => panic!("fault {number} of {name} was answered by {other:?}"),
        }
        assert_eq!(hypervisor.state(), VmState::New);
    }
}

pub(super) async fn a_refused_configuration_may_be_followed_by_a_good_one(fixture: &dyn Fixture) {
    let Machine { hypervisor, config, keep: _keep } = fixture.machine();
    let mut bad = config.clone();
    bad.vcpus = 0;
    within(hypervisor.prepare(bad)).await.expect_err("no vCPU is too few");
    within(hypervisor.prepare(config)).await.expect("a good configuration is taken");
    assert_eq!(hypervisor.state(), VmState::Prepared);
    finish(hypervisor.as_ref(), &[]).await;
}

pub(super) async fn capabilities_are_sensible(fixture: &dyn Fixture) {
    let Machine { hypervisor, config, keep: _keep } = fixture.machine();
    let can = hypervisor.capabilities();
    assert!(!can.acceleration.is_empty());
    assert!(can.max_vcpus >= 1);
    assert_eq!(can.snapshots, hypervisor.snapshots().is_some());
    assert!(!hypervisor.name().is_empty());
    if can.max_vcpus < u32::MAX {
        let mut bad = config;
        bad.vcpus = can.max_vcpus + 1;
        bad.max_vcpus = bad.vcpus;
        let refused = within(hypervisor.prepare(bad)).await;
        assert!(matches!(refused, Err(HypervisorError::Config { .. })), "{refused:?}");
    }
}
