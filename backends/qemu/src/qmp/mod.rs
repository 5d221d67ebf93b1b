//! QEMU's monitor protocol: commands with a deadline, events as facts.
//!
//! ```text
//!   QEMU ──socket──▶ pump ──responses──▶ qapi ──▶ execute
//!                      └─────events────▶ Seen (watch), DEVICE_DELETED (broadcast)
//! ```
//! The pump bounds each message and keeps events to itself: those that matter are a handful, and one that a later QEMU
//! adds must not break the connection. Nothing here trusts QEMU, which may be in a guest's hands.

mod command;
mod event;
mod writer;

pub(crate) use command::{BlockdevAdd, DeviceAdd, NetdevAdd, ObjectAdd};
pub(crate) use event::{Reason, Seen};

use event::Event;
use futures::StreamExt;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::QmpCommand;
use qapi::{ExecuteError, qmp};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use stockade_hypervisor::{HypervisorError, Operation};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LinesCodec};
use writer::{FdQueue, FdWriter};

/// The longest message of QEMU that is taken, in bytes. Answers to the commands used here are a few KiB.
const MESSAGE_LIMIT: usize = 1 << 20;
/// The longest error text that is passed on, in characters.
const TEXT_LIMIT: usize = 512;
const PIPE_SIZE: usize = 64 << 10;
const EVENT_QUEUE: usize = 64;

/// The connection to one QEMU's monitor.
pub(crate) struct Client {
    service: QapiService<QmpStreamTokio<FdWriter>>,
    fds: FdQueue,
    limit: Duration,
    seen: watch::Receiver<Seen>,
    deleted: broadcast::Sender<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("seen", &*self.seen.borrow()).finish_non_exhaustive()
    }
}

impl Client {
    /// Waits for the greeting and negotiates, which QEMU answers when the machine is complete. The caller sets the limit.
    ///
    /// # Errors
    /// The connection ended or what came is no QMP.
    pub(crate) async fn connect(stream: UnixStream, limit: Duration) -> io::Result<Self> {
        let (read, write) = stream.into_split();
        let (pumped, responses) = tokio::io::duplex(PIPE_SIZE);
        let (seen_sender, seen) = watch::channel(Seen::default());
        let (deleted, _) = broadcast::channel(EVENT_QUEUE);
        tokio::spawn(pump(read, pumped, seen_sender, deleted.clone()));
        let fds = FdQueue::default();
        let stream = QmpStreamTokio::open_split(responses, FdWriter::new(write, Arc::clone(&fds))).await?;
        let (service, mut events) = stream.negotiate().await?.into_parts();
        tokio::spawn(async move {
            // An answer that came after its deadline is such an error too and no reason to give the connection up.
            while let Some(item) = events.next().await {
                if let Err(e) = item {
                    tracing::debug!(error = %e, "ignoring a message of QEMU's monitor");
                }
            }
        });
        Ok(Self { service, fds, limit, seen, deleted })
    }

    /// Runs one command within the limit.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] with QEMU's words, [`HypervisorError::Timeout`], or [`HypervisorError::Host`] when
    /// the connection is gone.
    pub(crate) async fn execute<C: QmpCommand>(
        &self,
        operation: Operation,
        command: C,
    ) -> Result<C::Ok, HypervisorError> {
        match timeout(self.limit, self.service.execute(command)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ExecuteError::Qapi(e))) => {
                Err(HypervisorError::Refused { operation, message: format!("{}: {}", C::NAME, clean(&e.desc)) })
            }
            Ok(Err(ExecuteError::Io(e))) => {
                Err(HypervisorError::host(operation, format!("ask QEMU's monitor for {}", C::NAME), e))
            }
            Err(_) => Err(HypervisorError::Timeout { operation, limit: self.limit }),
        }
    }

    /// Gives QEMU a descriptor under a name.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub(crate) async fn give_fd(
        &self,
        operation: Operation,
        name: String,
        fd: Arc<OwnedFd>,
    ) -> Result<(), HypervisorError> {
        // It travels with the next bytes that are written, which may be those of another command: QEMU keeps it until a
        // getfd takes it.
        self.fds.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(fd);
        self.execute(operation, qmp::getfd { fdname: name }).await.map(drop)
    }

    /// What events have said so far. The channel closes with QEMU's end of the connection.
    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// The ids of devices that the guest lets go from now on.
    pub(crate) fn deleted(&self) -> broadcast::Receiver<String> {
        self.deleted.subscribe()
    }
}

