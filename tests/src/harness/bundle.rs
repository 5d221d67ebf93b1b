//! OCI bundles for tests: a busybox root and a `config.json` that each test changes where it matters to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::busybox_rootfs;

/// A bundle in a temporary folder, which goes away with this value.
#[derive(Debug)]
pub struct Bundle {
    folder: TempDir,
    config: Value,
}

impl Bundle {
    /// Starts a bundle whose configuration is what `runc spec` writes, but for: no terminal, a writable root, and the
    /// command `true`.
    #[must_use]
    pub fn builder() -> BundleBuilder {
        BundleBuilder { config: base_config(), rootfs: true }
    }

    /// The shortest way to a bundle that runs a line of shell.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub fn shell(script: &str) -> Result<Self> {
        Self::builder().shell(script).build()
    }

    /// The bundle's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The container's root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The configuration as it was written.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Replaces `config.json` by any text, for tests of broken ones.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn overwrite_config(&self, text: &str) -> Result<()> {
        let path = self.path().join("config.json");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes `config.json`.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_config(&self) -> Result<()> {
        let path = self.path().join("config.json");
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// Changes to a configuration, each returning the builder.
#[derive(Clone, Debug)]
pub struct BundleBuilder {
    config: Value,
    rootfs: bool,
}

impl BundleBuilder {
    /// The process's arguments, the program first.
    #[must_use]
    pub fn args<S: AsRef<str>>(self, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<Value> = args.into_iter().map(|arg| Value::from(arg.as_ref())).collect();
        self.set("/process/args", args)
    }

    /// Runs `sh -c script`.
    #[must_use]
    pub fn shell(self, script: &str) -> Self {
        self.args(["sh", "-c", script])
    }

    /// Adds "KEY=value" to the environment.
    #[must_use]
    pub fn env(self, variable: &str) -> Self {
        self.push("/process/env", variable)
    }

    /// The working directory.
    #[must_use]
    pub fn cwd(self, path: &str) -> Self {
        self.set("/process/cwd", path)
    }

    /// Whether the process gets a terminal.
    #[must_use]
    pub fn tty(self, terminal: bool) -> Self {
        self.set("/process/terminal", terminal)
    }

    /// User and group of the process.
    #[must_use]
    pub fn user(self, uid: u32, gid: u32) -> Self {
        self.set("/process/user", json!({"uid": uid, "gid": gid}))
    }

    /// A field of the process, by its name in the specification ("oomScoreAdj", "capabilities", …).
    #[must_use]
    pub fn process(self, field: &str, value: impl Into<Value>) -> Self {
        self.insert("/process", field, value)
    }

    /// Adds a resource limit, for example "RLIMIT_NOFILE".
    #[must_use]
    pub fn rlimit(self, kind: &str, soft: u64, hard: u64) -> Self {
        self.edit(|config| {
            let limits = list(config, "/process/rlimits");
            limits.retain(|limit| limit["type"] != kind);
            limits.push(json!({"type": kind, "soft": soft, "hard": hard}));
        })
    }

    /// Adds a mount after the default ones.
    #[must_use]
    pub fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        self.push("/mounts", json!({"destination": destination, "type": kind, "source": source, "options": options}))
    }

    /// Binds a folder or file of the host.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let options: Vec<&str> = ["rbind"].iter().chain(options).copied().collect();
        self.mount(destination, "bind", &source.to_string_lossy(), &options)
    }

    /// Adds a hook to a phase ("prestart", "createRuntime", "poststart", "poststop", …).
    #[must_use]
    pub fn hook(self, phase: &str, hook: Value) -> Self {
        self.edit(|config| {
            let hooks = config.as_object_mut().map(|config| config.entry("hooks").or_insert_with(|| json!({})));
            if let Some(hooks) = hooks.and_then(Value::as_object_mut)
                && let Some(phase) = hooks.entry(phase).or_insert_with(|| json!([])).as_array_mut()
            {
                phase.push(hook);
            }
        })
    }

    /// Adds a hook that runs `sh -c script` on the host.
    #[must_use]
    pub fn shell_hook(self, phase: &str, script: &str) -> Self {
        self.hook(phase, json!({"path": "/bin/sh", "args": ["sh", "-c", script]}))
    }

    /// A field of the cgroup limits, by its name in the specification ("memory", "cpu", "pids", …).
    #[must_use]
    pub fn resource(self, field: &str, value: impl Into<Value>) -> Self {
        self.insert("/linux/resources", field, value)
    }

    /// A field of the section "linux" ("sysctl", "seccomp", "maskedPaths", …).
    #[must_use]
    pub fn linux(self, field: &str, value: impl Into<Value>) -> Self {
        self.insert("/linux", field, value)
    }

    /// Sets the path of a namespace, for example of "network"; adds the namespace when there is none of its kind.
    #[must_use]
    pub fn namespace(self, kind: &str, path: Option<&Path>) -> Self {
        self.edit(|config| {
            let namespaces = list(config, "/linux/namespaces");
            namespaces.retain(|namespace| namespace["type"] != kind);
            let mut namespace = json!({"type": kind});
            if let Some(path) = path {
                namespace["path"] = Value::from(path.to_string_lossy());
            }
            namespaces.push(namespace);
        })
    }

    /// The name that the container sees as its host's.
    #[must_use]
    pub fn hostname(self, name: &str) -> Self {
        self.set("/hostname", name)
    }

    /// Whether the root file system is read-only.
    #[must_use]
    pub fn readonly(self, readonly: bool) -> Self {
        self.set("/root/readonly", readonly)
    }

    /// The root file system's path, absolute or below the bundle.
    #[must_use]
    pub fn root_path(self, path: &str) -> Self {
        self.set("/root/path", path)
    }

    /// Leaves the folder `rootfs` out.
    #[must_use]
    pub fn without_rootfs(mut self) -> Self {
        self.rootfs = false;
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.insert("/annotations", key, value)
    }

    /// Any other change.
    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Writes the bundle.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn build(self) -> Result<Bundle> {
        let folder = tempfile::Builder::new()
            .prefix("stockade-bundle-")
            .tempdir()
            .context("cannot create a temporary folder")?;
        if self.rootfs {
            busybox_rootfs(&folder.path().join("rootfs"))?;
        }
        let bundle = Bundle { folder, config: self.config };
        bundle.overwrite_config(&serde_json::to_string_pretty(&bundle.config).context("cannot write JSON")?)?;
        Ok(bundle)
    }

    fn set(self, pointer: &str, value: impl Into<Value>) -> Self {
        self.edit(|config| {
            *config.pointer_mut(pointer).expect("the base configuration has every field that is set") = value.into();
        })
    }

    fn insert(self, pointer: &str, field: &str, value: impl Into<Value>) -> Self {
        self.edit(|config| {
            config
                .pointer_mut(pointer)
                .and_then(Value::as_object_mut)
                .expect("the base configuration has every section that is added to")
                .insert(field.to_owned(), value.into());
        })
    }

    fn push(self, pointer: &str, value: impl Into<Value>) -> Self {
        self.edit(|config| list(config, pointer).push(value.into()))
    }
}

