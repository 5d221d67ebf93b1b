//! A containerd of a test's own: started by it, with its own configuration, root, state and sockets in the test's folder.
//! No other containerd of the host is asked anything.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Cri, HostState, Output, Running, Stockade, image, wait};

/// How long containerd may take to answer after its start, and to end.
const SOON: Duration = Duration::from_secs(30);
/// How long a call of ctr may take; a boot under emulation on a busy machine included.
const CALL: Duration = Duration::from_secs(120);
/// The namespace of containers that ctr makes.
const NAMESPACE: &str = "stockade-tests";
/// The CRI plugin's own.
const CRI_NAMESPACE: &str = "k8s.io";
/// What the CRI plugin's runtime handler is called.
pub const HANDLER: &str = "stockade";
/// A further one, whose configuration file does not exist.
pub const HANDLER_WITHOUT_CONFIGURATION: &str = "stockade-missing";
/// By this name containerd finds `containerd-shim-stockade-v2` on its PATH.
pub const RUNTIME: &str = "io.containerd.stockade.v2";

/// A containerd, and a [`Stockade`] whose configuration its shims use. Dropped, it ends, and what it left with it.
#[derive(Debug)]
pub struct Containerd {
    stockade: Stockade,
    child: RefCell<Option<Child>>,
    namespace: &'static str,
    snapshotter: &'static str,
}

impl Default for Containerd {
    fn default() -> Self {
        Self::new()
    }
}

impl Containerd {
    /// Starts one, with an image that has busybox in it.
    ///
    /// # Panics
    /// When containerd is not installed or does not start, or the image cannot be imported.
    #[must_use]
    pub fn new() -> Self {
        Self::in_namespace(NAMESPACE, Stockade::new())
    }

