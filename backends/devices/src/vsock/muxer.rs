//! The table of connections: packets of the guest on one side, Unix sockets on the other.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::connection::Connection;
use super::handshake::{Handshake, Progress};
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::{ConnectionKey, EVENTS_PER_POLL, MAX_CONNECTIONS, MAX_PAYLOAD, MAX_PENDING_RESETS};

/// Epoll token of the listening socket; streams count up from the next.
const LISTENER: u64 = 0;

/// First port that the host uses for connections of its own, far from those that programs listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// What a device is made from.
#[derive(Debug)]
pub struct MuxerConfig {
    /// Context id of the guest, 3 or more.
    pub guest_cid: u64,
    /// The listening Unix socket for host clients.
    pub listener: OwnedFd,
    /// Where the guest's own connections go; without it they are refused.
    pub host_sockets: Option<HostSockets>,
}

/// The Unix sockets that a guest may connect to: `<name>_<port>` in a directory.
#[derive(Debug)]
pub struct HostSockets {
    /// The directory, opened (`O_PATH` is enough) before the process lost sight of it.
    pub directory: OwnedFd,
    /// What the sockets' names begin with.
    pub name: String,
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MuxerError {
    /// Context ids below 3 are reserved, and 2^32 - 1 means any.
    #[error("the guest context id {0} is reserved")]
    GuestCid(u64),
    /// The listening socket refused to be non-blocking.
    #[error("cannot make the vsock listener non-blocking")]
    Listener(#[source] io::Error),
    /// No epoll descriptor.
    #[error("cannot create an epoll descriptor for vsock")]
    Epoll(#[source] io::Error),
}

/// What a device has seen; each number only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Streams that the guest or host client established or tried to.
    pub connections: u64,
    /// Clients turned away for a bad line.
    pub refused_clients: u64,
    /// Connections of the guest that were refused.
    pub refused_requests: u64,
    /// Packets or buffers that no driver in order would send.
    pub malformed: u64,
}

/// A virtio-vsock device core; see the [module](super).
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    host_sockets: Option<HostSockets>,
    epoll: Epoll,
    active: bool,
    accepting: bool,
    connections: HashMap<ConnectionKey, Connection>,
    keys: HashMap<u64, ConnectionKey>,
    handshakes: HashMap<u64, Handshake>,
    next_token: u64,
    next_host_port: u32,
    /// Connections with something for the guest, each at most once.
    ready: VecDeque<ConnectionKey>,
    resets: VecDeque<Header>,
    counters: Counters,
    scratch: Box<[u8]>,
}

impl Muxer {
    /// Makes a device that accepts nobody until it is [activated](Self::activate).
    ///
    /// # Errors
    /// The context id is reserved, or a descriptor could not be prepared.
    pub fn new(config: MuxerConfig) -> Result<Self, MuxerError> {
        if config.guest_cid <= HOST_CID || config.guest_cid >= u64::from(u32::MAX) {
            return Err(MuxerError::GuestCid(config.guest_cid));
        }
        let listener = UnixListener::from(config.listener);
        listener.set_nonblocking(true).map_err(MuxerError::Listener)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| MuxerError::Epoll(errno.into()))?;
        Ok(Self {
            guest_cid: config.guest_cid,
            listener,
            host_sockets: config.host_sockets,
            epoll,
            active: false,
            accepting: false,
            connections: HashMap::new(),
            keys: HashMap::new(),
            handshakes: HashMap::new(),
            next_token: LISTENER + 1,
            next_host_port: FIRST_HOST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            counters: Counters::default(),
            scratch: vec![0; MAX_PAYLOAD].into_boxed_slice(),
        })
    }