fn list<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Vec<Value> {
    config.pointer_mut(pointer).and_then(Value::as_array_mut).expect("the base configuration has every list")
}

/// What `runc spec` writes, but for the differences that [`Bundle::builder`] names.
fn base_config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "stockade-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "annotations": {},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"},
                {"type": "network"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn a_bundle_with_every_change_is_a_valid_specification() {
        let bundle = Bundle::builder()
            .shell("id")
            .env("A=b")
            .cwd("/tmp")
            .tty(true)
            .user(1000, 1000)
            .process("oomScoreAdj", 100)
            .rlimit("RLIMIT_NOFILE", 10, 20)
            .mount("/mnt", "tmpfs", "tmpfs", &["ro"])
            .bind(Path::new("/tmp"), "/tmp", &["ro"])
            .shell_hook("prestart", "cat >/dev/null")
            .resource("pids", json!({"limit": 10}))
            .linux("sysctl", json!({"net.ipv4.ip_forward": "1"}))
            .namespace("network", Some(Path::new("/proc/self/ns/net")))
            .hostname("a")
            .readonly(true)
            .annotation("a.b", "c")
            .build()
            .unwrap();
        let spec = Spec::load(bundle.path().join("config.json")).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap().as_slice(), ["sh", "-c", "id"]);
        assert_eq!(process.rlimits().as_ref().unwrap().len(), 1);
        assert_eq!(spec.hooks().as_ref().unwrap().prestart().as_ref().unwrap().len(), 1);
        assert!(bundle.rootfs().join("bin/sh").exists());
    }

    #[test]
    fn a_bundle_goes_away_with_its_value() {
        let bundle = Bundle::builder().without_rootfs().build().unwrap();
        let path = bundle.path().to_owned();
        assert!(path.join("config.json").exists());
        assert!(!bundle.rootfs().exists());
        bundle.remove_config().unwrap();
        drop(bundle);
        assert!(!path.exists());
    }
}
