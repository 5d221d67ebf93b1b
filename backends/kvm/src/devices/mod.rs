//! The virtio devices, a folder each: what a guest's driver asks, and what the host does about it.
//!
//! | device | on the host |
//! |---|---|
//! | [`balloon`] | memory that the guest gives back |
//! | [`fs`] | a directory |
//! | [`mem`] | memory that the guest is given and gives back |
//! | [`net`] | tap devices |
//! | [`vsock`] | Unix sockets |

pub mod balloon;
mod discard;
pub mod fs;
pub mod mem;
pub mod net;
mod queue;
mod space;
#[cfg(test)]
mod testing;
pub mod vsock;