    /// Readable when [`poll`](Self::poll) has work; belongs into the transport's own epoll, level-triggered.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// The guest's context id, the whole of the device's configuration space.
    #[must_use]
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// What the device has seen.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Streams and handshakes at present.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len() + self.handshakes.len()
    }

    /// Whether there is no stream and no handshake.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins to accept host clients; to be called when the guest's driver is there. Until then they wait in the
    /// socket's backlog. Calling it again does nothing.
    pub fn activate(&mut self) {
        self.active = true;
        self.update_accepting();
    }

    /// Drops every connection and waits for the next [`activate`](Self::activate): the driver was reset.
    pub fn reset(&mut self) {
        self.connections.clear();
        self.keys.clear();
        self.handshakes.clear();
        self.ready.clear();
        self.resets.clear();
        self.active = false;
        self.update_accepting();
    }

    /// The buffer of [`MAX_PAYLOAD`] bytes that a packet's payload passes through; to be returned.
    pub(super) fn take_scratch(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.scratch)
    }

    /// Returns what [`take_scratch`](Self::take_scratch) gave.
    pub(super) fn return_scratch(&mut self, scratch: Box<[u8]>) {
        self.scratch = scratch;
    }

    /// Counts a buffer of the guest that could not be used.
    pub(super) fn count_malformed(&mut self) {
        self.counters.malformed += 1;
    }

    /// Whether a packet of the guest can be handled now. When not, it has to take packets first.
    #[must_use]
    pub fn can_handle(&self) -> bool {
        self.resets.len() < MAX_PENDING_RESETS
    }

    /// Whether [`next_packet`](Self::next_packet) is worth calling.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// Handles a packet of the guest. `payload` must be as long as the header says; bad packets are counted and
    /// answered with an RST.
    pub fn handle(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            self.counters.malformed += 1;
            return;
        }
        let key = ConnectionKey { guest_cid: self.guest_cid, host_port: header.dst_port, guest_port: header.src_port };
        if header.socket_type != TYPE_STREAM || usize::try_from(header.len).ok() != Some(payload.len()) {
            self.counters.malformed += 1;
            self.end(key);
            if header.op != op::RST {
                self.push_reset(key, header.socket_type);
            }
            return;
        }
        match (header.op, self.connections.get_mut(&key)) {
            (op::RST, _) => self.end(key),
            (op::REQUEST, None) => self.connect_to_host(key, header),
            (_, Some(connection)) => {
                connection.handle(header, payload);
                self.enqueue(key);
            }
            (_, None) => self.push_reset(key, TYPE_STREAM),
        }
    }

    /// The next packet for the guest, with its payload in the front of `buf`, which must not be empty.
    pub fn next_packet(&mut self, buf: &mut [u8]) -> Option<Header> {
        if let Some(header) = self.resets.pop_front() {
            return Some(header);
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            let header = connection.next(buf);
            if header.is_some_and(|header| header.op == op::RST) {
                self.end(key);
            } else {
                self.enqueue(key);
            }
            if header.is_some() {
                return header;
            }
        }
        None
    }

    /// Takes the events of host sockets; returns whether there were any. Never waits.
    pub fn poll(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); EVENTS_PER_POLL.get()];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..count] {
            let token = event.data();
            if token == LISTENER {
                self.accept();
            } else if self.handshakes.contains_key(&token) {
                self.advance_handshake(token);
            } else if let Some(key) = self.keys.get(&token).copied() {
                self.host_event(key, event.events());
            }
        }
        count > 0
    }

    fn accept(&mut self) {
        while self.len() < MAX_CONNECTIONS || self.evict_abandoned() {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let Some(token) = self.watch(&stream) else {
                continue;
            };
            self.handshakes.insert(token, Handshake::new(stream));
            self.advance_handshake(token);
        }
        self.update_accepting();
    }

    fn advance_handshake(&mut self, token: u64) {
        let Some(handshake) = self.handshakes.get_mut(&token) else {
            return;
        };
        let progress = handshake.advance();
        if progress == Progress::More {
            return;
        }
        let Some(handshake) = self.handshakes.remove(&token) else {
            return;
        };
        if let Progress::Connect(guest_port) = progress {
            self.counters.connections += 1;
            let key =
                ConnectionKey { guest_cid: self.guest_cid, host_port: self.free_host_port(guest_port), guest_port };
            let connection = Connection::to_guest(key, token, handshake.stream);
            self.insert(connection);
        } else {
            self.counters.refused_clients += 1;
            self.update_accepting();
        }
    }

    fn host_event(&mut self, key: ConnectionKey, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let hung_up = events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if hung_up && connection.is_requesting() {
            if connection.is_unknown_to_guest() {
                self.end(key);
                return;
            }
            connection.reset();
        } else {
            connection.host_event(
                events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP),
                events.contains(EpollFlags::EPOLLOUT),
                hung_up,
            );
        }
        self.enqueue(key);
    }

    /// A REQUEST of the guest.
    fn connect_to_host(&mut self, key: ConnectionKey, request: &Header) {
        self.counters.connections += 1;
        let stream = match &self.host_sockets {
            Some(sockets) if self.len() < MAX_CONNECTIONS => sockets.connect(key.host_port).ok(),
            _ => None,
        };
        let watched = stream.and_then(|stream| Some((self.watch(&stream)?, stream)));
        if let Some((token, stream)) = watched {
            self.insert(Connection::from_guest(key, token, stream, request));
        } else {
            self.counters.refused_requests += 1;
            self.push_reset(key, TYPE_STREAM);
        }
    }

    /// Adds a stream to the epoll set, edge-triggered; `None` when the kernel would not.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(stream, EpollEvent::new(flags, token)).ok()?;
        self.next_token += 1;
        Some(token)
    }

    fn insert(&mut self, connection: Connection) {
        let key = connection.key;
        self.keys.insert(connection.token, key);
        self.connections.insert(key, connection);
        self.enqueue(key);
        self.update_accepting();
    }

    /// Forgets a connection; its socket closes and leaves the epoll set.
    fn end(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.remove(&key) {
            self.keys.remove(&connection.token);
            let _ = self.epoll.delete(connection.stream());
            self.update_accepting();
        }
    }

    fn enqueue(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.queued
            && connection.has_something_for_guest()
        {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    fn push_reset(&mut self, key: ConnectionKey, socket_type: u16) {
        if self.resets.len() < MAX_PENDING_RESETS {
            self.resets.push_back(Header { socket_type, ..key.header(op::RST) });
        }
    }

    /// Makes room by forgetting a connection whose host side is gone and whose guest never confirmed.
    fn evict_abandoned(&mut self) -> bool {
        let found =
            self.connections.values().find(|connection| connection.is_abandoned()).map(|connection| connection.key);
        if let Some(key) = found {
            self.end(key);
            self.push_reset(key, TYPE_STREAM);
        }
        found.is_some()
    }

    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            let key = ConnectionKey { guest_cid: self.guest_cid, host_port, guest_port };
            if !self.connections.contains_key(&key) {
                return host_port;
            }
        }
    }

    /// Watches the listener exactly while there is room and a driver.
    fn update_accepting(&mut self) {
        let wanted = self.active && self.len() < MAX_CONNECTIONS;
        if wanted == self.accepting {
            return;
        }
        let done = if wanted {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            self.epoll.add(&self.listener, event)
        } else {
            self.epoll.delete(&self.listener)
        };
        if done.is_ok() {
            self.accepting = wanted;
        }
    }
}

impl HostSockets {
    /// Connects to the socket of `port` without waiting.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        enter_directory(self.directory.as_fd())?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        let address = UnixAddr::new(format!("{}_{port}", self.name).as_str())?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address)?;
        Ok(UnixStream::from(fd))
    }
}

thread_local! {
    /// Whether this thread's working directory is its own.
    static OWN_DIRECTORY: Cell<bool> = const { Cell::new(false) };
}

/// Makes `directory` the working directory of this thread alone. There is no `connectat`, a jail has no `/proc` to
/// name a descriptor by, and a socket address holds only 108 bytes.
fn enter_directory(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    if !OWN_DIRECTORY.get() {
        unshare(CloneFlags::CLONE_FS)?;
        OWN_DIRECTORY.set(true);
    }
    nix::unistd::fchdir(std::os::fd::AsRawFd::as_raw_fd(&directory))
}
