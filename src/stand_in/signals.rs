//! Signals as a stream, none lost from the moment they are blocked.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use tokio::io::unix::AsyncFd;

/// All signals that can be caught, blocked for this thread and those that it makes, and readable here.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks them. They stay blocked, in children as well: a stand-in wants that, a supervisor undoes it.
    pub(crate) fn block() -> io::Result<Self> {
        let all = SigSet::all();
        all.thread_block()?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd })
    }

    /// The reader of these, inside a runtime.
    pub(crate) fn reader(&self) -> io::Result<SignalReader<'_>> {
        let ready = super::sys::watch(self.fd.as_fd())?;
        Ok(SignalReader { fd: &self.fd, ready })
    }
}

/// Reads [`Signals`].
#[derive(Debug)]
pub(crate) struct SignalReader<'a> {
    fd: &'a SignalFd,
    ready: AsyncFd<BorrowedFd<'a>>,
}

impl SignalReader<'_> {
    /// The next signal's number. Cancel-safe.
    pub(crate) async fn next(&self) -> io::Result<i32> {
        loop {
            let mut guard = self.ready.readable().await?;
            match read_one(self.fd)? {
                Some(signal) => return Ok(signal),
                None => guard.clear_ready(),
            }
        }
    }

    /// The next signal that asks for an end: SIGINT, SIGTERM, SIGHUP or SIGQUIT. Others are dropped.
    pub(crate) async fn next_ending(&self) -> io::Result<Signal> {
        loop {
            let signal = Signal::try_from(self.next().await?);
            if let Ok(signal @ (Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)) = signal {
                return Ok(signal);
            }
        }
    }
}

fn read_one(fd: &SignalFd) -> io::Result<Option<i32>> {
    match fd.read_signal() {
        Ok(signal) => Ok(signal.map(|info| info.ssi_signo.cast_signed())),
        Err(nix::errno::Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_arrive_in_the_order_of_their_numbers_even_if_sent_before_they_are_read() {
        // Blocking holds for this thread only, and so does raising.
        let signals = Signals::block().unwrap();
        for signal in [Signal::SIGWINCH, Signal::SIGUSR1, Signal::SIGTERM] {
            nix::sys::signal::raise(signal).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reader = signals.reader().unwrap();
            assert_eq!(reader.next().await.unwrap(), Signal::SIGUSR1 as i32);
            assert_eq!(reader.next_ending().await.unwrap(), Signal::SIGTERM);
            assert_eq!(reader.next().await.unwrap(), Signal::SIGWINCH as i32);
        });
    }
}
