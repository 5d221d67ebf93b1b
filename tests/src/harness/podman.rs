//! A Podman with images, state and configuration of its own, whose OCI runtime is the program under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::{HostState, Output, Running, Stockade, busybox_rootfs, wait};

/// The image that every Podman of a test has: [`busybox_rootfs`].
pub const IMAGE: &str = "localhost/busybox";
/// How long a command may take; the boot of a machine under emulation included.
const CALL: Duration = Duration::from_secs(120);

/// Podman with a folder of its own in that of a [`Stockade`]. Dropped, it removes its containers.
#[derive(Debug)]
pub struct Podman {
    stockade: Stockade,
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

impl Podman {
    /// With the image, and no container.
    ///
    /// # Panics
    /// When podman is not installed, or the image cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let podman = Self { stockade: Stockade::new() };
        podman.write_files();
        let root = podman.path("rootfs");
        busybox_rootfs(&root).expect("a root file system of busybox");
        let archive = podman.path("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status();
        assert!(packed.is_ok_and(|status| status.success()), "tar cannot pack {}", root.display());
        let _ = podman.call(["import", archive.to_str().expect("the folder's name is text"), IMAGE]).ok();
        podman
    }

    fn write_files(&self) {
        let folder = self.folder();
        let at = |name: &str| folder.join(name).display().to_string();
        // An overlay cannot lie on another one, which the root of a lab host is.
        let nested = statfs(folder).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC);
        let driver = if nested { "vfs" } else { "overlay" };
        let (graph, run, networks, runtime) = (at("storage"), at("run"), at("networks"), at("stockade"));
        let storage = format!("[storage]\ndriver = \"{driver}\"\ngraphroot = \"{graph}\"\nrunroot = \"{run}\"\n");
        // File locks, for the usual ones in shared memory would be shared with every other Podman of this host.
        let containers = format!(
            r#"
            [containers]
            log_driver = "k8s-file"
            [engine]
            cgroup_manager = "cgroupfs"
            events_logger = "file"
            lock_type = "file"
            runtime = "stockade"
            runtime_supports_json = ["stockade"]
            [engine.runtimes]
            stockade = ["{runtime}"]
            [network]
            network_backend = "netavark"
            network_config_dir = "{networks}"
            "#
        );
        // Podman hands no options to some of its calls, so that they must be in what it calls.
        let stockade = &self.stockade;
        let paths = [stockade.program(), &stockade.root(), &stockade.config(), &stockade.log_path()];
        let [program, root, config, log] = paths.map(|path| path.display().to_string());
        let script =
            format!("#!/bin/sh\nexec {program} --root {root} --config {config} --supervisor-log {log} \"$@\"\n");
        let write = |name: &str, text: String| {
            fs::write(folder.join(name), text).expect("a temporary folder can be written to")
        };
        write("storage.conf", storage);
        write("containers.conf", containers);
        write("stockade", script);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.join("stockade"), executable).expect("a file of ours can be changed");
    }

    /// The program under test, with the state root that Podman's containers are in.
    #[must_use]
    pub fn stockade(&self) -> &Stockade {
        &self.stockade
    }

    /// The temporary folder that all of it is in; a test may put files there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.stockade.folder()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// A podman command, with nothing on standard input.
    pub fn cmd<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("podman");
        for (option, folder) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.path(folder));
        }
        command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"));
        // For whoever looks for this test's processes.
        command.env("STOCKADE_TEST_FOLDER", self.folder());
        command.current_dir(self.folder()).stdin(Stdio::null());
        command
    }

    /// Runs lines of shell, the first failing one of which ends them, in network and mount namespaces of their own, where
    /// Podman may make networks: they leave no link or rule on the host. `"$@"` is podman.
    ///
    /// # Panics
    /// When they do not end in time.
    pub fn script_in_own_network(&self, script: &str) -> Output {
        let podman = self.cmd::<&str>([]);
        let mut command = Command::new("unshare");
        let prepare = "mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; ip link set lo up";
        command.args(["--net", "--mount", "sh", "-ec", &format!("{prepare}\n{script}"), "sh"]);
        command
            .arg(podman.get_program())
            .args(podman.get_args())
            .envs(podman.get_envs().filter_map(|(n, v)| Some((n, v?))));
        command.current_dir(self.folder()).stdin(Stdio::null());
        self.stockade.spawn(command).wait(2 * CALL)
    }

    /// Makes a call and waits for its end, two minutes ([scaled](wait::scaled)) at most.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn call<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.stockade.spawn(self.cmd(args)).wait(CALL)
    }

    /// Starts a call and does not wait for its end.
    pub fn start_call<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        self.stockade.spawn(self.cmd(args))
    }

    /// The words of `podman VERB OPTIONS IMAGE COMMAND`, in a network of its own without a link, and with a name by
    /// which this test's container is known.
    #[must_use]
    pub fn container<'a>(
        &'a self,
        verb: &'a str,
        name: &'a str,
        options: &[&'a str],
        command: &[&'a str],
    ) -> Vec<&'a str> {
        let network: &[&str] = if options.contains(&"--network") { &[] } else { &["--network", "none"] };
        let options = [&[verb, "--name", name], network, options, &[IMAGE]].concat();
        options.into_iter().chain(command.iter().copied()).collect()
    }

    /// `podman run`, waited for.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.call(self.container("run", "run", options, command))
    }

    /// `podman run --detach` with this name; the id of the container, which its control group on the host is named after.
    ///
    /// # Panics
    /// When it fails.
    pub fn detached(&self, name: &str, options: &[&str], command: &[&str]) -> String {
        let options = [&["--detach"], options].concat();
        let id = self.call(self.container("run", name, &options, command)).ok().text().trim().to_owned();
        self.stockade.note_foreign(&id);
        id
    }

    /// `podman inspect --format`, without the line's end.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn inspect(&self, name: &str, format: &str) -> String {
        self.call(["inspect", "--format", format, name]).ok().text().trim().to_owned()
    }

    /// The pid that Podman knows of a container.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pid(&self, name: &str) -> i32 {
        self.inspect(name, "{{.State.Pid}}").parse().expect("a pid is a number")
    }

    /// What is on the host now.
    #[must_use]
    pub fn host_state(&self) -> HostState {
        HostState::capture(&self.stockade)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removing =
            self.cmd(["rm", "--all", "--force", "--time", "0"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        if let Ok(mut child) = removing {
            wait::until(Duration::from_secs(60), || !matches!(child.try_wait(), Ok(None)));
            let _ = child.kill();
            let _ = child.wait();
        }
        // Podman binds its storage onto itself and leaves it so.
        let _ = umount2(&self.path("storage/overlay"), MntFlags::MNT_DETACH);
    }
}
