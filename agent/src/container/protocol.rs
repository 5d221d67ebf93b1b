//! How the agent, its zygote and its helpers talk over socket pairs, and what agent and helper say to each other.
//!
//! One message is a length (four bytes, little endian) and JSON. The request carries descriptors, in
//! the order that its `streams` tell. After its answer the helper stays until the agent closes the
//! socket, so that the new process cannot become the agent's child, and be reaped, before it is known.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

/// The length before each message.
const HEADER: usize = 4;
/// A configuration is far smaller; the calls that carry it are limited to 4 MiB.
const MAX_MESSAGE: usize = 8 << 20;
/// Report pipe and three streams.
const MAX_DESCRIPTORS: usize = 4;

/// Which streams of the process come as descriptors after the report pipe.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// What the helper shall do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The container's id.
    pub(crate) id: String,
    /// Where libcontainer keeps its state.
    pub(crate) state_dir: PathBuf,
    /// Make the container from this bundle; otherwise run a process in it.
    pub(crate) action: Action,
    /// Socket that receives the terminal.
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) streams: Streams,
    /// What the executor does itself.
    pub(crate) execution: Execution,
}

/// The two things that a helper can do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Make a container, up to the point before its program runs.
    Create {
        /// Directory of config.json.
        bundle: PathBuf,
    },
    /// Run a process in a running container.
    Exec {
        /// File with the OCI process.
        process: PathBuf,
    },
}

/// Parts of the configuration that are applied right before the program is run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Execution {
    /// System call filter.
    pub(crate) seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
    /// Capabilities, where they must be given up after the filter is loaded.
    pub(crate) capabilities: Option<oci_spec::runtime::LinuxCapabilities>,
    /// Hooks that run in the container when it is started.
    pub(crate) start_hooks: Vec<oci_spec::runtime::Hook>,
    /// Terminal size: rows, columns.
    pub(crate) console_size: Option<(u16, u16)>,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Number of the new process in the guest.
    Pid(i32),
    /// Why there is none.
    Failed(String),
}

/// Sends a message with descriptors.
pub(super) fn send<T: Serialize>(socket: &mut UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    let sent = send_first(socket.as_fd(), &bytes, fds)?;
    socket.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Receives a message and the descriptors that came with it.
pub(super) fn receive<T: DeserializeOwned>(socket: &mut UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut header = [0; HEADER];
    let (received, fds) = receive_first(socket.as_fd(), &mut header)?;
    socket.read_exact(header.get_mut(received..).unwrap_or_default())?;
    let mut body = body(header)?;
    socket.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fds))
}

/// The agent's end of a socket: it waits on the runtime, without a thread.
#[derive(Debug)]
pub(super) struct Conversation(tokio::net::UnixStream);

impl Conversation {
    /// To be called on the runtime.
    pub(super) fn new(socket: UnixStream) -> io::Result<Conversation> {
        socket.set_nonblocking(true)?;
        Ok(Conversation(tokio::net::UnixStream::from_std(socket)?))
    }

    /// As [`send`].
    pub(super) async fn send<T: Serialize>(&mut self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message)?;
        let socket = self.0.as_fd();
        let sent = self.0.async_io(Interest::WRITABLE, || send_first(socket, &bytes, fds)).await?;
        self.0.write_all(bytes.get(sent..).unwrap_or_default()).await
    }

    /// As [`receive`].
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut header = [0; HEADER];
        let socket = self.0.as_fd();
        let (received, fds) = self.0.async_io(Interest::READABLE, || receive_first(socket, &mut header)).await?;
        self.0.read_exact(header.get_mut(received..).unwrap_or_default()).await?;
        let mut body = body(header)?;
        self.0.read_exact(&mut body).await?;
        Ok((serde_json::from_slice(&body)?, fds))
    }
}

fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - HEADER).map_err(io::Error::other)?;
    bytes.splice(..HEADER, length.to_le_bytes());
    Ok(bytes)
}

/// Room for the body that the header announces.
fn body(header: [u8; HEADER]) -> io::Result<Vec<u8>> {
    let length = usize::try_from(u32::from_le_bytes(header)).map_err(io::Error::other)?;
    if length > MAX_MESSAGE {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    Ok(vec![0; length])
}

/// Sends the beginning, and the descriptors with it: a stream socket takes at least one byte.
fn send_first(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other.map_err(Into::into),
        }
    }
}

/// Receives the beginning, and the descriptors with it.
fn receive_first(socket: BorrowedFd<'_>, header: &mut [u8; HEADER]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    loop {
        let mut iov = [IoSliceMut::new(header)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                fds.extend(numbers.into_iter().map(crate::sys::adopt));
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok((message.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (mut a, mut b) = UnixStream::pair().expect("socket pair");
        let (read, write) = io::pipe().expect("pipe");
        send(&mut a, &Answer::Pid(7), &[read.as_fd(), write.as_fd()]).expect("sent");
        let (answer, fds): (Answer, _) = receive(&mut b).expect("received");
        assert!(matches!(answer, Answer::Pid(7)));
        assert_eq!(fds.len(), 2);
    }

    #[tokio::test]
    async fn the_agents_end_takes_what_the_helpers_sends_and_the_other_way_round() {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        let mut ours = Conversation::new(ours).expect("a conversation");
        // More than a socket holds, so that both sides wait for each other.
        let long = "x".repeat(3 << 20);
        let text = long.clone();
        let helper = std::thread::spawn(move || {
            let (answer, fds): (Answer, _) = receive(&mut theirs).expect("received");
            assert!(matches!(answer, Answer::Failed(got) if got == text));
            send(&mut theirs, &Answer::Failed(text), &[fds[0].as_fd()]).expect("sent");
        });
        let (read, _write) = io::pipe().expect("pipe");
        ours.send(&Answer::Failed(long.clone()), &[read.as_fd()]).await.expect("sent");
        let (answer, fds): (Answer, _) = ours.receive().await.expect("received");
        assert!(matches!(answer, Answer::Failed(got) if got == long));
        assert_eq!(fds.len(), 1);
        helper.join().expect("the helper");
        let error = ours.receive::<Answer>().await.expect_err("nothing to receive");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_closed_socket_is_an_end_and_not_a_message() {
        let (a, mut b) = UnixStream::pair().expect("socket pair");
        drop(a);
        let error = receive::<Answer>(&mut b).expect_err("nothing to receive");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
