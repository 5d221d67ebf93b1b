//! Hybrid vsock: the guest's vsock ports behind one Unix socket. The client writes `CONNECT <port>\n`, reads `OK <n>\n`
//! and then has the raw stream. See [`crate::AgentChannel`].
//!
//! A sandbox's directory may be deeper than the 107 bytes that a socket's address takes, so both ends name the socket
//! through `/proc/self/fd` when its path is long.

use nix::sys::socket::{MsgFlags, recv};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// The longest path that fits into a `sockaddr_un` with its end.
const SUN_PATH_LIMIT: usize = 107;
/// The longest line of the handshake, without its end.
const LINE_LIMIT: usize = 32;

/// A path of the same socket that fits, and the directory that it needs to stay open.
fn short(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= SUN_PATH_LIMIT {
        return Ok((path.to_path_buf(), None));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(parent)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((short, Some(directory)))
}

/// Binds and listens on `path`, whatever its length, after removing a socket left there.
///
/// # Errors
/// What the system says.
pub fn bind(path: &Path) -> io::Result<StdListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (address, _directory) = short(path)?;
    StdListener::bind(address)
}

/// Connects to the socket at `path`, whatever its length, without the handshake.
///
/// # Errors
/// What the system says.
pub async fn open(path: &Path) -> io::Result<UnixStream> {
    let (address, _directory) = short(path)?;
    UnixStream::connect(address).await
}

/// [`open`] for callers outside of a runtime: a Unix socket connects at once or not at all.
///
/// # Errors
/// What the system says.
pub fn open_blocking(path: &Path) -> io::Result<StdStream> {
    let (address, _directory) = short(path)?;
    StdStream::connect(address)
}

/// Connects to the guest's `port` through the socket at `path`. Has no deadline of its own.
///
/// # Errors
/// `ConnectionRefused` when nothing listens on the port in the guest (the other end closes without an answer),
/// `InvalidData` for an answer that is none, or what the system says.
pub async fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = open(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let line = read_line(&mut stream).await?;
    match line.strip_prefix("OK ") {
        Some(_) => Ok(stream),
        None if line.is_empty() => {
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens on the port in the guest"))
        }
        None => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer was {line:?}"))),
    }
}

/// The listener's half of the handshake up to the port: reads `CONNECT <port>\n`, in any case.
///
/// # Errors
/// `InvalidData` for another line.
pub async fn read_connect(stream: &mut UnixStream) -> io::Result<u32> {
    let line = read_line(stream).await?;
    let port = line.split_once(' ').filter(|(verb, _)| verb.eq_ignore_ascii_case("connect"));
    port.and_then(|(_, port)| port.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is not CONNECT and a port")))
}

/// Reads up to a line's end and takes nothing after it: looks at what is there first. The end of the stream is a line too.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::with_capacity(LINE_LIMIT);
    let mut seen = [0; LINE_LIMIT];
    loop {
        let peek = || recv(stream.as_raw_fd(), &mut seen, MsgFlags::MSG_PEEK).map_err(io::Error::from);
        let there = stream.async_io(Interest::READABLE, peek).await?;
        let end = seen[..there].iter().position(|byte| *byte == b'\n');
        stream.read_exact(&mut seen[..end.map_or(there, |end| end + 1)]).await?;
        line.extend_from_slice(&seen[..end.unwrap_or(there)]);
        if line.len() > LINE_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line of the handshake is too long"));
        }
        if end.is_some() || there == 0 {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
    }
}
