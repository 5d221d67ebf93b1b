//! The guest of the [contract suite](../stockade_hypervisor/contract/index.html) for backends that boot real ones: the
//! project's own kernel and initrd with another /init laid over it, which is a program of the backend's tests that calls
//! [`init`]. Beside what the suite says it obeys `disk <text>`, which waits for the disk that begins with this line and is
//! answered by its name, `release <disk>`, which takes a disk from its driver, and `break <disk>`, which makes its device fail
//! over and over.

mod disks;
mod init;
#[cfg(feature = "machines")]
pub mod machines;
mod sys;

pub use init::{MoreOrders, init, init_with};
