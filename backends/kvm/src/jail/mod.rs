//! What the machine's process gives up before the guest runs.
//!
//! A guest that finds a hole in the monitor becomes this process. So that it then has nothing, in this order:
//!
//! 1. The supervisor opens every file (/dev/kvm included), makes every socket, and starts the process as the first of a PID
//!    namespace of its own, dying with the supervisor.
//! 2. [`enter`] closes what was not named, moves into mount, network, IPC and UTS namespaces of its own whose root is the
//!    share, or empty and read-only when there is none ([`stockade_devices::jail`] tells how), forbids core dumps and locked
//!    memory, forbids gaining privileges, and drops all capabilities but a file server's, or all when there is no share.
//! 3. Each thread confines itself when it begins ([`Jail::thread`]), and the main thread when all are there
//!    ([`Jail::main`]): it becomes a user and group that own nothing on the host, has no capability, and has a filter that
//!    kills the process on a system call that a thread of its [kind](filters) has no use for.
//!
//! **The thread that serves the share** is the exception: it stays root with the eight capabilities of
//! [`Capabilities::FileServer`], since it acts as each of the guest's users in turn, and its filter has the calls on files.
//! It sees the share and nothing else. All threads share one memory, so whoever takes one over can write what another
//! does: **with a share, what stands between an escaped guest and the share's files are that root and those capabilities,
//! not the user**. Without a share nothing in the process has any privilege.
//!
//! A user of its own for each machine ([`user_of`]) keeps machines from each other: signals, limits that are counted a user,
//! /proc. The range is one that no system assigns; the supervisor's id makes it unique among the machines that run.

pub mod filters;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use stockade_devices::jail::seccomp::Filter;
use stockade_devices::jail::{self, Capabilities, JailError, Jailed, keep_only, shrink_bounding_set};

use crate::sys;
use crate::virtio::ThreadKind;
use filters::Filters;

/// The first user id of machines' processes; the range ends before 2^31. Between the last range that systemd's conventions
/// give to containers (1,879,048,191) and those that some file systems cannot store.
const FIRST_USER: u32 = 0x7000_0000;

/// The user, and group, of the machine whose supervisor has the process id `supervisor`.
#[must_use]
pub fn user_of(supervisor: u32) -> u32 {
    // Process ids end below 2^22.
    FIRST_USER + (supervisor & 0x0fff_ffff)
}

/// What the process keeps.
#[derive(Debug)]
pub struct JailConfig {
    /// The shared directory, which becomes the root.
    pub share: Option<PathBuf>,
    /// Descriptors to keep open beside 0, 1 and 2.
    pub keep: Vec<RawFd>,
    /// The user and group of threads that serve no files.
    pub user: u32,
    /// Install system call filters.
    pub seccomp: bool,
    /// vCPUs may be plugged in.
    pub vcpu_hotplug: bool,
    /// The size in bytes that files may grow to, where the process writes none but those that it is saved to.
    pub file_size: Option<u64>,
}

/// Confines the threads of a process that has entered its jail.
#[derive(Debug, Clone)]
pub struct Jail {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    user: u32,
    filters: Option<Filters>,
}

/// Moves the process into its jail; it must have one thread, and be root. What needs the share's privileges is to be
/// started between this and [`Jail::main`].
///
/// # Errors
/// A step failed; the process may be half inside and must end.
pub fn enter(config: &JailConfig) -> Result<(Jail, Jailed), JailError> {
    let jailed =
        jail::enter(&jail::JailConfig { root: config.share.clone(), keep: config.keep.clone(), parent: None })?;
    let failed = |what| move |errno: nix::errno::Errno| JailError::Call { what, source: errno.into() };
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).map_err(failed("forbid locked memory"))?;
    if let Some(size) = config.file_size {
        setrlimit(Resource::RLIMIT_FSIZE, size, size).map_err(failed("limit the size of files"))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(failed("forbid new privileges"))?;
    let filters = config.seccomp.then(|| Filters::compile(config.vcpu_hotplug)).transpose()?;
    if filters.is_some() {
        jail::seccomp::refuse_clone3()?;
    }
    if config.share.is_some() {
        keep_only(Capabilities::FileServer)?;
    } else {
        // The user last: shrinking the set takes a capability, which goes with the user.
        shrink_bounding_set(Capabilities::None)?;
        become_user(config.user)?;
        keep_nothing()?;
    }
    protect()?;
    Ok((Jail { inner: Arc::new(Inner { user: config.user, filters }) }, jailed))
}

/// Becomes a user that owns nothing, this thread alone. For a thread with other capabilities than those that the change
/// itself takes, the kernel drops them.
fn become_user(user: u32) -> Result<(), JailError> {
    sys::become_user(user).map_err(|source| JailError::Call { what: "become an unprivileged user", source })
}

/// Nobody but root may look into the process or trace it. And the order to die with the supervisor is given anew, since the
/// kernel forgets it when a process changes its user; whether the supervisor has died before shows by the control socket.
fn protect() -> Result<(), JailError> {
    let failed = |what| move |errno: nix::errno::Errno| JailError::Call { what, source: errno.into() };
    nix::sys::prctl::set_dumpable(false).map_err(failed("forbid tracing and core dumps"))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("ask to die with the supervisor"))
}

impl Jail {
    /// Confines the calling thread, which has just begun, to what a device's thread of this kind does.
    ///
    /// # Errors
    /// A step failed; the thread must do nothing more.
    pub fn thread(&self, kind: ThreadKind) -> Result<(), JailError> {
        if kind != ThreadKind::Fs {
            self.give_up()?;
        }
        self.install(|filters| filters.device(kind))
    }

    /// Confines the calling thread, which has just begun, to running a vCPU.
    ///
    /// # Errors
    /// A step failed; the thread must do nothing more.
    pub fn vcpu(&self) -> Result<(), JailError> {
        self.give_up()?;
        self.install(|filters| &filters.vcpu)
    }

    /// Gives the main thread's privileges up, once all threads that need some have begun.
    ///
    /// # Errors
    /// A step failed; the process must end.
    pub fn give_up_privileges(&self) -> Result<(), JailError> {
        self.give_up()?;
        // The change of the user has undone both.
        protect()
    }

    /// Confines the main thread, which has given its privileges up, to talking to the supervisor and changing the machine.
    ///
    /// # Errors
    /// A step failed; the process must end.
    pub fn main(&self) -> Result<(), JailError> {
        self.install(|filters| &filters.main)
    }

    fn give_up(&self) -> Result<(), JailError> {
        // The kernel's word on this very thread: one that was started by a thread which had given everything up has nothing.
        if nix::unistd::geteuid().as_raw() == self.inner.user {
            return Ok(());
        }
        become_user(self.inner.user)?;
        keep_nothing()
    }

    fn install(&self, which: impl FnOnce(&Filters) -> &Filter) -> Result<(), JailError> {
        self.inner.filters.as_ref().map_or(Ok(()), |filters| which(filters).install())
    }
}

/// Drops what capabilities the change of the user has left: none, but nothing shall depend on that.
fn keep_nothing() -> Result<(), JailError> {
    sys::drop_capabilities().map_err(|source| JailError::Call { what: "drop the last capabilities", source })
}
