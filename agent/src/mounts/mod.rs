//! Storages: what the supervisor wants mounted in the guest, for a sandbox or for a container.

mod block;
mod options;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use stockade_agent_protocol::agent::Storage;
use stockade_agent_protocol::types::FSGroupChangePolicy;
use tokio::time::Instant;

pub(crate) use block::wait_for_device;
use options::{Flags, parse_options};

/// The drivers that [`Storages::add`] knows.
pub(crate) const DRIVERS: &[&str] = &["bind", "blk", "ephemeral", "local", "mmioblk", "overlayfs", "virtio-fs"];

/// How often a device that is not there yet is looked for.
const POLL: Duration = Duration::from_millis(10);

/// Why something could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// Nobody mounts this kind.
    #[error("no handler for storage driver {driver:?} of {mount_point:?}")]
    UnknownDriver { driver: String, mount_point: PathBuf },
    /// A storage without an absolute mount point.
    #[error("storage mount point {0:?} is not an absolute path")]
    BadMountPoint(PathBuf),
    /// The mount itself.
    #[error("cannot mount {source_name:?} ({fstype}) at {target:?}")]
    Mount {
        source_name: String,
        fstype: String,
        target: PathBuf,
        #[source]
        source: Errno,
    },
    /// A file or directory beside the mount.
    #[error("cannot {what} {path:?}")]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The device did not appear.
    #[error("device {device:?} did not appear within {limit:?}")]
    NoDevice { device: String, limit: Duration },
    /// An option with a value that means nothing.
    #[error("storage option {0:?} is not understood")]
    BadOption(String),
}

fn path_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let path = path.to_owned();
    move |source| MountError::Path { what, path, source }
}

/// What is mounted, and for how many users.
#[derive(Debug, Default)]
pub(crate) struct Storages {
    mounted: HashMap<PathBuf, Mounted>,
}

#[derive(Debug)]
struct Mounted {
    users: usize,
    undo: Undo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    Unmount,
    /// As `Unmount`, of a file system that is on a disk.
    UnmountDisk,
    RemoveTree,
}

impl Storages {
    /// Notes one more user of a mount point that is mounted already.
    pub(crate) fn share(&mut self, mount_point: &Path) -> bool {
        match self.mounted.get_mut(mount_point) {
            Some(mounted) => {
                mounted.users += 1;
                true
            }
            None => false,
        }
    }

    fn insert(&mut self, mount_point: PathBuf, undo: Undo) {
        self.mounted.insert(mount_point, Mounted { users: 1, undo });
    }

    /// Gives up one use, and undoes the mount with the last one.
    pub(crate) fn release(&mut self, mount_point: &Path) {
        let Some(mounted) = self.mounted.get_mut(mount_point) else {
            return;
        };
        mounted.users = mounted.users.saturating_sub(1);
        if mounted.users > 0 {
            return;
        }
        let undone = match mounted.undo {
            Undo::Unmount | Undo::UnmountDisk => umount2(mount_point, MntFlags::MNT_DETACH).map_err(io::Error::from),
            Undo::RemoveTree => fs::remove_dir_all(mount_point),
        };
        if let Err(e) = undone {
            crate::log::warning!("cannot undo the storage at {mount_point:?}: {e}");
        }
        self.mounted.remove(mount_point);
    }

    /// Whether one of them must be unmounted before the guest ends. A shared directory has what was written to it, and what
    /// is in memory goes with the guest.
    pub(crate) fn on_disks(&self) -> bool {
        self.mounted.values().any(|mounted| mounted.undo == Undo::UnmountDisk)
    }

    /// Undoes everything, the latest paths first.
    pub(crate) fn release_all(&mut self) {
        let mut points: Vec<PathBuf> = self.mounted.keys().cloned().collect();
        // What is mounted below another comes first.
        points.sort_unstable_by(|a, b| b.cmp(a));
        for point in points {
            if let Some(mounted) = self.mounted.get_mut(&point) {
                mounted.users = 1;
            }
            self.release(&point);
        }
    }
}

/// Mounts all, in order; when one fails, those before it are undone. Returns the mount points in use.
pub(crate) async fn add_all(
    storages: &std::sync::Mutex<Storages>,
    list: &[Storage],
    hotplug_timeout: Duration,
) -> Result<Vec<PathBuf>, MountError> {
    let lock = || storages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut added: Vec<PathBuf> = Vec::new();
    for storage in list {
        let point = PathBuf::from(&storage.mount_point);
        let result = if lock().share(&point) {
            Ok(())
        } else {
            add(storage, &point, hotplug_timeout).await.map(|undo| lock().insert(point.clone(), undo))
        };
        match result {
            Ok(()) => added.push(point),
            Err(e) => {
                for point in added.iter().rev() {
                    lock().release(point);
                }
                return Err(e);
            }
        }
    }
    Ok(added)
}

async fn add(storage: &Storage, point: &Path, hotplug_timeout: Duration) -> Result<Undo, MountError> {
    if !point.is_absolute() {
        return Err(MountError::BadMountPoint(point.to_owned()));
    }
    let undo = match storage.driver.as_str() {
        "virtio-fs" => {
            directory(point)?;
            mount_when_there(storage, "virtiofs", hotplug_timeout).await?;
            Undo::Unmount
        }
        "blk" | "mmioblk" => {
            let device = block::find(&storage.source, hotplug_timeout).await?;
            directory(point)?;
            do_mount(&device, point, &storage.fstype, &storage.options)?;
            Undo::UnmountDisk
        }
        "ephemeral" => {
            directory(point)?;
            do_mount("tmpfs", point, "tmpfs", &storage.options)?;
            Undo::Unmount
        }
        "local" => {
            local(point, &storage.options)?;
            Undo::RemoveTree
        }
        "bind" => {
            bind(storage, point)?;
            Undo::Unmount
        }
        "overlayfs" => {
            directory(point)?;
            do_mount("overlay", point, "overlay", &storage.options)?;
            Undo::Unmount
        }
        other => {
            return Err(MountError::UnknownDriver { driver: other.to_owned(), mount_point: point.to_owned() });
        }
    };
    if let Some(group) = storage.fs_group.as_ref() {
        set_group(point, group.group_id, group.group_change_policy.enum_value_or_default())?;
    }
    Ok(undo)
}

