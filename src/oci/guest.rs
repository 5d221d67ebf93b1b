//! From the host's specification to the guest's.

use super::host_files::HostFiles;
use super::mounts::{self, MountPlan};
use super::{OciError, namespaces, resources};
use oci_spec::runtime::{Hooks, Linux, LinuxDeviceType, Root, Spec};
use std::path::PathBuf;

/// What the guest's specification depends on beside the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpecOptions {
    /// The container's id: names its root and its mounts in the share.
    pub container_id: String,
    /// The bundle: relative mount sources begin there.
    pub bundle: PathBuf,
    /// Where the guest has the share mounted.
    pub guest_share: PathBuf,
    /// Where the guest keeps what its containers share: `shm`, `ephemeral/<name>`, `local/<name>`.
    pub guest_sandbox: PathBuf,
    /// The container's root in the guest.
    pub guest_root: PathBuf,
    /// Whether the guest applies seccomp profiles: the kernel can, and `disable_guest_seccomp` is false.
    pub seccomp: bool,
    /// How many CPUs the guest has; `None` leaves out every CPU list.
    pub vcpus: Option<u32>,
}

impl GuestSpecOptions {
    /// The usual paths: the share at /run/kata-containers/shared/containers, the root in it at `<id>/rootfs`.
    pub fn new(container_id: &str, bundle: impl Into<PathBuf>) -> Self {
        let guest_share = PathBuf::from("/run/kata-containers/shared/containers");
        Self {
            container_id: container_id.to_owned(),
            bundle: bundle.into(),
            guest_root: guest_share.join(container_id).join("rootfs"),
            guest_share,
            guest_sandbox: PathBuf::from("/run/kata-containers/sandbox"),
            seccomp: true,
            vcpus: None,
        }
    }
}

/// What the guest gets, and what must be done so that it can use it.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestSpec {
    /// The specification for the agent; its mounts have the guest's sources already.
    pub spec: Spec,
    /// For each mount, in order, what must be done outside the container.
    pub mounts: Vec<MountPlan>,
    /// Whether the container joins its pod's process namespace (the agent's `sandbox_pidns`).
    pub shared_pid_namespace: bool,
    /// What does not hold as the host's specification says, a line each; to be logged once.
    pub warnings: Vec<String>,
}

/// Makes the guest's specification of a validated one.
///
/// Beside mounts, namespaces and resources: hooks that run on the host are left out, `createContainer` and
/// `startContainer` stay and run in the guest (the first in the guest's namespaces, so its path must be one of the
/// guest's; the second's is one of the container's); seccomp stays if the guest applies it; AppArmor and SELinux labels
/// go, for the guest has no such policy; the cgroup is `/stockade/<id>` whatever the host's is; devices without a path
/// or of type `a` go, the others are the guest's devices of these numbers.
///
/// # Errors
/// A mount that cannot be had in a virtual machine, or whose source cannot be looked at.
pub fn guest_spec(spec: &Spec, options: &GuestSpecOptions, files: &dyn HostFiles) -> Result<GuestSpec, OciError> {
    let host = spec.linux().as_ref().ok_or(OciError::Missing { field: "linux" })?;
    let mut warnings = Vec::new();
    let mut guest = Spec::default();
    guest.set_version(spec.version().clone());
    guest.set_hostname(spec.hostname().clone());
    guest.set_domainname(spec.domainname().clone());
    guest.set_annotations(spec.annotations().clone());
    guest.set_hooks(guest_hooks(spec));

    let mut root = Root::default();
    root.set_path(options.guest_root.clone());
    root.set_readonly(spec.root().as_ref().and_then(Root::readonly));
    guest.set_root(Some(root));

    let mut process = spec.process().clone();
    if let Some(process) = &mut process {
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
    }
    guest.set_process(process);

    let mut plans = Vec::new();
    let mut guest_mounts = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let (mount, plan) = mounts::plan(index, mount, options, files, &mut warnings)?;
        guest_mounts.push(mount);
        plans.push(plan);
    }
    guest.set_mounts(Some(guest_mounts));

    let (linux, shared_pid_namespace) = guest_linux(host, options, &mut warnings);
    guest.set_linux(Some(linux));
    Ok(GuestSpec { spec: guest, mounts: plans, shared_pid_namespace, warnings })
}

fn guest_hooks(spec: &Spec) -> Option<Hooks> {
    let host = spec.hooks().as_ref()?;
    let given = |list: &Option<Vec<_>>| list.clone().filter(|list| !list.is_empty());
    let create_container = given(host.create_container());
    let start_container = given(host.start_container());
    if create_container.is_none() && start_container.is_none() {
        return None;
    }
    let mut hooks = Hooks::default();
    hooks.set_create_container(create_container);
    hooks.set_start_container(start_container);
    Some(hooks)
}

