//! mount(2), with what a person needs to know in the error.

use crate::error::{ErrorKind, OpError};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::io;
use std::path::Path;

/// The flags of a bind mount, as `mount(2)` has them.
pub use nix::mount::MsFlags as MountFlags;

/// Gives this process a mount namespace of its own, which hears of the host's later mounts but tells none of its own.
/// Call it before any thread is started.
///
/// # Errors
/// Not root, or no such namespace.
pub fn private_mount_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    Ok(())
}

/// Binds a directory onto itself and makes it a peer group of its own.
pub(super) fn make_shared(directory: &Path) -> io::Result<()> {
    mount(Some(directory), directory, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let private = mount(None::<&str>, directory, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>);
    let shared = private.and_then(|()| mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED, None::<&str>));
    if let Err(error) = shared {
        let _ = nix::mount::umount(directory);
        return Err(error.into());
    }
    Ok(())
}

/// Binds `source`, with all that is mounted below it, onto `target`, which is made like it (a directory or a file).
/// `flags` (read-only, noexec, …) are set in a second call, as mount(2) wants it. On error nothing stays mounted.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] when the source is not there; else what the host said.
pub fn bind(source: &Path, target: &Path, flags: MountFlags) -> Result<(), OpError> {
    let what = format!("cannot share {} with the guest", source.display());
    let metadata =
        fs::metadata(source).map_err(|error| OpError::because(ErrorKind::InvalidArgument, what.clone(), error))?;
    let failed = |error: io::Error| OpError::internal(what.clone(), error);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let made = if metadata.is_dir() { fs::create_dir_all(target) } else { fs::write(target, "") };
    made.map_err(failed)?;
    let bound = mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>);
    bound.map_err(|error| failed(error.into()))?;
    if !flags.is_empty() {
        let remount = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        if let Err(error) = mount(None::<&str>, target, None::<&str>, remount, None::<&str>) {
            let _ = crate::state::unmount(target);
            return Err(failed(error.into()));
        }
    }
    Ok(())
}

/// Mounts a root file system as a shim describes it (containerd's `Mount`): type, source, options.
///
/// # Errors
/// What the host said.
pub fn mount_rootfs(kind: &str, source: &str, options: &[String], target: &Path) -> Result<(), OpError> {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags.remove(MsFlags::MS_RDONLY),
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            other => data.push(other),
        }
    }
    let what = format!("cannot mount the root file system {source} ({kind}) at {}", target.display());
    fs::create_dir_all(target).map_err(|error| OpError::internal(what.clone(), error))?;
    let data = data.join(",");
    let mounted = mount(Some(source), target, Some(kind), flags, Some(data.as_str()));
    mounted.map_err(|error| OpError::internal(what.clone(), io::Error::from(error)))?;
    if flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
        let remount = flags | MsFlags::MS_REMOUNT;
        if let Err(error) = mount(None::<&str>, target, None::<&str>, remount, None::<&str>) {
            let _ = crate::state::unmount(target);
            return Err(OpError::internal(what, io::Error::from(error)));
        }
    }
    Ok(())
}
