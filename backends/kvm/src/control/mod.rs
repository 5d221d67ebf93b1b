//! How the supervisor and the jailed process of a machine talk: one connected pair of Unix sockets of the type
//! SOCK_SEQPACKET, a message a packet, each a JSON value of bounded size.
//!
//! ```text
//!   supervisor                         stockade vmm
//!        ── Begin(description) ────────────▶   takes descriptors by the numbers in it, enters the jail, builds the machine
//!        ◀──────────────────── Event::Ready ──
//!        ── Request, id ───────────────────▶   descriptors of hot-plugged devices go along (SCM_RIGHTS)
//!        ◀──────────────────── Answer, id ────   in the requests' order
//!        ◀──────────────────── Event ─────────   at any time; Exited is the last
//! ```
//! Either end takes the other's closing for the end of the machine. Neither trusts the other: the process may be in a
//! guest's hands, and what a broken supervisor sends must not break the jail. So every message has a limit
//! ([`MESSAGE_LIMIT`]), unknown fields and versions are errors, and an error ends the connection. The process never sends a
//! descriptor; one that it sends in spite of that is discarded by the kernel.

mod client;
mod message;
mod packet;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError, Seen};
pub use message::{
    Added, Answer, Begin, Counters, Disk, Event, ExitReason, FromVmm, Network, Request, Share, Sized, ToVmm, Vsock,
};
pub use packet::{PacketError, pair, receive, send};

/// The version of the messages. Both ends are the same program; another number means that they are not.
pub const VERSION: u32 = 1;

/// The longest message in bytes. The longest sent is [`Begin`], with a kernel command line of 2 KiB and some devices.
pub const MESSAGE_LIMIT: usize = 32 << 10;

/// The most descriptors that go with a message: the queues of a network interface. The kernel's own limit is 253.
pub const DESCRIPTOR_LIMIT: usize = 64;

/// The longest text of an error or event that is sent, in bytes.
pub const TEXT_LIMIT: usize = 1024;

/// `text`, shortened to [`TEXT_LIMIT`] and without control characters.
#[must_use]
pub fn bounded(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(TEXT_LIMIT));
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        if clean.len() + character.len_utf8() > TEXT_LIMIT {
            break;
        }
        clean.push(character);
    }
    clean
}