fn directory(path: &Path) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(path_error("make the directory", path))
}

fn do_mount(source: &str, target: &Path, fstype: &str, options: &[String]) -> Result<(), MountError> {
    let Flags { set, data, .. } = parse_options(options);
    let data = (!data.is_empty()).then_some(data.as_str());
    mount(Some(source), target, Some(fstype), set, data).map_err(|errno| MountError::Mount {
        source_name: source.to_owned(),
        fstype: fstype.to_owned(),
        target: target.to_owned(),
        source: errno,
    })
}

/// A file system's tag is known only after its device was found, which may happen while we wait.
async fn mount_when_there(storage: &Storage, fstype: &str, limit: Duration) -> Result<(), MountError> {
    let deadline = Instant::now() + limit;
    loop {
        let result = do_mount(&storage.source, Path::new(&storage.mount_point), fstype, &storage.options);
        match result {
            Err(MountError::Mount { source: Errno::EINVAL | Errno::ENODEV | Errno::ENOENT, .. })
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

fn local(point: &Path, options: &[String]) -> Result<(), MountError> {
    directory(point)?;
    for option in options {
        if let Some(mode) = option.strip_prefix("mode=") {
            let mode = u32::from_str_radix(mode, 8).map_err(|_| MountError::BadOption(option.clone()))?;
            fs::set_permissions(point, fs::Permissions::from_mode(mode))
                .map_err(path_error("set the mode of", point))?;
        }
    }
    Ok(())
}

fn bind(storage: &Storage, point: &Path) -> Result<(), MountError> {
    let source = Path::new(&storage.source);
    let metadata = fs::metadata(source).map_err(path_error("look at", source))?;
    if metadata.is_dir() {
        directory(point)?;
    } else {
        if let Some(parent) = point.parent() {
            directory(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(point).map_err(path_error("make the file", point))?;
    }
    let flags = parse_options(&storage.options);
    let failed = |errno| MountError::Mount {
        source_name: storage.source.clone(),
        fstype: "bind".to_owned(),
        target: point.to_owned(),
        source: errno,
    };
    let none: Option<&str> = None;
    mount(Some(source), point, none, MsFlags::MS_BIND | (flags.set & MsFlags::MS_REC), none).map_err(failed)?;
    let restrictions = flags.set & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if !restrictions.is_empty() {
        let remount = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | restrictions;
        mount(none, point, none, remount, none).map_err(|errno| {
            // A bind that is wider than asked for must not stay.
            let _ = umount2(point, MntFlags::MNT_DETACH);
            failed(errno)
        })?;
    }
    Ok(())
}

/// Gives a volume's files to a group, as a pod's fsGroup wants it.
fn set_group(root: &Path, group: u32, policy: FSGroupChangePolicy) -> Result<(), MountError> {
    let metadata = fs::metadata(root).map_err(path_error("look at", root))?;
    if policy == FSGroupChangePolicy::OnRootMismatch && metadata.gid() == group && metadata.mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).map_err(path_error("look at", &path))?;
        std::os::unix::fs::lchown(&path, None, Some(group)).map_err(path_error("change the group of", &path))?;
        if metadata.is_symlink() {
            continue;
        }
        let mut mode = metadata.mode() | ((metadata.mode() & 0o600) >> 3);
        if metadata.is_dir() {
            mode |= 0o2070;
            let entries = fs::read_dir(&path).map_err(path_error("list", &path))?;
            pending.extend(entries.flatten().map(|entry| entry.path()));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))
            .map_err(path_error("set the mode of", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_is_undone_with_its_last_user() {
        let dir = std::env::temp_dir().join(format!("stockade-agent-local-{}", std::process::id()));
        let mut storages = Storages::default();
        local(&dir, &["mode=0700".to_owned()]).expect("made");
        assert!(!storages.share(&dir));
        storages.insert(dir.clone(), Undo::RemoveTree);
        assert!(storages.share(&dir));
        storages.release(&dir);
        assert!(dir.exists());
        storages.release(&dir);
        assert!(!dir.exists());
    }

    #[test]
    fn a_disk_among_the_storages_is_known() {
        let mut storages = Storages::default();
        storages.insert("/shared".into(), Undo::Unmount);
        assert!(!storages.on_disks());
        storages.insert("/disk".into(), Undo::UnmountDisk);
        assert!(storages.on_disks());
    }

    #[tokio::test]
    async fn an_unknown_driver_undoes_the_storages_before_it() {
        let dir = std::env::temp_dir().join(format!("stockade-agent-undo-{}", std::process::id()));
        let point = dir.to_string_lossy().into_owned();
        let list = [
            Storage { driver: "local".to_owned(), mount_point: point, ..Default::default() },
            Storage { driver: "9p".to_owned(), mount_point: "/x".to_owned(), ..Default::default() },
        ];
        let storages = std::sync::Mutex::default();
        let error = add_all(&storages, &list, Duration::ZERO).await.expect_err("refused");
        assert_eq!(error.to_string(), "no handler for storage driver \"9p\" of \"/x\"");
        assert!(!dir.exists());
    }
}
