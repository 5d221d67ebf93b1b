//! The virtio-fs device: the `virtiofsd` crate as a library, without its own sandbox.
//!
//! The process that serves it is jailed by [`jail`](crate::jail), whose root is the share, so that the library sees
//! the share at `/`. What is switched on and why:
//! - extended attributes: images carry file capabilities and overlay marks in them;
//! - submounts are announced: two mounts below the share may use the same inode numbers, and the guest tells them apart
//!   only if it knows of both;
//! - inodes are held by `O_PATH` descriptors and never by file handles: opening a handle needs CAP_DAC_READ_SEARCH, and
//!   a process that has it can open every file of the file system that the share is on by guessing handles, whatever
//!   its root is. The price is a descriptor for each inode that the guest remembers, so the limit of descriptors is raised;
//! - set-user-id bits are cleared after a write by the guest's kernel where it caches contents (`auto`, `always`), although
//!   it then asks for `security.capability` before each write. Where it does not cache (`never`, `metadata`) it leaves that to
//!   the server (killpriv v2), which is **not reliable**: after the first file that a guest's user other than root makes,
//!   virtiofsd 1.14 takes its thread for one without CAP_FSETID (libcap-ng keeps what it read while the thread was that
//!   user) and no longer drops it, so that the bit stays. Hence the first is the default;
//! - write-back caching stays off: the host writes below the share too.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use virtiofsd::passthrough::{self, InodeFileHandlesMode, PassthroughFs};
use virtiofsd::vhost_user::{VhostUserFsBackend, VhostUserFsBackendBuilder};

/// Descriptors that the process keeps for itself, out of the guest's reach: sockets, event descriptors, guest memory.
const RESERVED_DESCRIPTORS: u64 = 1024;

/// What the guest may remember of files and their contents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Nothing: each access reaches the host.
    Never,
    /// Names, attributes and contents, checked again after one second and at each open.
    #[default]
    Auto,
    /// Names, attributes and directories for a day; contents never.
    Metadata,
    /// Everything for a day: only for shares that nobody else writes to.
    Always,
}

impl CachePolicy {
    /// How long names and attributes stay valid in the guest.
    #[must_use]
    pub fn timeout(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Metadata | Self::Always => Duration::from_secs(86400),
        }
    }

    /// Whether the guest's kernel writes past its cache, and so does not clear set-user-id bits itself.
    fn leaves_suid_to_server(self) -> bool {
        matches!(self, Self::Never | Self::Metadata)
    }
}

impl fmt::Display for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "never",
            Self::Auto => "auto",
            Self::Metadata => "metadata",
            Self::Always => "always",
        })
    }
}

/// The text names no cache policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cache policy; there are never, none, auto, metadata and always")]
pub struct UnknownCachePolicy(pub String);

impl FromStr for CachePolicy {
    type Err = UnknownCachePolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" | "none" => Ok(Self::Never),
            "auto" => Ok(Self::Auto),
            "metadata" => Ok(Self::Metadata),
            "always" => Ok(Self::Always),
            _ => Err(UnknownCachePolicy(text.to_owned())),
        }
    }
}

/// How a share is served.
#[derive(Debug)]
pub struct FsConfig {
    /// The share, as this process sees it: `/` in a jail.
    pub root: PathBuf,
    /// What the guest may remember.
    pub cache: CachePolicy,
    /// Threads that serve requests; 0 serves them on the queue's own thread, which is quicker for one reader.
    pub threads: usize,
    /// The directory `/proc/self/fd`, opened where `/proc` was in sight.
    pub proc_self_fd: Option<OwnedFd>,
    /// Descriptors that the process may open in all.
    pub descriptor_limit: u64,
}

/// Why a share could not be served.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The library takes the root as text.
    #[error("the share's path {0:?} is not UTF-8")]
    RootNotUtf8(PathBuf),
    /// The library refused.
    #[error("cannot open the share {root:?}")]
    Open {
        /// The share.
        root: PathBuf,
        /// What the library said.
        #[source]
        source: io::Error,
    },
    /// The library refused to make a device of the file system.
    #[error("cannot make a virtio-fs device for the share {root:?}")]
    Backend {
        /// The share.
        root: PathBuf,
        /// What the library said.
        #[source]
        source: virtiofsd::vhost_user::Error,
    },
}

/// The file system behind the device, for a transport of its own.
///
/// # Errors
/// The share cannot be opened.
pub fn file_system(config: FsConfig) -> Result<PassthroughFs, FsError> {
    let Some(root_dir) = config.root.to_str().map(str::to_owned) else {
        return Err(FsError::RootNotUtf8(config.root));
    };
    let never = config.cache == CachePolicy::Never;
    let settings = passthrough::Config {
        entry_timeout: config.cache.timeout(),
        attr_timeout: config.cache.timeout(),
        cache_policy: match config.cache {
            CachePolicy::Never => passthrough::CachePolicy::Never,
            CachePolicy::Auto => passthrough::CachePolicy::Auto,
            CachePolicy::Metadata => passthrough::CachePolicy::Metadata,
            CachePolicy::Always => passthrough::CachePolicy::Always,
        },
        root_dir,
        xattr: true,
        proc_sfd_rawfd: config.proc_self_fd.map(File::from),
        announce_submounts: true,
        inode_file_handles: InodeFileHandlesMode::Never,
        // Attributes that may not be kept are not worth fetching with the names.
        readdirplus: !never,
        killpriv_v2: config.cache.leaves_suid_to_server(),
        // Without a cache, files are opened for direct I/O, and guests since 6.6 may still map them.
        allow_mmap: never,
        guest_fd_limit: config.descriptor_limit.saturating_sub(RESERVED_DESCRIPTORS),
        uid_map: Some(Vec::new()),
        gid_map: Some(Vec::new()),
        ..passthrough::Config::default()
    };
    PassthroughFs::new(settings).map_err(|source| FsError::Open { root: config.root, source })
}

/// The device for vhost-user. Its tag is the front-end's business.
///
/// # Errors
/// The share cannot be opened, or the thread pool cannot be made.
pub fn vhost_user_backend(config: FsConfig) -> Result<VhostUserFsBackend<PassthroughFs>, FsError> {
    let root = config.root.clone();
    let threads = config.threads;
    let fs = file_system(config)?;
    VhostUserFsBackendBuilder::default()
        .set_thread_pool_size(threads)
        .build(fs)
        .map_err(|source| FsError::Backend { root, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_policies_are_read_by_the_names_that_they_are_shown_by() {
        for policy in [CachePolicy::Never, CachePolicy::Auto, CachePolicy::Metadata, CachePolicy::Always] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("none".parse(), Ok(CachePolicy::Never));
        assert!("sometimes".parse::<CachePolicy>().is_err());
    }

    #[test]
    fn the_default_policy_lets_the_guest_clear_set_user_id_bits() {
        assert!(!CachePolicy::default().leaves_suid_to_server());
        assert!(CachePolicy::Never.leaves_suid_to_server());
    }
}
