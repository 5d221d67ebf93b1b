//! The events of one container, in containerd's order: a process's start is told before its end, whichever of the two the
//! supervisor hears of first.

use super::Events;
use crate::actors::container::Exit;
use crate::ids::ExecId;
use crate::pipeline::create::RootfsMount;
use crate::stdio::StdioNames;
use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use std::collections::BTreeMap;

/// Which process of the container: `None` is its first.
type Which = Option<ExecId>;

/// Tells the events of one container.
#[derive(Debug)]
pub struct ContainerEvents {
    events: Events,
    container: String,
    /// Processes that the guest has been asked to start and has not answered yet, with the end of those that came first.
    starting: BTreeMap<Which, Option<Exit>>,
}

impl ContainerEvents {
    /// Of the container of this name.
    pub fn new(events: Events, container: impl Into<String>) -> Self {
        Self { events, container: container.into(), starting: BTreeMap::new() }
    }

    fn id(&self) -> String {
        self.container.clone()
    }

    /// It was created.
    pub fn created(&self, bundle: &str, rootfs: &[RootfsMount], stdio: &StdioNames, pid: u32) {
        let mount = |mount: &RootfsMount| Mount {
            type_: mount.kind.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
            ..Mount::default()
        };
        let io = TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..TaskIO::default()
        };
        self.events.publish(&TaskCreate {
            container_id: self.id(),
            bundle: bundle.to_owned(),
            rootfs: rootfs.iter().map(mount).collect(),
            io: MessageField::some(io),
            pid,
            ..TaskCreate::default()
        });
    }

    /// A further process was registered.
    pub fn exec_added(&self, exec: &ExecId) {
        self.events.publish(&TaskExecAdded {
            container_id: self.id(),
            exec_id: exec.to_string(),
            ..TaskExecAdded::default()
        });
    }

    /// The guest is being asked to start a process: its end waits for [`Self::started`].
    pub fn starting(&mut self, which: Which) {
        self.starting.insert(which, None);
    }

    /// The guest has answered: with `running` the process ran, however short.
    pub fn started(&mut self, which: Which, running: bool, pid: u32) {
        let ended = self.starting.remove(&which).flatten();
        if running {
            match &which {
                None => self.events.publish(&TaskStart { container_id: self.id(), pid, ..TaskStart::default() }),
                Some(exec) => self.events.publish(&TaskExecStarted {
                    container_id: self.id(),
                    exec_id: exec.to_string(),
                    pid,
                    ..TaskExecStarted::default()
                }),
            }
        }
        // A further process that did not start never was; the first one was there before.
        if let Some(exit) = ended.filter(|_| running || which.is_none()) {
            self.tell_exit(&which, exit, pid);
        }
    }

    /// A process has ended.
    pub fn exited(&mut self, which: Which, exit: Exit, pid: u32) {
        match self.starting.get_mut(&which) {
            Some(ended) => *ended = Some(exit),
            None => self.tell_exit(&which, exit, pid),
        }
    }

    fn tell_exit(&self, which: &Which, exit: Exit, pid: u32) {
        self.events.publish(&TaskExit {
            container_id: self.id(),
            // containerd names a container's first process by the container.
            id: which.as_ref().map_or_else(|| self.id(), ToString::to_string),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..TaskExit::default()
        });
    }

    /// Its processes are frozen.
    pub fn paused(&self) {
        self.events.publish(&TaskPaused { container_id: self.id(), ..TaskPaused::default() });
    }

    /// They run again.
    pub fn resumed(&self) {
        self.events.publish(&TaskResumed { container_id: self.id(), ..TaskResumed::default() });
    }

    /// Nothing is left of it.
    pub fn deleted(&self, exit: Exit, pid: u32) {
        self.events.publish(&TaskDelete {
            container_id: self.id(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..TaskDelete::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventQueue;

    fn exec() -> ExecId {
        "e".parse().unwrap()
    }

    async fn told(mut queue: EventQueue) -> Vec<&'static str> {
        let mut topics = Vec::new();
        while let Some(event) = queue.next().await {
            topics.push(event.topic);
        }
        topics
    }

    #[tokio::test]
    async fn an_end_that_is_heard_of_before_the_start_is_told_after_it() {
        let (events, queue) = Events::channel();
        let mut container = ContainerEvents::new(events, "c");
        for which in [None, Some(exec())] {
            container.starting(which.clone());
            container.exited(which.clone(), Exit::now(0), 1);
            container.started(which, true, 1);
        }
        drop(container);
        assert_eq!(told(queue).await, ["/tasks/start", "/tasks/exit", "/tasks/exec-started", "/tasks/exit"]);
    }

    #[tokio::test]
    async fn a_process_that_did_not_start_has_no_start_and_only_the_first_one_an_end() {
        let (events, queue) = Events::channel();
        let mut container = ContainerEvents::new(events, "c");
        for which in [None, Some(exec())] {
            container.starting(which.clone());
            container.exited(which.clone(), Exit::killed(), 1);
            container.started(which, false, 1);
        }
        drop(container);
        assert_eq!(told(queue).await, ["/tasks/exit"]);
    }

    #[tokio::test]
    async fn an_event_is_what_containerd_reads() {
        let (events, mut queue) = Events::channel();
        ContainerEvents::new(events, "c").exited(None, Exit::now(7), 42);
        let event = queue.next().await.unwrap();
        assert_eq!((event.topic, event.message.type_url.as_str()), ("/tasks/exit", "containerd.events.TaskExit"));
        let exit = <TaskExit as containerd_shim_protos::protobuf::Message>::parse_from_bytes(&event.message.value);
        let exit = exit.unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str(), exit.pid, exit.exit_status), ("c", "c", 42, 7));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_queue_that_is_full() {
        let (events, mut queue) = Events::channel();
        for _ in 0..crate::events::QUEUE + 10 {
            events.out_of_memory("c");
        }
        let mut count = 0;
        while let Ok(Some(_)) = tokio::time::timeout(std::time::Duration::from_millis(50), queue.next()).await {
            count += 1;
        }
        assert_eq!(count, crate::events::QUEUE);
    }
}
