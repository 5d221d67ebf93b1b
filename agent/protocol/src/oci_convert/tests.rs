use oci_spec::runtime::{LinuxResources, Process, Spec};
use protobuf::Message as _;
use serde_json::json;

use super::{
    process_from_proto, process_to_proto, resources_from_proto, resources_to_proto, spec_from_proto, spec_to_proto,
};
use crate::oci;

fn full_resources() -> serde_json::Value {
    json!({
        "devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": -1, "access": "rw"},
            {"allow": true, "type": "b", "major": 0, "minor": 0, "access": "m"},
        ],
        "memory": {"limit": 0, "reservation": 1, "swap": -1, "kernel": -1, "kernelTCP": -1,
            "swappiness": 0, "disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true},
        "cpu": {"shares": 2, "quota": -1, "period": 100000, "realtimeRuntime": 9, "realtimePeriod": 10,
            "cpus": "0-1", "mems": "0", "idle": 1, "burst": 4},
        "pids": {"limit": -1},
        "blockIO": {"weight": 10, "leafWeight": 11,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 500, "leafWeight": 300}, {"major": 8, "minor": 16}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
            "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2}],
            "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 3}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 18446744073709551615u64}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
        "network": {"classID": 0, "priorities": [{"name": "eth0", "priority": 500}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}},
        "unified": {"memory.high": "1000", "cpu.weight": "50"},
    })
}

fn full_process() -> serde_json::Value {
    json!({
        "terminal": true,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1000, "gid": 1001, "umask": 0, "additionalGids": [0, 5, 6], "username": "someone"},
        "args": ["sh", "-c", "", "a b"],
        "env": ["PATH=/bin", "A=1=2", "A=3", "no-equals-sign", "", "=x"],
        "cwd": "/some/where",
        "capabilities": {
            "bounding": ["CAP_AUDIT_WRITE", "CAP_KILL"], "effective": ["CAP_KILL"],
            "inheritable": ["CAP_CHOWN"], "permitted": ["CAP_KILL"], "ambient": ["CAP_BPF"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 18446744073709551615u64, "soft": 1024}],
        "noNewPrivileges": false,
        "apparmorProfile": "profile",
        "oomScoreAdj": -500,
        "selinuxLabel": "label",
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 4},
        "scheduler": {"policy": "SCHED_FIFO", "nice": -3, "priority": 0, "flags": ["SCHED_RESET_ON_FORK"],
            "runtime": 1, "deadline": 2, "period": 3},
        "execCPUAffinity": {"initial": "0-1", "final": "1"},
    })
}

fn full_spec() -> serde_json::Value {
    let hook =
        |n: &str| json!([{"path": n, "args": [n, "x"], "env": ["K=V", "odd"], "timeout": 0}, {"path": "/second"}]);
    json!({
        "ociVersion": "1.2.0",
        "process": full_process(),
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "host",
        "domainname": "domain",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "none", "source": "/src", "options": ["rbind", "ro", "rprivate"],
             "uidMappings": [{"hostID": 1, "containerID": 0, "size": 10}],
             "gidMappings": [{"hostID": 2, "containerID": 0, "size": 10}]},
            {"destination": "/only-destination"},
        ],
        "hooks": {"prestart": hook("/a"), "createRuntime": hook("/b"), "createContainer": hook("/c"),
            "startContainer": hook("/d"), "poststart": hook("/e"), "poststop": hook("/f")},
        "annotations": {"a.b/c": "d", "empty": ""},
        "linux": {
            "uidMappings": [{"hostID": 0, "containerID": 0, "size": 4294967295u32}],
            "gidMappings": [{"hostID": 0, "containerID": 0, "size": 1}],
            "sysctl": {"net.core.somaxconn": "256"},
            "resources": full_resources(),
            "cgroupsPath": "/a/b",
            "namespaces": [{"type": "pid"}, {"type": "mount", "path": "/proc/1/ns/mnt"}, {"type": "time"}],
            "devices": [
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0},
                {"path": "/dev/pipe", "type": "p", "major": 0, "minor": 0}],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
                "listenerPath": "/listener", "listenerMetadata": "meta",
                "syscalls": [
                    {"names": ["clone", "read"], "action": "SCMP_ACT_ALLOW", "args": [
                        {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
                        {"index": 1, "value": 0, "op": "SCMP_CMP_NE"}]},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}]},
            "rootfsPropagation": "shared",
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "mountLabel": "label",
            "intelRdt": {"l3CacheSchema": "L3:0=f"},
            "personality": {"domain": "LINUX32"},
            "timeOffsets": {"monotonic": {"secs": -5, "nanosecs": 3}, "boottime": {"secs": 1}},
        },
    })
}

