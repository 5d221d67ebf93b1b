//! The header of a virtio-vsock packet, as bytes and as numbers.
//!
//! Nothing here trusts the bytes: every 44 bytes decode to some [`Header`], and what the numbers mean is decided by
//! the [muxer](super::Muxer).

/// Bytes of a packet header on the wire.
pub const HEADER_LEN: usize = 44;

/// Context id of the host, the only destination that a guest may name.
pub const HOST_CID: u64 = 2;

/// The stream socket type, the only one that this device offers.
pub const TYPE_STREAM: u16 = 1;

/// Flag of a SHUTDOWN packet: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a SHUTDOWN packet: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both directions at once: the sender has closed its socket.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Operation numbers of the virtio specification.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts a connection.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends a connection at once.
    pub const RST: u16 = 3;
    /// Ends one direction or both, in order after the data.
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Tells how much buffer is free.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks how much buffer is free.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A decoded packet header; the fields are those of `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    /// Socket type, see [`TYPE_STREAM`].
    pub socket_type: u16,
    /// Operation, see [`op`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes of receive buffer that the sender has for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes the little-endian form; cannot fail.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(array_at(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array_at(bytes, at));
        let u16_at = |at: usize| u16::from_le_bytes(array_at(bytes, at));
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            socket_type: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// The little-endian form.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// `N` bytes at `at`; the offsets above are constants inside the header.
fn array_at<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding_and_decoding() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1024,
            dst_port: 0xdead_beef,
            len: 17,
            socket_type: TYPE_STREAM,
            op: op::RW,
            flags: SHUTDOWN_SEND,
            buf_alloc: 65536,
            fwd_cnt: u32::MAX,
        };
        assert_eq!(Header::decode(&header.encode()), header);
    }
}
