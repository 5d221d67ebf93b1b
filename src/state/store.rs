//! Reading and writing the records.

use super::records::VERSION;
use super::{ContainerRecord, Journal, SandboxRecord, write_atomically};
use crate::ids::{ContainerId, SandboxId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What went wrong with the state on disk.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The id is taken.
    #[error("container id {0} is in use already (delete it first, or choose another)")]
    Exists(ContainerId),
    /// No such container.
    #[error("container {0} does not exist")]
    NoSuchContainer(ContainerId),
    /// No such sandbox.
    #[error("sandbox {0} does not exist")]
    NoSuchSandbox(SandboxId),
    /// The file system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// read, write, make, remove.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what this program writes.
    #[error("{} is damaged or from another program", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        #[source]
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error("{} has version {found}; this program reads version {VERSION}", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

/// The state root.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store under `root`, whose directories are made when first needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a sandbox.
    pub fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// The supervisor's socket of a sandbox.
    pub fn api_socket(&self, id: &SandboxId) -> PathBuf {
        self.sandbox_dir(id).join("api.sock")
    }

    /// The record file of a container.
    pub fn container_file(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(format!("{id}.json"))
    }

    /// The journal file of a sandbox.
    pub fn journal_file(&self, id: &SandboxId) -> PathBuf {
        self.sandbox_dir(id).join("journal.jsonl")
    }

    /// Makes the directory of a new sandbox. Exactly one caller succeeds.
    ///
    /// # Errors
    /// [`StateError::Exists`] when it is there.
    pub fn make_sandbox_dir(&self, id: &SandboxId) -> Result<PathBuf, StateError> {
        let path = self.sandbox_dir(id);
        make_directories(path.parent().unwrap_or(&self.root))?;
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StateError::Exists(id.clone().into())),
            Err(source) => Err(StateError::Io { action: "make", path, source }),
        }
    }

    /// Writes the first record of a container. Exactly one caller succeeds.
    ///
    /// # Errors
    /// [`StateError::Exists`] when the id is taken.
    pub fn reserve_container(&self, record: &ContainerRecord) -> Result<(), StateError> {
        let path = self.container_file(&record.id);
        make_directories(path.parent().unwrap_or(&self.root))?;
        // A hard link is the exclusive form of a rename: the record appears whole, or not at all.
        let temporary = path.with_file_name(format!(".{}.{}.new", record.id, std::process::id()));
        let io_error = |source| StateError::Io { action: "write", path: path.clone(), source };
        let bytes = encode(record, &path)?;
        let written = File::create_private(&temporary).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        let linked = written.and_then(|()| fs::hard_link(&temporary, &path));
        let _ = fs::remove_file(&temporary);
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StateError::Exists(record.id.clone())),
            other => other.map_err(io_error),
        }
    }

    /// Replaces the record of a container.
    ///
    /// # Errors
    /// The write failed; the old record is still there.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<(), StateError> {
        let path = self.container_file(&record.id);
        let bytes = encode(record, &path)?;
        write_atomically(&path, &bytes).map_err(|source| StateError::Io { action: "write", path, source })
    }

    /// Reads the record of a container.
    ///
    /// # Errors
    /// [`StateError::NoSuchContainer`] when there is none.
    pub fn container(&self, id: &ContainerId) -> Result<ContainerRecord, StateError> {
        read(&self.container_file(id))?.ok_or_else(|| StateError::NoSuchContainer(id.clone()))
    }

    /// Removes the record of a container; none is no error.
    ///
    /// # Errors
    /// The file system said no.
    pub fn remove_container(&self, id: &ContainerId) -> Result<(), StateError> {
        let path = self.container_file(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Io { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Replaces the record of a sandbox.
    ///
    /// # Errors
    /// The write failed.
    pub fn write_sandbox(&self, record: &SandboxRecord) -> Result<(), StateError> {
        let path = self.sandbox_dir(&record.id).join("sandbox.json");
        let bytes = encode(record, &path)?;
        write_atomically(&path, &bytes).map_err(|source| StateError::Io { action: "write", path, source })
    }

    /// Reads the record of a sandbox.
    ///
    /// # Errors
    /// [`StateError::NoSuchSandbox`] when there is none.
    pub fn sandbox(&self, id: &SandboxId) -> Result<SandboxRecord, StateError> {
        read(&self.sandbox_dir(id).join("sandbox.json"))?.ok_or_else(|| StateError::NoSuchSandbox(id.clone()))
    }

    /// Reads the journal of a sandbox.
    ///
    /// # Errors
    /// It is damaged.
    pub fn journal(&self, id: &SandboxId) -> Result<Journal, StateError> {
        let path = self.journal_file(id);
        Journal::load(path.clone()).map_err(|source| StateError::Io { action: "read", path, source })
    }

    /// The ids of all containers, sorted. Names that are no id are passed over.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn container_ids(&self) -> Result<Vec<ContainerId>, StateError> {
        let names = list(&self.root.join("containers"))?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect())
    }

    /// The ids of all sandboxes, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn sandbox_ids(&self) -> Result<Vec<SandboxId>, StateError> {
        Ok(list(&self.root.join("sandboxes"))?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

struct File;

impl File {
    fn create_private(path: &Path) -> io::Result<fs::File> {
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
    }
}

fn make_directories(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(|source| StateError::Io {
        action: "make",
        path: path.to_owned(),
        source,
    })
}

/// Visible names, sorted; a directory that is not there has none.
fn list(directory: &Path) -> Result<Vec<String>, StateError> {
    let failed = |source| StateError::Io { action: "read", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn encode<T: Serialize>(record: &T, path: &Path) -> Result<Vec<u8>, StateError> {
    serde_json::to_vec_pretty(&Versioned { version: VERSION, record })
        .map_err(|source| StateError::Damaged { path: path.to_owned(), source })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(StateError::Io { action: "read", path: path.to_owned(), source }),
    };
    let damaged = |source| StateError::Damaged { path: path.to_owned(), source };
    // The version first: the rest of another version may not parse.
    let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version != VERSION {
        return Err(StateError::Version { path: path.to_owned(), found: version });
    }
    let record: Versioned<T> = serde_json::from_slice(&bytes).map_err(damaged)?;
    Ok(Some(record.record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Status;
    use crate::state::ProcessId;

    fn record(id: &str) -> ContainerRecord {
        ContainerRecord {
            id: id.parse().unwrap(),
            sandbox: "pod".parse().unwrap(),
            bundle: "/bundle".into(),
            stand_in: Some(ProcessId { pid: 7, start_time: 9 }),
            status: Status::Created,
            created: "2026-01-02T03:04:05Z".into(),
            exit_status: None,
            annotations: [("key".to_owned(), "value".to_owned())].into(),
            oci_version: "1.2.0".into(),
            owner: "root".into(),
        }
    }

    #[test]
    fn an_id_is_reserved_once_and_reads_back() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let one = record("one");
        store.reserve_container(&one).unwrap();
        assert!(matches!(store.reserve_container(&one), Err(StateError::Exists(_))));
        assert_eq!(store.container(&one.id).unwrap(), one);
        assert_eq!(store.container_ids().unwrap(), std::slice::from_ref(&one.id));
        store.remove_container(&one.id).unwrap();
        store.remove_container(&one.id).unwrap();
        assert!(matches!(store.container(&one.id), Err(StateError::NoSuchContainer(_))));
    }

    #[test]
    fn a_record_of_another_version_or_a_damaged_one_is_named() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let one = record("one");
        store.reserve_container(&one).unwrap();
        let path = store.container_file(&one.id);
        fs::write(&path, r#"{"version": 99}"#).unwrap();
        assert!(matches!(store.container(&one.id), Err(StateError::Version { found: 99, .. })));
        fs::write(&path, "{").unwrap();
        assert!(store.container(&one.id).unwrap_err().to_string().contains("one.json"));
    }

    #[test]
    fn a_sandbox_directory_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("deep/root"));
        let id: SandboxId = "pod".parse().unwrap();
        store.make_sandbox_dir(&id).unwrap();
        assert!(matches!(store.make_sandbox_dir(&id), Err(StateError::Exists(_))));
        assert_eq!(store.sandbox_ids().unwrap(), [id]);
    }
}
