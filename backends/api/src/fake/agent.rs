//! The agent's socket of a fake machine: the hybrid-vsock handshake, then the caller's own agent.

use crate::hybrid_vsock;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Is given the port and the guest's end of each connection. Runs on the runtime's threads and must not block.
#[derive(Clone)]
pub struct AgentHandler(pub Arc<dyn Fn(u32, UnixStream) + Send + Sync>);

impl AgentHandler {
    /// From a closure.
    pub fn new(handler: impl Fn(u32, UnixStream) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handler))
    }
}

impl fmt::Debug for AgentHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentHandler")
    }
}

/// How the socket behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentMode {
    /// Hands each connection to the handler.
    #[default]
    Serve,
    /// Accepts and never answers, as a guest that hangs at boot.
    Silent,
    /// Closes without an answer, as a guest whose agent does not listen.
    Refuse,
}

/// The listening socket. Dropping it cuts every connection and removes the socket.
#[derive(Debug)]
pub(super) struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Server {
    /// Must be called within a tokio runtime.
    pub(super) fn start(path: PathBuf, handler: Option<AgentHandler>, mode: AgentMode) -> io::Result<Self> {
        let listener = hybrid_vsock::bind(&path)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { path, task: tokio::spawn(accept(listener, handler, mode)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the connections as well: they are in the task's set.
        self.task.abort();
        if let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %self.path.display(), error = %e, "the fake agent's socket stays");
        }
    }
}

async fn accept(listener: UnixListener, handler: Option<AgentHandler>, mode: AgentMode) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, handler.clone(), mode));
                }
                Err(e) => {
                    tracing::warn!(error = %e, "the fake agent's socket accepts no more");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut host: UnixStream, handler: Option<AgentHandler>, mode: AgentMode) {
    let Ok(port) = hybrid_vsock::read_connect(&mut host).await else {
        return;
    };
    let handler = match (mode, handler) {
        (AgentMode::Serve, Some(handler)) => handler,
        (AgentMode::Silent, _) => return std::future::pending().await,
        (AgentMode::Refuse, _) | (AgentMode::Serve, None) => return,
    };
    if host.write_all(format!("OK {port}\n").as_bytes()).await.is_err() {
        return;
    }
    // A second descriptor, so that the machine's end cuts the connection whatever the handler does with its own.
    let Ok((stream, _cut)) = Cut::before(host) else {
        return;
    };
    (handler.0)(port, stream);
    std::future::pending().await
}

/// Ends a connection in both directions when it is dropped, whoever has it.
#[derive(Debug)]
pub struct Cut(StdUnixStream);

impl Cut {
    /// A stream's connection, which goes on with the stream that is answered.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn before(stream: UnixStream) -> io::Result<(UnixStream, Self)> {
        let stream = stream.into_std()?;
        let second = stream.try_clone()?;
        Ok((UnixStream::from_std(stream)?, Self(second)))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