    /// As [`Self::new`], with options added to the configuration, as [`Stockade::with_config`] takes them.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_config(machine: &str, rest: &str) -> Self {
        Self::in_namespace(NAMESPACE, Stockade::with_config(machine, rest))
    }

    /// As [`Self::new`], with the CRI plugin, which has a runtime handler [`HANDLER`] and a network that is none.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_cri() -> Self {
        Self::in_namespace(CRI_NAMESPACE, Stockade::new())
    }

    fn in_namespace(namespace: &'static str, stockade: Stockade) -> Self {
        let folder = stockade.folder().join("containerd");
        fs::create_dir_all(folder.join("bin")).expect("a temporary folder can be written to");
        let shim = folder.join("bin/containerd-shim-stockade-v2");
        symlink(stockade.program(), shim).expect("a temporary folder can be written to");
        let mut text = configuration(&folder, namespace == CRI_NAMESPACE);
        if namespace == CRI_NAMESPACE {
            text += &cri_configuration(&folder);
            write_network_plugins(&folder).expect("a temporary folder can be written to");
        }
        fs::write(folder.join("config.toml"), text).expect("a temporary folder can be written to");
        let mut containerd = Self { stockade, child: RefCell::new(None), namespace, snapshotter: "native" };
        containerd.start();
        let plugins = containerd.ctr(["plugins", "ls"]).ok().text();
        let overlay = plugins.lines().find(|line| line.contains("overlayfs")).unwrap_or_default();
        // The CRI plugin's is in its configuration, which is written before anything can be asked.
        if overlay.trim_end().ends_with("ok") && namespace != CRI_NAMESPACE && overlay_mounts(&folder) {
            containerd.snapshotter = "overlayfs";
        }
        for (name, command) in [(image::NAME, &["sh"][..]), (image::PAUSE, &["sleep", "2147483647"])] {
            let archive = image::archive(containerd.stockade.folder(), name, command).expect("an image can be made");
            let import = ["images", "import", "--snapshotter", containerd.snapshotter];
            let _ = containerd.ctr(import.iter().map(OsStr::new).chain([archive.as_os_str()])).ok();
            if namespace != CRI_NAMESPACE {
                break;
            }
        }
        containerd
    }

    /// A connection to the CRI plugin.
    #[must_use]
    pub fn cri(&self) -> Cri {
        Cri::new(&self.folder().join("containerd.sock"))
    }

    /// Whose configuration and state the shims use.
    #[must_use]
    pub fn stockade(&self) -> &Stockade {
        &self.stockade
    }

    /// The state root of the namespace, as `stockade --root` takes it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.stockade.root().join("containerd").join(self.namespace)
    }

    /// The bundle that containerd makes for a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.folder().join("state/io.containerd.runtime.v2.task").join(self.namespace).join(id)
    }

    fn folder(&self) -> PathBuf {
        self.stockade.folder().join("containerd")
    }

    /// What containerd and, through it, the supervisors have logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder().join("log")).unwrap_or_default()).into_owned()
    }

    /// Starts containerd, again after [`Self::stop`] or [`Self::kill`], and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(&self) {
        let folder = self.folder();
        let log = File::options().append(true).create(true).open(folder.join("log"));
        let log = log.expect("a temporary folder can be written to");
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(folder.join("config.toml"))
            .env("PATH", format!("{}:{path}", folder.join("bin").display()))
            .env("STOCKADE_ROOT", self.stockade.root())
            .env("STOCKADE_CONFIG", self.stockade.config())
            .env("STOCKADE_TEST_FOLDER", self.stockade.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd can be started: is it installed?");
        *self.child.borrow_mut() = Some(child);
        let answers = || self.ctr(["version"]).status.success();
        assert!(wait::until(SOON, answers), "containerd does not answer: {}", self.log());
    }

    /// Asks containerd to end.
    pub fn stop(&self) {
        self.end(Signal::SIGTERM);
    }

    /// Ends containerd by force.
    pub fn kill(&self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.child.borrow_mut().take() else { return };
        let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        if !wait::until(SOON, || !matches!(child.try_wait(), Ok(None))) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }

    /// The command `ctr`, with the options of this containerd and of the namespace.
    pub fn ctr_cmd<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.folder().join("containerd.sock")).args(["--namespace", self.namespace]);
        command.args(args).current_dir(self.stockade.folder()).stdin(Stdio::null());
        command.env("STOCKADE_TEST_FOLDER", self.stockade.folder());
        command
    }

    /// Calls `ctr` and waits for its end.
    ///
    /// # Panics
    /// When it does not end in two minutes ([scaled](wait::scaled)).
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.start_ctr(args).wait(CALL)
    }

    /// Calls `ctr` without waiting.
    pub fn start_ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        self.stockade.spawn(self.ctr_cmd(args))
    }

    /// The words of `ctr run` of a line of shell in the container `id`; `options` are of `run`.
    #[must_use]
    pub fn run_args<'a>(&self, id: &'a str, options: &[&'a str], script: &'a str) -> Vec<&'a str> {
        self.run_args_with(RUNTIME, id, options, script)
    }

    /// [`Self::run_args`], with another runtime than Stockade.
    #[must_use]
    pub fn run_args_with<'a>(
        &self,
        runtime: &'a str,
        id: &'a str,
        options: &[&'a str],
        script: &'a str,
    ) -> Vec<&'a str> {
        let mut words = vec!["run", "--runtime", runtime, "--snapshotter", self.snapshotter];
        words.extend(options);
        words.extend([image::NAME, id, "sh", "-c", script]);
        words
    }

    /// `ctr run`, waited for.
    ///
    /// # Panics
    /// As [`Self::ctr`].
    pub fn run(&self, id: &str, options: &[&str], script: &str) -> Output {
        self.ctr(self.run_args(id, options, script))
    }

    /// `ctr run --detach`, which must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn launch(&self, id: &str, options: &[&str], script: &str) {
        let options: Vec<&str> = ["--detach"].iter().chain(options).copied().collect();
        let _ = self.run(id, &options, script).ok();
    }

    /// `ctr task exec` of a line of shell.
    ///
    /// # Panics
    /// As [`Self::ctr`].
    pub fn exec(&self, id: &str, exec: &str, script: &str) -> Output {
        self.ctr(["task", "exec", "--exec-id", exec, id, "sh", "-c", script])
    }

    /// `ctr task delete`, which must succeed; returns the status of the container's process.
    ///
    /// # Panics
    /// When it fails, or as [`Self::ctr`].
    #[must_use]
    pub fn delete_task(&self, id: &str) -> i32 {
        let deleted = self.ctr(["task", "delete", id]).ok();
        let said = deleted.error();
        let Some((_, code)) = said.split_once("exit with non-zero exit code ") else { return 0 };
        let digits: String = code.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|_| panic!("no status in {said:?}"))
    }

    /// What `ctr task ls` says of a container: its process and its status; `None` when it has no task.
    #[must_use]
    pub fn task(&self, id: &str) -> Option<(i32, String)> {
        let listed = self.ctr(["task", "ls"]).ok().text();
        let row = listed.lines().find(|line| line.split_whitespace().next() == Some(id))?.to_owned();
        let mut words = row.split_whitespace().skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    }

    /// Waits until `ctr task ls` shows this status.
    ///
    /// # Panics
    /// When it shows another one in the end.
    pub fn wait_status(&self, id: &str, status: &str) {
        let mut last = None;
        let reached = wait::until(SOON, || {
            last = self.task(id);
            last.as_ref().is_some_and(|(_, now)| now == status)
        });
        assert!(reached, "task {id} is {last:?}, not {status}: {}", self.log());
    }

    /// What there is of the test on the host, containerd itself and its files left out.
    #[must_use]
    pub fn host(&self) -> HostState {
        let own = self.child.borrow().as_ref().map(|child| format!("process {}:", child.id()));
        let sockets = self.folder().display().to_string();
        let mut state = HostState::capture(&self.stockade);
        state.without(|line| {
            own.as_ref().is_some_and(|own| line.starts_with(own)) || line.starts_with(&format!("socket {sockets}"))
        });
        // What containerd itself has of containers.
        for list in [["containers", "ls", "-q"], ["task", "ls", "-q"], ["snapshots", "ls", ""]] {
            let words = list.iter().filter(|word| !word.is_empty());
            let (command, verb) = (list[0], list[1]);
            let options: &[&str] = if command == "snapshots" { &["--snapshotter", self.snapshotter] } else { &[] };
            let words: Vec<&str> = if options.is_empty() {
                words.copied().collect()
            } else {
                [command].iter().chain(options).chain(&[verb]).copied().collect()
            };
            for line in self.ctr(words).ok().text().lines() {
                state.add(format!("{command}: {line}"));
            }
        }
        for entry in fs::read_dir(self.bundle("")).into_iter().flatten().flatten() {
            state.add(format!("bundle {}", entry.path().display()));
        }
        state
    }

    /// Waits until the host is as it was when `before` was captured.
    ///
    /// # Panics
    /// With what is left over, or missing, when that does not come.
    pub fn assert_host(&self, before: &HostState) {
        before.assert_same_as(|| self.host());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(150).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("---- log of containerd and of the supervisors\n{}\n----", tail.join("\n"));
        }
        // Supervisors that a failed test left, before the containerd that they work for.
        let root = self.root();
        for id in fs::read_dir(root.join("containers")).into_iter().flatten().flatten() {
            let Some(id) = id.file_name().to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned)
            else {
                continue;
            };
            let mut delete = Command::new(self.stockade.program());
            delete.arg("--root").arg(&root).args(["delete", "--force", &id]);
            let deleting = delete.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            if let Ok(mut child) = deleting {
                wait::until(SOON, || !matches!(child.try_wait(), Ok(None)));
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        self.stop();
        unmount_below(&self.folder());
    }
}

