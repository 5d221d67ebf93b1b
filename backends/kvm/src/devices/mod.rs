//! The virtio devices, a folder each: what a guest's driver asks, and what the host does about it.
//!
//! | device | on the host |
//! |---|---|
//! | [`balloon`] | memory that the guest gives back |
//! | [`block`] | a file or block device |
//! | [`fs`] | a directory |
//! | [`mem`] | memory that the guest is given and gives back |
//! | [`net`] | tap devices |
//! | [`rng`] | the kernel's randomness |
//! | [`vsock`] | Unix sockets |

pub mod balloon;
pub mod block;
mod discard;
pub mod fs;
pub mod mem;
pub mod net;
mod queue;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;