fn over_the_wire<M: protobuf::Message>(message: &M) -> M {
    M::parse_from_bytes(&message.write_to_bytes().expect("encodes")).expect("decodes")
}

#[test]
fn a_configuration_with_every_field_arrives_unchanged() {
    let spec: Spec = serde_json::from_value(full_spec()).expect("a valid configuration");
    let message = over_the_wire(&spec_to_proto(&spec).expect("converts"));
    let back = spec_from_proto(&message).expect("converts back");
    assert_eq!(back, spec);
    // The source is complete too: nothing of the text was dropped while it was read.
    let mut text = serde_json::to_value(&back).expect("serialises");
    for (set, names) in full_process()["capabilities"].as_object().expect("sets") {
        let list = text["process"]["capabilities"][set].as_array_mut().expect("a list");
        list.sort_by_key(|v| v.as_str().map(str::to_owned));
        assert_eq!(&text["process"]["capabilities"][set], names);
    }
}

#[test]
fn environment_strings_are_verbatim_and_in_order() {
    let process: Process = serde_json::from_value(full_process()).expect("a valid process");
    let message = over_the_wire(&process_to_proto(&process).expect("converts"));
    assert_eq!(message.Env, ["PATH=/bin", "A=1=2", "A=3", "no-equals-sign", "", "=x"]);
    assert_eq!(process_from_proto(&message).expect("converts back"), process);
}

#[test]
fn resources_keep_the_difference_between_zero_and_absent() {
    let full: LinuxResources = serde_json::from_value(full_resources()).expect("valid resources");
    let message = over_the_wire(&resources_to_proto(&full).expect("converts"));
    assert_eq!(resources_from_proto(&message).expect("converts back"), full);
    let sparse: LinuxResources =
        serde_json::from_value(json!({"memory": {"limit": 0}, "cpu": {}})).expect("valid resources");
    let message = over_the_wire(&resources_to_proto(&sparse).expect("converts"));
    assert_eq!(resources_from_proto(&message).expect("converts back"), sparse);
}

#[test]
fn a_minimal_configuration_arrives_unchanged() {
    let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.0.2"})).expect("valid");
    let message = over_the_wire(&spec_to_proto(&spec).expect("converts"));
    assert_eq!(spec_from_proto(&message).expect("converts back"), spec);
}

#[test]
fn an_unknown_enumeration_value_is_an_error_and_not_a_default() {
    let mut message = oci::Process::new();
    message.Cwd = "/".to_owned();
    message.Rlimits.push(oci::POSIXRlimit { Type: "RLIMIT_NONSENSE".to_owned(), ..Default::default() });
    let error = process_from_proto(&message).expect_err("refused");
    assert_eq!(error.to_string(), "the process is not a valid OCI configuration");
}

#[test]
fn kata_numbers_are_on_the_wire() {
    // Field 11 of Process, zigzag-free: -1 as a ten-byte varint behind tag 0x58.
    let message = oci::Process { OOMScoreAdj: Some(-1), ..Default::default() };
    let bytes = message.write_to_bytes().expect("encodes");
    assert_eq!(bytes.first(), Some(&0x58));
    assert_eq!(bytes.len(), 11);
}
