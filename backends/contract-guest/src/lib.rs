//! The guest of the [contract suite](../stockade_hypervisor/contract/index.html) for backends that boot real ones: the
//! project's own kernel and initrd with another /init laid over it, which is a program of the backend's tests that calls
//! [`init`].

mod init;
#[cfg(feature = "machines")]
pub mod machines;

pub use init::init;
