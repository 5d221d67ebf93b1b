//! The writing half of the monitor's socket, which can send descriptors along.

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::unix::OwnedWriteHalf;

/// Descriptors that go with the next bytes.
pub(super) type FdQueue = Arc<Mutex<Vec<Arc<OwnedFd>>>>;

pub(super) struct FdWriter {
    socket: OwnedWriteHalf,
    fds: FdQueue,
}

impl FdWriter {
    pub(super) fn new(socket: OwnedWriteHalf, fds: FdQueue) -> Self {
        Self { socket, fds }
    }
}

impl AsyncWrite for FdWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let queue = Arc::clone(&self.fds);
        let mut queued = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fd) = queued.first() else {
            drop(queued);
            return Pin::new(&mut self.socket).poll_write(cx, bytes);
        };
        let socket = self.socket.as_ref();
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let sent = socket.try_io(Interest::WRITABLE, || {
                let fds = [fd.as_raw_fd()];
                sendmsg::<()>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    &[ControlMessage::ScmRights(&fds)],
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )
                .map_err(io::Error::from)
            });
            match sent {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    queued.remove(0);
                    return Poll::Ready(Ok(count));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
