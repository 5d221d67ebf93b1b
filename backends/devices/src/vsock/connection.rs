//! One stream between a guest port and a host Unix socket.
//!
//! ```text
//!  host client                                   guest program
//!      │ CONNECT p                                    │ connect()
//!      ▼                                              ▼
//!  Requesting ──REQUEST──▶ guest              REQUEST, socket connects
//!      │   ◀─RST / client left: gone               Responding
//!      │   ◀─RESPONSE, "OK n"                         │ RESPONSE sent
//!      └──────────────▶ Established ◀─────────────────┘
//!                           │ SHUTDOWN both ways and flushed, RST,
//!                           ▼ credit violated, unexpected packet
//!                         Reset ──RST──▶ guest, then gone
//! ```
//! Each direction may end on its own while Established.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::handshake::receive;
use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::{CONNECTION_BUFFER, ConnectionKey};

/// Bytes forwarded to the host after which the guest is told of the space: a quarter of the buffer, so that a guest
/// which has filled it always hears before it would wait for ever, and one update serves several packets.
const CREDIT_UPDATE_AFTER: u32 = CONNECTION_BUFFER / 4;

/// Where a connection is; see the picture above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Requesting { sent: bool },
    Responding,
    Established,
    Reset,
}

/// A connection and its two directions.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: ConnectionKey,
    pub(super) token: u64,
    /// In the muxer's queue of connections that have something for the guest.
    pub(super) queued: bool,
    stream: UnixStream,
    phase: Phase,

    // Host to guest.
    /// The socket may have something to read; false after a read that would have waited.
    readable: bool,
    host_sends_no_more: bool,
    guest_receives_no_more: bool,
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    credit_asked: bool,
    credit_request_due: bool,

    // Guest to host.
    /// What the host socket did not take yet; never more than [`CONNECTION_BUFFER`].
    buffer: VecDeque<u8>,
    guest_sends_no_more: bool,
    host_receives_no_more: bool,
    host_told_of_end: bool,
    forwarded: u32,
    forwarded_told: u32,
    credit_update_due: bool,

    shutdown_sent: u32,
}

impl Connection {
    /// A connection that a host client asked for.
    pub(super) fn to_guest(key: ConnectionKey, token: u64, stream: UnixStream) -> Self {
        Self::new(key, token, stream, Phase::Requesting { sent: false })
    }

    /// A connection that the guest asked for, whose REQUEST came with these credit numbers.
    pub(super) fn from_guest(key: ConnectionKey, token: u64, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(key, token, stream, Phase::Responding);
        connection.learn_credit(request);
        connection
    }

