//! The truth about what a dead supervisor left, and cleaning it up.

use super::{ContainerRecord, SandboxRecord, StateError, Store, UndoRecord};
use crate::ids::{ContainerId, SandboxId};
use crate::oci::Status;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a sandbox's supervisor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// It lives.
    Alive,
    /// It is gone; whatever its records say, nothing of it runs.
    Dead,
}

/// Whether the supervisor of `id` lives. A sandbox without a record has none.
///
/// # Errors
/// A record that cannot be read: then nobody may clean up.
pub fn supervision(store: &Store, id: &SandboxId) -> Result<Supervision, StateError> {
    match store.sandbox(id) {
        Ok(record) if record.supervisor.is_alive() => Ok(Supervision::Alive),
        Ok(_) | Err(StateError::NoSuchSandbox(_)) => Ok(Supervision::Dead),
        Err(error) => Err(error),
    }
}

/// The state of a container now: its record's, unless its supervisor is gone, for then nothing runs any more.
///
/// # Errors
/// As [`supervision`].
pub fn truth(store: &Store, record: &ContainerRecord) -> Result<Status, StateError> {
    Ok(match supervision(store, &record.sandbox)? {
        Supervision::Alive => record.status,
        Supervision::Dead => Status::Stopped,
    })
}

/// What cleaning up could not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Leftover {
    /// What was tried.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Undoes everything that a dead sandbox's journal holds, newest first, then removes its containers' records and its
/// directory. Goes on after an error; what could not be undone stays in the journal and is returned.
///
/// Several may ask for the same at once, as containerd does for each container of a pod whose supervisor has died: one of
/// them does it, and the others wait until it is done.
///
/// # Errors
/// The journal cannot be read.
pub fn clean_up(store: &Store, id: &SandboxId) -> Result<Vec<Leftover>, StateError> {
    let directory = store.sandbox_dir(id);
    let held = match hold(&directory) {
        Ok(Held::Gone) => return Ok(Vec::new()),
        Ok(held) => held,
        Err(source) => return Err(StateError::Io { action: "lock", path: directory, source }),
    };
    let mut journal = store.journal(id)?;
    let mut leftovers = Vec::new();
    for entry in journal.entries().to_vec().iter().rev() {
        match entry.record.perform() {
            Ok(()) => {
                if let Err(source) = journal.strike(entry.number) {
                    leftovers.push(Leftover { what: "write the journal".into(), source });
                }
            }
            Err(source) => leftovers.push(Leftover { what: entry.record.describe(), source }),
        }
    }
    if leftovers.is_empty() {
        // Without a record there was no supervisor that could have made it.
        if let Ok(SandboxRecord { link: Some(path), .. }) = store.sandbox(id) {
            let link = UndoRecord::RemoveFile { path };
            link.perform().unwrap_or_else(|source| leftovers.push(Leftover { what: link.describe(), source }));
        }
        for container in containers_of(store, id)? {
            store.remove_container(&container)?;
        }
        let directory = UndoRecord::RemoveTree { path: store.sandbox_dir(id) };
        if let Err(source) = directory.perform() {
            leftovers.push(Leftover { what: directory.describe(), source });
        }
    }
    drop(held);
    Ok(leftovers)
}

/// What became of the wish to be the only one to clean up a directory.
enum Held {
    /// Granted, until it is dropped.
    Lock(#[expect(dead_code, reason = "its end is what counts")] Flock<File>),
    /// There was no directory in the first place, so only records can be left.
    Nothing,
    /// Somebody else has removed it meanwhile.
    Gone,
}

fn hold(directory: &Path) -> io::Result<Held> {
    let file = match File::open(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::Nothing),
        opened => opened?,
    };
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| io::Error::from(error))?;
    // The name may lead to a new sandbox by now.
    let (ours, named) = (lock.metadata()?, std::fs::metadata(directory));
    let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
    Ok(if same { Held::Lock(lock) } else { Held::Gone })
}

/// The containers whose record names the sandbox. Records that cannot be read are passed over.
///
/// # Errors
/// The directory cannot be read.
pub fn containers_of(store: &Store, id: &SandboxId) -> Result<Vec<ContainerId>, StateError> {
    let ids = store.container_ids()?;
    Ok(ids.into_iter().filter(|cid| store.container(cid).is_ok_and(|record| record.sandbox == *id)).collect())
}

