//! What a device process gives up before it listens to a guest.
//!
//! A guest that finds a hole in a device becomes this process. So that it then has nothing:
//!
//! 1. [`enter`] closes every descriptor that was not named, and moves into a mount namespace whose root is the share and
//!    nothing else (or an empty file system), and into network, IPC and UTS namespaces of its own. The share's mounts are
//!    slaves of those in the parent's namespace: what the supervisor mounts below the share later appears here too, and
//!    nothing done here shows there. For that, the share must lie on a *shared* mount of the supervisor's namespace
//!    (bind it onto itself and make it shared). Unmounting there takes `MNT_DETACH`, since a guest that remembers a file
//!    keeps this process's copy of the mount busy. The mounts are made nodev, nosuid and noexec here (those that
//!    arrive later bring their own flags).
//! 2. [`confine`] drops all capabilities but those that serving files as root takes, forbids gaining any
//!    (no_new_privs, bounding set), and installs a system call filter that kills the process on a call it has no use for.
//!
//! There is no `/proc` in the jail. The file system server needs `/proc/self/fd` to reopen an `O_PATH` descriptor, so
//! that one directory is opened before as a detached mount, from which no `..` leads out.
//! A library that looks for `/proc/<thread>/status` (libcap-ng does) finds nothing, or what the guest put into its own
//! share: it fills a bounding set from it that is never applied.
//!
//! **No PID namespace here.** It would take a second fork, and the pid that the supervisor watches, limits and finds in its
//! cgroup would be that of a go-between. What the namespace would prevent is prevented otherwise: the filter has no
//! `kill`, no `ptrace` and no `pidfd_*`, `tgkill` is allowed for this process alone, and `/proc` is out of sight.
//!
//! **No user namespace.** The files of a container belong to many users, and the server acts as each; a namespace that
//! maps them all would restrict nothing, and mount propagation into it would be less.

mod capabilities;
pub mod seccomp;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

pub use capabilities::Capabilities;

use crate::sys;

/// Descriptors that the process would like to open; what the kernel allows may be less.
const WANTED_DESCRIPTORS: u64 = 1 << 20;

/// What the process is to keep.
#[derive(Debug)]
pub struct JailConfig {
    /// The directory that becomes the root; `None` for an empty root.
    pub root: Option<PathBuf>,
    /// Descriptors to keep open beside 0, 1 and 2.
    pub keep: Vec<RawFd>,
    /// The process that started this one, if it should die with it.
    pub parent: Option<u32>,
}

/// What the process has inside.
#[derive(Debug)]
pub struct Jailed {
    /// `/proc/self/fd`, to reopen descriptors by.
    pub proc_self_fd: OwnedFd,
    /// Descriptors that the process may open in all.
    pub descriptor_limit: u64,
}

