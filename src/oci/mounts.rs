//! Where each mount of a container comes from, once the container is in a virtual machine.

use super::guest::GuestSpecOptions;
use super::host_files::{FileKind, HostFiles};
use super::{FilesystemInfo, OciError};
use oci_spec::runtime::{Mount, Spec};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// What a pod's /dev/shm holds when nobody says, in bytes.
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;
/// The directory above a Kubernetes volume that lives as long as its pod.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// The longest file name, in bytes.
const MAX_FILE_NAME: usize = 255;
/// File systems that the guest's kernel makes out of nothing.
const GUEST_TYPES: [&str; 18] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "cgroup",
    "cgroup2",
    "bpf",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "pstore",
    "binfmt_misc",
];
/// Devices that every Linux has, so that the guest's own stand for the host's.
const GUEST_DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/fuse"];

/// One mount of the container, in the specification's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// Its place in the container, absolute.
    pub destination: PathBuf,
    /// What must be done for it outside the container.
    pub kind: MountKind,
}

/// What must be done for a mount outside the container. The guest's specification already has the source that results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// Nothing: the guest's kernel makes it (proc, tmpfs, cgroup...). A `cgroup` mount is the guest's cgroup2.
    GuestFilesystem,
    /// Nothing: it is a bind mount of the guest's own path (/proc, /sys, /dev).
    GuestPath,
    /// The pod's shared memory: the sandbox has one, of this many bytes on the host.
    SandboxShm {
        /// The size of the host's.
        bytes: u64,
    },
    /// A directory or file of the host: put it into the share.
    Bind(BindShare),
    /// A pod's volume in memory: a tmpfs in the guest, made once for the pod (the agent's driver `ephemeral`).
    Ephemeral(VolumePlan),
    /// A pod's volume on disk: a directory in the guest, made once for the pod (the agent's driver `local`).
    Local(VolumePlan),
}

/// A path of the host that the guest sees through the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindShare {
    /// The host's path, absolute, without symbolic links.
    pub source: PathBuf,
    /// What it is; never [`FileKind::Device`].
    pub kind: FileKind,
    /// Its name in the share: `<container>-<n>-<its own name>`.
    pub share_name: String,
    /// Where the guest finds it.
    pub guest_path: PathBuf,
    /// Whether nobody in the guest may write to it; to be enforced on the host too.
    pub read_only: bool,
    /// Whether what is mounted below it comes along (`rbind`).
    pub recursive: bool,
    /// Whether the host's later mounts below it appear.
    pub propagation: BindPropagation,
}

/// How mounts spread between the host and the share. The other way, from the guest to the host, there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindPropagation {
    /// Not at all.
    Private,
    /// The host's appear in the guest.
    Slave,
}

/// A volume that lives in the guest as long as the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// Its name, unique in the pod.
    pub name: String,
    /// The host's directory that it replaces.
    pub source: PathBuf,
    /// Where the guest has it.
    pub guest_path: PathBuf,
    /// The size of the host's file system, in bytes; for a tmpfs, the pod's limit.
    pub bytes: u64,
    /// The group that shall own it (Kubernetes' fsGroup); `None` for root's.
    pub gid: Option<u32>,
}

/// The size of a sandbox's shared memory in bytes, from its own /dev/shm mount: that of the tmpfs that is bound there
/// (an engine made it for the pod), or a tmpfs mount's `size`, else [`DEFAULT_SHM_BYTES`].
pub fn sandbox_shm_bytes(spec: &Spec, bundle: &Path, files: &dyn HostFiles) -> u64 {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let Some(mount) = mounts.iter().find(|mount| is_shm(mount.destination())) else {
        return DEFAULT_SHM_BYTES;
    };
    let bytes = if is_bind(mount) {
        let source = mount.source().as_ref().map(|source| bundle.join(source));
        source.and_then(|source| files.filesystem(&source).ok()).filter(|fs| fs.is_tmpfs).map(|fs| fs.bytes)
    } else {
        options(mount).iter().find_map(|option| option.strip_prefix("size=")).and_then(parse_size)
    };
    bytes.filter(|bytes| *bytes > 0).unwrap_or(DEFAULT_SHM_BYTES)
}

/// Plans one mount; gives also the mount for the guest's specification.
pub(super) fn plan(
    index: usize,
    mount: &Mount,
    settings: &GuestSpecOptions,
    files: &dyn HostFiles,
    warnings: &mut Vec<String>,
) -> Result<(Mount, MountPlan), OciError> {
    let mut guest = mount.clone();
    let destination = absolute(mount.destination(), warnings);
    guest.set_destination(destination.clone());
    if !is_bind(mount) {
        let kind = mount.typ().as_deref().unwrap_or_default();
        if !GUEST_TYPES.contains(&kind) {
            return Err(OciError::MountType { kind: kind.to_owned(), destination });
        }
        return Ok((guest, MountPlan { destination, kind: MountKind::GuestFilesystem }));
    }
    let Some(given) = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty()) else {
        return Err(OciError::NoMountSource { destination });
    };
    let given = settings.bundle.join(given);
    let kind = if is_guests(&given) {
        guest.set_source(Some(given));
        MountKind::GuestPath
    } else {
        bind(index, &given, &destination, mount, settings, files, warnings)?
    };
    match &kind {
        MountKind::SandboxShm { .. } => _ = guest.set_source(Some(settings.guest_sandbox.join("shm"))),
        MountKind::Bind(share) => _ = guest.set_source(Some(share.guest_path.clone())),
        MountKind::Ephemeral(volume) | MountKind::Local(volume) => {
            _ = guest.set_source(Some(volume.guest_path.clone()));
        }
        MountKind::GuestPath | MountKind::GuestFilesystem => {}
    }
    guest.set_typ(Some("bind".to_owned()));
    if !options(mount).iter().any(|option| option == "bind" || option == "rbind") {
        guest.options_mut().get_or_insert_default().insert(0, "bind".to_owned());
    }
    Ok((guest, MountPlan { destination, kind }))
}

