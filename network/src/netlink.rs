//! A netlink socket that waits for each answer, and not for ever.

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// How many objects one dump may have. A namespace with a full Internet routing table is no sandbox's.
const DUMP_LIMIT: usize = 65_536;
/// How often a dump is begun again because the namespace changed meanwhile.
const DUMP_ATTEMPTS: u32 = 8;
/// The kernel fills a dump's packets up to 32 KiB, whatever is offered.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Why one netlink call failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel said no: nothing was changed.
    #[error("the kernel refuses it{}", .detail.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The kernel's own words, where it has any.
        detail: Option<String>,
        /// Its error number.
        #[source]
        source: io::Error,
    },
    /// A system call that is not netlink's said no: nothing was changed.
    #[error("the system refuses it")]
    System(#[source] io::Error),
    /// No answer came; whether anything was changed is not known.
    #[error("the kernel gave no answer within {limit:?}")]
    Silent {
        /// The time given.
        limit: Duration,
    },
    /// The socket does not work; whether anything was changed is not known.
    #[error("the netlink socket failed")]
    Socket(#[source] io::Error),
    /// The answer makes no sense.
    #[error("the kernel's answer cannot be read: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// The namespace holds too much.
    #[error("the namespace holds more than {DUMP_LIMIT} of them")]
    TooMany,
    /// The namespace changed with every attempt to read it.
    #[error("the namespace changed during each of {DUMP_ATTEMPTS} attempts to read it")]
    Restless,
    /// A fault that was asked for, see [`crate::Fault`].
    #[error("a fault was injected")]
    Injected {
        /// Whether the step had been done before.
        done: bool,
    },
}

impl NetlinkError {
    /// Whether the call may have changed something although it failed.
    pub fn may_have_acted(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::System(_) | Self::TooMany | Self::Restless => false,
            Self::Silent { .. } | Self::Socket(_) | Self::Malformed { .. } => true,
            Self::Injected { done } => *done,
        }
    }

    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::System(source) | Self::Socket(source) => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A socket of the namespace that the thread was in when it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    limit: Duration,
    round_trips: u64,
}

impl Netlink {
    /// Opens one in the calling thread's namespace; each call may take `limit`.
    pub(crate) fn open(limit: Duration) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
        // Reasons in words are a help, not a need.
        _ = socket.set_ext_ack(true);
        _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0, limit, round_trips: 0 })
    }

    /// How many questions were asked since this was last called.
    pub(crate) fn take_round_trips(&mut self) -> u64 {
        std::mem::take(&mut self.round_trips)
    }

    /// Has the kernel change something and waits until it has.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(|_| ())
    }

    /// Asks for all objects of a kind, in one consistent state.
    pub(crate) fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let (answers, consistent) = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if consistent {
                return Ok(answers);
            }
        }
        Err(NetlinkError::Restless)
    }

    /// Sends a request and collects what comes until the acknowledgement or the end of the dump; with it whether the
    /// dump was of one state.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.round_trips += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let deadline = Instant::now() + self.limit;
        self.socket.send(&bytes, 0).map_err(NetlinkError::Socket)?;

        let mut answers = Vec::new();
        let mut consistent = true;
        let mut buffer: Vec<u8> = Vec::with_capacity(RECEIVE_BUFFER);
        loop {
            self.wait(deadline)?;
            buffer.clear();
            self.socket.recv(&mut buffer, libc::MSG_DONTWAIT).map_err(NetlinkError::Socket)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let (answer, raw) = next_message(&mut rest)?;
                if answer.header.sequence_number != self.sequence {
                    // Of a question that we no longer wait for.
                    continue;
                }
                consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::Error(error) => return finish(&error, raw).map(|()| (answers, consistent)),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(refused(done.code, None));
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, consistent)),
                    NetlinkPayload::InnerMessage(message) if answers.len() < DUMP_LIMIT => answers.push(message),
                    NetlinkPayload::InnerMessage(_) => return Err(NetlinkError::TooMany),
                    NetlinkPayload::Overrun(_) => {
                        return Err(NetlinkError::Malformed { reason: "it was overrun".to_owned() });
                    }
                    _ => {}
                }
            }
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), NetlinkError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // One more than the whole milliseconds, so that the last fraction is waited for and not spun through.
            let left = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left) {
                Ok(0) if Instant::now() >= deadline => return Err(NetlinkError::Silent { limit: self.limit }),
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(NetlinkError::Socket(errno.into())),
            }
        }
    }
}

/// Takes the first message off `rest`, with its bytes.
fn next_message<'a>(rest: &mut &'a [u8]) -> Result<(NetlinkMessage<RouteNetlinkMessage>, &'a [u8]), NetlinkError> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
        .map_err(|error| NetlinkError::Malformed { reason: error.to_string() })?;
    let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
    // A header alone is 16 bytes; messages begin at multiples of four.
    let whole = length.max(16).div_ceil(4).saturating_mul(4).min(rest.len());
    let (raw, after) = rest.split_at(whole);
    *rest = after;
    Ok((message, raw))
}

fn finish(error: &ErrorMessage, raw: &[u8]) -> Result<(), NetlinkError> {
    match error.code {
        None => Ok(()),
        Some(code) => Err(refused(code.get(), words(raw))),
    }
}

fn refused(code: i32, detail: Option<String>) -> NetlinkError {
    NetlinkError::Refused { detail, source: io::Error::from_raw_os_error(code.saturating_abs()) }
}

/// The kernel's words in an acknowledgement: `NLMSGERR_ATTR_MSG` of linux/netlink.h.
fn words(raw: &[u8]) -> Option<String> {
    const ATTR_MSG: u16 = 1;
    const ACK_TLVS: u16 = 0x200;
    let flags = u16::from_ne_bytes(raw.get(6..8)?.try_into().ok()?);
    if flags & ACK_TLVS == 0 {
        return None;
    }
    // The header, the error number and, since the request is left out (NETLINK_CAP_ACK), its header alone.
    let mut rest = raw.get(16 + 4 + 16..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == ATTR_MSG {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.div_ceil(4) * 4..)?;
    }
}
