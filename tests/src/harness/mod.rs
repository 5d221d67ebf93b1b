//! What the tests share.

mod bundle;
mod id;
mod rootfs;

pub use bundle::{Bundle, BundleBuilder};
pub use id::unique_id;
pub use rootfs::busybox_rootfs;
