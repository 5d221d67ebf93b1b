//! One network namespace: made, or joined by its path, and held by a descriptor.

use super::sys;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// Why a network namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path leads nowhere.
    #[error("network namespace {path:?} cannot be opened")]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path leads to something else.
    #[error("{path:?} is not a namespace")]
    NotNamespace {
        /// As given.
        path: PathBuf,
    },
    /// The path leads to a namespace of another kind.
    #[error("{path:?} is a {kind} namespace, not a network namespace")]
    OtherKind {
        /// As given.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A virtual machine cannot be in the host's network.
    #[error(
        "host networking is not supported: {path:?} is the host's network namespace; give the sandbox a namespace of its own, or set disable_new_netns"
    )]
    HostNetworking {
        /// As given.
        path: PathBuf,
    },
    /// The kernel gave no new namespace.
    #[error("a network namespace cannot be created: {step}")]
    Create {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not go into the namespace.
    #[error("the network namespace cannot be entered")]
    Enter {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The work in the namespace panicked.
    #[error("the work in the network namespace did not end")]
    Panicked,
}

/// What tells a network namespace from every other while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Of the file system that namespaces are on.
    pub device: u64,
    /// Its own.
    pub inode: u64,
}

impl NamespaceId {
    /// That of an open namespace.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn of(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = fstat(namespace.as_raw_fd())?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// /proc is not there.
    pub(crate) fn of_thread() -> io::Result<Self> {
        let metadata = std::fs::metadata("/proc/thread-self/ns/net")?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// A network namespace, held by a descriptor: it has no name unless someone else gave it one. One that we made is gone
/// when the last process in it and the last descriptor of it are.
#[derive(Debug, Clone)]
pub struct NetworkNamespace {
    descriptor: Arc<OwnedFd>,
    created: bool,
}

impl NetworkNamespace {
    /// Makes a new one, with `lo` up. Blocks for about a millisecond.
    ///
    /// # Errors
    /// No right to, no thread, or no more namespaces.
    pub fn create() -> Result<Self, NetnsError> {
        let descriptor = on_a_thread(|| {
            Self::enter_new()?;
            let open = File::open("/proc/thread-self/ns/net");
            open.map_err(|source| NetnsError::Create { step: "open it", source })
        })??;
        Ok(Self { descriptor: Arc::new(descriptor.into()), created: true })
    }

    /// Puts the calling thread into a new one, with `lo` up: for a process whose namespace shall be a sandbox's.
    ///
    /// # Errors
    /// As [`NetworkNamespace::create`]; after one the thread may be in a namespace whose `lo` is down.
    pub fn enter_new() -> Result<(), NetnsError> {
        let failed = |step| move |source: io::Error| NetnsError::Create { step, source };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed("unshare")(errno.into()))?;
        sys::loopback_up().map_err(failed("bring lo up"))
    }

    /// Puts the calling thread into this one.
    ///
    /// # Errors
    /// No right to.
    pub fn enter(&self) -> Result<(), NetnsError> {
        enter(self.descriptor.as_fd())
    }

    /// That of the process `pid`, which has made it for the sandbox; `None` when it is in the host's.
    ///
    /// # Errors
    /// The process is gone.
    pub fn made_by(pid: i32) -> Result<Option<Self>, NetnsError> {
        match Self::join(Path::new(&format!("/proc/{pid}/ns/net"))) {
            Ok(joined) => Ok(Some(Self { created: true, ..joined })),
            Err(NetnsError::HostNetworking { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the one at `path` and leaves it as it is.
    ///
    /// # Errors
    /// Nothing is there, it is no namespace or one of another kind, or it is the host's: that of process 1 or our own.
    pub fn join(path: &Path) -> Result<Self, NetnsError> {
        let file = OpenOptions::new()
            .read(true)
            // What is there may be a pipe, whose opening would wait for a writer.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        let kind = sys::namespace_kind(file.as_fd());
        let kind = kind.map_err(|_| NetnsError::NotNamespace { path: path.to_owned() })?;
        if kind != libc::CLONE_NEWNET {
            return Err(NetnsError::OtherKind { path: path.to_owned(), kind: kind_word(kind) });
        }
        let joined = Self { descriptor: Arc::new(file.into()), created: false };
        if joined.is_hosts() {
            return Err(NetnsError::HostNetworking { path: path.to_owned() });
        }
        Ok(joined)
    }

    /// Whether we made it; only then is it ours to let go of.
    pub fn is_created(&self) -> bool {
        self.created
    }

    /// The descriptor that holds it.
    pub fn into_shared(self) -> Arc<OwnedFd> {
        self.descriptor
    }

    /// The device and inode that tell this namespace from every other while it lives.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = fstat(self.descriptor.as_raw_fd())?;
        Ok((stat.st_dev, stat.st_ino))
    }

    fn is_hosts(&self) -> bool {
        let Ok(own) = self.identity() else { return false };
        // What cannot be looked at (process 1, without the right to) is not our own, which always can.
        ["/proc/1/ns/net", "/proc/self/ns/net"]
            .iter()
            .any(|path| std::fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == own))
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Runs `work` in `namespace`, on a thread of its own that ends with it; blocks until then.
///
/// # Errors
/// No thread, or the namespace cannot be entered; then `work` did not run.
pub fn run_in<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    on_a_thread(|| enter(namespace).map(|()| work()))?
}

/// Like [`run_in`], for callers that must not block. When the future is dropped the work still ends.
///
/// # Errors
/// As [`run_in`].
pub async fn run_in_async<T: Send + 'static>(
    namespace: Arc<OwnedFd>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetnsError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    named("netns")
        .spawn(move || {
            // Nobody is there to hear it when the caller has gone.
            _ = sender.send(enter(namespace.as_fd()).map(|()| work()));
        })
        .map_err(|source| NetnsError::Enter { source })?;
    receiver.await.map_err(|_| NetnsError::Panicked)?
}

/// Brings `lo` up in `namespace`. A joined one is its owner's: call it only for one that [`NetworkNamespace::create`]
/// did not already do it for.
///
/// # Errors
/// The namespace cannot be entered, or no right to.
pub fn ensure_loopback(namespace: BorrowedFd<'_>) -> Result<(), NetnsError> {
    run_in(namespace, sys::loopback_up)?.map_err(|source| NetnsError::Create { step: "bring lo up", source })
}

pub(crate) fn enter(namespace: BorrowedFd<'_>) -> Result<(), NetnsError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter { source: errno.into() })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = named("netns").spawn_scoped(scope, work).map_err(|source| NetnsError::Enter { source })?;
        thread.join().map_err(|_| NetnsError::Panicked)
    })
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

fn kind_word(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWPID => "pid",
        _ => "time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn own() -> (u64, u64) {
        let metadata = std::fs::metadata("/proc/thread-self/ns/net").expect("own namespace");
        (metadata.dev(), metadata.ino())
    }

    /// The links of the calling thread's namespace, with whether each is up.
    fn links() -> BTreeSet<(String, bool)> {
        nix::ifaddrs::getifaddrs()
            .expect("links")
            .map(|link| {
                let up = link.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
                (link.interface_name, up)
            })
            .collect()
    }

    #[test]
    fn a_created_namespace_is_new_and_has_only_lo_which_is_up() {
        let before = own();
        let made = NetworkNamespace::create().expect("created");
        assert!(made.is_created());
        assert_ne!(made.identity().expect("identity"), before);
        assert_eq!(own(), before, "the calling thread stays where it was");
        let inside = run_in(made.as_fd(), || (own(), links())).expect("entered");
        assert_eq!(inside, (made.identity().expect("identity"), BTreeSet::from([("lo".to_owned(), true)])));
        ensure_loopback(made.as_fd()).expect("again");
    }

    #[test]
    fn a_namespace_is_joined_by_its_path_and_named_by_its_descriptor() {
        let made = NetworkNamespace::create().expect("created");
        let path = PathBuf::from(format!("/proc/self/fd/{}", made.as_fd().as_raw_fd()));
        let joined = NetworkNamespace::join(&path).expect("joined");
        assert!(!joined.is_created());
        assert_eq!(joined.identity().expect("identity"), made.identity().expect("identity"));
    }

    #[test]
    fn what_is_no_network_namespace_or_is_the_hosts_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        let cases = [
            (PathBuf::from("/no/such/netns"), "network namespace \"/no/such/netns\" cannot be opened".to_owned()),
            (PathBuf::from("/proc/0/ns/net"), "network namespace \"/proc/0/ns/net\" cannot be opened".to_owned()),
            (PathBuf::from("/etc/passwd"), "\"/etc/passwd\" is not a namespace".to_owned()),
            (PathBuf::from("/proc/self/status"), "\"/proc/self/status\" is not a namespace".to_owned()),
            (dir.path().to_owned(), format!("{:?} is not a namespace", dir.path())),
            (pipe.clone(), format!("{pipe:?} is not a namespace")),
            (
                PathBuf::from("/proc/self/ns/mnt"),
                "\"/proc/self/ns/mnt\" is a mount namespace, not a network namespace".to_owned(),
            ),
        ];
        for (path, wanted) in cases {
            assert_eq!(NetworkNamespace::join(&path).expect_err("refused").to_string(), wanted);
        }
        let own = NetworkNamespace::join(Path::new("/proc/self/ns/net")).expect_err("refused").to_string();
        assert!(own.starts_with("host networking is not supported: \"/proc/self/ns/net\""), "{own}");
    }

    #[tokio::test]
    async fn asynchronous_work_runs_inside_and_leaves_the_runtime_outside() {
        let before = own();
        let made = NetworkNamespace::create().expect("created");
        let identity = made.identity().expect("identity");
        assert_eq!(run_in_async(made.into_shared(), own).await.expect("entered"), identity);
        assert_eq!(own(), before);
    }

    #[test]
    fn work_that_panics_is_an_error_and_a_descriptor_of_something_else_is_not_entered() {
        let made = NetworkNamespace::create().expect("created");
        let result = run_in(made.as_fd(), || -> () { panic!("on purpose") });
        assert!(matches!(result, Err(NetnsError::Panicked)));
        let file = File::open("/dev/null").expect("opened");
        let result = run_in(file.as_fd(), || ());
        assert!(matches!(result, Err(NetnsError::Enter { .. })), "{result:?}");
    }
}
