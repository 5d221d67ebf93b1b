//! The host's control group of the sandbox's processes. On a host with version 1 a directory is made in each of some ten
//! hierarchies, so it is begun early, and waited for when there is a process to join it.

use crate::cgroup::{CgroupError, CgroupPlace, SandboxCgroup, step_out};
use crate::error::{ErrorKind, OpError};
use crate::pipeline::{LiveUndo, SharedJournal, Step, UndoStack, perform};
use crate::state::{ProcessId, UndoRecord};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use stockade_hypervisor::VmProcess;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Begins to make it where the spec says.
#[derive(Debug)]
pub struct BeginCgroup {
    /// The sandbox's id, for a spec that names no path.
    pub id: String,
    /// `linux.cgroupsPath`
    pub path: Option<PathBuf>,
    /// Whether the path has systemd's form.
    pub systemd: bool,
    /// Where the directories are written down before they are made.
    pub journal: SharedJournal,
    /// The process that stands in for the container: it may outlive the group.
    pub stand_in: Option<ProcessId>,
}

/// A control group that is being made; `None` where the host has none to give.
#[derive(Debug)]
pub struct CgroupBegun(JoinHandle<Result<Option<SandboxCgroup>, OpError>>);

/// What is written down about the directories, with its number in the journal, once it is.
type Written = Arc<OnceLock<(u64, UndoRecord)>>;

impl Step for BeginCgroup {
    type Output = CgroupBegun;
    const NAME: &'static str = "begin-cgroup";

    async fn run(self, undo: &mut UndoStack) -> Result<CgroupBegun, OpError> {
        let Self { id, path, systemd, journal, stand_in } = self;
        let place = SandboxCgroup::place(&id, path.as_deref(), systemd).map_err(failed)?;
        let decided = CancellationToken::new();
        let deciding = decided.clone().drop_guard();
        let written = Written::default();
        let record = UndoRecord::Live { what: "remove the control group".into() };
        undo.push_live(record, Remove { decided, written: written.clone(), journal: journal.clone(), stand_in })?;
        Ok(CgroupBegun(tokio::task::spawn_blocking(move || {
            let _deciding = deciding;
            make(place, &journal, &written)
        })))
    }
}

/// Writes down what will be made, and makes it.
fn make(place: CgroupPlace, journal: &SharedJournal, written: &Written) -> Result<Option<SandboxCgroup>, OpError> {
    let plan = place.plan();
    let record = UndoRecord::RemoveCgroup { directories: plan.directories().to_vec() };
    let number = journal.append(record.clone())?;
    written.get_or_init(|| (number, record));
    plan.create().map_err(failed)
}

impl Step for CgroupBegun {
    type Output = Option<SandboxCgroup>;
    const NAME: &'static str = "cgroup";

    async fn run(self, _: &mut UndoStack) -> Result<Self::Output, OpError> {
        self.0.await.map_err(|error| OpError::internal(CANNOT, error))?
    }
}

/// Begins to put the machine's processes into it, as far as they are not in it from their start, and the stand-in. That
/// waits for a grace period of the kernel's, some milliseconds in which the guest can boot.
#[derive(Debug)]
pub struct BeginJoin {
    /// The group.
    pub cgroup: Option<SandboxCgroup>,
    /// The processes.
    pub processes: Vec<VmProcess>,
    /// The process that stands in for the container. Whoever waits for the creation may look where it is.
    pub stand_in: Option<ProcessId>,
}

/// A control group that is being joined, where there is any.
#[derive(Debug)]
pub struct JoinBegun {
    leaves: Vec<PathBuf>,
    joining: Option<JoinHandle<()>>,
}

impl Step for BeginJoin {
    type Output = JoinBegun;
    const NAME: &'static str = "begin-join-cgroup";

    async fn run(self, undo: &mut UndoStack) -> Result<JoinBegun, OpError> {
        let Self { cgroup, processes, stand_in } = self;
        let leaves = cgroup.as_ref().map(|cgroup| cgroup.leaves().to_vec()).unwrap_or_default();
        let Some(cgroup) = cgroup.filter(|_| !processes.is_empty()) else {
            return Ok(JoinBegun { leaves, joining: None });
        };
        let joined = CancellationToken::new();
        let ended = joined.clone().drop_guard();
        undo.push_live(UndoRecord::Live { what: "end joining the control group".into() }, EndJoining(joined))?;
        let joining = tokio::task::spawn_blocking(move || {
            let _ended = ended;
            let join = |pid| {
                if let Err(error) = cgroup.add_process(pid) {
                    tracing::warn!(%error, pid, "the process is not in the sandbox's control group");
                }
            };
            processes.iter().for_each(|process| join(process.pid));
            // Looked at as late as can be: it is not ours, and its number may become another's.
            if let Some(process) = stand_in.filter(|process| process.is_alive()) {
                join(process.pid);
            }
        });
        Ok(JoinBegun { leaves, joining: Some(joining) })
    }
}

impl Step for JoinBegun {
    /// The group's directories, one a hierarchy.
    type Output = Vec<PathBuf>;
    const NAME: &'static str = "join-cgroup";

    async fn run(self, _: &mut UndoStack) -> Result<Vec<PathBuf>, OpError> {
        if let Some(joining) = self.joining {
            joining.await.map_err(|error| OpError::internal("cannot join the control group", error))?;
        }
        Ok(self.leaves)
    }
}

const CANNOT: &str = "cannot make the control group on the host";

fn failed(error: CgroupError) -> OpError {
    OpError::because(ErrorKind::Internal, CANNOT, error)
}

/// Removes what was made of it, once nothing more is being made.
struct Remove {
    decided: CancellationToken,
    written: Written,
    journal: SharedJournal,
    stand_in: Option<ProcessId>,
}

#[async_trait::async_trait]
impl LiveUndo for Remove {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.decided.cancelled().await;
        let Some((number, record)) = self.written.get() else { return Ok(()) };
        if let (UndoRecord::RemoveCgroup { directories }, Some(process)) = (record, self.stand_in)
            && process.is_alive()
        {
            // It ends when its maker hears that there is no container.
            let directories = directories.clone();
            let out = tokio::task::spawn_blocking(move || step_out(&directories, process.pid));
            out.await.map_err(|error| OpError::internal("cannot take the stand-in out of the control group", error))?;
        }
        perform(record.clone()).await?;
        self.journal.strike(*number);
        Ok(())
    }
}

/// Comes before the machine's end: the numbers of processes that are gone may become others'.
struct EndJoining(CancellationToken);

#[async_trait::async_trait]
impl LiveUndo for EndJoining {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.0.cancelled().await;
        Ok(())
    }
}
