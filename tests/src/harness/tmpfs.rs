//! A file system in memory, as the kubelet mounts one for an emptyDir of that kind.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A tmpfs of a mebibyte. Dropped, it is unmounted.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one over the directory `path`.
    ///
    /// # Panics
    /// When that is not possible: tests need root.
    #[must_use]
    pub fn mount(path: &Path) -> Self {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).expect("a tmpfs can be mounted");
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // The folder that it is in goes next, and says so if this failed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
