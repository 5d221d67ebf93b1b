//! A container's root file system made of Debian's static busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Debian's package busybox-static puts it here.
const BUSYBOX: &str = "/bin/busybox";

const FOLDERS: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];

const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"),
    ("etc/group", "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
];

/// Makes the file system in the new folder `root`: busybox with all its applets in /bin, the users root (0) and user
/// (1000), and the usual folders. It takes some milliseconds, so that each test can have its own to write to.
///
/// # Errors
/// When busybox-static is not installed or a file cannot be made.
pub fn busybox_rootfs(root: &Path) -> Result<()> {
    for (name, mode) in FOLDERS {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    }
    for (name, text) in FILES {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(BUSYBOX, &busybox).with_context(|| format!("cannot copy {BUSYBOX}: is busybox-static installed?"))?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).context("cannot set busybox's mode")?;
    // Not the copy: a process forked meanwhile by another test could hold it open for writing.
    let list = Command::new(BUSYBOX).arg("--list").output().context("cannot run busybox")?;
    ensure!(list.status.success(), "busybox --list failed: {}", list.status);
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_runs_in_the_root_file_system() {
        let dir = tempfile::tempdir().unwrap();
        busybox_rootfs(dir.path()).unwrap();
        let output = Command::new(dir.path().join("bin/sh")).args(["-c", "echo ok"]).output().unwrap();
        assert_eq!(output.stdout, b"ok\n");
        assert!(dir.path().join("bin/cat").is_symlink());
    }
}
