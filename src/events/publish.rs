//! Bringing events to containerd, in order.

use super::{Event, EventQueue};
use crate::error::{ErrorKind, OpError};
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::with_duration;

/// How long one attempt may take: containerd's own shims'.
const ATTEMPT: Duration = Duration::from_secs(5);
/// From one attempt to the next, while nobody listens.
const PAUSE: Duration = Duration::from_secs(1);
/// An event older than this is of no use to a containerd that comes back: it has read the state itself.
const STALE: Duration = Duration::from_secs(60);

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// containerd's ttrpc socket.
    Socket(PathBuf),
    /// A program that is called as `PROGRAM --address ADDRESS publish --topic TOPIC --namespace NAMESPACE`, the event on
    /// its standard input.
    Program {
        /// The program.
        program: PathBuf,
        /// containerd's gRPC address.
        address: String,
    },
}

/// Takes events out of the queue and brings them to containerd.
#[derive(Debug)]
pub struct Publisher {
    queue: EventQueue,
    target: Target,
    namespace: String,
}

impl Publisher {
    /// For the events in `queue`, which happen in this namespace of containerd's.
    pub fn new(queue: EventQueue, target: Target, namespace: impl Into<String>) -> Self {
        Self { queue, target, namespace: namespace.into() }
    }

    /// Runs until nobody can tell an event any more.
    pub async fn run(mut self) {
        let mut connection = None;
        while let Some(event) = self.queue.next().await {
            let mut warned = false;
            loop {
                let fresh = connection.is_none();
                let attempt = tokio::time::timeout(ATTEMPT, self.deliver(&mut connection, &event)).await;
                let late = || Err(OpError::new(ErrorKind::DeadlineExceeded, "containerd does not answer"));
                let Err(error) = attempt.unwrap_or_else(|_| late()) else { break };
                connection = None;
                let refused = error.kind() == ErrorKind::InvalidArgument;
                if refused || event.at.elapsed().is_ok_and(|age| age > STALE) {
                    tracing::warn!(topic = event.topic, error = error.one_line(), "an event is lost");
                    break;
                }
                if !fresh && error.kind() == ErrorKind::Internal {
                    // A containerd that was restarted: the old connection is of no use, a new one may be.
                    continue;
                }
                if !warned {
                    tracing::warn!(
                        topic = event.topic,
                        error = error.one_line(),
                        "cannot bring an event to containerd"
                    );
                    warned = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn deliver(&self, connection: &mut Option<EventsClient>, event: &Event) -> Result<(), OpError> {
        match &self.target {
            Target::Socket(path) => {
                let client = match connection {
                    Some(client) => client,
                    None => connection.insert(connect(path).await?),
                };
                forward(client, &self.namespace, event).await
            }
            Target::Program { program, address } => self.call(program, address, event).await,
        }
    }

    async fn call(&self, program: &PathBuf, address: &str, event: &Event) -> Result<(), OpError> {
        let failed = |error| OpError::internal(format!("cannot run {}", program.display()), error);
        let bytes = event.message.write_to_bytes().map_err(|error| OpError::internal("cannot encode", error))?;
        let mut child = tokio::process::Command::new(program)
            .args(["--address", address, "publish", "--topic", event.topic, "--namespace", &self.namespace])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(&bytes).await.map_err(failed)?;
        }
        let status = child.wait().await.map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(OpError::new(ErrorKind::Internal, format!("{} failed: {status}", program.display())))
    }
}

async fn connect(path: &PathBuf) -> Result<EventsClient, OpError> {
    let failed = |error| OpError::internal(format!("cannot connect to {}", path.display()), error);
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    Ok(EventsClient::new(Client::new(Socket::new(stream))))
}

async fn forward(client: &EventsClient, namespace: &str, event: &Event) -> Result<(), OpError> {
    let envelope = Envelope {
        timestamp: MessageField::some(Timestamp::from(event.at)),
        namespace: namespace.to_owned(),
        topic: event.topic.to_owned(),
        event: MessageField::some(event.message.clone()),
        ..Envelope::default()
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
    match client.forward(with_duration(ATTEMPT), &request).await {
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) => {
            // It was heard; to say it again changes nothing.
            Err(OpError::new(ErrorKind::InvalidArgument, format!("containerd refuses it: {}", status.message)))
        }
        Err(error) => Err(OpError::new(ErrorKind::Internal, format!("cannot reach containerd: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::create_events;
    use std::sync::Arc;
    use std::time::SystemTime;
    use tokio::sync::mpsc;
    use ttrpc::asynchronous::TtrpcContext;

    /// A containerd that notes what it hears, and refuses one topic.
    struct Containerd(mpsc::UnboundedSender<Envelope>);

    #[async_trait::async_trait]
    impl containerd_shim_protos::shim_async::Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap();
            if envelope.topic == "/tasks/oom" {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no")));
            }
            self.0.send(envelope).unwrap();
            Ok(Empty::new())
        }
    }

    async fn listen(path: &std::path::Path) -> (ttrpc::asynchronous::Server, mpsc::UnboundedReceiver<Envelope>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let address = format!("unix://{}", path.display());
        let server = ttrpc::asynchronous::Server::new().bind(&address).unwrap();
        let mut server = server.register_service(create_events(Arc::new(Containerd(sender))));
        server.start().await.unwrap();
        (server, receiver)
    }

    fn publisher(path: &std::path::Path) -> (Events, Publisher) {
        let (events, queue) = Events::channel();
        (events, Publisher::new(queue, Target::Socket(path.to_owned()), "tests"))
    }

    #[tokio::test]
    async fn events_arrive_in_order_also_when_containerd_comes_late_and_one_that_it_refuses_stops_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc");
        let (events, publisher) = publisher(&path);
        events.publish(&containerd_shim_protos::events::task::TaskPaused::new());
        events.out_of_memory("c");
        events.publish(&containerd_shim_protos::events::task::TaskResumed::new());
        tokio::spawn(publisher.run());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (_server, mut heard) = listen(&path).await;
        events.flush(Duration::from_secs(10)).await;
        let mut topics = Vec::new();
        while let Ok(envelope) = heard.try_recv() {
            assert_eq!(envelope.namespace, "tests");
            topics.push(envelope.topic);
        }
        assert_eq!(topics, ["/tasks/paused", "/tasks/resumed"]);
    }

    #[tokio::test]
    async fn an_old_event_is_given_up_when_nobody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let (events, queue) = Events::channel();
        let old = SystemTime::now() - STALE - Duration::from_secs(1);
        let message = containerd_shim_protos::protobuf::well_known_types::any::Any::new();
        let item = crate::events::Item::Event(Event { at: old, topic: "/tasks/exit", message });
        events.0.as_ref().unwrap().try_send(item).unwrap();
        let target = Target::Socket(directory.path().join("nobody"));
        tokio::spawn(Publisher::new(queue, target, "tests").run());
        let begin = std::time::Instant::now();
        events.flush(Duration::from_secs(10)).await;
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_program_is_given_the_event_on_its_standard_input() {
        let directory = tempfile::tempdir().unwrap();
        let (program, noted) = (directory.path().join("publish"), directory.path().join("noted"));
        let script = format!("#!/bin/sh\n{{ echo \"$@\"; cat; }} >{}\n", noted.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (events, queue) = Events::channel();
        let target = Target::Program { program, address: "/run/c.sock".into() };
        tokio::spawn(Publisher::new(queue, target, "tests").run());
        events.out_of_memory("the-container");
        events.flush(Duration::from_secs(10)).await;
        let text = String::from_utf8_lossy(&std::fs::read(&noted).unwrap()).into_owned();
        assert!(text.starts_with("--address /run/c.sock publish --topic /tasks/oom --namespace tests\n"), "{text}");
        assert!(text.contains("containerd.events.TaskOOM") && text.contains("the-container"), "{text}");
    }
}
