//! The pumps between host streams and the guest.

use super::HostStdio;
use super::logger::Logger;
use super::stream::Stream;
use crate::error::OpError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// One message's payload: large enough to make the round trip cheap, well under ttrpc's 4 MiB.
const CHUNK: usize = 256 * 1024;
/// Output that nobody takes for this long after the process's end is given up.
const STALLED: Duration = Duration::from_secs(10);

/// What reading a guest's stream gave.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Some bytes.
    Data(Vec<u8>),
    /// The end.
    End,
}

/// The guest's side of one process's streams.
#[async_trait::async_trait]
pub trait GuestStdio: Send + Sync + 'static {
    /// Writes all bytes to its standard input; waits until the guest's pipe has them.
    async fn write_stdin(&self, bytes: Vec<u8>) -> Result<(), OpError>;
    /// Closes its standard input.
    async fn close_stdin(&self) -> Result<(), OpError>;
    /// Waits for output, at most `limit` bytes.
    async fn read_stdout(&self, limit: usize) -> Result<ReadOutcome, OpError>;
    /// Waits for error output, at most `limit` bytes.
    async fn read_stderr(&self, limit: usize) -> Result<ReadOutcome, OpError>;
}

/// The running pumps of one process. Dropping them ends them.
#[derive(Debug)]
pub struct Pumps {
    input: Option<JoinHandle<()>>,
    output: Vec<JoinHandle<()>>,
    moved: Arc<AtomicU64>,
    /// Ends with the pumps.
    _logger: Option<Logger>,
}

impl Pumps {
    /// Starts pumping for one process.
    pub fn start(guest: Arc<dyn GuestStdio>, host: HostStdio) -> Self {
        let moved = Arc::new(AtomicU64::new(0));
        let input = host.stdin.map(|stream| tokio::spawn(pump_input(guest.clone(), stream)));
        let mut output = Vec::new();
        // A stream without a host side is read all the same: a guest's process must not block on it.
        let stdout = host.stdout.unwrap_or(Stream::Nobody);
        output.push(tokio::spawn(pump_output(guest.clone(), stdout, Which::Out, moved.clone())));
        if let Some(stderr) = host.stderr {
            output.push(tokio::spawn(pump_output(guest, stderr, Which::Err, moved.clone())));
        }
        Self { input, output, moved, _logger: host.logger }
    }

    /// Ends the input, and the output once all that the process wrote has arrived; gives up when nothing moves for ten
    /// seconds, so that a child which keeps a stream open, or a host that does not read, hangs nobody.
    pub async fn drain(mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        // Side by side: a child that keeps both streams costs the time once.
        let moved = &self.moved;
        let drains = self.output.iter_mut().map(|pump| async move {
            let mut before = moved.load(Ordering::Relaxed);
            while tokio::time::timeout(STALLED, &mut *pump).await.is_err() {
                let now = moved.load(Ordering::Relaxed);
                if now == before {
                    tracing::warn!("output that nobody took for {STALLED:?} after the process's end is lost");
                    break;
                }
                before = now;
            }
        });
        futures::future::join_all(drains).await;
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        for pump in self.input.iter().chain(&self.output) {
            pump.abort();
        }
    }
}

async fn pump_input(guest: Arc<dyn GuestStdio>, mut stream: Stream) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                if let Err(error) = guest.write_stdin(bytes).await {
                    // The process closed its end or is gone; its exit is reported by the wait.
                    tracing::debug!(error = error.one_line(), "the guest takes no more input");
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the container's input; it ends here");
                break;
            }
        }
    }
    if let Err(error) = guest.close_stdin().await {
        tracing::debug!(error = error.one_line(), "cannot close the guest's input");
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Out,
    Err,
}

async fn pump_output(guest: Arc<dyn GuestStdio>, mut stream: Stream, which: Which, moved: Arc<AtomicU64>) {
    loop {
        let outcome = match which {
            Which::Out => guest.read_stdout(CHUNK).await,
            Which::Err => guest.read_stderr(CHUNK).await,
        };
        match outcome {
            Ok(ReadOutcome::Data(bytes)) => {
                if let Err(error) = stream.write_all(&bytes).await {
                    tracing::debug!(%error, ?which, "nobody reads the container's output any more; it is discarded");
                    stream = Stream::Nobody;
                }
                moved.fetch_add(1, Ordering::Relaxed);
            }
            Ok(ReadOutcome::End) => return,
            Err(error) => {
                tracing::debug!(error = error.one_line(), ?which, "the guest's output ended");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::descriptor_of_process;
    use crate::stdio::{StdioNames, StdioOwner};
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    /// Echoes its input to its output, then ends, unless it shall hang.
    #[derive(Default)]
    struct Echo {
        bytes: Mutex<Vec<u8>>,
        closed: tokio::sync::Notify,
        hang: bool,
    }

    #[async_trait::async_trait]
    impl GuestStdio for Echo {
        async fn write_stdin(&self, bytes: Vec<u8>) -> Result<(), OpError> {
            self.bytes.lock().unwrap().extend(bytes);
            Ok(())
        }
        async fn close_stdin(&self) -> Result<(), OpError> {
            self.closed.notify_one();
            Ok(())
        }
        async fn read_stdout(&self, _: usize) -> Result<ReadOutcome, OpError> {
            if self.hang {
                return std::future::pending().await;
            }
            if self.bytes.lock().unwrap().is_empty() {
                self.closed.notified().await;
            }
            let bytes = std::mem::take(&mut *self.bytes.lock().unwrap());
            if bytes.is_empty() {
                return Ok(ReadOutcome::End);
            }
            self.closed.notify_one();
            Ok(ReadOutcome::Data(bytes))
        }
        async fn read_stderr(&self, _: usize) -> Result<ReadOutcome, OpError> {
            Ok(ReadOutcome::End)
        }
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_and_the_end_passes() {
        let (input, mut writer) = std::io::pipe().unwrap();
        let (mut reader, output) = std::io::pipe().unwrap();
        let me = std::process::id().cast_signed();
        let names = StdioNames {
            terminal: false,
            stdin: descriptor_of_process(me, input.as_raw_fd()),
            stdout: descriptor_of_process(me, output.as_raw_fd()),
            stderr: String::new(),
        };
        let host = HostStdio::open(&names, &StdioOwner::default()).await.unwrap();
        drop((input, output));
        std::io::Write::write_all(&mut writer, b"through").unwrap();
        drop(writer);
        let mut pumps = Pumps::start(Arc::new(Echo::default()), host);
        if let Some(input) = pumps.input.take() {
            input.await.unwrap();
        }
        pumps.drain().await;
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "through");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_ends_is_given_up() {
        let guest = Arc::new(Echo { hang: true, ..Echo::default() });
        Pumps::start(guest, HostStdio::default()).drain().await;
    }
}
