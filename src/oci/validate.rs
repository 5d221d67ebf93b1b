//! The check that ends a bad creation before anything is made.

use super::{OciError, namespaces, seccomp};
use oci_spec::runtime::{Hook, Hooks, Linux, Mount, Process, Spec};
use std::path::{Path, PathBuf};

/// The longest host and domain name that the kernel takes, in bytes.
const MAX_NAME: usize = 64;

/// Checks everything that can be checked without changing the host. `bundle` must be the bundle's directory.
///
/// # Errors
/// The first thing that is wrong, with its field.
pub fn validate(spec: &Spec, bundle: &Path) -> Result<(), OciError> {
    let linux = spec.linux().as_ref().ok_or(OciError::Missing { field: "linux" })?;
    validate_process(spec.process().as_ref().ok_or(OciError::Missing { field: "process" })?)?;
    resolve_root(spec, bundle)?;
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if let Some(name) = name {
            check_name(field, name)?;
        }
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        check_mount(index, mount)?;
    }
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    check_linux(linux)
}

/// Checks a process: the container's own, or one of `exec`.
///
/// # Errors
/// The first thing that is wrong, with its field.
pub fn validate_process(process: &Process) -> Result<(), OciError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(OciError::Missing { field: "process.args" });
    }
    let env = process.env().as_deref().unwrap_or_default();
    for (name, list) in [("args", args), ("env", env)] {
        if let Some(index) = list.iter().position(|text| text.contains('\0')) {
            return Err(OciError::ZeroByte { field: format!("process.{name}[{index}]") });
        }
    }
    check_absolute("process.cwd", process.cwd())?;
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|earlier| earlier.typ() == limit.typ()) {
            return Err(OciError::Duplicate { field: "process.rlimits", value: limit.typ().to_string() });
        }
        if limit.soft() > limit.hard() {
            return Err(OciError::Range {
                field: format!("process.rlimits: soft limit of {}", limit.typ()),
                value: limit.soft().into(),
                allowed: "at most the hard limit",
            });
        }
    }
    match process.oom_score_adj() {
        Some(value) if !(-1000..=1000).contains(&value) => Err(OciError::Range {
            field: "process.oomScoreAdj".to_owned(),
            value: value.into(),
            allowed: "-1000 to 1000",
        }),
        _ => Ok(()),
    }
}

/// The container's root on the host, without symbolic links. A relative one must stay inside the bundle; an absolute
/// one may be anywhere, as containerd and Podman use it.
///
/// # Errors
/// None is given; it does not exist, is no directory, or leaves the bundle.
pub fn resolve_root(spec: &Spec, bundle: &Path) -> Result<PathBuf, OciError> {
    let missing = OciError::Missing { field: "root.path" };
    let Some(root) = spec.root() else {
        return Err(missing);
    };
    if root.path().as_os_str().is_empty() {
        return Err(missing);
    }
    check_zero("root.path", root.path())?;
    let path = bundle.join(root.path());
    let real = path.canonicalize().map_err(|source| OciError::Root { path: path.clone(), source })?;
    if root.path().is_relative() {
        let bundle = bundle.canonicalize().map_err(|source| OciError::Bundle { path: bundle.to_owned(), source })?;
        if !real.starts_with(&bundle) {
            return Err(OciError::RootLeavesBundle { path: root.path().clone(), real });
        }
    }
    if !real.is_dir() {
        return Err(OciError::RootNotDirectory { path });
    }
    Ok(real)
}

fn check_mount(index: usize, mount: &Mount) -> Result<(), OciError> {
    let destination = mount.destination();
    if destination.as_os_str().is_empty() {
        return Err(OciError::Missing { field: "a mount's destination" });
    }
    check_zero(&format!("mounts[{index}].destination"), destination)?;
    let options = mount.options().as_deref().unwrap_or_default();
    let mapped = [mount.uid_mappings(), mount.gid_mappings()].into_iter().flatten().any(|list| !list.is_empty());
    if mapped || options.iter().any(|option| option == "idmap" || option == "ridmap") {
        return Err(OciError::Unsupported {
            field: format!("id mapping of the mount at {}", destination.display()),
            reason: "virtio-fs files have one owner",
        });
    }
    Ok(())
}