/// Removes what belongs to no living sandbox: returns the sandboxes and containers that were removed, and leftovers.
///
/// # Errors
/// The state root cannot be read.
pub fn collect_garbage(store: &Store) -> Result<(Vec<String>, Vec<Leftover>), StateError> {
    let (mut removed, mut leftovers) = (Vec::new(), Vec::new());
    for id in store.sandbox_ids()? {
        if supervision(store, &id)? == Supervision::Alive || is_being_made(store, &id) {
            continue;
        }
        let left = clean_up(store, &id)?;
        if left.is_empty() {
            removed.push(format!("sandbox {id}"));
        }
        leftovers.extend(left);
    }
    for id in store.container_ids()? {
        let Ok(record) = store.container(&id) else { continue };
        if !store.sandbox_dir(&record.sandbox).exists() {
            store.remove_container(&id)?;
            removed.push(format!("container {id}"));
        }
    }
    Ok((removed, leftovers))
}

/// A directory without a record that is younger than a minute: its supervisor may be about to write it.
fn is_being_made(store: &Store, id: &SandboxId) -> bool {
    let directory = store.sandbox_dir(id);
    let young = std::fs::metadata(&directory)
        .and_then(|data| data.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() < 60));
    young && !directory.join("sandbox.json").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ProcessId;

    fn root_link(store: &Store) -> std::path::PathBuf {
        store.root().join("link")
    }

    fn dead_sandbox(store: &Store) -> SandboxId {
        let id: SandboxId = "dead".parse().unwrap();
        store.make_sandbox_dir(&id).unwrap();
        let supervisor = ProcessId { pid: 1, start_time: u64::MAX };
        let record = SandboxRecord {
            id: id.clone(),
            supervisor,
            backend: None,
            created: String::new(),
            link: Some(root_link(store)),
        };
        store.write_sandbox(&record).unwrap();
        std::os::unix::fs::symlink(store.api_socket(&id), root_link(store)).unwrap();
        id
    }

    #[test]
    fn a_dead_supervisors_journal_is_performed_newest_first_and_the_directory_goes() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let id = dead_sandbox(&store);
        let outer = root.path().join("outer");
        std::fs::create_dir_all(outer.join("inner")).unwrap();
        let mut journal = store.journal(&id).unwrap();
        journal.append(UndoRecord::RemoveCgroup { directories: vec![outer.clone(), outer.join("inner")] }).unwrap();
        assert_eq!(supervision(&store, &id).unwrap(), Supervision::Dead);
        let (removed, leftovers) = collect_garbage(&store).unwrap();
        assert!(leftovers.is_empty(), "{leftovers:?}");
        assert_eq!(removed, ["sandbox dead"]);
        assert!(!outer.exists() && !store.sandbox_dir(&id).exists() && !root_link(&store).is_symlink());
    }

    #[test]
    fn of_several_who_clean_up_at_once_one_does_it_and_none_fails() {
        for _ in 0..20 {
            let root = tempfile::tempdir().unwrap();
            let store = Store::new(root.path());
            let id = dead_sandbox(&store);
            let tree = root.path().join("tree");
            for number in 0..50 {
                std::fs::create_dir_all(tree.join(format!("{number}/x"))).unwrap();
            }
            store.journal(&id).unwrap().append(UndoRecord::RemoveTree { path: tree.clone() }).unwrap();
            let cleaners: Vec<_> = (0..4)
                .map(|_| {
                    let (store, id) = (store.clone(), id.clone());
                    std::thread::spawn(move || clean_up(&store, &id))
                })
                .collect();
            for cleaner in cleaners {
                let left = cleaner.join().unwrap().unwrap();
                assert!(left.is_empty(), "{left:?}");
            }
            assert!(!tree.exists() && !store.sandbox_dir(&id).exists());
        }
    }

    #[test]
    fn what_cannot_be_undone_stays_in_the_journal() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let id = dead_sandbox(&store);
        let full = root.path().join("full");
        std::fs::create_dir_all(full.join("x")).unwrap();
        store.journal(&id).unwrap().append(UndoRecord::RemoveFile { path: full }).unwrap();
        assert_eq!(clean_up(&store, &id).unwrap().len(), 1);
        assert_eq!(store.journal(&id).unwrap().entries().len(), 1);
    }
}
