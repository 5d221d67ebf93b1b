//! The share itself.

use super::bind::make_shared;
use crate::error::OpError;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The virtio-fs tag that the guest mounts (Kata's contract).
pub const SHARE_TAG: &str = "kataShared";
/// Where the agent mounts it (Kata's contract).
pub const GUEST_SHARE: &str = "/run/kata-containers/shared/containers";

/// Makes `directory` a mount that passes later mounts under it on to its slaves.
///
/// # Errors
/// The host refused; nothing is mounted then.
pub fn prepare_share(directory: &Path) -> Result<(), OpError> {
    let what = || format!("cannot make the shared directory {}", directory.display());
    match std::fs::DirBuilder::new().mode(0o755).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(OpError::internal(what(), error));
        }
        _ => {}
    }
    make_shared(directory).map_err(|error| OpError::internal(what(), error))
}
