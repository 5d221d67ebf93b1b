//! The guest's virtio-fs and vsock devices, and the jailed process that serves them to another monitor.
//!
//! - [`vsock`]: a virtio-vsock core without a transport;
//! - [`fs`]: virtio-fs by the `virtiofsd` library;
//! - [`vhost_user`]: the process that serves both to QEMU;
//! - [`jail`]: what that process gives up before it listens to a guest.

mod error_line;
pub mod fs;
pub mod jail;
mod sys;
pub mod vhost_user;
pub mod vsock;

pub use error_line::one_line;
