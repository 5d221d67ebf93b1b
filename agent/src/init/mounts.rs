//! The guest's own file systems.

use std::fs;
use std::os::unix::fs::symlink;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::InitError;

struct Entry {
    what: &'static str,
    target: &'static str,
    options: &'static str,
    flags: MsFlags,
    /// Nothing works without it.
    needed: bool,
}

const STRICT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const TABLE: &[Entry] = &[
    Entry { what: "proc", target: "/proc", options: "", flags: STRICT, needed: true },
    Entry { what: "sysfs", target: "/sys", options: "", flags: STRICT, needed: true },
    Entry { what: "devtmpfs", target: "/dev", options: "mode=0755", flags: MsFlags::MS_NOSUID, needed: true },
    Entry {
        what: "devpts",
        target: "/dev/pts",
        options: "gid=5,mode=0620,ptmxmode=0666",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        needed: false,
    },
    Entry { what: "tmpfs", target: "/dev/shm", options: "mode=1777", flags: STRICT, needed: false },
    Entry { what: "tmpfs", target: "/run", options: "mode=0755", flags: NO_DEVICES, needed: true },
    Entry { what: "tmpfs", target: "/tmp", options: "mode=1777", flags: NO_DEVICES, needed: false },
    Entry { what: "cgroup2", target: "/sys/fs/cgroup", options: "nsdelegate", flags: STRICT, needed: true },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is not mounted yet. Returns what failed and can be done without.
pub(super) fn mount_all() -> Result<Vec<String>, InitError> {
    let mut problems = Vec::new();
    for entry in TABLE {
        // Fails where it exists, or where it must not be made; the mount tells.
        let _ = fs::create_dir_all(entry.target);
        match mount(Some(entry.what), entry.target, Some(entry.what), entry.flags, Some(entry.options)) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(source) if entry.needed => {
                return Err(InitError::Mount { what: entry.what, target: entry.target, source });
            }
            Err(errno) => problems.push(format!("mount {} at {}: {errno}", entry.what, entry.target)),
        }
    }
    for (target, link) in LINKS {
        // One that is there already is as good.
        let _ = symlink(target, link);
    }
    Ok(problems)
}
