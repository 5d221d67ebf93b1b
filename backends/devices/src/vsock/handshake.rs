//! The line that a host client writes before its stream begins: `CONNECT <port>\n`.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Longest line that is read before the client is turned away, in bytes.
pub(super) const MAX_LINE: usize = 32;

/// A client that has connected and not yet said which port it wants.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) stream: UnixStream,
    line: Vec<u8>,
}

/// What reading from a client came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete; wait for the next event.
    More,
    /// The client wants this guest port. Nothing after the line has been read.
    Connect(u32),
    /// The client went away, or wrote something else.
    Refuse,
}

impl Handshake {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::with_capacity(MAX_LINE) }
    }

    /// Reads as far as the end of the line and no further: what follows belongs to the stream.
    pub(super) fn advance(&mut self) -> Progress {
        loop {
            let mut chunk = [0; MAX_LINE];
            let room = MAX_LINE - self.line.len();
            let seen = match receive(&self.stream, &mut chunk[..room], MsgFlags::MSG_PEEK) {
                Ok(0) => return Progress::Refuse,
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
                Err(_) => return Progress::Refuse,
            };
            let end = chunk[..seen].iter().position(|byte| *byte == b'\n');
            let take = end.map_or(seen, |at| at + 1);
            match receive(&self.stream, &mut chunk[..take], MsgFlags::empty()) {
                Ok(taken) if taken == take => self.line.extend_from_slice(&chunk[..take]),
                _ => return Progress::Refuse,
            }
            if end.is_some() {
                return parse(&self.line).map_or(Progress::Refuse, Progress::Connect);
            }
            if self.line.len() == MAX_LINE {
                return Progress::Refuse;
            }
        }
    }
}

/// Receives without waiting; an interrupted call is tried again.
pub(super) fn receive(stream: &UnixStream, buf: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    loop {
        match recv(stream.as_raw_fd(), buf, flags | MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// The port in `CONNECT <port>`; the verb may be in any case.
fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_verb_may_be_in_any_case_and_the_port_is_decimal() {
        assert_eq!(parse(b"CONNECT 1024\n"), Some(1024));
        assert_eq!(parse(b"connect 4294967295\r\n"), Some(u32::MAX));
        for bad in [
            &b"CONNECT\n"[..],
            b"CONNECT 4294967296\n",
            b"CONNECT -1\n",
            b"CONNECT 1 2\n",
            b"GET / HTTP/1.1\n",
            b"\xff\xfe 1\n",
            b"\n",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_line_in_pieces_is_put_together_and_what_follows_stays_in_the_socket() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(server);
        assert_eq!(handshake.advance(), Progress::More);
        client.write_all(b"CONN").unwrap();
        assert_eq!(handshake.advance(), Progress::More);
        client.write_all(b"ECT 52\nhello").unwrap();
        assert_eq!(handshake.advance(), Progress::Connect(52));
        drop(client);
        handshake.stream.set_nonblocking(false).unwrap();
        let mut rest = String::new();
        handshake.stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn a_line_without_an_end_is_refused_at_the_limit() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[b'x'; 4 * MAX_LINE]).unwrap();
        assert_eq!(Handshake::new(server).advance(), Progress::Refuse);
    }

    #[test]
    fn a_client_that_goes_away_is_refused() {
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(Handshake::new(server).advance(), Progress::Refuse);
    }
}
