//! The supervisor's specification -> what libcontainer gets in this guest.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::{
    Capabilities, Hook, HookBuilder, Hooks, Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceType, LinuxSeccompAction, Mount, MountBuilder, Process, Spec,
};
use stockade_agent_protocol::agent::{Device, StringUser};

use super::ContainerError;
use super::guest_hooks::{Kind, hooks_in};
use super::protocol::Execution;
use super::{copy_up, users};
use crate::cgroup::Cgroup;
use crate::devices::{DeviceKind, DeviceMap, DeviceNumber, Filter, RuleError};

/// Argument by which the agent, re-executed as a hook, makes a working directory.
pub(crate) const MAKE_DIRECTORY: &str = "make-directory";
/// The agent's own program, also inside a container's mount namespace before its root is changed.
pub(crate) const SELF: &str = "/proc/self/exe";

/// Stands in a process's environment for the home directory that is found when its program is run. libcontainer would
/// look for it with the C library, which loads the modules that the container's own nsswitch.conf names.
pub(super) const HOME_TO_BE_FOUND: &str = "HOME=\u{1}";

/// What the sandbox adds to every container's specification.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// The pid namespace that the pod's containers share.
    pub(crate) shared_pid_namespace: Option<PathBuf>,
    /// A resolv.conf for containers that bring none.
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Directory of the guest image's own hooks.
    pub(crate) guest_hooks: Option<PathBuf>,
}

/// A specification that is ready for libcontainer, and what libcontainer does not do.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) spec: Spec,
    pub(crate) execution: Execution,
    /// Network sysctls: the guest's own network namespace is the container's.
    pub(crate) network_sysctls: HashMap<String, String>,
    /// What the supervisor's devices are in this guest.
    pub(crate) device_map: DeviceMap,
    /// Which devices it may use.
    pub(crate) device_filter: Filter,
}

/// Device rules that cannot be used.
pub(super) fn bad_rules(error: RuleError) -> ContainerError {
    invalid(error.to_string())
}

fn invalid(reason: impl Into<String>) -> ContainerError {
    ContainerError::BadSpec { reason: reason.into() }
}

/// Adapts a container's specification to this guest.
pub(crate) fn prepare(
    mut spec: Spec,
    cgroup: &Cgroup,
    string_user: Option<&StringUser>,
    devices: &[Device],
    surroundings: &Surroundings,
) -> Result<Prepared, ContainerError> {
    if spec.version().is_empty() {
        spec.set_version("1.0.2".to_owned());
    }
    let rootfs = spec.root().as_ref().ok_or_else(|| invalid("it has no root"))?.path().clone();
    if !rootfs.is_absolute() {
        return Err(invalid(format!("root.path {rootfs:?} is not absolute")));
    }
    if !rootfs.is_dir() {
        return Err(invalid(format!("root.path {rootfs:?} is not a directory in the guest")));
    }
    let mut linux = spec.linux().clone().ok_or_else(|| invalid("it has no linux section"))?;
    let mut process = spec.process().clone().ok_or_else(|| invalid("it has no process"))?;

    linux.set_cgroups_path(Some(cgroup.name().to_owned()));
    linux.set_intel_rdt(None);
    linux.set_namespaces(Some(namespaces(&linux, surroundings)));
    let network_sysctls = take_network_sysctls(&mut linux);
    let device_map = set_devices(&mut linux, devices)?;
    // Without any, what every container may use is left.
    let rules = linux.resources_mut().as_mut().and_then(|resources| {
        let rules = resources.devices().clone();
        // The agent makes them hold itself.
        resources.set_devices(None);
        rules
    });
    let device_filter = device_map.filter(rules.as_deref().unwrap_or_default()).map_err(bad_rules)?;
    if process.capabilities().is_none() {
        // None are asked for: without this libcontainer would leave all that the agent has.
        process.set_capabilities(Some(no_capabilities()));
    }
    refuse_cwd_that_is_no_directory(&spec, &rootfs, process.cwd())?;
    let mut execution = take_execution(&mut process, linux.seccomp().clone())?;
    if let Some(hooks) = spec.hooks() {
        // libcontainer would tell them that the container is still being created.
        execution.start_hooks = hooks.start_container().clone().unwrap_or_default();
    }
    linux.set_seccomp(None);
    if !Path::new("/sys/fs/selinux").exists() {
        linux.set_mount_label(None);
    }
    adapt_process(&mut process, &rootfs, string_user)?;

    let filled = copy_up::take(&mut spec, &rootfs)?;
    spec.set_hooks(hooks(&spec, &rootfs, process.cwd(), &filled, surroundings)?);
    if let Some(file) = &surroundings.resolv_conf {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        add_resolv_conf(&mut mounts, file)?;
        spec.set_mounts(Some(mounts));
    }
    if linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        bind_sysfs(&mut spec);
    }
    spec.set_linux(Some(linux));
    spec.set_process(Some(process));
    Ok(Prepared { spec, execution, network_sysctls, device_map, device_filter })
}