fn check_hooks(hooks: &Hooks) -> Result<(), OciError> {
    let kinds: [(&str, &Option<Vec<Hook>>); 6] = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = format!("hooks.{kind}[{index}]");
            check_absolute(&format!("{field}.path"), hook.path())?;
            let texts = hook.args().iter().chain(hook.env()).flatten();
            if texts.into_iter().any(|text| text.contains('\0')) {
                return Err(OciError::ZeroByte { field: format!("{field}.args or .env") });
            }
            if let Some(timeout) = hook.timeout().filter(|timeout| *timeout <= 0) {
                return Err(OciError::Range {
                    field: format!("{field}.timeout"),
                    value: timeout.into(),
                    allowed: "seconds, 1 or more; without it default_hook_timeout of the configuration counts",
                });
            }
        }
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<(), OciError> {
    namespaces::check(linux)?;
    if let Some(profile) = linux.seccomp() {
        seccomp::check(profile)?;
    }
    let unsupported = [
        (
            "linux.netDevices",
            linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()),
            "a device of the host cannot move into a guest's namespace",
        ),
        ("linux.intelRdt", linux.intel_rdt().is_some(), "the guest's processes are no tasks of the host"),
        ("linux.memoryPolicy", linux.memory_policy().is_some(), "the guest does not see the host's memory nodes"),
    ];
    if let Some((field, _, reason)) = unsupported.into_iter().find(|(_, given, _)| *given) {
        return Err(OciError::Unsupported { field: field.to_owned(), reason });
    }
    for key in linux.sysctl().iter().flatten().map(|(key, _)| key) {
        let wrong = key.is_empty() || key.contains('\0') || key.split(['.', '/']).any(str::is_empty);
        if wrong {
            return Err(OciError::Value {
                field: "linux.sysctl".to_owned(),
                value: key.clone(),
                allowed: "names with a dot or a slash between them",
            });
        }
    }
    const PROPAGATIONS: [&str; 9] =
        ["", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"];
    match linux.rootfs_propagation() {
        Some(value) if !PROPAGATIONS.contains(&value.as_str()) => Err(OciError::Value {
            field: "linux.rootfsPropagation".to_owned(),
            value: value.clone(),
            allowed: "private, shared, slave, unbindable, or one of them with an r before it",
        }),
        _ => Ok(()),
    }
}

fn check_name(field: &str, name: &str) -> Result<(), OciError> {
    if name.len() > MAX_NAME {
        return Err(OciError::Range {
            field: format!("length of {field}"),
            value: name.len() as i128,
            allowed: "at most 64 bytes",
        });
    }
    if name.contains('\0') { Err(OciError::ZeroByte { field: field.to_owned() }) } else { Ok(()) }
}

fn check_absolute(field: &str, path: &Path) -> Result<(), OciError> {
    if !path.is_absolute() {
        return Err(OciError::NotAbsolute { field: field.to_owned(), path: path.to_owned() });
    }
    check_zero(field, path)
}

