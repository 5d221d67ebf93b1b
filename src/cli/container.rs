//! Finding a container, and the truth about it.

use super::client::{self, Connection, SHORT_CALL, answer};
use super::globals::Context;
use crate::ids::{ContainerId, SandboxId};
use crate::oci::Status;
use crate::stand_in::sys::pidfd_open;
use crate::state::recovery::{self, Leftover, Supervision};
use crate::state::{ContainerRecord, ProcessId, StateError, Store};
use anyhow::bail;
use containerd_shim_protos::api::{StateRequest, Status as TaskStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use ttrpc::context::with_duration;

/// How long ending processes are waited for.
pub(super) const END_LIMIT: Duration = Duration::from_secs(10);

/// The record of `id`, with its status of now in place of the written one.
pub(super) async fn current(context: &Context, id: &ContainerId) -> Result<ContainerRecord, StateError> {
    let mut record = context.store.container(id)?;
    record.status = status(&context.store, &record).await?;
    if record.status == Status::Stopped {
        record.stand_in = None;
    }
    Ok(record)
}

async fn status(store: &Store, record: &ContainerRecord) -> Result<Status, StateError> {
    let written = recovery::truth(store, record)?;
    if matches!(written, Status::Creating | Status::Stopped) {
        return Ok(written);
    }
    let asked = async {
        let connection = client::connect(store, &record.sandbox).await?;
        let request = StateRequest { id: record.id.to_string(), ..StateRequest::default() };
        answer("State", connection.task.state(with_duration(SHORT_CALL), &request).await)
    };
    match asked.await {
        Ok(response) => Ok(status_of(response.status(), written)),
        // It may have ended meanwhile.
        Err(_) => recovery::truth(store, record),
    }
}

fn status_of(task: TaskStatus, otherwise: Status) -> Status {
    match task {
        TaskStatus::CREATED => Status::Created,
        TaskStatus::RUNNING => Status::Running,
        TaskStatus::PAUSED | TaskStatus::PAUSING => Status::Paused,
        TaskStatus::STOPPED => Status::Stopped,
        TaskStatus::UNKNOWN => otherwise,
    }
}

/// A connection to the supervisor of a container that must have one for `purpose`.
pub(super) async fn supervisor_of(
    context: &Context,
    id: &ContainerId,
    purpose: &str,
) -> anyhow::Result<(ContainerRecord, Connection)> {
    let record = context.store.container(id)?;
    if recovery::supervision(&context.store, &record.sandbox)? == Supervision::Dead {
        bail!("cannot {purpose} container {id}: it is stopped, for its supervisor has ended (delete it)");
    }
    let connection = client::connect(&context.store, &record.sandbox).await?;
    Ok((record, connection))
}

/// The end of a process that is not our child.
#[derive(Debug)]
pub(crate) struct End {
    process: ProcessId,
    fd: Option<OwnedFd>,
}

impl End {
    /// Of `process`; one that is gone has ended.
    pub(crate) fn of(process: ProcessId) -> Self {
        // The descriptor is of the process that has the number now: that must be the one meant.
        let fd = pidfd_open(process.pid).ok().filter(|_| process.is_alive());
        Self { process, fd }
    }

    /// Of the supervisor of `sandbox`; `None` when there is no record of it.
    pub(crate) fn of_supervisor(store: &Store, sandbox: &SandboxId) -> Option<Self> {
        store.sandbox(sandbox).ok().map(|record| Self::of(record.supervisor))
    }

    /// Waits for it; whether it came within `limit`. Blocks.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let Some(fd) = &self.fd else { return !self.process.is_alive() };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return true,
                Err(_) => return !self.process.is_alive(),
            }
        }
    }

    /// Ends it by force and waits. Blocks.
    pub(super) fn force(&self) -> bool {
        self.process.signal(nix::sys::signal::Signal::SIGKILL);
        self.wait(END_LIMIT)
    }
}

/// Cleans up after the dead supervisor of `sandbox`; an error when something stays.
pub(super) fn clean_up(context: &Context, sandbox: &SandboxId) -> anyhow::Result<()> {
    let leftovers = recovery::clean_up(&context.store, sandbox)?;
    match report_leftovers(context, &leftovers) {
        0 => Ok(()),
        count => bail!("{count} thing(s) of sandbox {sandbox} could not be undone; they stay recorded"),
    }
}

/// Names each leftover as an error; how many there are.
pub(super) fn report_leftovers(context: &Context, leftovers: &[Leftover]) -> usize {
    for leftover in leftovers {
        context.report.error(&format!("{leftover}: {}", leftover.source));
    }
    leftovers.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tasks_status_wins_unless_it_is_unknown() {
        assert_eq!(status_of(TaskStatus::PAUSED, Status::Running), Status::Paused);
        assert_eq!(status_of(TaskStatus::STOPPED, Status::Running), Status::Stopped);
        assert_eq!(status_of(TaskStatus::UNKNOWN, Status::Created), Status::Created);
    }

    #[test]
    fn the_end_of_a_process_is_seen_and_can_be_forced() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id().cast_signed()).unwrap();
        let end = End::of(process);
        assert!(!end.wait(Duration::ZERO));
        assert!(end.force());
        child.wait().unwrap();
        assert!(End::of(process).wait(Duration::ZERO));
    }
}
