//! Leaves the initramfs, whose root `pivot_root` does not work on.

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};

use super::InitError;

/// Magic number that libc does not name on all targets.
const RAMFS: FsType = FsType(0x8584_58f6);

/// Makes a bind mount of the initramfs the root.
///
/// `pivot_root` refuses a root whose mount has no parent, which is the case for the kernel's first root
/// only. The bind mount has one, and shares the files, so that nothing is copied.
pub(super) fn leave_initramfs() -> Result<(), InitError> {
    let step = |step| move |source| InitError::Root { step, source };
    let kind = statfs("/").map_err(step("look at the root"))?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != RAMFS {
        // A disk image: its root was mounted by the kernel or by another init.
        return Ok(());
    }
    let none: Option<&str> = None;
    nix::unistd::mkdir("/newroot", nix::sys::stat::Mode::S_IRWXU)
        .or_else(|errno| if errno == nix::errno::Errno::EEXIST { Ok(()) } else { Err(errno) })
        .map_err(step("make /newroot"))?;
    mount(Some("/"), "/newroot", none, MsFlags::MS_BIND, none).map_err(step("bind the root"))?;
    chdir("/newroot").map_err(step("enter the new root"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(step("move the new root"))?;
    chroot(".").map_err(step("change to the new root"))?;
    chdir("/").map_err(step("enter the new root"))?;
    // Left over by its own making.
    let _ = std::fs::remove_dir("/newroot");
    Ok(())
}