fn check_zero(field: &str, path: &Path) -> Result<(), OciError> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(OciError::ZeroByte { field: field.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn good() -> Value {
        json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "hostname": "h",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": ["A=b=c", "NOEQUALS"]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "hooks": {"prestart": [{"path": "/bin/true", "timeout": 1}]},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}})
    }

    fn bundle() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("rootfs")).expect("rootfs");
        std::fs::write(dir.path().join("file"), "").expect("file");
        std::os::unix::fs::symlink("/", dir.path().join("out")).expect("link");
        std::os::unix::fs::symlink("rootfs", dir.path().join("in")).expect("link");
        dir
    }

    fn checked(spec: &Value) -> Result<(), String> {
        let dir = bundle();
        let spec: Spec = serde_json::from_value(spec.clone()).expect("a specification");
        validate(&spec, dir.path()).map_err(|error| error.to_string().replace(&*dir.path().to_string_lossy(), "B"))
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut spec = good();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = if parent.is_empty() { &mut spec } else { spec.pointer_mut(parent).expect("parent") };
        parent.as_object_mut().expect("object").insert(key.to_owned(), value);
        spec
    }

    #[test]
    fn a_good_specification_without_resources_passes() {
        assert_eq!(checked(&good()), Ok(()));
        assert_eq!(checked(&with("/root", json!({"path": "in"}))), Ok(()), "a link that stays in the bundle");
        assert_eq!(checked(&with("/root", json!({"path": "/"}))), Ok(()), "an absolute root");
        assert_eq!(checked(&with("/hostname", json!("h".repeat(64)))), Ok(()));
        assert_eq!(checked(&with("/mounts", json!([{"destination": "tmp", "type": "tmpfs"}]))), Ok(()));
    }

    #[test]
    fn each_bad_field_is_refused_in_one_line_that_names_it() {
        let limit = |hard: u64| json!({"type": "RLIMIT_NOFILE", "hard": hard, "soft": 2});
        let hook = |value: Value| json!({"poststop": [value]});
        let cases = [
            ("/linux", Value::Null, "linux is missing in config.json"),
            ("/process", Value::Null, "process is missing in config.json"),
            ("/process/args", json!([]), "process.args is missing in config.json"),
            ("/process/args", json!([""]), "process.args is missing in config.json"),
            ("/process/args", json!(["a", "b\0"]), "process.args[1] contains a zero byte"),
            ("/process/env", json!(["A=\0"]), "process.env[0] contains a zero byte"),
            ("/process/cwd", json!("tmp"), "process.cwd \"tmp\" is not an absolute path"),
            ("/process/rlimits", json!([limit(3), limit(4)]), "process.rlimits lists \"RLIMIT_NOFILE\" twice"),
            (
                "/process/rlimits",
                json!([limit(1)]),
                "process.rlimits: soft limit of RLIMIT_NOFILE is 2: at most the hard limit",
            ),
            ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj is 1001: -1000 to 1000"),
            ("/root", Value::Null, "root.path is missing in config.json"),
            ("/root", json!({"path": ""}), "root.path is missing in config.json"),
            ("/root", json!({"path": "no"}), "root.path \"B/no\" cannot be opened"),
            ("/root", json!({"path": "file"}), "root.path \"B/file\" is not a directory"),
            ("/root", json!({"path": "out"}), "root.path \"out\" leaves the bundle: it is \"/\""),
            ("/root", json!({"path": "rootfs/../.."}), "root.path \"rootfs/../..\" leaves the bundle: it is \"/tmp\""),
            ("/root", json!({"path": "/no/such/root"}), "root.path \"/no/such/root\" cannot be opened"),
            ("/hostname", json!("h".repeat(65)), "length of hostname is 65: at most 64 bytes"),
            ("/mounts", json!([{"destination": ""}]), "a mount's destination is missing in config.json"),
            (
                "/mounts",
                json!([{"destination": "/m", "options": ["idmap"]}]),
                "id mapping of the mount at /m is not supported: virtio-fs files have one owner",
            ),
            ("/hooks", hook(json!({"path": "true"})), "hooks.poststop[0].path \"true\" is not an absolute path"),
            (
                "/hooks",
                hook(json!({"path": "/t", "timeout": 0})),
                "hooks.poststop[0].timeout is 0: seconds, 1 or more; without it default_hook_timeout of the configuration counts",
            ),
            (
                "/hooks",
                hook(json!({"path": "/t", "timeout": -1})),
                "hooks.poststop[0].timeout is -1: seconds, 1 or more; without it default_hook_timeout of the configuration counts",
            ),
            ("/linux/namespaces", json!([{"type": "ipc"}, {"type": "ipc"}]), "linux.namespaces lists \"ipc\" twice"),
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
            ("/linux/sysctl", json!({"net..x": "1"}), "linux.sysctl \"net..x\" is not allowed"),
            ("/linux/rootfsPropagation", json!("public"), "linux.rootfsPropagation \"public\" is not allowed"),
            ("/linux/intelRdt", json!({}), "linux.intelRdt is not supported"),
        ];
        for (pointer, value, wanted) in cases {
            let error = checked(&with(pointer, value)).expect_err(wanted);
            assert!(error.starts_with(wanted) && !error.contains('\n'), "{error}");
        }
    }
}
