//! A virtio-vsock device without a transport.
//!
//! The guest's sockets meet Unix sockets on the host, in the "hybrid vsock" way: a host program connects to the
//! device's Unix socket, writes `CONNECT <port>\n` and, once the guest has accepted, reads `OK <host port>\n` and has
//! a stream to that port. A guest program that connects to the host's port `p` reaches the Unix socket `<name>_<p>`
//! in a directory that the device was given, or is refused.
//!
//! ```text
//!   host clients ─▶ listener ─▶ handshakes ─▶ connections ◀─▶ guest packets
//!                       └─────────── epoll ────────┘   └─ queues ─▶ virtqueues
//! ```
//! [`Muxer`] knows packets and sockets and no virtqueue; [`process_tx`] and [`process_rx`] move packets between it
//! and virtqueues of any transport. A transport watches [`Muxer::event_fd`] and calls [`Muxer::poll`] when it is
//! readable.
//!
//! **Bounds.** All that a guest or client can make the device hold is bounded: [`MAX_CONNECTIONS`] streams (clients
//! in their handshake included), each with at most [`CONNECTION_BUFFER`] bytes that a slow host program has not taken,
//! and [`MAX_PENDING_RESETS`] answers to packets that belong to no connection. Beyond the first, host clients wait in
//! the socket's backlog and guests are refused; beyond the second, the guest broke its credit and is reset; beyond
//! the third, its transmit queue waits until it takes packets.
//!
//! **Back pressure.** Nothing is read from a host socket unless the guest has announced room and given a buffer.
//!
//! **Fairness.** Connections with data for the guest take turns, one packet each.

mod connection;
mod handshake;
mod muxer;
mod packet;
mod queues;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

pub use muxer::{Counters, HostSockets, Muxer, MuxerConfig, MuxerError};
pub use packet::{HEADER_LEN, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
pub use queues::{Batch, MAX_BATCH, QueueError, process_rx, process_tx, write_transport_reset};

/// Most streams and handshakes at once.
pub const MAX_CONNECTIONS: usize = 256;

/// Bytes that the device buffers for one connection towards the host; the credit that a guest is given.
pub const CONNECTION_BUFFER: u32 = 256 * 1024;

/// Most answers to packets of unknown connections that wait for the guest to take them.
pub const MAX_PENDING_RESETS: usize = 256;

/// Most bytes of payload in a packet, as the Linux driver has it.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Index of the virtqueue on which the guest receives.
pub const RX_QUEUE: usize = 0;
/// Index of the virtqueue on which the guest transmits.
pub const TX_QUEUE: usize = 1;
/// Index of the virtqueue of events.
pub const EVENT_QUEUE: usize = 2;

/// The two ports that name a connection; the context ids are always the host's and this guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ConnectionKey {
    guest_cid: u64,
    host_port: u32,
    guest_port: u32,
}

impl ConnectionKey {
    /// A header from the host to the guest with no payload and no credit.
    fn header(self, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            socket_type: TYPE_STREAM,
            op,
            ..Header::default()
        }
    }
}

/// Events taken from epoll in one call.
const EVENTS_PER_POLL: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
