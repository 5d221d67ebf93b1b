//! What the agent and its single-threaded helper say to each other, over a socket pair.
//!
//! One message is a length (four bytes, little endian) and JSON. The request carries descriptors, in
//! the order that its `streams` tell. After its answer the helper stays until the agent closes the
//! socket, so that the new process cannot become the agent's child, and be reaped, before it is known.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

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
pub(crate) fn send<T: Serialize>(socket: &mut UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let header = length.to_le_bytes();
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    // A stream socket takes at least one byte, and the descriptors travel with the first.
    let sent =
        sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&header)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    socket.write_all(header.get(sent..).unwrap_or_default())?;
    socket.write_all(&body)
}

/// Receives a message and the descriptors that came with it.
pub(crate) fn receive<T: for<'de> Deserialize<'de>>(socket: &mut UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut header = [0; 4];
    let mut space = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    let (received, fds) = {
        let mut iov = [IoSliceMut::new(&mut header)];
        let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                fds.extend(numbers.into_iter().map(crate::sys::adopt));
            }
        }
        (message.bytes, fds)
    };
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(rest) = header.get_mut(received..) {
        socket.read_exact(rest)?;
    }
    let length = usize::try_from(u32::from_le_bytes(header)).map_err(io::Error::other)?;
    if length > MAX_MESSAGE {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (mut a, mut b) = UnixStream::pair().expect("socket pair");
        let (read, write) = io::pipe().expect("pipe");
        send(&mut a, &Answer::Pid(7), &[read.as_fd(), write.as_fd()]).expect("sent");
        let (answer, fds): (Answer, _) = receive(&mut b).expect("received");
        assert!(matches!(answer, Answer::Pid(7)));
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_closed_socket_is_an_end_and_not_a_message() {
        let (a, mut b) = UnixStream::pair().expect("socket pair");
        drop(a);
        let error = receive::<Answer>(&mut b).expect_err("nothing to receive");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
