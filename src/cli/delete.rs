//! `stockade delete`.

use super::client::{self, CallError, Connection, LONG_CALL, SHORT_CALL, answer};
use super::container::{END_LIMIT, End, clean_up, current};
use super::globals::Context;
use crate::ids::ContainerId;
use crate::oci::Status;
use crate::state::recovery::{self, Supervision};
use crate::state::{ContainerRecord, StateError};
use anyhow::{Context as _, bail};
use containerd_shim_protos::api::{DeleteRequest, KillRequest, WaitRequest};
use std::process::ExitCode;
use ttrpc::context::with_duration;

/// Delete a container that is stopped or never started, and with the last one its virtual machine
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
    /// Kill the container first if it runs; one that does not exist is no error
    #[arg(short, long)]
    force: bool,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        delete(context, &self.id, self.force)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Deletes the container. When this returns, nothing of it is left, nor of its sandbox if it was the last one.
pub(super) fn delete(context: &Context, id: &ContainerId, force: bool) -> anyhow::Result<()> {
    let record = match context.runtime.block_on(current(context, id)) {
        Ok(record) => record,
        Err(StateError::NoSuchContainer(_)) if force => return Ok(()),
        // Nobody can tell what it was; its sandbox is found by its directory.
        Err(error) => return Err(error.into()),
    };
    if !force && matches!(record.status, Status::Creating | Status::Running | Status::Paused) {
        bail!("cannot delete container {id} that is not stopped: {}", record.status);
    }
    // `current` leaves out the stand-in of what is stopped, but it may be on its way out.
    let stand_in = context.store.container(id).ok().and_then(|record| record.stand_in).map(End::of);
    let supervisor = End::of_supervisor(&context.store, &record.sandbox);
    if recovery::supervision(&context.store, &record.sandbox)? == Supervision::Alive {
        if let Err(error) = context.runtime.block_on(ask(context, &record)) {
            by_force(context, &record, supervisor.as_ref(), force, error)?;
        }
    } else {
        clean_up(context, &record.sandbox)?;
        context.store.remove_container(id)?;
    }
    let last = recovery::containers_of(&context.store, &record.sandbox)?.is_empty();
    if last && let Some(end) = &supervisor {
        if !end.wait(END_LIMIT) {
            bail!("container {id} is deleted, but the supervisor of sandbox {} does not end", record.sandbox);
        }
        // One that died on its way leaves its journal.
        if context.store.sandbox_dir(&record.sandbox).exists() {
            clean_up(context, &record.sandbox)?;
        }
    }
    if let Some(end) = stand_in
        && !end.wait(END_LIMIT)
    {
        end.force();
    }
    Ok(())
}

/// Lets the supervisor do it: kill, if there is something to kill, wait for the end, delete.
async fn ask(context: &Context, record: &ContainerRecord) -> Result<(), CallError> {
    let connection = client::connect(&context.store, &record.sandbox).await?;
    let id = record.id.to_string();
    // A creation under way is cancelled by the deletion itself.
    if !matches!(record.status, Status::Stopped | Status::Creating) {
        kill_and_wait(&connection, &id).await?;
    }
    let request = DeleteRequest { id, ..DeleteRequest::default() };
    match answer("Delete", connection.task.delete(with_duration(LONG_CALL), &request).await) {
        // It went in the meantime, perhaps because its creation failed.
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

async fn kill_and_wait(connection: &Connection, id: &str) -> Result<(), CallError> {
    let request = KillRequest { id: id.to_owned(), signal: 9, all: true, ..KillRequest::default() };
    match answer("Kill", connection.task.kill(with_duration(SHORT_CALL), &request).await) {
        // It has ended by itself; the deletion says what else is wrong.
        Ok(_) | Err(CallError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    let request = WaitRequest { id: id.to_owned(), ..WaitRequest::default() };
    match answer("Wait", connection.task.wait(with_duration(SHORT_CALL), &request).await) {
        Ok(_) | Err(CallError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The supervisor did not do it. One that has died is cleaned up after; one that hangs is ended first, with `force` and
/// if nobody else needs it.
fn by_force(
    context: &Context,
    record: &ContainerRecord,
    supervisor: Option<&End>,
    force: bool,
    error: CallError,
) -> anyhow::Result<()> {
    if !error.is_gone() {
        return Err(error.into());
    }
    let ended = supervisor.is_none_or(|end| end.wait(std::time::Duration::from_secs(1)));
    if !ended {
        let others = recovery::containers_of(&context.store, &record.sandbox)?.iter().any(|other| *other != record.id);
        if !force || others {
            return Err(error).with_context(|| format!("cannot delete container {}", record.id));
        }
        context.report.warning(&format!("{error}; the supervisor of sandbox {} is killed", record.sandbox));
        if !supervisor.is_some_and(End::force) {
            bail!("the supervisor of sandbox {} survives SIGKILL", record.sandbox);
        }
    }
    clean_up(context, &record.sandbox)?;
    context.store.remove_container(&record.id)?;
    Ok(())
}