/// Whether an overlay can be mounted here, which cannot be told otherwise: not where the folder is on one itself.
fn overlay_mounts(folder: &Path) -> bool {
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| folder.join("probe").join(name));
    if [&lower, &upper, &work, &merged].iter().any(|path| fs::create_dir_all(path).is_err()) {
        return false;
    }
    let data = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let flags = nix::mount::MsFlags::empty();
    let mounted = nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(data.as_str())).is_ok();
    mounted && nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).is_ok()
}

/// containerd mounts images that it unpacks; one that was killed leaves them.
fn unmount_below(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in
        table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(folder))
    {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The CRI plugin's part.
fn cri_configuration(folder: &Path) -> String {
    let (folder, pause) = (folder.display(), image::PAUSE);
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
netns_mounts_under_state_dir = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "{HANDLER}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}]
runtime_type = "{RUNTIME}"
pod_annotations = ["io.katacontainers.config.*"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER_WITHOUT_CONFIGURATION}]
runtime_type = "{RUNTIME}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER_WITHOUT_CONFIGURATION}.options]
ConfigPath = "/no/such/stockade.toml"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/cni"
conf_dir = "{folder}/cni"
"#
    )
}

/// A network for pods that does nothing: the CRI plugin insists on one.
fn write_network_plugins(folder: &Path) -> std::io::Result<()> {
    let cni = folder.join("cni");
    fs::create_dir_all(&cni)?;
    let script = r#"#!/bin/sh
cat >/dev/null
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"0.3.1","supportedVersions":["0.3.1","0.4.0"]}' ;;
ADD) echo '{"cniVersion":"0.3.1","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],
    "ips":[{"version":"4","interface":0,"address":"10.88.0.2/24"}]}' ;;
esac
"#;
    for name in ["loopback", "nothing"] {
        fs::write(cni.join(name), script)?;
        fs::set_permissions(cni.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    fs::write(cni.join("10.conflist"), r#"{"cniVersion":"0.3.1","name":"tests","plugins":[{"type":"nothing"}]}"#)
}

/// Nothing of it is outside the folder. Of the plugins, those that would make files elsewhere, or look for other
/// programs, are left out.
fn configuration(folder: &Path, cri: bool) -> String {
    let folder = folder.display();
    let cri = if cri { "" } else { "\n    \"io.containerd.grpc.v1.cri\"," };
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{cri}
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
[debug]
level = "debug"
"#
    )
}
