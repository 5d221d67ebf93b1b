//! The streams of a process: pipes, or one terminal.
//!
//! Nothing is buffered here beyond what the kernel's pipe holds: a reader waits for data, a writer waits
//! for room, and the process on the other end waits too.
//!
//! The end of output is decided by the process, not by the pipe: a child that keeps the pipe open after the
//! process has ended must not keep a reader waiting. After the end a reader still gets what is in the pipe,
//! which is all that the process wrote, and what others add to it until they are silent for [`IDLE`], or
//! [`DRAIN`] has passed and no more than a pipe's content was read since.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::reaper::ExitWatch;

/// Silence after the end of the process that ends its output.
const IDLE: Duration = Duration::from_secs(1);
/// Time after the end of the process in which output is waited for at all.
const DRAIN: Duration = Duration::from_secs(10);
/// The most that one read returns.
const MAX_READ: usize = 1 << 20;
/// What a terminal holds, roughly; pipes are asked.
const TERMINAL_CAPACITY: usize = 64 << 10;

/// Why a stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// All output was read.
    #[error("EOF")]
    End,
    /// The process has no such stream, or it is closed.
    #[error("the process has no open {0}")]
    Closed(&'static str),
    /// Nobody reads the process's input any more.
    #[error("the process does not read its standard input any more")]
    BrokenPipe,
    /// The request asks for nothing.
    #[error("a read of zero bytes")]
    EmptyRead,
    /// The kernel refused.
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(Errno) -> StreamError {
    move |errno| StreamError::Io { what, source: errno.into() }
}

/// The agent's end of a pipe or terminal.
#[derive(Debug)]
pub(crate) struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Makes the descriptor non-blocking and watches it.
    pub(crate) fn new(fd: OwnedFd) -> Result<Arc<Channel>, StreamError> {
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io_error("watch a stream"))?;
        let fd = crate::sys::watch(fd).map_err(|source| StreamError::Io { what: "watch a stream", source })?;
        Ok(Arc::new(Channel(fd)))
    }

    fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        nix::unistd::read(self.0.as_raw_fd(), buffer)
    }

    /// The descriptor, for calls that concern a terminal.
    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Output of a process.
#[derive(Debug)]
pub(crate) struct Output {
    channel: Arc<Channel>,
    capacity: usize,
    // Held across a wait: readers take turns.
    drain: Mutex<Drain>,
}

#[derive(Debug, Default)]
struct Drain {
    exit_seen: Option<Instant>,
    last_data: Option<Instant>,
    read_since_exit: usize,
}

impl Output {
    /// Reads from a channel.
    pub(crate) fn new(channel: Arc<Channel>) -> Output {
        let capacity = fcntl(channel.0.as_raw_fd(), FcntlArg::F_GETPIPE_SZ)
            .ok()
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(TERMINAL_CAPACITY);
        Output { channel, capacity, drain: Mutex::new(Drain::default()) }
    }

    /// Waits for data and returns at most `len` bytes of it, at least one.
    pub(crate) async fn read(&self, len: usize, exit: &ExitWatch) -> Result<Vec<u8>, StreamError> {
        if len == 0 {
            return Err(StreamError::EmptyRead);
        }
        let mut drain = self.drain.lock().await;
        let mut exit = exit.clone();
        let mut buffer = vec![0; len.min(MAX_READ).min(self.capacity)];
        loop {
            if drain.exit_seen.is_none() && exit.borrow().is_some() {
                drain.exit_seen = Some(Instant::now());
            }
            // After the last chance to wait, the pipe's content is still owed.
            let exhausted =
                drain.read_since_exit >= self.capacity && drain.exit_seen.is_some_and(|seen| seen.elapsed() >= DRAIN);
            if exhausted {
                return Err(StreamError::End);
            }
            match self.channel.read(&mut buffer) {
                // A terminal says "I/O error" when its last other end is closed.
                Ok(0) | Err(Errno::EIO) => return Err(StreamError::End),
                Ok(count) => {
                    buffer.truncate(count);
                    drain.last_data = Some(Instant::now());
                    if drain.exit_seen.is_some() {
                        drain.read_since_exit += count;
                    }
                    return Ok(buffer);
                }
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(io_error("read output")(errno)),
            }
            let deadline = drain.exit_seen.map(|seen| {
                let quiet_since = drain.last_data.map_or(seen, |last| last.max(seen));
                (quiet_since + IDLE).min(seen + DRAIN)
            });
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(StreamError::End);
            }
            tokio::select! {
                ready = self.channel.0.readable() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(source) => return Err(StreamError::Io { what: "wait for output", source }),
                },
                _ = exit.wait_for(Option::is_some), if deadline.is_none() => {
                    drain.exit_seen = Some(Instant::now());
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }
}

/// Input of a process.
#[derive(Debug)]
pub(crate) struct Input {
    // Held across a wait: writers take turns, and closing comes after what was written before.
    channel: Mutex<Option<Arc<Channel>>>,
}

impl Input {
    /// Writes to a channel; `None` is input that was never open.
    pub(crate) fn new(channel: Option<Arc<Channel>>) -> Input {
        Input { channel: Mutex::new(channel) }
    }

