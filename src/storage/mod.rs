//! The directory that the guest sees, and what is mounted into it.
//!
//! ```text
//!   <sandbox directory>/shared            a mount of its own, shared propagation; virtio-fs tag `kataShared`
//!     <container>/rootfs                  the container's root, bound
//!     <container>/<n>-<name>              its n-th volume, bound with its own flags
//! ```
//! All of it is in the supervisor's private mount namespace: the host does not see it, and it is gone with the
//! supervisor. The device process's namespace is a slave, so what is mounted here later appears there, and in the guest.

mod bind;
mod share;

pub use bind::{MountFlags, bind, mount_rootfs, private_mount_namespace};
pub use share::{GUEST_SHARE, SHARE_TAG, prepare_share};