fn bind(
    index: usize,
    given: &Path,
    destination: &Path,
    mount: &Mount,
    settings: &GuestSpecOptions,
    files: &dyn HostFiles,
    warnings: &mut Vec<String>,
) -> Result<MountKind, OciError> {
    let failed = |source| OciError::MountSource { path: given.to_owned(), destination: destination.to_owned(), source };
    let found = files.source(given).map_err(failed)?;
    if is_guests(&found.real) {
        return Ok(MountKind::GuestPath);
    }
    if found.kind == FileKind::Device {
        return Err(OciError::MountDevice { path: given.to_owned(), destination: destination.to_owned() });
    }
    if let Some(name) = empty_dir_name(given).filter(|_| found.kind == FileKind::Directory) {
        let FilesystemInfo { is_tmpfs, bytes } = files.filesystem(given).map_err(failed)?;
        let sort = if is_tmpfs { "ephemeral" } else { "local" };
        let volume = VolumePlan {
            guest_path: settings.guest_sandbox.join(sort).join(&name),
            name,
            source: found.real,
            bytes,
            gid: Some(found.gid).filter(|gid| *gid != 0),
        };
        return Ok(if is_tmpfs { MountKind::Ephemeral(volume) } else { MountKind::Local(volume) });
    }
    if is_shm(destination) && found.kind == FileKind::Directory {
        let filesystem = files.filesystem(given).map_err(failed)?;
        if filesystem.is_tmpfs {
            return Ok(MountKind::SandboxShm { bytes: filesystem.bytes });
        }
    }
    if matches!(found.kind, FileKind::Socket | FileKind::Pipe) {
        warnings.push(format!(
            "{} is a socket or pipe of the host: the container sees it but cannot reach who is behind it",
            given.display()
        ));
    }
    let has = |names: &[&str]| options(mount).iter().any(|option| names.contains(&option.as_str()));
    if has(&["shared", "rshared"]) {
        warnings.push(format!("mounts that the container makes below {} do not reach the host", destination.display()));
    }
    let share_name = share_name(&settings.container_id, index, given);
    Ok(MountKind::Bind(BindShare {
        guest_path: settings.guest_share.join(&share_name),
        share_name,
        source: found.real,
        kind: found.kind,
        read_only: read_only(options(mount)),
        recursive: has(&["rbind"]),
        propagation: if has(&["shared", "rshared", "slave", "rslave"]) {
            BindPropagation::Slave
        } else {
            BindPropagation::Private
        },
    }))
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || options(mount).iter().any(|option| option == "bind" || option == "rbind")
}

fn options(mount: &Mount) -> &[String] {
    mount.options().as_deref().unwrap_or_default()
}

/// The last of `ro`, `rro` and `rw` wins, as in mount(8).
fn read_only(options: &[String]) -> bool {
    options.iter().fold(false, |read_only, option| match option.as_str() {
        "ro" | "rro" => true,
        "rw" | "rrw" => false,
        _ => read_only,
    })
}

fn is_shm(path: &Path) -> bool {
    path == Path::new("/dev/shm")
}

/// Whether the guest's own path stands for the host's: what the kernel shows, and the devices that each kernel has.
fn is_guests(path: &Path) -> bool {
    let kernels = path.starts_with("/proc") || path.starts_with("/sys");
    // A path with `..` is looked up first.
    (kernels && !path.components().any(|part| part == Component::ParentDir))
        || path == Path::new("/dev")
        || path == Path::new("/dev/pts")
        || GUEST_DEVICES.iter().any(|device| path == Path::new(device))
}

fn empty_dir_name(path: &Path) -> Option<String> {
    let parent = path.parent()?.file_name()?;
    (parent == EMPTY_DIR).then(|| path.file_name().map(|name| name.to_string_lossy().into_owned()))?
}

fn share_name(container: &str, index: usize, path: &Path) -> String {
    let own = path.file_name().unwrap_or_else(|| OsStr::new("root")).to_string_lossy();
    let mut name = format!("{container}-{index}-{own}");
    while name.len() > MAX_FILE_NAME {
        name.pop();
    }
    name
}

/// The OCI allows a relative destination: it begins at the container's root.
fn absolute(destination: &Path, warnings: &mut Vec<String>) -> PathBuf {
    if destination.is_absolute() {
        return destination.to_owned();
    }
    warnings.push(format!("mount destination {} is not absolute: it is taken from /", destination.display()));
    Path::new("/").join(destination)
}

/// A tmpfs size: bytes, or with k, m or g after it. A share of the memory (%) is not known here.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