    /// Waits until all bytes are in the pipe.
    pub(crate) async fn write(&self, data: &[u8], exit: &ExitWatch) -> Result<(), StreamError> {
        let channel = self.channel.lock().await;
        let channel = channel.as_ref().ok_or(StreamError::Closed("standard input"))?;
        let mut exit = exit.clone();
        let mut rest = data;
        while !rest.is_empty() {
            match nix::unistd::write(channel.0.get_ref(), rest) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    continue;
                }
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => continue,
                Err(Errno::EPIPE | Errno::EIO) => return Err(StreamError::BrokenPipe),
                Err(errno) => return Err(io_error("write input")(errno)),
            }
            tokio::select! {
                ready = channel.0.writable() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(source) => return Err(StreamError::Io { what: "wait for room in the input", source }),
                },
                // A child that holds the pipe without reading must not keep the writer waiting.
                _ = exit.wait_for(Option::is_some) => return Err(StreamError::BrokenPipe),
            }
        }
        Ok(())
    }

    /// Closes the input once what is being written is in the pipe.
    pub(crate) async fn close(&self) {
        self.channel.lock().await.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tokio::sync::watch;

    fn pipe() -> (Output, io::PipeWriter, watch::Sender<Option<i32>>, ExitWatch) {
        let (read, write) = io::pipe().expect("pipe");
        let (sender, exit) = watch::channel(None);
        let output = Output::new(Channel::new(read.into()).expect("channel"));
        (output, write, sender, exit)
    }

    #[tokio::test]
    async fn a_reader_gets_data_then_the_end() {
        let (output, mut write, _sender, exit) = pipe();
        write.write_all(b"hello").expect("written");
        assert_eq!(output.read(3, &exit).await.expect("data"), b"hel");
        drop(write);
        assert_eq!(output.read(100, &exit).await.expect("data"), b"lo");
        assert!(matches!(output.read(1, &exit).await, Err(StreamError::End)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_kept_open_by_a_child_ends_after_a_silence() {
        let (output, mut write, sender, exit) = pipe();
        write.write_all(b"last words").expect("written");
        sender.send(Some(0)).expect("watched");
        assert_eq!(output.read(100, &exit).await.expect("data"), b"last words");
        let began = Instant::now();
        assert!(matches!(output.read(1, &exit).await, Err(StreamError::End)));
        assert!(began.elapsed() <= IDLE + Duration::from_millis(10));
        drop(write);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_still_gets_what_was_in_the_pipe() {
        let (output, mut write, sender, exit) = pipe();
        write.write_all(&[7; 60_000]).expect("written");
        sender.send(Some(0)).expect("watched");
        assert_eq!(output.read(10, &exit).await.expect("data").len(), 10);
        tokio::time::advance(DRAIN * 3).await;
        let mut total = 10;
        while let Ok(data) = output.read(10_000, &exit).await {
            total += data.len();
        }
        assert_eq!(total, 60_000);
    }

    #[tokio::test]
    async fn a_writer_waits_until_all_is_taken() {
        let (read, write) = io::pipe().expect("pipe");
        let (_sender, exit) = watch::channel(None);
        let input = Input::new(Some(Channel::new(write.into()).expect("channel")));
        let output = Output::new(Channel::new(read.into()).expect("channel"));
        let data = vec![1; 300_000];
        let (written, total) = tokio::join!(input.write(&data, &exit), async {
            let mut total = 0;
            while total < 300_000 {
                total += output.read(65_536, &exit).await.expect("data").len();
            }
            total
        });
        written.expect("written");
        assert_eq!(total, 300_000);
        input.close().await;
        assert!(matches!(output.read(1, &exit).await, Err(StreamError::End)));
        assert!(matches!(input.write(b"x", &exit).await, Err(StreamError::Closed(_))));
    }
}
