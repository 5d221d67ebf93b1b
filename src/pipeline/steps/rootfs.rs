//! Step 2: the root file system. Unless it is mounted already, its source becomes a real path that exists.

use crate::error::{ErrorKind, OpError};
use crate::oci::{Spec, resolve_root};
use crate::pipeline::create::RootfsMount;
use crate::pipeline::{Step, UndoStack};
use crate::state::UndoRecord;
use crate::storage::mount_rootfs;
use std::path::PathBuf;

/// Resolves it, and mounts it where a shim left that to us.
#[derive(Debug)]
pub struct ResolveRootfs {
    /// The specification.
    pub spec: Spec,
    /// The bundle.
    pub bundle: PathBuf,
    /// Mounts that make it up, outermost first; none: it is there.
    pub mounts: Vec<RootfsMount>,
}

/// The root file system on the host.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// Its directory: absolute, without symlinks.
    pub path: PathBuf,
}

impl Step for ResolveRootfs {
    type Output = Rootfs;
    const NAME: &'static str = "rootfs";

    async fn run(self, undo: &mut UndoStack) -> Result<Rootfs, OpError> {
        if !self.mounts.is_empty() {
            let target = self.bundle.join("rootfs");
            for mount in &self.mounts {
                undo.push(UndoRecord::Unmount { path: target.clone() })?;
                mount_rootfs(&mount.kind, &mount.source, &mount.options, &target)?;
            }
        }
        let path = resolve_root(&self.spec, &self.bundle).map_err(|error| {
            let what = format!("cannot use the root file system of {}", self.bundle.display());
            OpError::because(ErrorKind::InvalidArgument, what, error)
        })?;
        Ok(Rootfs { path })
    }
}
