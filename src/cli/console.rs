//! Terminals: a new one whose master goes to the caller's console socket, and one's own in raw mode.

use super::client::{directory_of, short_path};
use crate::stand_in::sys::set_inheritable;
use anyhow::Context as _;
use nix::libc::winsize;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{self, IoSlice, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Makes a terminal, sends its master to `socket` and returns its slave. The slave is raw: the guest has a terminal of
/// its own that does what a terminal does to lines. `size` is in columns and rows.
pub(super) fn open(socket: &Path, size: Option<(u16, u16)>) -> anyhow::Result<OwnedFd> {
    let size = size.map(|(ws_col, ws_row)| winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
    let pty = nix::pty::openpty(size.as_ref(), None).context("cannot make a terminal")?;
    for fd in [&pty.master, &pty.slave] {
        set_inheritable(fd, false)?;
    }
    make_raw(&pty.slave).context("cannot make the terminal raw")?;
    send(socket, &pty.master)
        .with_context(|| format!("cannot send the terminal to the socket {}", socket.display()))?;
    Ok(pty.slave)
}

fn send(socket: &Path, master: &OwnedFd) -> anyhow::Result<()> {
    let directory = directory_of(socket)?;
    let stream = UnixStream::connect(short_path(&directory, socket.file_name().context("it names no file")?))?;
    // The text beside the descriptor is its name; receivers only show it.
    let name = [IoSlice::new(b"/dev/ptmx")];
    let descriptors = [master.as_raw_fd()];
    sendmsg::<()>(stream.as_raw_fd(), &name, &[ControlMessage::ScmRights(&descriptors)], MsgFlags::empty(), None)?;
    Ok(())
}

fn make_raw(fd: impl AsFd) -> nix::Result<Termios> {
    let before = tcgetattr(&fd)?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(&fd, SetArg::TCSANOW, &raw)?;
    Ok(before)
}

/// The caller's terminal in raw mode, until this is dropped.
#[derive(Debug)]
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` when standard input is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        Ok(Some(Self { before: make_raw(&stdin)? }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// The terminal that resizes, for a process with one: standard input, when it is one.
pub(super) fn own_terminal() -> io::Result<Option<OwnedFd>> {
    let stdin = io::stdin();
    if stdin.is_terminal() { stdin.as_fd().try_clone_to_owned().map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::IoSliceMut;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_master_arrives_and_the_slave_is_raw_and_has_the_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let slave = open(&path, Some((100, 30))).unwrap();
        assert_eq!(crate::stand_in::sys::window_size(slave.as_fd()), Some((100, 30)));
        let flags = tcgetattr(&slave).unwrap();
        assert!(!flags.local_flags.contains(nix::sys::termios::LocalFlags::ECHO));

        let (stream, _) = listener.accept().unwrap();
        let mut text = [0; 64];
        let mut parts = [IoSliceMut::new(&mut text)];
        let mut space = cmsg_space!([i32; 1]);
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let mut messages = message.cmsgs().unwrap();
        assert!(matches!(messages.next(), Some(ControlMessageOwned::ScmRights(fds)) if fds.len() == 1));
        assert!(message.bytes > 0);
    }

    #[test]
    fn a_socket_that_is_not_there_is_named() {
        let error = open(Path::new("/nowhere/console.sock"), None).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/console.sock: "), "{error:#}");
    }
}