/// The kernel mounts sysfs only for who owns the network namespace, which is the guest's: binds it for the others.
fn bind_sysfs(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("sysfs")) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.insert(0, "rbind".to_owned());
        mount.set_typ(Some("bind".to_owned())).set_source(Some(PathBuf::from("/sys"))).set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
}

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(Some(Capabilities::new()))
        .set_effective(Some(Capabilities::new()))
        .set_permitted(Some(Capabilities::new()))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    none
}

/// An early and clear error; what a mount covers is left to the kernel.
fn refuse_cwd_that_is_no_directory(spec: &Spec, rootfs: &Path, cwd: &Path) -> Result<(), ContainerError> {
    let covered = spec.mounts().iter().flatten().any(|mount| cwd.starts_with(mount.destination()));
    match look(rootfs, cwd) {
        Ok(file) if !covered && !is_directory(&file) => {
            Err(invalid(format!("process.cwd {} is not a directory", cwd.display())))
        }
        _ => Ok(()),
    }
}

/// Checks that a process can be added to a container whose root is at `root`: its directory must be there.
pub(crate) fn check_cwd(root: &Path, cwd: &Path) -> Result<(), ContainerError> {
    let refused =
        |why: &str| ContainerError::Refused(format!("cannot enter the working directory {}: {why}", cwd.display()));
    match look(root, cwd) {
        Ok(file) if is_directory(&file) => Ok(()),
        Ok(_) => Err(refused("it is not a directory")),
        Err(error) => Err(refused(&error.to_string())),
    }
}

fn is_directory(file: &std::os::fd::OwnedFd) -> bool {
    use nix::sys::stat::{SFlag, fstat};
    fstat(std::os::fd::AsRawFd::as_raw_fd(file))
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// Adapts a process that is added to a container. The filter is the container's; so are the capabilities, when it
/// brings none.
pub(crate) fn prepare_process(
    mut process: Process,
    seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
    capabilities: Option<&LinuxCapabilities>,
    rootfs: &Path,
    string_user: Option<&StringUser>,
) -> Result<(Process, Execution), ContainerError> {
    if process.args().as_deref().unwrap_or_default().is_empty() {
        return Err(invalid("the process has no arguments"));
    }
    if process.capabilities().is_none() {
        process.set_capabilities(capabilities.cloned());
    }
    let execution = take_execution(&mut process, seccomp)?;
    adapt_process(&mut process, rootfs, string_user)?;
    Ok((process, execution))
}

fn adapt_process(process: &mut Process, rootfs: &Path, string_user: Option<&StringUser>) -> Result<(), ContainerError> {
    if let Some(wanted) = string_user {
        let user = users::resolve(rootfs, wanted, process.user())?;
        process.set_user(user);
    }
    // A guest kernel that does not have the module cannot confine by it.
    if !apparmor_is_on() {
        process.set_apparmor_profile(None);
    }
    if !Path::new("/sys/fs/selinux").exists() {
        process.set_selinux_label(None);
    }
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| entry != "HOME=");
        env.push(HOME_TO_BE_FOUND.to_owned());
        process.set_env(Some(env));
    }
    Ok(())
}

fn apparmor_is_on() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn namespaces(linux: &Linux, surroundings: &Surroundings) -> Vec<LinuxNamespace> {
    let mut list: Vec<LinuxNamespace> = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        // The guest's network is the sandbox's.
        if namespace.typ() == LinuxNamespaceType::Network {
            continue;
        }
        let mut namespace = namespace.clone();
        // A path names something on the host.
        namespace.set_path(None);
        if namespace.typ() == LinuxNamespaceType::Pid {
            namespace.set_path(surroundings.shared_pid_namespace.clone());
        }
        list.push(namespace);
    }
    let mut need = |typ, path| {
        if !list.iter().any(|namespace| namespace.typ() == typ) {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(typ).set_path(path);
            list.push(namespace);
        }
    };
    // Without one, changing the root would change the agent's.
    need(LinuxNamespaceType::Mount, None);
    if let Some(path) = &surroundings.shared_pid_namespace {
        need(LinuxNamespaceType::Pid, Some(path.clone()));
    }
    list
}

