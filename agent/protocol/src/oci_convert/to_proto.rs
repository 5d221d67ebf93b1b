//! JSON form -> messages.

use serde_json::Value;

use super::ConvertError;
use super::json::Reader;
use crate::oci::{self, linux_syscall};

type Converted<T> = Result<T, ConvertError>;

pub(super) fn spec(value: &Value) -> Converted<oci::Spec> {
    let v = Reader(value);
    Ok(oci::Spec {
        Version: v.string("ociVersion"),
        Process: v.object("process", process_of)?.into(),
        Root: v.get("root").map(root).into(),
        Hostname: v.string("hostname"),
        Domainname: v.string("domainname"),
        Mounts: v.objects("mounts", mount)?,
        Hooks: v.object("hooks", hooks)?.into(),
        Annotations: v.string_map("annotations"),
        Linux: v.object("linux", linux)?.into(),
        ..Default::default()
    })
}

pub(super) fn process(value: &Value) -> Converted<oci::Process> {
    process_of(Reader(value))
}

pub(super) fn resources(value: &Value) -> Converted<oci::LinuxResources> {
    resources_of(Reader(value))
}

fn process_of(v: Reader<'_>) -> Converted<oci::Process> {
    Ok(oci::Process {
        Terminal: v.boolean("terminal"),
        ConsoleSize: v
            .object("consoleSize", |v| {
                Ok(oci::Box { Height: v.plain("height")?, Width: v.plain("width")?, ..Default::default() })
            })?
            .into(),
        User: v.object("user", user)?.into(),
        Args: v.strings("args"),
        Env: v.strings("env"),
        Cwd: v.string("cwd"),
        Capabilities: v.get("capabilities").map(capabilities).into(),
        Rlimits: v.objects("rlimits", |v| {
            Ok(oci::POSIXRlimit {
                Type: v.string("type"),
                Hard: v.plain("hard")?,
                Soft: v.plain("soft")?,
                ..Default::default()
            })
        })?,
        NoNewPrivileges: v.boolean("noNewPrivileges"),
        ApparmorProfile: v.string("apparmorProfile"),
        OOMScoreAdj: v.number("oomScoreAdj")?,
        SelinuxLabel: v.string("selinuxLabel"),
        IOPriority: v
            .object("ioPriority", |v| {
                Ok(oci::LinuxIOPriority {
                    Class: v.string("class"),
                    Priority: v.plain("priority")?,
                    ..Default::default()
                })
            })?
            .into(),
        Scheduler: v.object("scheduler", scheduler)?.into(),
        ExecCPUAffinity: v
            .get("execCPUAffinity")
            .map(|v| oci::ExecCPUAffinity {
                Initial: v.string("initial"),
                Final: v.string("final"),
                ..Default::default()
            })
            .into(),
        ..Default::default()
    })
}

fn user(v: Reader<'_>) -> Converted<oci::User> {
    Ok(oci::User {
        UID: v.plain("uid")?,
        GID: v.plain("gid")?,
        AdditionalGids: v.numbers("additionalGids")?,
        Username: v.string("username"),
        Umask: v.number("umask")?,
        ..Default::default()
    })
}

fn capabilities(v: Reader<'_>) -> oci::LinuxCapabilities {
    // The OCI types keep sets without order; sorted, equal configurations are equal on the wire.
    let set = |key| {
        let mut names = v.strings(key);
        names.sort_unstable();
        names
    };
    oci::LinuxCapabilities {
        Bounding: set("bounding"),
        Effective: set("effective"),
        Inheritable: set("inheritable"),
        Permitted: set("permitted"),
        Ambient: set("ambient"),
        ..Default::default()
    }
}

fn scheduler(v: Reader<'_>) -> Converted<oci::Scheduler> {
    Ok(oci::Scheduler {
        Policy: v.string("policy"),
        Nice: v.number("nice")?,
        Priority: v.number("priority")?,
        Flags: v.strings("flags"),
        Runtime: v.number("runtime")?,
        Deadline: v.number("deadline")?,
        Period: v.number("period")?,
        ..Default::default()
    })
}

fn root(v: Reader<'_>) -> oci::Root {
    oci::Root { Path: v.string("path"), Readonly: v.boolean("readonly"), ..Default::default() }
}

