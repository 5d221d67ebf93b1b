//! `cargo xtask run`: a container in a virtual machine, from a checkout to its output with one command.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use stockade_guest::GuestAssets;

use crate::{build, command, setup, timeline};

/// What the container does when nothing else is asked for.
const SCRIPT: &str = r#"echo "Hello from a container in its own virtual machine."
echo "kernel here:   $(uname -r)"
echo "processors:    $(grep -c ^processor /proc/cpuinfo)"
echo "memory:        $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) MiB"
echo "first process: $(tr '\0' ' ' </proc/1/cmdline | cut -c1-40)""#;

/// Prepares everything, runs the container, and shows what it wrote, where it ran and how long each step took.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    setup::install(setup::Purpose::Run)?;
    let binaries = build::binaries()?;
    let guest = build::guest(&binaries, stockade_guest::GuestKind::Initrd)?;

    let work =
        tempfile::Builder::new().prefix("stockade-run-").tempdir().context("cannot create a temporary folder")?;
    let script = ["sh", "-c", SCRIPT].map(str::to_owned);
    let arguments = if arguments.is_empty() { &script } else { arguments };
    let bundle = bundle(work.path(), arguments)?;
    let config = configuration(work.path(), &guest)?;
    let trace = work.path().join("timeline");

    println!("--- what this host can do");
    // The report is for the reader; whether the run works does not depend on it.
    let _ = command::status(Command::new(&binaries.stockade).arg("--config").arg(&config).arg("check"));
    println!("--- the container's output");
    let status = command::status(
        Command::new(&binaries.stockade)
            .arg("--root")
            .arg(work.path().join("state"))
            .arg("--config")
            .arg(&config)
            .arg("run")
            .arg("--timeline")
            .arg(&trace)
            .arg("--bundle")
            .arg(&bundle)
            .arg("demo"),
    )?;
    println!("--- the host");
    println!("kernel here:   {}", command::output(Command::new("uname").arg("-r"))?.trim());
    if let Ok(text) = fs::read_to_string(&trace) {
        println!("--- the creation, step by step");
        print!("{}", timeline::table(&text));
    }
    if !status.success() {
        eprintln!("the container ended with {status}");
    }
    // The container's own status is the task's; a signal is given as shells give it.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// An OCI bundle whose root is busybox.
fn bundle(work: &Path, arguments: &[String]) -> Result<PathBuf> {
    let bundle = work.join("bundle");
    let bin = bundle.join("rootfs/bin");
    for folder in ["rootfs/bin", "rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/tmp", "rootfs/etc"] {
        let path = bundle.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let busybox = bin.join("busybox");
    fs::copy("/bin/busybox", &busybox).context("cannot copy /bin/busybox")?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).context("cannot set busybox's permissions")?;
    for applet in command::output(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    write(&bundle.join("config.json"), &serde_json::to_string_pretty(&specification(arguments))?)?;
    Ok(bundle)
}

fn specification(arguments: &[String]) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": ["PATH=/bin", "TERM=dumb"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "demo",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=16m"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

/// A configuration that names this checkout's guest.
fn configuration(work: &Path, guest: &GuestAssets) -> Result<PathBuf> {
    let path = work.join("stockade.toml");
    let initrd = guest.initrd.as_deref().context("the guest has no initrd")?;
    let quoted = |path: &Path| Value::from(path.to_string_lossy()).to_string();
    let text = format!("[hypervisor.qemu]\nkernel = {}\ninitrd = {}\n", quoted(&guest.vmlinux), quoted(initrd));
    write(&path, &text)?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