fn take_network_sysctls(linux: &mut Linux) -> HashMap<String, String> {
    let Some(sysctls) = linux.sysctl().clone() else {
        return HashMap::new();
    };
    let is_network = |name: &str| name.replace('/', ".").starts_with("net.");
    let (network, others): (HashMap<_, _>, HashMap<_, _>) = sysctls.into_iter().partition(|(name, _)| is_network(name));
    linux.set_sysctl((!others.is_empty()).then_some(others));
    network
}

/// Which steps are left to the executor.
fn take_execution(
    process: &mut Process,
    seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
) -> Result<Execution, ContainerError> {
    if let Some(seccomp) = &seccomp {
        let notifies = seccomp.default_action() == LinuxSeccompAction::ScmpActNotify
            || seccomp.syscalls().iter().flatten().any(|s| s.action() == LinuxSeccompAction::ScmpActNotify);
        if notifies || seccomp.listener_path().is_some() {
            return Err(invalid("seccomp notification has no listener inside a virtual machine"));
        }
    }
    // Without no_new_privs only a privileged process may load a filter, so that capabilities go after it.
    let deferred = seccomp.is_some() && process.no_new_privileges() != Some(true);
    let capabilities = if deferred { process.capabilities().clone() } else { None };
    if deferred {
        process.set_capabilities(None);
    }
    let console_size = process
        .console_size()
        .filter(|_| process.terminal() == Some(true))
        .map(|size| (clamp(size.height()), clamp(size.width())));
    Ok(Execution { seccomp, capabilities, console_size, start_hooks: Vec::new() })
}

fn clamp(size: u64) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

/// Gives the container's devices the numbers that they have in this guest.
fn set_devices(linux: &mut Linux, devices: &[Device]) -> Result<DeviceMap, ContainerError> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let mut list = linux.devices().clone().unwrap_or_default();
    let mut map = DeviceMap::default();
    for device in devices.iter().filter(|device| !device.container_path.is_empty()) {
        let metadata = fs::metadata(&device.vm_path)
            .map_err(|source| ContainerError::File { path: PathBuf::from(&device.vm_path), source })?;
        let (typ, kind) = if metadata.file_type().is_block_device() {
            ("b", DeviceKind::Block)
        } else {
            ("c", DeviceKind::Character)
        };
        let numbers = [nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev())];
        let [major, minor] = numbers.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let numbers = serde_json::json!({"path": device.container_path, "type": typ, "major": major, "minor": minor});
        let mut found: LinuxDevice = serde_json::from_value(numbers).map_err(|e| invalid(e.to_string()))?;
        let path = PathBuf::from(&device.container_path);
        let known = list.iter_mut().find(|known| *known.path() == path);
        map.note(known.as_deref().and_then(number_of), DeviceNumber { kind, major, minor });
        match known {
            Some(known) => {
                found.set_file_mode(known.file_mode()).set_uid(known.uid()).set_gid(known.gid());
                *known = found;
            }
            None => list.push(found),
        }
    }
    if !list.is_empty() {
        linux.set_devices(Some(list));
    }
    Ok(map)
}

/// What the host calls a device; nothing, if it is a pipe or its numbers are none.
fn number_of(device: &LinuxDevice) -> Option<DeviceNumber> {
    let kind = match device.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::A | LinuxDeviceType::P => return None,
    };
    let (major, minor) = (u32::try_from(device.major()).ok()?, u32::try_from(device.minor()).ok()?);
    Some(DeviceNumber { kind, major, minor })
}