    fn new(key: ConnectionKey, token: u64, stream: UnixStream, phase: Phase) -> Self {
        Self {
            key,
            token,
            queued: false,
            stream,
            phase,
            readable: true,
            host_sends_no_more: false,
            guest_receives_no_more: false,
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            credit_asked: false,
            credit_request_due: false,
            buffer: VecDeque::new(),
            guest_sends_no_more: false,
            host_receives_no_more: false,
            host_told_of_end: false,
            forwarded: 0,
            forwarded_told: 0,
            credit_update_due: false,
            shutdown_sent: 0,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Ends the connection: an RST goes to the guest, then it is gone.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Reset;
    }

    /// Whether the guest knows nothing of the connection, so that it may vanish without an RST.
    pub(super) fn is_unknown_to_guest(&self) -> bool {
        self.phase == Phase::Requesting { sent: false }
    }

    /// Whether nobody on the host is left and only the guest's last word is awaited.
    pub(super) fn is_abandoned(&self) -> bool {
        self.shutdown_sent == SHUTDOWN_BOTH
    }

    /// Whether the host client has left before the guest answered.
    pub(super) fn is_requesting(&self) -> bool {
        matches!(self.phase, Phase::Requesting { .. })
    }

    /// Handles a packet of the guest for this connection; `payload` is as long as the header says.
    pub(super) fn handle(&mut self, header: &Header, payload: &[u8]) {
        self.learn_credit(header);
        match (header.op, self.phase) {
            (_, Phase::Reset) => {}
            (op::RESPONSE, Phase::Requesting { sent: true }) => self.establish(),
            (op::RW, Phase::Established) => self.write(payload),
            (op::SHUTDOWN, Phase::Established) => self.guest_shut_down(header.flags),
            // The numbers that they bring are all there is to a credit update.
            (op::CREDIT_UPDATE, Phase::Established | Phase::Responding) => {}
            (op::CREDIT_REQUEST, Phase::Established | Phase::Responding) => {
                self.credit_update_due = true;
            }
            _ => self.reset(),
        }
    }

    /// Takes note of what epoll saw on the host socket.
    pub(super) fn host_event(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        if hung_up {
            self.stop_writing();
        }
        if writable {
            self.flush();
        }
    }

    /// Whether [`next`](Self::next) would produce a packet, or has a read to try.
    pub(super) fn has_something_for_guest(&self) -> bool {
        match self.phase {
            Phase::Requesting { sent } => !sent,
            Phase::Responding | Phase::Reset => true,
            Phase::Established => {
                self.shutdown_due() != 0
                    || self.credit_update_due
                    || self.credit_request_due
                    || (self.may_read() && (self.credit() > 0 || !self.credit_asked))
            }
        }
    }

    /// The next packet for the guest, with its payload in the front of `buf`; `None` when there is nothing now.
    /// After an RST the connection is over.
    pub(super) fn next(&mut self, buf: &mut [u8]) -> Option<Header> {
        match self.phase {
            Phase::Reset => Some(self.header(op::RST, 0, 0)),
            Phase::Requesting { sent: true } => None,
            Phase::Requesting { sent: false } => {
                self.phase = Phase::Requesting { sent: true };
                Some(self.header(op::REQUEST, 0, 0))
            }
            Phase::Responding => {
                self.phase = Phase::Established;
                Some(self.header(op::RESPONSE, 0, 0))
            }
            Phase::Established => self.next_established(buf),
        }
    }

    fn next_established(&mut self, buf: &mut [u8]) -> Option<Header> {
        if self.may_read() {
            let credit = usize::try_from(self.credit()).unwrap_or(usize::MAX);
            let room = buf.len().min(credit);
            if room == 0 {
                if !self.credit_asked {
                    self.credit_asked = true;
                    self.credit_request_due = true;
                }
            } else {
                match receive(&self.stream, &mut buf[..room], MsgFlags::empty()) {
                    Ok(0) => self.host_sends_no_more = true,
                    Ok(len) => {
                        // `room` fits the credit, a u32.
                        let len = u32::try_from(len).unwrap_or(u32::MAX);
                        self.sent = self.sent.wrapping_add(len);
                        return Some(self.header(op::RW, 0, len));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.readable = false;
                    }
                    Err(_) => {
                        self.host_sends_no_more = true;
                        self.stop_writing();
                    }
                }
            }
        }
        let shutdown = self.shutdown_due();
        if shutdown != 0 {
            self.shutdown_sent |= shutdown;
            return Some(self.header(op::SHUTDOWN, self.shutdown_sent, 0));
        }
        if self.credit_request_due {
            self.credit_request_due = false;
            return Some(self.header(op::CREDIT_REQUEST, 0, 0));
        }
        self.credit_update_due.then(|| self.header(op::CREDIT_UPDATE, 0, 0))
    }

    /// A header to the guest; each one tells it of the buffer's state, so no update is due after it.
    fn header(&mut self, op: u16, flags: u32, len: u32) -> Header {
        self.forwarded_told = self.forwarded;
        self.credit_update_due = false;
        Header { len, flags, buf_alloc: CONNECTION_BUFFER, fwd_cnt: self.forwarded, ..self.key.header(op) }
    }

    fn establish(&mut self) {
        self.phase = Phase::Established;
        // The client has read nothing yet, so that its socket has room for the line.
        let line = format!("OK {}\n", self.key.host_port);
        if !matches!(transmit(&self.stream, line.as_bytes()), Ok(sent) if sent == line.len()) {
            self.reset();
        }
    }

    fn guest_shut_down(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 && !self.guest_receives_no_more {
            self.guest_receives_no_more = true;
            // The client's next write fails, as it would on a socket whose peer has shut down.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends_no_more = true;
        }
        self.pass_end_on();
    }

    /// Data of the guest, on its way to the host socket.
    fn write(&mut self, payload: &[u8]) {
        if self.guest_sends_no_more {
            self.reset();
            return;
        }
        if self.host_receives_no_more {
            self.count_forwarded(payload.len());
            return;
        }
        let mut rest = payload;
        if self.buffer.is_empty() {
            match transmit(&self.stream, payload) {
                Ok(sent) => {
                    self.count_forwarded(sent);
                    rest = &payload[sent..];
                }
                Err(_) => {
                    self.stop_writing();
                    self.count_forwarded(payload.len());
                    return;
                }
            }
        }
        let limit = usize::try_from(CONNECTION_BUFFER).unwrap_or(usize::MAX);
        if self.buffer.len() + rest.len() > limit {
            // More than the credit that the guest was given.
            self.reset();
            return;
        }
        self.buffer.extend(rest);
    }

    /// Moves buffered data to the host socket, as much as it takes.
    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let (front, _) = self.buffer.as_slices();
            match transmit(&self.stream, front) {
                Ok(0) => break,
                Ok(sent) => {
                    self.buffer.drain(..sent);
                    self.count_forwarded(sent);
                }
                Err(_) => {
                    self.stop_writing();
                    break;
                }
            }
        }
        if self.buffer.is_empty() {
            // An idle connection keeps no memory.
            self.buffer.shrink_to_fit();
        }
        self.pass_end_on();
    }

    /// Nobody reads on the host any more: what the guest sends is dropped, and it is told.
    fn stop_writing(&mut self) {
        let dropped = self.buffer.len();
        self.buffer = VecDeque::new();
        self.count_forwarded(dropped);
        self.host_receives_no_more = true;
        if self.guest_receives_no_more {
            self.host_sends_no_more = true;
        }
        self.pass_end_on();
    }

    /// Passes the guest's end of data on once all data before it has gone, and confirms a full close.
    fn pass_end_on(&mut self) {
        if !self.guest_sends_no_more || !self.buffer.is_empty() {
            return;
        }
        if !self.host_told_of_end {
            self.host_told_of_end = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_receives_no_more {
            self.reset();
        }
    }

    fn count_forwarded(&mut self, len: usize) {
        // Counted modulo 2^32, as the protocol does; a packet is far shorter.
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(len).unwrap_or(u32::MAX));
        if self.forwarded.wrapping_sub(self.forwarded_told) >= CREDIT_UPDATE_AFTER {
            self.credit_update_due = true;
        }
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
        self.credit_asked = false;
    }

    /// Bytes that the guest has room for, by its own account.
    fn credit(&self) -> u32 {
        self.guest_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_fwd_cnt))
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_sends_no_more && !self.guest_receives_no_more
    }

    /// SHUTDOWN flags that the guest has not been told.
    fn shutdown_due(&self) -> u32 {
        let mut flags = 0;
        if self.host_sends_no_more {
            flags |= SHUTDOWN_SEND;
        }
        // While there may be data to read, the guest learns of the other direction's end with the data's end, since
        // a guest that hears of both ends at once may close before it reads.
        if self.host_receives_no_more && (self.host_sends_no_more || self.guest_receives_no_more) {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags & !self.shutdown_sent
    }
}

/// Sends what the socket takes without waiting; 0 when it takes nothing now.
fn transmit(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(stream.as_raw_fd(), &bytes[sent..], flags) {
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sent)
}
