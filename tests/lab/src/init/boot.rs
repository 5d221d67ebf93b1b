//! Process 1 of a lab host: modules, mounts, the runner, and the end.
//!
//! The host looks like one that systemd started, as far as a container's runtime sees it: control groups of version 2
//! alone with the usual controllers, every process in a group below the root, and mounts that propagate.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use nix::kmod::init_module;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{chdir, chroot, sethostname};
use stockade_lab::wire::{OUT_TAG, OUT_VARIABLE, ROOT_TAG};

/// Where the runner's program is put: memory, as the initrd's files cannot be reached once the root is another.
const RUNNER: &str = "/run/stockade-lab";
/// For temporary files: not on the overlay, whose upper layer cannot be an overlay's again.
const TEMPORARY: &str = "/run/tmp";
const NINE_P: &str = "trans=virtio,version=9p2000.L,msize=512000";
/// What systemd hands out to its units.
const CONTROLLERS: &str = "+cpuset +cpu +io +memory +pids";

/// Never returns: when all is done, or nothing can be, the machine is switched off.
pub(crate) fn run() -> Infallible {
    if let Err(error) = host() {
        eprintln!("lab: {error:#}");
    }
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => never,
        Err(error) => panic!("the lab cannot be switched off: {error}"),
    }
}

fn host() -> Result<()> {
    let _kept = set_cad_enabled(false);
    make(Path::new("/proc"), "proc", "")?;
    make(Path::new("/sys"), "sysfs", "")?;
    make(Path::new("/dev"), "devtmpfs", "")?;
    load_modules()?;
    sethostname("lab").context("cannot set the host's name")?;
    let out = std::env::var_os(OUT_VARIABLE).map(PathBuf::from);
    root(out.as_deref())?;
    control_group()?;
    // Whoever needs a network makes a namespace; this one has itself to talk to.
    run_tool("ip", &["link", "set", "lo", "up"])?;
    let mut runner = Command::new(RUNNER);
    runner.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    runner.env("HOME", "/root").env("LC_ALL", "C.UTF-8").env("TERM", "dumb").env("TMPDIR", TEMPORARY);
    runner.envs(out.map(|out| (OUT_VARIABLE, out))).stdin(Stdio::null());
    let runner = runner.spawn().context("cannot start the runner")?.id().cast_signed();
    loop {
        // Orphans are process 1's to wait for.
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid.as_raw() == runner => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the runner"),
        }
    }
}

fn load_modules() -> Result<()> {
    let mut files: Vec<PathBuf> =
        fs::read_dir("/modules").context("no /modules")?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for file in files {
        let image = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match init_module(&image, &CString::default()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => anyhow::bail!("cannot load {}: {error}", file.display()),
        }
    }
    Ok(())
}

/// Mounts the host's files as the root, with all that a running system has on top, and goes there.
fn root(out: Option<&Path>) -> Result<()> {
    for folder in ["/lower", "/overlay", "/new"] {
        fs::create_dir(folder).with_context(|| format!("cannot create {folder}"))?;
    }
    // Nobody changes the files that are read here while a lab runs: they may be kept.
    let options = format!("{NINE_P},cache=loose");
    mount_as(ROOT_TAG, Path::new("/lower"), "9p", MsFlags::MS_RDONLY, &options)?;
    make(Path::new("/overlay"), "tmpfs", "size=75%")?;
    fs::create_dir("/overlay/upper").and_then(|()| fs::create_dir("/overlay/work")).context("no overlay")?;
    let layers = "lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work";
    mount_as("overlay", Path::new("/new"), "overlay", MsFlags::empty(), layers)?;
    for name in ["proc", "sys", "dev"] {
        let (from, to) = (format!("/{name}"), format!("/new/{name}"));
        fs::create_dir_all(&to).with_context(|| format!("cannot create {to}"))?;
        mount(Some(from.as_str()), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("cannot move {from}"))?;
    }
    let new = Path::new("/new");
    make(&new.join("run"), "tmpfs", "mode=755,size=75%")?;
    make(&new.join("dev/pts"), "devpts", "mode=620,ptmxmode=666")?;
    make(&new.join("dev/shm"), "tmpfs", "mode=1777")?;
    make(&new.join("dev/mqueue"), "mqueue", "")?;
    make(&new.join("sys/fs/cgroup"), "cgroup2", "nsdelegate")?;
    let temporary = new.join("run/tmp");
    fs::create_dir(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
    if let Some(out) = out {
        let at = new.join(out.strip_prefix("/").unwrap_or(out));
        fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
        mount_as(OUT_TAG, &at, "9p", MsFlags::empty(), NINE_P)?;
    }
    let runner = new.join(RUNNER.trim_start_matches('/'));
    fs::copy("/proc/self/exe", &runner)
        .or_else(|_| fs::copy("/init", &runner))
        .with_context(|| format!("cannot copy the runner to {}", runner.display()))?;

    chdir("/new").context("cannot enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("cannot move the new root")?;
    chroot(".").and_then(|()| chdir("/")).context("cannot change the root")?;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("cannot share the mounts")
}

/// Puts this process, and so all later ones, into a group below the root, which then may hand out controllers.
fn control_group() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let group = root.join("lab.scope");
    fs::create_dir(&group).context("cannot create a control group")?;
    fs::write(group.join("cgroup.procs"), "1").context("cannot enter the control group")?;
    fs::write(root.join("cgroup.subtree_control"), CONTROLLERS).context("cannot hand out controllers")
}

fn make(at: &Path, kind: &str, options: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("cannot create {}", at.display()))?;
    mount_as(kind, at, kind, MsFlags::empty(), options)
}

fn mount_as(source: &str, at: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), at, Some(kind), flags, Some(options))
        .with_context(|| format!("cannot mount {kind} at {} ({options})", at.display()))
}

fn run_tool(name: &str, arguments: &[&str]) -> Result<()> {
    let console = File::options().write(true).open("/dev/console").context("cannot open the console")?;
    let search = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(name));
    let path = search.iter().find(|path| path.exists()).with_context(|| format!("the host has no program {name}"))?;
    let status = Command::new(path).args(arguments).stderr(console).status();
    anyhow::ensure!(status.with_context(|| format!("cannot run {name}"))?.success(), "{name} failed");
    Ok(())
}
