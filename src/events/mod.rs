//! containerd's task events: what happened to containers and their processes, in the order in which it did.
//!
//! ```text
//! Container and Sandbox actors ── Events ──> queue ── Publisher ──> containerd's ttrpc socket, or its binary
//! ```
//! An actor never waits for containerd: the queue is bounded, and what does not fit is dropped with a warning. A
//! containerd that was away reads the state anew when it comes back, so a lost event costs it nothing it cannot ask for.

mod container;
mod publish;

pub use container::ContainerEvents;
pub use publish::{Publisher, Target};

use containerd_shim_protos::events::task as messages;
use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::topics;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// How many events may wait: what containerd's own shims keep.
const QUEUE: usize = 2048;

/// An event of containerd's, and the topic that it is published under.
pub trait Topic: MessageFull {
    /// The topic.
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($message:ident: $topic:ident),* $(,)?) => {
        $(impl Topic for messages::$message {
            const TOPIC: &'static str = topics::$topic;
        })*
    };
}

topics! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
}

/// An event on its way.
#[derive(Debug, Clone)]
pub struct Event {
    /// When it happened.
    pub at: SystemTime,
    /// containerd's topic, such as `/tasks/exit`.
    pub topic: &'static str,
    /// The message.
    pub message: Any,
}

/// What travels in the queue.
#[derive(Debug)]
enum Item {
    Event(Event),
    /// To be answered once all before it is done with.
    Flush(oneshot::Sender<()>),
}

/// Where events are told. Clones are the same place; the default one is nobody's, for a command line has no use for them.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<mpsc::Sender<Item>>);

/// The other end of [`Events`].
#[derive(Debug)]
pub struct EventQueue(mpsc::Receiver<Item>);

impl Events {
    /// A queue, and its end.
    pub fn channel() -> (Self, EventQueue) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(Some(sender)), EventQueue(receiver))
    }

    /// Tells an event. Never waits.
    pub fn publish<T: Topic>(&self, message: &T) {
        let Some(sender) = &self.0 else { return };
        let value = match message.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(%error, topic = T::TOPIC, "cannot encode the event");
                return;
            }
        };
        // containerd's typeurl: the message's full name without a host before it.
        let type_url = T::descriptor().full_name().to_owned();
        let message = Any { type_url, value, ..Any::default() };
        let event = Event { at: SystemTime::now(), topic: T::TOPIC, message };
        if sender.try_send(Item::Event(event)).is_err() {
            tracing::warn!(topic = T::TOPIC, "an event is lost: {QUEUE} wait for containerd");
        }
    }

    /// A process in the container was killed for lack of memory.
    pub fn out_of_memory(&self, container: &str) {
        self.publish(&messages::TaskOOM { container_id: container.to_owned(), ..Default::default() });
    }

    /// Waits until all events so far are with containerd, or given up; `limit` at most.
    pub async fn flush(&self, limit: Duration) {
        let Some(sender) = &self.0 else { return };
        let flushed = async {
            let (answer, answered) = oneshot::channel();
            if sender.send(Item::Flush(answer)).await.is_ok() {
                let _ = answered.await;
            }
        };
        if tokio::time::timeout(limit, flushed).await.is_err() {
            tracing::warn!("containerd did not take the last events within {limit:?}");
        }
    }
}

impl EventQueue {
    /// The next event if one waits.
    pub fn waiting(&mut self) -> Option<Event> {
        loop {
            match self.0.try_recv().ok()? {
                Item::Event(event) => return Some(event),
                Item::Flush(answer) => drop(answer.send(())),
            }
        }
    }

    /// The next event; `None` when nobody can tell one any more.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await? {
                Item::Event(event) => return Some(event),
                Item::Flush(answer) => drop(answer.send(())),
            }
        }
    }
}
