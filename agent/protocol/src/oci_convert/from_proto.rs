//! Messages -> JSON form.

use serde_json::Value;

use super::json::Writer;
use crate::oci;

fn object() -> Writer {
    Writer::default()
}

pub(super) fn spec(m: &oci::Spec) -> Value {
    object()
        .value("ociVersion", m.Version.as_str())
        .optional("process", m.Process.as_ref().map(process))
        .optional("root", m.Root.as_ref().map(root))
        .string("hostname", &m.Hostname)
        .string("domainname", &m.Domainname)
        .objects("mounts", &m.Mounts, mount)
        .optional("hooks", m.Hooks.as_ref().map(hooks))
        .string_map("annotations", &m.Annotations)
        .optional("linux", m.Linux.as_ref().map(linux))
        .done()
}

pub(super) fn process(m: &oci::Process) -> Value {
    object()
        .optional("terminal", m.Terminal)
        .optional("consoleSize", m.ConsoleSize.as_ref().map(console_size))
        .value("user", user(&m.User))
        .list("args", &m.Args)
        .list("env", &m.Env)
        .value("cwd", m.Cwd.as_str())
        .optional("capabilities", m.Capabilities.as_ref().map(capabilities))
        .objects("rlimits", &m.Rlimits, |m| {
            object().value("type", m.Type.as_str()).value("hard", m.Hard).value("soft", m.Soft).done()
        })
        .optional("noNewPrivileges", m.NoNewPrivileges)
        .string("apparmorProfile", &m.ApparmorProfile)
        .optional("oomScoreAdj", m.OOMScoreAdj)
        .string("selinuxLabel", &m.SelinuxLabel)
        .optional("ioPriority", m.IOPriority.as_ref().map(io_priority))
        .optional("scheduler", m.Scheduler.as_ref().map(scheduler))
        .optional("execCPUAffinity", m.ExecCPUAffinity.as_ref().map(cpu_affinity))
        .done()
}

fn console_size(m: &oci::Box) -> Value {
    object().value("height", m.Height).value("width", m.Width).done()
}

fn user(m: &oci::User) -> Value {
    object()
        .value("uid", m.UID)
        .value("gid", m.GID)
        .list("additionalGids", &m.AdditionalGids)
        .string("username", &m.Username)
        .optional("umask", m.Umask)
        .done()
}

/// All five sets are there: an empty set of a process that states its capabilities means "none".
fn capabilities(m: &oci::LinuxCapabilities) -> Value {
    object()
        .value("bounding", m.Bounding.clone())
        .value("effective", m.Effective.clone())
        .value("inheritable", m.Inheritable.clone())
        .value("permitted", m.Permitted.clone())
        .value("ambient", m.Ambient.clone())
        .done()
}

fn io_priority(m: &oci::LinuxIOPriority) -> Value {
    object().value("class", m.Class.as_str()).value("priority", m.Priority).done()
}

fn scheduler(m: &oci::Scheduler) -> Value {
    object()
        .value("policy", m.Policy.as_str())
        .optional("nice", m.Nice)
        .optional("priority", m.Priority)
        .list("flags", &m.Flags)
        .optional("runtime", m.Runtime)
        .optional("deadline", m.Deadline)
        .optional("period", m.Period)
        .done()
}

fn cpu_affinity(m: &oci::ExecCPUAffinity) -> Value {
    object().string("initial", &m.Initial).string("final", &m.Final).done()
}

fn root(m: &oci::Root) -> Value {
    object().value("path", m.Path.as_str()).optional("readonly", m.Readonly).done()
}

fn mount(m: &oci::Mount) -> Value {
    object()
        .value("destination", m.destination.as_str())
        .string("source", &m.source)
        .string("type", &m.type_)
        .list("options", &m.options)
        .objects("uidMappings", &m.UIDMappings, id_mapping)
        .objects("gidMappings", &m.GIDMappings, id_mapping)
        .done()
}

fn hooks(m: &oci::Hooks) -> Value {
    object()
        .objects("prestart", &m.Prestart, hook)
        .objects("poststart", &m.Poststart, hook)
        .objects("poststop", &m.Poststop, hook)
        .objects("createRuntime", &m.CreateRuntime, hook)
        .objects("createContainer", &m.CreateContainer, hook)
        .objects("startContainer", &m.StartContainer, hook)
        .done()
}

fn hook(m: &oci::Hook) -> Value {
    object()
        .value("path", m.Path.as_str())
        .list("args", &m.Args)
        .list("env", &m.Env)
        .optional("timeout", m.Timeout)
        .done()
}

