//! The supervisor's end.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::packet::{decode, encode, send_bytes};
use super::{Answer, Begin, Event, ExitReason, FromVmm, MESSAGE_LIMIT, PacketError, Request, ToVmm, bounded};

/// Failed devices that are logged; a machine in a guest's hands could tell of any number.
const DEVICE_FAILURES_LOGGED: usize = 16;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It could not be sent.
    #[error("cannot ask the machine's process")]
    Send(#[source] PacketError),
    /// The process closed its end, or sent what nobody understands.
    #[error("the machine's process has closed its control socket")]
    Closed,
    /// The answer is late.
    #[error("the machine's process did not answer within {0:?}")]
    Timeout(Duration),
}

/// What events have said so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The machine is built.
    pub ready: bool,
    /// The guest's kernel has panicked.
    pub panicked: bool,
    /// The machine has ended, and why.
    pub exited: Option<ExitReason>,
    /// The connection has ended; nothing changes any more.
    pub closed: bool,
    /// What broke the connection, if it was not the other end's closing.
    pub problem: Option<String>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// The connection to one machine's process. Dropping it closes the socket, which ends the machine.
#[derive(Debug)]
pub struct Client {
    socket: Arc<UnixStream>,
    next: AtomicU64,
    waiting: Waiting,
    seen: watch::Receiver<Seen>,
    pump: JoinHandle<()>,
}

impl Client {
    /// Takes the supervisor's end of a [`pair`](super::pair), on the current runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        // The type serves for its readiness only: what is read and written are packets.
        let socket = StdStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UnixStream::from_std(socket)?);
        let waiting = Waiting::default();
        let (sender, seen) = watch::channel(Seen::default());
        let pump = tokio::spawn(pump(Arc::clone(&socket), Arc::clone(&waiting), sender));
        Ok(Self { socket, next: AtomicU64::new(1), waiting, seen, pump })
    }

    /// What events have said, as they come.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Describes the machine to a process that was just started.
    ///
    /// # Errors
    /// The description is too long, or the process is gone.
    pub async fn begin(&self, begin: Begin) -> Result<(), ClientError> {
        let bytes = encode(&ToVmm::Begin(Box::new(begin)), 0).map_err(ClientError::Send)?;
        self.write(&bytes, &[]).await
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// There is none within `limit`.
    pub async fn ask(
        &self,
        request: Request,
        descriptors: &[Arc<OwnedFd>],
        limit: Duration,
    ) -> Result<Answer, ClientError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = encode(&ToVmm::Request { id, request }, descriptors.len()).map_err(ClientError::Send)?;
        let numbers: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        // Looked at after the insertion: the pump empties the map once, when it closes.
        if self.seen.borrow().closed {
            lock(&self.waiting).remove(&id);
            return Err(ClientError::Closed);
        }
        let asked = async {
            self.write(&bytes, &numbers).await?;
            answer.await.map_err(|_| ClientError::Closed)
        };
        let outcome = tokio::time::timeout(limit, asked).await.unwrap_or(Err(ClientError::Timeout(limit)));
        if outcome.is_err() {
            lock(&self.waiting).remove(&id);
        }
        outcome
    }

    async fn write(&self, bytes: &[u8], descriptors: &[RawFd]) -> Result<(), ClientError> {
        let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPIPE | Errno::ECONNRESET) => ClientError::Closed,
            _ => ClientError::Send(PacketError::Io { what: "write to", source }),
        };
        loop {
            self.socket.writable().await.map_err(failed)?;
            let sent = self
                .socket
                .try_io(Interest::WRITABLE, || send_bytes(self.socket.as_fd(), bytes, descriptors).map_err(Into::into));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.map_err(failed),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// A panic elsewhere leaves the map whole.
fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads until the connection ends, which it then tells everybody.
async fn pump(socket: Arc<UnixStream>, waiting: Waiting, seen: watch::Sender<Seen>) {
    let mut buffer = vec![0; MESSAGE_LIMIT + 1];
    let mut device_failures = 0;
    let problem = loop {
        match next(&socket, &mut buffer).await {
            Ok(FromVmm::Answer { id, answer }) => {
                // An answer that came after its deadline, or to nothing that was asked, is dropped.
                if let Some(asked) = lock(&waiting).remove(&id) {
                    let _gave_up = asked.send(answer);
                }
            }
            Ok(FromVmm::Event(event)) => {
                if let Event::DeviceFailed { device, problem } = &event {
                    device_failures += 1;
                    if device_failures <= DEVICE_FAILURES_LOGGED {
                        let (device, problem) = (bounded(device), bounded(problem));
                        tracing::warn!(device, problem, "a device of the virtual machine has failed");
                    }
                }
                seen.send_modify(|seen| seen.note(event));
            }
            Err(PacketError::Closed) => break None,
            Err(error) => {
                tracing::warn!(%error, "giving up the machine's control socket");
                break Some(error.to_string());
            }
        }
    };
    seen.send_modify(|seen| {
        seen.closed = true;
        seen.problem = problem;
    });
    lock(&waiting).clear();
}

/// The next message. Without room for descriptors, the kernel discards those that come along.
async fn next(socket: &UnixStream, buffer: &mut [u8]) -> Result<FromVmm, PacketError> {
    let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNRESET) => PacketError::Closed,
        _ => PacketError::Io { what: "read from", source },
    };
    loop {
        socket.readable().await.map_err(failed)?;
        let received = socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT)?;
            Ok((message.bytes, message.flags))
        });
        match received {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(failed(error)),
            Ok((0, _)) => return Err(PacketError::Closed),
            Ok((_, flags)) if flags.contains(MsgFlags::MSG_TRUNC) => return Err(PacketError::TooLong("bytes")),
            Ok((count, _)) => return decode(buffer.get(..count).unwrap_or_default(), 0),
        }
    }
}

impl Seen {
    fn note(&mut self, event: Event) {
        match event {
            Event::Ready => self.ready = true,
            Event::Panicked => self.panicked = true,
            Event::DeviceFailed { .. } => {}
            // The first counts: what comes after it comes from a machine that has ended.
            Event::Exited { reason } => {
                let reason = match reason {
                    ExitReason::Failed { message } => ExitReason::Failed { message: bounded(&message) },
                    reason => reason,
                };
                self.exited.get_or_insert(reason);
            }
        }
    }
}