/// Bounds a text of QEMU's and takes control characters out.
fn clean(text: &str) -> String {
    text.chars().take(TEXT_LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Lets qapi number its commands, so that an answer after its deadline is not taken for that of the next command. It does
/// so only if the greeting offers out-of-band commands, in a spelling that QEMU does not use; QEMU takes numbers anyway.
fn with_ids(line: String) -> String {
    if !line.starts_with("{\"QMP\"") {
        return line;
    }
    let mut greeting = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
    match greeting.pointer_mut("/QMP").and_then(serde_json::Value::as_object_mut) {
        Some(qmp) => {
            qmp.insert("capabilities".to_owned(), serde_json::json!([null]));
            greeting.to_string()
        }
        None => line,
    }
}

async fn pump(
    read: OwnedReadHalf,
    mut responses: DuplexStream,
    seen: watch::Sender<Seen>,
    deleted: broadcast::Sender<String>,
) {
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(MESSAGE_LIMIT));
    while let Some(line) = lines.next().await {
        let line = match line {
            Ok(line) => line,
            Err(e) => {
                tracing::warn!(error = %e, "giving up QEMU's monitor");
                return;
            }
        };
        match Event::parse(&line) {
            None => {
                let line = with_ids(line);
                // Nobody reads any more once the client is gone; events still matter.
                let _unread = responses.write_all(format!("{line}\n").as_bytes()).await;
            }
            Some(Event::DeviceDeleted(id)) => {
                let _nobody_waits = deleted.send(id);
            }
            Some(event) => {
                tracing::debug!(?event, "QEMU's event");
                seen.send_modify(|seen| seen.note(&event));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    const GREETING: &str =
        r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}"#;

    /// Plays QEMU: answers each command by `answer`, given the command's name and id.
    fn play(answer: impl Fn(&str, u64) -> String + Send + 'static) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            write.write_all(format!("{GREETING}\n").as_bytes()).await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                let command: serde_json::Value = serde_json::from_str(&line).unwrap();
                let text = answer(command["execute"].as_str().unwrap(), command["id"].as_u64().unwrap());
                if write.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        ours
    }

    fn ok(id: u64) -> String {
        format!("{{\"return\":{{}},\"id\":{id}}}\n")
    }

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn events_known_and_unknown_do_not_disturb_commands() {
        let stream = play(|name, id| match name {
            "stop" => format!(
                "{{\"event\":\"NEWS_OF_2030\",\"data\":{{}}}}\n{{\"event\":\"SHUTDOWN\",\"data\":{{\"guest\":true,\"reason\":\"guest-reset\"}}}}\n{}",
                ok(id)
            ),
            _ => ok(id),
        });
        let client = Client::connect(stream, LIMIT).await.unwrap();
        client.execute(Operation::Pause, qmp::stop {}).await.unwrap();
        assert_eq!(client.seen().borrow().shutdown, Some(Reason::GuestReset));
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words() {
        let stream = play(|name, id| match name {
            "stop" => format!("{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"no\\u0007 way\"}},\"id\":{id}}}\n"),
            _ => ok(id),
        });
        let client = Client::connect(stream, LIMIT).await.unwrap();
        let error = client.execute(Operation::Pause, qmp::stop {}).await.unwrap_err();
        assert!(matches!(&error, HypervisorError::Refused { message, .. } if message == "stop: no  way"), "{error}");
    }

    #[tokio::test]
    async fn a_command_without_an_answer_times_out_and_the_next_one_works() {
        let stream = play(|name, id| match name {
            "stop" => String::new(),
            // The late answer to `stop` comes first.
            "cont" => ok(id - 1) + &ok(id),
            _ => ok(id),
        });
        let client = Client::connect(stream, LIMIT).await.unwrap();
        let error = client.execute(Operation::Pause, qmp::stop {}).await.unwrap_err();
        assert!(matches!(error, HypervisorError::Timeout { .. }), "{error}");
        client.execute(Operation::Resume, qmp::cont {}).await.unwrap();
    }

    #[tokio::test]
    async fn a_message_without_an_end_closes_the_connection() {
        let stream = play(|name, id| match name {
            "stop" => "x".repeat(2 * MESSAGE_LIMIT),
            _ => ok(id),
        });
        let client = Client::connect(stream, Duration::from_secs(5)).await.unwrap();
        let error = client.execute(Operation::Pause, qmp::stop {}).await.unwrap_err();
        assert!(matches!(error, HypervisorError::Host { .. }), "{error}");
    }
}
