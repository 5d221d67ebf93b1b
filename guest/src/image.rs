//! The disk image: a small Debian whose systemd starts the agent, on a read-only EROFS file system.
//!
//! systemd starts `kata-containers.target`, the unit that Kata's own images have, so that the supervisor's kernel
//! parameters are the same for both.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::GuestError;
use crate::initrd::image_initrd;
use crate::modules::{GUEST_MODULES, IMAGE_MODULES, ModuleIndex};
use crate::package::Package;
use crate::tool::Tool;

/// The release that the image is made of when the host is no Debian.
const DEFAULT_SUITE: &str = "bookworm";

/// Identifies the file system; fixed, so that the same content gives the same bytes.
const FILE_SYSTEM_UUID: &str = "5f0c4e52-7b1d-4c1e-9a53-57c0cade0001";

/// The time that every file of the image carries, in seconds since 1970.
const FILE_TIME: &str = "0";

/// What the image's programs never read.
const EXCLUDED: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// What differs between two installations of the same packages, or belongs to the machine that made them.
const REMOVED: &[&str] = &[
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "var/cache",
    "var/lib/apt",
    "var/lib/dbus",
    "var/lib/systemd/catalog",
    "var/lib/systemd/random-seed",
    "var/log",
];

const AGENT_SERVICE: &str = "\
[Unit]
Description=Agent of the sandbox's supervisor
After=tmp.mount
Wants=tmp.mount
# Without its agent the machine is of no use to anybody.
FailureAction=poweroff-force
SuccessAction=poweroff-force

[Service]
ExecStart=/usr/bin/stockade-agent
StandardOutput=journal+console
StandardError=journal+console
LimitNOFILE=1048576
OOMScoreAdjust=-997
# It makes the containers' cgroups, and its end must not end their processes before it has reported them.
Delegate=yes
KillMode=process
";

const TARGET: &str = "\
[Unit]
Description=A guest that serves containers
Requires=basic.target kata-agent.service
After=basic.target
Conflicts=rescue.service rescue.target
AllowIsolate=yes
";

/// The initrd that mounts the image; it also loads the modules that the agent needs.
///
/// # Errors
/// When a package cannot be had, or the kernel lacks a module.
pub(crate) fn initrd(cache: &Path, index: &ModuleIndex) -> Result<Vec<u8>, GuestError> {
    let modules = index.load_order(GUEST_MODULES.iter().chain(IMAGE_MODULES))?;
    let tree = Package::candidate("busybox-static")?.unpacked(cache)?;
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| tree.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| GuestError::PackageContent { path: tree.clone(), what: "busybox" })?;
    image_initrd(fs::read(&busybox).map_err(GuestError::file("read", &busybox))?, modules)
}

/// Makes the image at `path`.
///
/// # Errors
/// When the caller is not root, a tool is missing, or Debian's archive cannot be reached.
pub(crate) fn build(path: &Path, agent: &[u8], cache: &Path) -> Result<(), GuestError> {
    let work = WorkDir::create(cache)?;
    let root = work.0.join("root");
    let mut bootstrap = Tool::new("mmdebstrap", "mmdebstrap")
        .env("SOURCE_DATE_EPOCH", FILE_TIME)
        .arg("--quiet")
        .arg("--variant=essential")
        .arg("--include=systemd-sysv")
        .arg("--format=directory");
    for pattern in EXCLUDED {
        bootstrap = bootstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    bootstrap.arg(suite()).arg(&root).run()?;
    install(&root, agent)?;

    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let made = Tool::new("mkfs.erofs", "erofs-utils")
        .arg("-zlz4hc")
        .arg(format!("-T{FILE_TIME}"))
        .arg(format!("-U{FILE_SYSTEM_UUID}"))
        .arg(&partial)
        .arg(&root)
        .run();
    if made.is_err() {
        // Best effort: the tool's own failure is what the caller must hear of.
        drop(fs::remove_file(&partial));
    }
    made?;
    fs::rename(&partial, path).map_err(GuestError::file("rename", &partial))
}

/// Adds the agent and its units to an installed Debian, and takes away what is this machine's.
fn install(root: &Path, agent: &[u8]) -> Result<(), GuestError> {
    for name in REMOVED {
        let path = root.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(GuestError::file("remove", &path)(error));
            }
            _ => {}
        }
    }
    for name in ["var/cache", "var/log", "run", "tmp"] {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(GuestError::file("create", &path))?;
    }
    let program = root.join("usr/bin/stockade-agent");
    write(&program, agent)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .map_err(GuestError::file("set the permissions of", &program))?;
    let units = root.join("usr/lib/systemd/system");
    write(&units.join("kata-agent.service"), AGENT_SERVICE.as_bytes())?;
    write(&units.join("kata-containers.target"), TARGET.as_bytes())?;
    // The root is read-only: /tmp is memory, and an empty machine-id makes systemd use one that nothing stores.
    let tmp_mount = units.join("tmp.mount");
    if !tmp_mount.exists() {
        let shipped = root.join("usr/share/systemd/tmp.mount");
        fs::copy(&shipped, &tmp_mount).map_err(GuestError::file("copy", &shipped))?;
    }
    write(&root.join("etc/machine-id"), b"")?;
    // The agent binds the sandbox's own file over this one.
    write(&root.join("etc/resolv.conf"), b"")?;
    write(&root.join("etc/hostname"), b"stockade\n")?;
    let default = root.join("etc/systemd/system/default.target");
    symlink("/usr/lib/systemd/system/kata-containers.target", &default).map_err(GuestError::file("link", &default))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    fs::write(path, bytes).map_err(GuestError::file("write", path))
}

/// This host's Debian release, so that the image has the packages that the host's administrator knows.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    suite_of(&text).unwrap_or(DEFAULT_SUITE).to_owned()
}

fn suite_of(os_release: &str) -> Option<&str> {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    (value("ID") == Some("debian")).then(|| value("VERSION_CODENAME")).flatten()
}

/// A folder that is removed with all that is in it.
#[derive(Debug)]
struct WorkDir(PathBuf);

impl WorkDir {
    fn create(cache: &Path) -> Result<Self, GuestError> {
        let path = cache.join(format!("image-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(GuestError::file("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; a left-over folder is only disk space in the cache.
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_the_hosts_own_on_debian_only() {
        assert_eq!(suite_of("ID=debian\nVERSION_CODENAME=trixie\n"), Some("trixie"));
        assert_eq!(suite_of("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(suite_of(""), None);
    }

    #[test]
    fn a_work_folder_goes_away_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::create(dir.path()).unwrap();
        write(&work.0.join("file"), b"x").unwrap();
        drop(work);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