fn guest_linux(host: &Linux, options: &GuestSpecOptions, warnings: &mut Vec<String>) -> (Linux, bool) {
    // A struct literal is not possible, and the library's default has namespaces and paths of its own.
    let mut guest = host.clone();
    let (namespaces, shared_pid) = namespaces::for_guest(host.namespaces().as_deref().unwrap_or_default());
    guest.set_namespaces(Some(namespaces));
    guest.set_cgroups_path(Some(PathBuf::from("/stockade").join(&options.container_id)));
    guest.set_resources(
        host.resources().as_ref().map(|resources| resources::guest_resources(resources, options.vcpus, warnings)),
    );
    if !options.seccomp {
        guest.set_seccomp(None);
    }
    guest.set_devices(host.devices().as_ref().map(|devices| {
        let usable =
            devices.iter().filter(|device| device.typ() != LinuxDeviceType::A && !device.path().as_os_str().is_empty());
        usable.cloned().collect()
    }));
    guest.set_mount_label(None);
    guest.set_intel_rdt(None);
    guest.set_net_devices(None);
    guest.set_memory_policy(None);
    (guest, shared_pid)
}

#[cfg(test)]
mod tests {
    use super::super::RealHostFiles;
    use super::*;
    use serde_json::{Value, json};

    fn guest(spec: Value, change: impl FnOnce(&mut GuestSpecOptions)) -> (GuestSpec, Value) {
        let mut options = GuestSpecOptions::new("c1", "/bundle");
        change(&mut options);
        let spec = serde_json::from_value(spec).expect("a specification");
        let guest = guest_spec(&spec, &options, &RealHostFiles).expect("converted");
        let json = serde_json::to_value(&guest.spec).expect("serialises");
        (guest, json)
    }

    fn host() -> Value {
        json!({"ociVersion": "1.0.2", "hostname": "h", "domainname": "d", "annotations": {"a": "1"},
            "root": {"path": "rootfs", "readonly": true},
            "process": {"user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["sh"], "cwd": "/w", "env": ["A=b=c", "NOEQUALS"],
                "apparmorProfile": "p", "selinuxLabel": "l", "noNewPrivileges": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "hooks": {"prestart": [{"path": "/h"}], "createRuntime": [{"path": "/h"}], "poststop": [{"path": "/h"}]},
            "vm": {"kernel": {"path": "/evil"}},
            "linux": {"namespaces": [{"type": "pid", "path": "/proc/9/ns/pid"}, {"type": "network", "path": "/n"}, {"type": "uts"}],
                "cgroupsPath": "system.slice:docker:abc", "mountLabel": "l", "maskedPaths": ["/proc/kcore"], "sysctl": {"net.x": "1"},
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "rootfsPropagation": "rslave", "resources": {"pids": {"limit": 9}},
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}, {"path": "", "type": "c"},
                    {"path": "/dev/all", "type": "a"}]}})
    }

    #[test]
    fn a_host_specification_becomes_the_guests() {
        let (guest, json) = guest(host(), |_| {});
        let wanted = json!({"ociVersion": "1.0.2", "hostname": "h", "domainname": "d", "annotations": {"a": "1"},
            "root": {"path": "/run/kata-containers/shared/containers/c1/rootfs", "readonly": true},
            "process": {"user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["sh"], "cwd": "/w", "env": ["A=b=c", "NOEQUALS"],
                "noNewPrivileges": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "uts"}, {"type": "mount"}],
                "cgroupsPath": "/stockade/c1", "maskedPaths": ["/proc/kcore"], "sysctl": {"net.x": "1"},
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "rootfsPropagation": "rslave", "resources": {"pids": {"limit": 9}},
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]}});
        assert_eq!(json, wanted);
        assert!(guest.shared_pid_namespace);
        assert!(guest.warnings.is_empty());
        assert_eq!(guest.mounts.len(), 1);
    }

    #[test]
    fn seccomp_goes_when_the_guest_does_not_apply_it() {
        let (_, json) = guest(host(), |options| options.seccomp = false);
        assert!(json["linux"].get("seccomp").is_none());
    }

    #[test]
    fn hooks_of_the_container_stay_and_those_of_the_host_go() {
        let mut spec = host();
        spec["hooks"]["startContainer"] = json!([{"path": "/in", "args": ["in"]}]);
        spec["hooks"]["createContainer"] = json!([]);
        let (_, json) = guest(spec, |_| {});
        assert_eq!(json["hooks"], json!({"startContainer": [{"path": "/in", "args": ["in"]}]}));
    }

    #[test]
    fn a_specification_without_resources_or_namespaces_is_converted() {
        let mut spec = host();
        spec["linux"] = json!({});
        let (guest, json) = guest(spec, |_| {});
        assert_eq!(json["linux"], json!({"namespaces": [{"type": "mount"}], "cgroupsPath": "/stockade/c1"}));
        assert!(!guest.shared_pid_namespace);
    }
}