/// The hooks that run in the guest, plus ours: one fills the file systems at `filled` with what they cover, one makes a
/// working directory which is not there.
fn hooks(
    spec: &Spec,
    rootfs: &Path,
    cwd: &Path,
    filled: &[PathBuf],
    surroundings: &Surroundings,
) -> Result<Option<Hooks>, ContainerError> {
    let given = spec.hooks().as_ref();
    let mut create = given.and_then(|hooks| hooks.create_container().clone()).unwrap_or_default();
    if is_missing(rootfs, cwd) {
        let args = ["stockade-agent".into(), MAKE_DIRECTORY.into(), utf8(rootfs)?, utf8(cwd)?];
        // First, so that the hooks of the specification see the directory.
        create.insert(0, hook(Path::new(SELF), args.to_vec())?);
    }
    if !filled.is_empty() {
        let mut args = vec!["stockade-agent".into(), copy_up::COPY_UP.into(), utf8(rootfs)?];
        for destination in filled {
            args.push(utf8(destination)?);
        }
        create.insert(0, hook(Path::new(SELF), args)?);
    }
    let guest = surroundings.guest_hooks.as_deref().map(guest_prestart_hooks).transpose()?.unwrap_or_default();
    if create.is_empty() && guest.is_empty() {
        return Ok(None);
    }
    let mut hooks = Hooks::default();
    let some = |list: Vec<Hook>| (!list.is_empty()).then_some(list);
    hooks.set_prestart(some(guest));
    hooks.set_create_container(some(create));
    Ok(Some(hooks))
}

fn hook(path: &Path, args: Vec<String>) -> Result<Hook, ContainerError> {
    HookBuilder::default().path(path).args(args).build().map_err(|e| invalid(e.to_string()))
}

fn guest_prestart_hooks(dir: &Path) -> Result<Vec<Hook>, ContainerError> {
    let paths = hooks_in(dir, Kind::Prestart);
    paths.iter().map(|path| hook(path, vec![utf8(path)?, Kind::Prestart.as_str().to_owned()])).collect()
}

fn utf8(path: &Path) -> Result<String, ContainerError> {
    path.to_str().map(str::to_owned).ok_or_else(|| invalid(format!("{path:?} is not UTF-8")))
}

fn is_missing(rootfs: &Path, path: &Path) -> bool {
    look(rootfs, path).is_err()
}

/// Opens what is at `path` in the root file system, without leaving it.
pub(super) fn look(rootfs: &Path, path: &Path) -> std::io::Result<std::os::fd::OwnedFd> {
    let root = open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let root = crate::sys::adopt(root);
    let opened = crate::sys::open_in_root(
        std::os::fd::AsFd::as_fd(&root),
        path,
        OFlag::O_PATH,
        Mode::empty(),
        ResolveFlag::RESOLVE_IN_ROOT,
    );
    Ok(opened?)
}