fn mount(v: Reader<'_>) -> Converted<oci::Mount> {
    Ok(oci::Mount {
        destination: v.string("destination"),
        source: v.string("source"),
        type_: v.string("type"),
        options: v.strings("options"),
        UIDMappings: v.objects("uidMappings", id_mapping)?,
        GIDMappings: v.objects("gidMappings", id_mapping)?,
        ..Default::default()
    })
}

fn hooks(v: Reader<'_>) -> Converted<oci::Hooks> {
    let phase = |key| v.objects(key, hook);
    Ok(oci::Hooks {
        Prestart: phase("prestart")?,
        Poststart: phase("poststart")?,
        Poststop: phase("poststop")?,
        CreateRuntime: phase("createRuntime")?,
        CreateContainer: phase("createContainer")?,
        StartContainer: phase("startContainer")?,
        ..Default::default()
    })
}

fn hook(v: Reader<'_>) -> Converted<oci::Hook> {
    Ok(oci::Hook {
        Path: v.string("path"),
        Args: v.strings("args"),
        Env: v.strings("env"),
        Timeout: v.number("timeout")?,
        ..Default::default()
    })
}

fn linux(v: Reader<'_>) -> Converted<oci::Linux> {
    Ok(oci::Linux {
        UIDMappings: v.objects("uidMappings", id_mapping)?,
        GIDMappings: v.objects("gidMappings", id_mapping)?,
        Sysctl: v.string_map("sysctl"),
        Resources: v.object("resources", resources_of)?.into(),
        CgroupsPath: v.string("cgroupsPath"),
        Namespaces: v.objects("namespaces", |v| {
            Ok(oci::LinuxNamespace { Type: v.string("type"), Path: v.string("path"), ..Default::default() })
        })?,
        Devices: v.objects("devices", |v| {
            Ok(oci::LinuxDevice {
                Path: v.string("path"),
                Type: v.string("type"),
                Major: v.plain("major")?,
                Minor: v.plain("minor")?,
                FileMode: v.number("fileMode")?,
                UID: v.number("uid")?,
                GID: v.number("gid")?,
                ..Default::default()
            })
        })?,
        Seccomp: v.object("seccomp", seccomp)?.into(),
        RootfsPropagation: v.string("rootfsPropagation"),
        MaskedPaths: v.strings("maskedPaths"),
        ReadonlyPaths: v.strings("readonlyPaths"),
        MountLabel: v.string("mountLabel"),
        IntelRdt: v
            .get("intelRdt")
            .map(|v| oci::LinuxIntelRdt { L3CacheSchema: v.string("l3CacheSchema"), ..Default::default() })
            .into(),
        Personality: v
            .get("personality")
            .map(|v| oci::LinuxPersonality {
                Domain: v.string("domain"),
                Flags: v.strings("flags"),
                ..Default::default()
            })
            .into(),
        TimeOffsets: v
            .entries("timeOffsets")
            .map(|(key, v)| {
                let offset = oci::LinuxTimeOffset {
                    Secs: v.number("secs")?,
                    Nanosecs: v.number("nanosecs")?,
                    ..Default::default()
                };
                Ok((key, offset))
            })
            .collect::<Converted<_>>()?,
        ..Default::default()
    })
}

fn id_mapping(v: Reader<'_>) -> Converted<oci::LinuxIDMapping> {
    Ok(oci::LinuxIDMapping {
        HostID: v.plain("hostID")?,
        ContainerID: v.plain("containerID")?,
        Size: v.plain("size")?,
        ..Default::default()
    })
}

fn seccomp(v: Reader<'_>) -> Converted<oci::LinuxSeccomp> {
    Ok(oci::LinuxSeccomp {
        DefaultAction: v.string("defaultAction"),
        Architectures: v.strings("architectures"),
        Flags: v.strings("flags"),
        Syscalls: v.objects("syscalls", |v| {
            Ok(oci::LinuxSyscall {
                Names: v.strings("names"),
                Action: v.string("action"),
                ErrnoRet: v.number("errnoRet")?.map(linux_syscall::ErrnoRet::Errnoret),
                Args: v.objects("args", |v| {
                    Ok(oci::LinuxSeccompArg {
                        Index: v.plain("index")?,
                        Value: v.plain("value")?,
                        ValueTwo: v.number("valueTwo")?,
                        Op: v.string("op"),
                        ..Default::default()
                    })
                })?,
                ..Default::default()
            })
        })?,
        DefaultErrnoRet: v.number("defaultErrnoRet")?,
        ListenerPath: v.string("listenerPath"),
        ListenerMetadata: v.string("listenerMetadata"),
        ..Default::default()
    })
}

