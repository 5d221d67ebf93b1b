//! `delete`: nothing is left of the container, whatever became of its supervisor, and containerd hears how it ended.
//!
//! containerd calls this when its connection to a supervisor has closed: after each deletion, when there is nothing left
//! to do, and after a supervisor's death.

use super::{Arguments, Place};
use crate::cli::{self, End};
use crate::ids::{ContainerId, SandboxId};
use crate::state::recovery::{self, Supervision};
use crate::state::{StateError, Store};
use anyhow::bail;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use std::time::{Duration, SystemTime};

/// 128 + SIGKILL: the status of what ended with its supervisor.
const KILLED: u32 = 137;
/// How long a supervisor that has nothing left may take to end; containerd gives all of this five seconds.
const END_LIMIT: Duration = Duration::from_secs(4);

/// Cleans up. Returns what containerd reads.
pub(super) fn delete(arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let store = Place::of(&arguments.namespace)?.store();
    let id: ContainerId = arguments.id.parse()?;
    let (mut pid, mut status) = (0, KILLED);
    match store.container(&id) {
        Ok(record) => {
            status = record.exit_status.unwrap_or(KILLED);
            pid = supervisor(&store, &record.sandbox);
            cli::delete_by_force(&store, &id)?;
        }
        Err(StateError::NoSuchContainer(_)) => {
            let sandbox = SandboxId::from(id);
            pid = pid.max(supervisor(&store, &sandbox));
            settle(&store, &sandbox)?;
        }
        Err(error) => return Err(error.into()),
    }
    let response = DeleteResponse {
        pid,
        exit_status: status,
        exited_at: MessageField::some(Timestamp::from(SystemTime::now())),
        ..DeleteResponse::default()
    };
    Ok(response.write_to_bytes()?)
}

fn supervisor(store: &Store, sandbox: &SandboxId) -> u32 {
    store.sandbox(sandbox).map_or(0, |record| u32::try_from(record.supervisor.pid).unwrap_or(0))
}

/// The container is gone, but its sandbox may be on its way, or a supervisor may have died on it.
fn settle(store: &Store, sandbox: &SandboxId) -> anyhow::Result<()> {
    if !store.sandbox_dir(sandbox).exists() {
        return Ok(());
    }
    if !recovery::containers_of(store, sandbox)?.is_empty() {
        // The pod goes on.
        return Ok(());
    }
    if let Some(end) = End::of_supervisor(store, sandbox)
        && !end.wait(END_LIMIT)
    {
        bail!("the supervisor of sandbox {sandbox} does not end");
    }
    if store.sandbox_dir(sandbox).exists() && recovery::supervision(store, sandbox)? == Supervision::Dead {
        let leftovers = recovery::clean_up(store, sandbox)?;
        if let Some(first) = leftovers.first() {
            bail!("{} thing(s) of sandbox {sandbox} could not be undone: {first}: {}", leftovers.len(), first.source);
        }
    }
    Ok(())
}
