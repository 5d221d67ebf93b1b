//! The virtio devices, a folder each: what a guest's driver asks, and what the host does about it.
//!
//! | device | on the host |
//! |---|---|
//! | [`fs`] | a directory |
//! | [`net`] | tap devices |
//! | [`vsock`] | Unix sockets |

pub mod fs;
pub mod net;
mod queue;
mod space;
#[cfg(test)]
mod testing;
pub mod vsock;
