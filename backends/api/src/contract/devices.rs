//! Devices and sizes, by what the capabilities say.

use super::{Fixture, Machine, finish, prepared, started, within};
use crate::{
    Capabilities, DeviceConfig, DeviceId, Hypervisor, HypervisorError, MiB, NetQueueFds, ResizeRequest, ShareCache,
};
use std::sync::Arc;

fn a_disk() -> DeviceConfig {
    DeviceConfig::Block { path: "/proc/self/exe".into(), read_only: true }
}

fn a_share() -> DeviceConfig {
    DeviceConfig::Share { tag: "late".to_owned(), source: "/".into(), cache: ShareCache::Never }
}

/// An interface whose descriptor is no tap: good enough to be refused.
fn an_interface() -> DeviceConfig {
    let null = std::fs::File::open("/dev/null").expect("/dev/null opens");
    let queues = NetQueueFds(vec![Arc::new(null.into())]);
    DeviceConfig::Net { mac: [2, 0, 0, 0, 0, 1], queues, mtu: 1500 }
}

fn is_unsupported<T>(result: &Result<T, HypervisorError>) -> bool {
    matches!(result, Err(HypervisorError::Unsupported { .. }))
}

pub(super) async fn unknown_devices_are_refused(fixture: &dyn Fixture) {
    let unknown = DeviceId("no-such-device".to_owned());
    let refused = |result| matches!(result, Err(HypervisorError::NoSuchDevice(id)) if id == unknown);
    let (vm, _keep) = prepared(fixture).await;
    assert!(refused(within(vm.remove_device(&unknown)).await));
    within(vm.start()).await.expect("a prepared machine starts");
    assert!(refused(within(vm.remove_device(&unknown)).await));
    finish(vm.as_ref(), &vm.processes()).await;
}

pub(super) async fn devices_come_and_go_before_the_start(fixture: &dyn Fixture) {
    let (vm, _keep) = prepared(fixture).await;
    let first = within(vm.add_device(a_disk())).await.expect("a disk is taken");
    let second = within(vm.add_device(a_disk())).await.expect("another disk is taken");
    assert_ne!(first, second);
    within(vm.remove_device(&first)).await.expect("it can be removed");
    let again = within(vm.remove_device(&first)).await;
    assert!(matches!(again, Err(HypervisorError::NoSuchDevice(_))), "{again:?}");
    let missing = DeviceConfig::Block { path: "/nonexistent/disk".into(), read_only: true };
    let refused = within(vm.add_device(missing)).await;
    assert!(matches!(refused, Err(HypervisorError::Config { .. })), "{refused:?}");
    within(vm.start()).await.expect("it starts with the disk that is left");
    finish(vm.as_ref(), &vm.processes()).await;
}

pub(super) async fn what_capabilities_deny_is_unsupported(fixture: &dyn Fixture) {
    let Machine { hypervisor: vm, mut config, keep: _keep } = fixture.machine();
    config.max_vcpus = config.vcpus + 1;
    config.max_memory = MiB(config.memory.0 + 256);
    let (vcpus, memory) = (config.vcpus, config.memory);
    within(vm.prepare(config)).await.expect("a good configuration is taken");
    within(vm.start()).await.expect("a prepared machine starts");
    let can: Capabilities = vm.capabilities();
    // A share needs a process that is confined to it: no backend takes one late.
    assert!(is_unsupported(&within(vm.add_device(a_share())).await));
    if !can.block_hotplug {
        assert!(is_unsupported(&within(vm.add_device(a_disk())).await));
    }
    if !can.net_hotplug {
        assert!(is_unsupported(&within(vm.add_device(an_interface())).await));
    }
    if !can.vcpu_hotplug {
        let more = ResizeRequest { vcpus: Some(vcpus + 1), memory: None };
        assert!(is_unsupported(&within(vm.resize(more)).await));
    }
    if !can.memory_hotplug {
        let more = ResizeRequest { vcpus: None, memory: Some(MiB(memory.0 + 128)) };
        assert!(is_unsupported(&within(vm.resize(more)).await));
    }
    let same = ResizeRequest { vcpus: Some(vcpus), memory: Some(memory) };
    let size = within(vm.resize(same)).await.expect("the present size is always possible");
    assert_eq!((size.vcpus, size.memory), (vcpus, memory));
    let size = within(vm.resize(ResizeRequest::default())).await.expect("so is no request");
    assert_eq!((size.vcpus, size.memory), (vcpus, memory));
    finish(vm.as_ref(), &vm.processes()).await;
}

pub(super) async fn devices_plug_as_capabilities_say(fixture: &dyn Fixture) {
    let Machine { hypervisor: vm, mut config, keep: _keep } = fixture.machine();
    config.max_vcpus = config.vcpus + 1;
    config.max_memory = MiB(config.memory.0 + 256);
    let (vcpus, memory) = (config.vcpus, config.memory);
    within(vm.prepare(config)).await.expect("a good configuration is taken");
    within(vm.start()).await.expect("a prepared machine starts");
    let can = vm.capabilities();
    if can.block_hotplug {
        let first = within(vm.add_device(a_disk())).await.expect("a disk is plugged");
        let second = within(vm.add_device(a_disk())).await.expect("another disk is plugged");
        assert_ne!(first, second);
    }
    grow(vm.as_ref(), &can, vcpus, memory).await;
    let metrics = within(vm.metrics()).await.expect("a running machine has counters");
    assert_eq!(metrics.vcpus, vcpus + u32::from(can.vcpu_hotplug));
    finish(vm.as_ref(), &vm.processes()).await;
}

async fn grow(vm: &dyn Hypervisor, can: &Capabilities, vcpus: u32, memory: MiB) {
    if can.vcpu_hotplug {
        let more = ResizeRequest { vcpus: Some(vcpus + 1), memory: None };
        assert_eq!(within(vm.resize(more)).await.expect("a vCPU is plugged").vcpus, vcpus + 1);
    }
    if can.memory_hotplug {
        let more = ResizeRequest { vcpus: None, memory: Some(MiB(memory.0 + 128)) };
        assert_eq!(within(vm.resize(more)).await.expect("memory is plugged").memory, MiB(memory.0 + 128));
    }
}

pub(super) async fn a_resize_beyond_the_ceiling_is_refused(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    for request in [
        ResizeRequest { vcpus: Some(200), memory: None },
        ResizeRequest { vcpus: Some(0), memory: None },
        ResizeRequest { vcpus: None, memory: Some(MiB(1 << 20)) },
    ] {
        let refused = within(vm.resize(request)).await;
        let expected = matches!(refused, Err(HypervisorError::Config { .. } | HypervisorError::Unsupported { .. }));
        assert!(expected, "{request:?} was answered by {refused:?}");
    }
    finish(vm.as_ref(), &vm.processes()).await;
}
