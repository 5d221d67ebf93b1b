//! Packets: a message and its descriptors, sent and received whole.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{DESCRIPTOR_LIMIT, MESSAGE_LIMIT, VERSION};
use crate::sys;

/// Why a packet could not be sent or understood. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The other end is closed.
    #[error("the other end of the control socket is closed")]
    Closed,
    /// The system refused.
    #[error("cannot {what} the control socket")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Too much of something.
    #[error("a control message has too many {0}")]
    TooLong(&'static str),
    /// Not of this protocol.
    #[error("cannot understand a control message")]
    Malformed(#[source] serde_json::Error),
    /// Of another version of it.
    #[error("a control message has version {0}, not {VERSION}")]
    Version(u32),
}

/// A message with the protocol's version and the number of its descriptors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet<T> {
    version: u32,
    descriptors: usize,
    body: T,
}

/// A connected pair of control sockets.
///
/// # Errors
/// The process has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(Into::into)
}

/// The bytes of a packet.
pub(super) fn encode<T: Serialize>(body: &T, descriptors: usize) -> Result<Vec<u8>, PacketError> {
    let bytes = serde_json::to_vec(&Packet { version: VERSION, descriptors, body }).map_err(PacketError::Malformed)?;
    if bytes.len() > MESSAGE_LIMIT {
        return Err(PacketError::TooLong("bytes"));
    }
    if descriptors > DESCRIPTOR_LIMIT {
        return Err(PacketError::TooLong("descriptors"));
    }
    Ok(bytes)
}

/// The message in the bytes of a packet that `descriptors` came with.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], descriptors: usize) -> Result<T, PacketError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    if bytes.len() > MESSAGE_LIMIT {
        return Err(PacketError::TooLong("bytes"));
    }
    // The rest of another version's message may look in any way.
    let Version { version } = serde_json::from_slice(bytes).map_err(PacketError::Malformed)?;
    if version != VERSION {
        return Err(PacketError::Version(version));
    }
    let packet: Packet<T> = serde_json::from_slice(bytes).map_err(PacketError::Malformed)?;
    if packet.descriptors != descriptors {
        let problem = format!("{descriptors} descriptors came with it, not {}", packet.descriptors);
        return Err(PacketError::Malformed(serde::de::Error::custom(problem)));
    }
    Ok(packet.body)
}

/// Sends bytes with descriptors as one packet.
pub(super) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd]) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Sends a message; waits while the other end does not read, unless the socket is non-blocking.
///
/// # Errors
/// The other end is closed, or the message is too long.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, body: &T, descriptors: &[OwnedFd]) -> Result<(), PacketError> {
    let bytes = encode(body, descriptors.len())?;
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    send_bytes(socket, &bytes, &numbers).map_err(|errno| match errno {
        nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET => PacketError::Closed,
        errno => PacketError::Io { what: "write to", source: errno.into() },
    })
}

/// Receives a message and its descriptors, which are closed on exec; waits for one, unless the socket is non-blocking.
///
/// # Errors
/// The other end is closed, or what it sent is not a message.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), PacketError> {
    // One byte more than allowed shows what is too long without reading it.
    let mut bytes = vec![0; MESSAGE_LIMIT + 1];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTOR_LIMIT]);
    let mut descriptors = Vec::new();
    let (count, flags) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECONNRESET) => return Err(PacketError::Closed),
            Err(errno) => return Err(PacketError::Io { what: "read from", source: errno.into() }),
            Ok(message) => {
                // The only reason for an error is that there was no room for all of them.
                for part in message.cmsgs().map_err(|_| PacketError::TooLong("descriptors"))? {
                    if let ControlMessageOwned::ScmRights(numbers) = part {
                        descriptors.extend(numbers.into_iter().map(sys::received));
                    }
                }
                break (message.bytes, message.flags);
            }
        }
    };
    if count == 0 {
        return Err(PacketError::Closed);
    }
    if flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(PacketError::TooLong("bytes"));
    }
    let body = decode(bytes.get(..count).unwrap_or_default(), descriptors.len())?;
    Ok((body, descriptors))
}