/// Why the jail could not be closed. Nothing may be served after that.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A call failed.
    #[error("cannot {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The share cannot be made the root.
    #[error("cannot {what} of the share {root:?}")]
    Root {
        /// What was tried.
        what: &'static str,
        /// The share.
        root: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path of the share has a NUL inside.
    #[error("the share's path {0:?} contains a NUL byte")]
    RootHasNul(PathBuf),
    /// Namespaces and capabilities are per thread: other threads would stay outside.
    #[error("the process has {0} threads; the jail must be entered by a single one")]
    Threads(usize),
    /// The parent died before this process could ask to die with it.
    #[error("process {0}, which started this one, is gone")]
    ParentGone(u32),
    /// The system call filter does not compile.
    #[error("cannot build the system call filter")]
    Filter(#[source] seccompiler::BackendError),
    /// The system call filter cannot be installed.
    #[error("cannot install the system call filter")]
    Install(#[source] seccompiler::Error),
}

/// Names the call that failed.
fn call<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Call { what, source: source.into() }
}

/// Moves the process into its namespaces and root. It must have one thread, and CAP_SYS_ADMIN.
///
/// # Errors
/// A step failed; the process may be half inside and must end.
pub fn enter(config: &JailConfig) -> Result<Jailed, JailError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(call("count the threads of the process"))?.count();
    if threads != 1 {
        return Err(JailError::Threads(threads));
    }
    if let Some(parent) = config.parent {
        die_with(parent)?;
    }
    close_others(&config.keep)?;
    let descriptor_limit = set_limits()?;
    nix::sys::stat::umask(Mode::empty());
    nix::unistd::setgroups(&[]).map_err(call("drop the supplementary groups"))?;

    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(call("enter new namespaces"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .map_err(call("make the mounts slaves of the parent's"))?;
    let proc_self_fd = sys::clone_tree(c"/proc/self/fd", false).map_err(call("keep /proc/self/fd"))?;
    match &config.root {
        Some(root) => attach_root(root)?,
        None => attach_empty_root()?,
    }
    Ok(Jailed { proc_self_fd, descriptor_limit })
}

/// Gives up capabilities and system calls for good. Threads started afterwards inherit both.
///
/// # Errors
/// A step failed; the process must end.
pub fn confine(capabilities: Capabilities) -> Result<(), JailError> {
    nix::sys::prctl::set_no_new_privs().map_err(call("forbid new privileges"))?;
    capabilities::keep_only(capabilities)?;
    seccomp::install()
}

/// Drops all capabilities but these from every set of this thread; threads that it starts inherit the rest.
///
/// # Errors
/// The thread lacks CAP_SETPCAP.
pub fn keep_only(capabilities: Capabilities) -> Result<(), JailError> {
    capabilities::keep_only(capabilities)
}

/// Makes these the most that this thread, and those that it starts, can ever have.
///
/// # Errors
/// The thread lacks CAP_SETPCAP.
pub fn shrink_bounding_set(capabilities: Capabilities) -> Result<(), JailError> {
    capabilities::shrink_bounding_set(capabilities)
}

/// Asks to be killed when the parent dies, and looks whether it has died already.
fn die_with(parent: u32) -> Result<(), JailError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(call("ask to die with the parent process"))?;
    if std::os::unix::process::parent_id() == parent { Ok(()) } else { Err(JailError::ParentGone(parent)) }
}

/// Closes what the process inherited and was not told of.
fn close_others(keep: &[RawFd]) -> Result<(), JailError> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).chain([0, 1, 2]).collect();
    keep.sort_unstable();
    keep.dedup();
    let ends = keep.iter().copied().skip(1).map(|fd| fd - 1).chain([u32::MAX]);
    for (kept, last) in keep.iter().copied().zip(ends) {
        let first = kept + 1;
        if first <= last {
            sys::close_range(first, last).map_err(call("close inherited descriptors"))?;
        }
    }
    Ok(())
}

/// Raises the limit of descriptors, as each inode that a guest remembers is one, and forbids core dumps, which would
/// hold the guest's memory.
fn set_limits() -> Result<u64, JailError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(call("forbid core dumps"))?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(call("read the limit of descriptors"))?;
    let wanted = hard.max(WANTED_DESCRIPTORS);
    // Beyond the hard limit needs a privilege and the kernel's own maximum; else the hard limit it is.
    for limit in [wanted, hard] {
        match setrlimit(Resource::RLIMIT_NOFILE, limit, limit) {
            Ok(()) => return Ok(limit),
            Err(Errno::EPERM) if limit != hard => {}
            Err(errno) => return Err(call("raise the limit of descriptors")(errno)),
        }
    }
    Ok(hard)
}

/// Makes a copy of the share's mounts the root.
fn attach_root(root: &Path) -> Result<(), JailError> {
    let failed = |what| move |source| JailError::Root { what, root: root.to_owned(), source };
    let path = CString::new(root.as_os_str().as_bytes()).map_err(|_| JailError::RootHasNul(root.to_owned()))?;
    let tree = sys::clone_tree(&path, true).map_err(failed("copy the mounts"))?;
    sys::restrict_tree(tree.as_fd()).map_err(failed("restrict the mounts"))?;
    sys::attach_tree(tree.as_fd(), &path).map_err(failed("attach the mounts"))?;
    nix::unistd::fchdir(tree.as_raw_fd()).map_err(io::Error::from).map_err(failed("enter the mounts"))?;
    pivot()
}

/// Makes an empty, read-only file system the root.
fn attach_empty_root() -> Result<(), JailError> {
    // Any directory will do to mount it on; the mount is seen here only.
    mount(
        Some("none"),
        "/proc",
        Some("tmpfs"),
        MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("size=4k,nr_inodes=1"),
    )
    .map_err(call("mount an empty root"))?;
    nix::unistd::chdir("/proc").map_err(call("enter the empty root"))?;
    pivot()
}

/// Makes the working directory the root, and lets go of the old one.
fn pivot() -> Result<(), JailError> {
    let old = nix::fcntl::open(
        "/",
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(call("open the old root"))?;
    nix::unistd::pivot_root(".", ".").map_err(call("change the root"))?;
    nix::unistd::fchdir(old).map_err(call("enter the old root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(call("unmount the old root"))?;
    nix::unistd::close(old).map_err(call("close the old root"))?;
    nix::unistd::chdir("/").map_err(call("enter the new root"))
}
