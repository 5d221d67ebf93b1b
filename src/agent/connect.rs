//! Reaching the agent through the machine's hybrid vsock socket.

use crate::error::{ErrorKind, OpError};
use std::time::Duration;
use stockade_hypervisor::{AgentChannel, hybrid_vsock};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The vsock port that the agent serves ttrpc on (Kata's contract).
pub const AGENT_PORT: u32 = 1024;
/// The vsock port of the agent's log (Kata's contract).
pub const LOG_PORT: u32 = 1025;

/// Connects to `port` in the guest; tries again every `step` until `limit` has passed, for a guest that boots refuses, and
/// at once when `ready` is told.
///
/// # Errors
/// [`ErrorKind::DeadlineExceeded`] with the last refusal.
pub async fn dial(
    channel: &AgentChannel,
    port: u32,
    step: Duration,
    limit: Duration,
    ready: &Notify,
) -> Result<UnixStream, OpError> {
    let AgentChannel::HybridVsock(socket) = channel;
    let deadline = Instant::now() + limit;
    loop {
        let attempt = tokio::time::timeout_at(deadline, hybrid_vsock::connect(socket, port)).await;
        let refusal = match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() + step >= deadline {
            let what = format!("the guest's agent did not answer within {limit:?} (port {port}; last try: {refusal})");
            return Err(OpError::new(ErrorKind::DeadlineExceeded, what));
        }
        let _ = tokio::time::timeout(step, ready.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// A guest that refuses the first connection, does what `then` says, and answers the second. Tells what that one asked.
    async fn refuse_once(listener: UnixListener, then: impl FnOnce()) -> [u8; 13] {
        drop(listener.accept().await.unwrap());
        then();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(b"OK 7\nhello").await.unwrap();
        line
    }

    #[tokio::test]
    async fn a_guest_that_refuses_at_first_is_dialled_again_and_later_bytes_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = tokio::spawn(refuse_once(listener, || {}));
        let channel = AgentChannel::HybridVsock(path);
        let mut stream =
            dial(&channel, 1024, Duration::from_millis(1), Duration::from_secs(5), &Notify::new()).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
        assert_eq!(&guest.await.unwrap(), b"CONNECT 1024\n");
    }

    #[tokio::test]
    async fn a_guest_that_never_answers_is_given_up_at_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let channel = AgentChannel::HybridVsock(path);
        let error = dial(&channel, 1024, Duration::from_millis(1), Duration::from_millis(50), &Notify::new())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_guest_that_says_that_it_is_ready_is_asked_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let ready = std::sync::Arc::new(Notify::new());
        let told = ready.clone();
        let guest = tokio::spawn(refuse_once(listener, move || told.notify_one()));
        let channel = AgentChannel::HybridVsock(path);
        let step = Duration::from_secs(3600);
        let dialled = tokio::time::timeout(step / 60, dial(&channel, 1024, step, 2 * step, &ready)).await;
        assert!(matches!(dialled, Ok(Ok(_))), "{dialled:?}");
        assert_eq!(&guest.await.unwrap(), b"CONNECT 1024\n");
    }
}