fn linux(m: &oci::Linux) -> Value {
    object()
        .objects("uidMappings", &m.UIDMappings, id_mapping)
        .objects("gidMappings", &m.GIDMappings, id_mapping)
        .string_map("sysctl", &m.Sysctl)
        .optional("resources", m.Resources.as_ref().map(resources))
        .string("cgroupsPath", &m.CgroupsPath)
        .objects("namespaces", &m.Namespaces, |m| {
            object().value("type", m.Type.as_str()).string("path", &m.Path).done()
        })
        .objects("devices", &m.Devices, |m| {
            object()
                .value("path", m.Path.as_str())
                .value("type", m.Type.as_str())
                .value("major", m.Major)
                .value("minor", m.Minor)
                .optional("fileMode", m.FileMode)
                .optional("uid", m.UID)
                .optional("gid", m.GID)
                .done()
        })
        .optional("seccomp", m.Seccomp.as_ref().map(seccomp))
        .string("rootfsPropagation", &m.RootfsPropagation)
        .list("maskedPaths", &m.MaskedPaths)
        .list("readonlyPaths", &m.ReadonlyPaths)
        .string("mountLabel", &m.MountLabel)
        .optional("intelRdt", m.IntelRdt.as_ref().map(|m| object().string("l3CacheSchema", &m.L3CacheSchema).done()))
        .optional(
            "personality",
            m.Personality.as_ref().map(|m| object().value("domain", m.Domain.as_str()).list("flags", &m.Flags).done()),
        )
        .map("timeOffsets", &m.TimeOffsets, |m| {
            object().optional("secs", m.Secs).optional("nanosecs", m.Nanosecs).done()
        })
        .done()
}

fn id_mapping(m: &oci::LinuxIDMapping) -> Value {
    object().value("hostID", m.HostID).value("containerID", m.ContainerID).value("size", m.Size).done()
}

fn seccomp(m: &oci::LinuxSeccomp) -> Value {
    object()
        .value("defaultAction", m.DefaultAction.as_str())
        .list("architectures", &m.Architectures)
        .list("flags", &m.Flags)
        .objects("syscalls", &m.Syscalls, |m| {
            object()
                .value("names", m.Names.clone())
                .value("action", m.Action.as_str())
                .optional("errnoRet", m.has_errnoret().then(|| m.errnoret()))
                .objects("args", &m.Args, |m| {
                    object()
                        .value("index", m.Index)
                        .value("value", m.Value)
                        .optional("valueTwo", m.ValueTwo)
                        .value("op", m.Op.as_str())
                        .done()
                })
                .done()
        })
        .optional("defaultErrnoRet", m.DefaultErrnoRet)
        .string("listenerPath", &m.ListenerPath)
        .string("listenerMetadata", &m.ListenerMetadata)
        .done()
}

pub(super) fn resources(m: &oci::LinuxResources) -> Value {
    object()
        .objects("devices", &m.Devices, |m| {
            object()
                .value("allow", m.Allow)
                .string("type", &m.Type)
                .optional("major", m.Major)
                .optional("minor", m.Minor)
                .string("access", &m.Access)
                .done()
        })
        .optional("memory", m.Memory.as_ref().map(memory))
        .optional("cpu", m.CPU.as_ref().map(cpu))
        .optional("pids", m.Pids.as_ref().map(|m| object().value("limit", m.Limit).done()))
        .optional("blockIO", m.BlockIO.as_ref().map(block_io))
        .objects("hugepageLimits", &m.HugepageLimits, |m| {
            object().value("pageSize", m.Pagesize.as_str()).value("limit", m.Limit).done()
        })
        .optional(
            "network",
            m.Network.as_ref().map(|m| {
                object()
                    .optional("classID", m.ClassID)
                    .objects("priorities", &m.Priorities, |m| {
                        object().value("name", m.Name.as_str()).value("priority", m.Priority).done()
                    })
                    .done()
            }),
        )
        .string_map("unified", &m.Unified)
        .map("rdma", &m.Rdma, |m| {
            object().optional("hcaHandles", m.HcaHandles).optional("hcaObjects", m.HcaObjects).done()
        })
        .done()
}

fn memory(m: &oci::LinuxMemory) -> Value {
    object()
        .optional("limit", m.Limit)
        .optional("reservation", m.Reservation)
        .optional("swap", m.Swap)
        .optional("kernel", m.Kernel)
        .optional("kernelTCP", m.KernelTCP)
        .optional("swappiness", m.Swappiness)
        .optional("disableOOMKiller", m.DisableOOMKiller)
        .optional("useHierarchy", m.UseHierarchy)
        .optional("checkBeforeUpdate", m.CheckBeforeUpdate)
        .done()
}

fn cpu(m: &oci::LinuxCPU) -> Value {
    object()
        .optional("shares", m.Shares)
        .optional("quota", m.Quota)
        .optional("period", m.Period)
        .optional("realtimeRuntime", m.RealtimeRuntime)
        .optional("realtimePeriod", m.RealtimePeriod)
        .string("cpus", &m.Cpus)
        .string("mems", &m.Mems)
        .optional("idle", m.Idle)
        .optional("burst", m.Burst)
        .done()
}

fn block_io(m: &oci::LinuxBlockIO) -> Value {
    let throttle = |m: &oci::LinuxThrottleDevice| {
        object().value("major", m.Major).value("minor", m.Minor).value("rate", m.Rate).done()
    };
    object()
        .optional("weight", m.Weight)
        .optional("leafWeight", m.LeafWeight)
        .objects("weightDevice", &m.WeightDevice, |m| {
            object()
                .value("major", m.Major)
                .value("minor", m.Minor)
                .optional("weight", m.Weight)
                .optional("leafWeight", m.LeafWeight)
                .done()
        })
        .objects("throttleReadBpsDevice", &m.ThrottleReadBpsDevice, throttle)
        .objects("throttleWriteBpsDevice", &m.ThrottleWriteBpsDevice, throttle)
        .objects("throttleReadIOPSDevice", &m.ThrottleReadIOPSDevice, throttle)
        .objects("throttleWriteIOPSDevice", &m.ThrottleWriteIOPSDevice, throttle)
        .done()
}
