//! A macvtap's device file. Its numbers are in sysfs, which shows the links of the namespace that it was mounted in; so
//! it is mounted, and the file made, in a mount namespace of this thread's own, which ends with the thread.

use super::tap;
use crate::netlink::NetlinkError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Where sysfs is expected, and where it is mounted over.
const SYSFS: &str = "/sys";

/// Opens the queues of the macvtap `name`.
pub(super) fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, NetlinkError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(system)?;
    let none: Option<&Path> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(system)?;
    mount(Some("sysfs"), SYSFS, Some("sysfs"), MsFlags::MS_RDONLY, none).map_err(system)?;
    let (major, minor) = numbers(name).map_err(NetlinkError::System)?;
    mount(Some("tmpfs"), SYSFS, Some("tmpfs"), MsFlags::empty(), none).map_err(system)?;
    let path = Path::new(SYSFS).join("tap");
    mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor)).map_err(system)?;
    tap::open_macvtap(&path, name, queues)
}

fn numbers(name: &str) -> io::Result<(u64, u64)> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("sysfs has no device of {name:?}"));
    let folder = Path::new(SYSFS).join("class/net").join(name).join("macvtap");
    let entry = fs::read_dir(folder)?.next().ok_or_else(missing)??;
    let text = fs::read_to_string(entry.path().join("dev"))?;
    let (major, minor) = text.trim().split_once(':').ok_or_else(missing)?;
    Ok((major.parse().map_err(|_| missing())?, minor.parse().map_err(|_| missing())?))
}

fn system(errno: nix::Error) -> NetlinkError {
    NetlinkError::System(errno.into())
}