fn resources_of(v: Reader<'_>) -> Converted<oci::LinuxResources> {
    Ok(oci::LinuxResources {
        Devices: v.objects("devices", |v| {
            Ok(oci::LinuxDeviceCgroup {
                Allow: v.boolean("allow").unwrap_or_default(),
                Type: v.string("type"),
                Major: v.number("major")?,
                Minor: v.number("minor")?,
                Access: v.string("access"),
                ..Default::default()
            })
        })?,
        Memory: v.object("memory", memory)?.into(),
        CPU: v.object("cpu", cpu)?.into(),
        Pids: v.object("pids", |v| Ok(oci::LinuxPids { Limit: v.plain("limit")?, ..Default::default() }))?.into(),
        BlockIO: v.object("blockIO", block_io)?.into(),
        HugepageLimits: v.objects("hugepageLimits", |v| {
            Ok(oci::LinuxHugepageLimit {
                Pagesize: v.string("pageSize"),
                Limit: v.plain("limit")?,
                ..Default::default()
            })
        })?,
        Network: v
            .object("network", |v| {
                Ok(oci::LinuxNetwork {
                    ClassID: v.number("classID")?,
                    Priorities: v.objects("priorities", |v| {
                        Ok(oci::LinuxInterfacePriority {
                            Name: v.string("name"),
                            Priority: v.plain("priority")?,
                            ..Default::default()
                        })
                    })?,
                    ..Default::default()
                })
            })?
            .into(),
        Unified: v.string_map("unified"),
        Rdma: v
            .entries("rdma")
            .map(|(key, v)| {
                let limits = oci::LinuxRdma {
                    HcaHandles: v.number("hcaHandles")?,
                    HcaObjects: v.number("hcaObjects")?,
                    ..Default::default()
                };
                Ok((key, limits))
            })
            .collect::<Converted<_>>()?,
        ..Default::default()
    })
}

fn memory(v: Reader<'_>) -> Converted<oci::LinuxMemory> {
    Ok(oci::LinuxMemory {
        Limit: v.number("limit")?,
        Reservation: v.number("reservation")?,
        Swap: v.number("swap")?,
        Kernel: v.number("kernel")?,
        KernelTCP: v.number("kernelTCP")?,
        Swappiness: v.number("swappiness")?,
        DisableOOMKiller: v.boolean("disableOOMKiller"),
        UseHierarchy: v.boolean("useHierarchy"),
        CheckBeforeUpdate: v.boolean("checkBeforeUpdate"),
        ..Default::default()
    })
}

fn cpu(v: Reader<'_>) -> Converted<oci::LinuxCPU> {
    Ok(oci::LinuxCPU {
        Shares: v.number("shares")?,
        Quota: v.number("quota")?,
        Period: v.number("period")?,
        RealtimeRuntime: v.number("realtimeRuntime")?,
        RealtimePeriod: v.number("realtimePeriod")?,
        Cpus: v.string("cpus"),
        Mems: v.string("mems"),
        Idle: v.number("idle")?,
        Burst: v.number("burst")?,
        ..Default::default()
    })
}

fn block_io(v: Reader<'_>) -> Converted<oci::LinuxBlockIO> {
    let throttle = |key| {
        v.objects(key, |v| {
            Ok(oci::LinuxThrottleDevice {
                Major: v.plain("major")?,
                Minor: v.plain("minor")?,
                Rate: v.plain("rate")?,
                ..Default::default()
            })
        })
    };
    Ok(oci::LinuxBlockIO {
        Weight: v.number("weight")?,
        LeafWeight: v.number("leafWeight")?,
        WeightDevice: v.objects("weightDevice", |v| {
            Ok(oci::LinuxWeightDevice {
                Major: v.plain("major")?,
                Minor: v.plain("minor")?,
                Weight: v.number("weight")?,
                LeafWeight: v.number("leafWeight")?,
                ..Default::default()
            })
        })?,
        ThrottleReadBpsDevice: throttle("throttleReadBpsDevice")?,
        ThrottleWriteBpsDevice: throttle("throttleWriteBpsDevice")?,
        ThrottleReadIOPSDevice: throttle("throttleReadIOPSDevice")?,
        ThrottleWriteIOPSDevice: throttle("throttleWriteIOPSDevice")?,
        ..Default::default()
    })
}