fn add_resolv_conf(mounts: &mut Vec<Mount>, file: &Path) -> Result<(), ContainerError> {
    let destination = Path::new("/etc/resolv.conf");
    if mounts.iter().any(|mount| mount.destination() == destination) {
        return Ok(());
    }
    let mount = MountBuilder::default()
        .destination(destination)
        .source(file)
        .typ("bind")
        .options(["bind", "rprivate", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec())
        .build()
        .map_err(|e| invalid(e.to_string()))?;
    mounts.push(mount);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(linux: serde_json::Value, process: serde_json::Value) -> Spec {
        let mut base = json!({"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        for (key, value) in process.as_object().expect("an object") {
            base[key] = value.clone();
        }
        serde_json::from_value(json!({
            "ociVersion": "1.0.2", "root": {"path": "/"}, "process": base, "linux": linux,
        }))
        .expect("a specification")
    }

    fn prepared(spec: Spec, surroundings: &Surroundings) -> Prepared {
        prepare(spec, &Cgroup::of_container("c1"), None, &[], surroundings).expect("prepared")
    }

    #[test]
    fn paths_of_the_hosts_namespaces_and_the_network_do_not_reach_the_guest() {
        let linux = json!({"namespaces": [
            {"type": "network", "path": "/run/netns/x"}, {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "pid"}]});
        let surroundings =
            Surroundings { shared_pid_namespace: Some(PathBuf::from("/proc/7/ns/pid")), ..Surroundings::default() };
        let prepared = prepared(spec(linux, json!({})), &surroundings);
        let linux = prepared.spec.linux().as_ref().expect("linux");
        let list: Vec<_> = linux.namespaces().iter().flatten().map(|n| (n.typ(), n.path().clone())).collect();
        assert_eq!(
            list,
            [
                (LinuxNamespaceType::Ipc, None),
                (LinuxNamespaceType::Pid, Some(PathBuf::from("/proc/7/ns/pid"))),
                (LinuxNamespaceType::Mount, None),
            ]
        );
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/stockade/c1")));
    }

    #[test]
    fn network_sysctls_are_the_guests_and_others_the_containers() {
        let linux = json!({"sysctl": {"net.core.somaxconn": "1", "net/ipv4/ip_forward": "1", "kernel.shmmax": "2"}});
        let prepared = prepared(spec(linux, json!({})), &Surroundings::default());
        assert_eq!(prepared.network_sysctls.len(), 2);
        let rest = prepared.spec.linux().as_ref().and_then(|l| l.sysctl().clone()).expect("sysctls");
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["kernel.shmmax"]);
    }

    #[test]
    fn capabilities_are_given_up_after_a_filter_that_needs_them_to_load() {
        let seccomp = json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}});
        let capabilities = json!({"capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": false});
        let deferred = prepared(spec(seccomp.clone(), capabilities), &Surroundings::default());
        assert!(deferred.execution.capabilities.is_some() && deferred.execution.seccomp.is_some());
        let process = deferred.spec.process().as_ref().expect("a process");
        assert!(process.capabilities().is_none());
        let capabilities = json!({"capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": true});
        let direct = prepared(spec(seccomp, capabilities), &Surroundings::default());
        assert!(direct.execution.capabilities.is_none() && direct.execution.seccomp.is_some());
    }

    #[test]
    fn a_process_without_capabilities_has_none_and_one_that_is_added_has_the_containers() {
        let prepared = prepared(spec(json!({}), json!({})), &Surroundings::default());
        let given = prepared.spec.process().as_ref().and_then(|process| process.capabilities().clone());
        assert_eq!(given.and_then(|sets| sets.bounding().clone()), Some(Capabilities::new()));
        let kill: LinuxCapabilities = serde_json::from_value(json!({"bounding": ["CAP_KILL"]})).expect("capabilities");
        let added: Process = serde_json::from_value(json!({"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}}))
            .expect("a process");
        let (added, _) = prepare_process(added, None, Some(&kill), Path::new("/"), None).expect("prepared");
        assert_eq!(added.capabilities().as_ref(), Some(&kill));
    }

    #[test]
    fn a_working_directory_that_is_a_file_or_not_there_is_named() {
        let wrong = spec(json!({}), json!({"cwd": "/etc/passwd"}));
        let error =
            prepare(wrong, &Cgroup::of_container("c"), None, &[], &Surroundings::default()).expect_err("refused");
        assert!(error.to_string().contains("/etc/passwd"), "{error}");
        assert!(check_cwd(Path::new("/"), Path::new("/etc")).is_ok());
        let error = check_cwd(Path::new("/"), Path::new("/no/such")).expect_err("refused");
        assert!(error.to_string().contains("/no/such"), "{error}");
    }

    #[test]
    fn a_container_with_its_own_user_namespace_gets_the_guests_sysfs() {
        let linux = json!({"namespaces": [{"type": "user"}]});
        let mut spec = spec(linux, json!({}));
        let sysfs = json!([{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}]);
        spec.set_mounts(serde_json::from_value(sysfs).expect("mounts"));
        let prepared = prepared(spec, &Surroundings::default());
        let mounts = prepared.spec.mounts().clone().expect("mounts");
        assert_eq!(mounts[0].typ().as_deref(), Some("bind"));
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/sys")));
        assert_eq!(mounts[0].options().as_deref(), Some(&["rbind".to_owned(), "ro".to_owned()][..]));
    }

    #[test]
    fn a_missing_working_directory_is_made_by_a_hook() {
        let prepared = prepared(spec(json!({}), json!({"cwd": "/no/such/place"})), &Surroundings::default());
        let hooks = prepared.spec.hooks().as_ref().expect("hooks");
        let first = hooks.create_container().as_ref().and_then(|list| list.first()).expect("a hook");
        assert_eq!(first.path(), Path::new(SELF));
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error_that_names_it() {
        let mut spec = spec(json!({}), json!({}));
        if let Some(root) = spec.root_mut() {
            root.set_path(PathBuf::from("/no/such/root"));
        }
        let error =
            prepare(spec, &Cgroup::of_container("c"), None, &[], &Surroundings::default()).expect_err("refused");
        assert!(error.to_string().contains("/no/such/root"), "{error}");
    }
}
