//! Saving a machine to a directory, and starting another from it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stockade_hypervisor::{HypervisorError, MiB, Operation, Snapshots};

use super::launch::{Source, hotplug_memory};
use super::machine::Kvm;
use crate::control::Request;

/// The files of a saved machine. What is in the first is for the process alone to understand.
const STATE: &str = "state.json";
const MEMORY: &str = "memory";

/// How much memory is saved in a second at least, on a slow disk.
const SAVED_IN_A_SECOND: MiB = MiB(32);

/// What a machine goes on from, open for reading. The files must not change as long as it runs: its memory is mapped.
#[derive(Debug)]
pub(super) struct SavedFiles {
    pub(super) state: OwnedFd,
    pub(super) memory: OwnedFd,
}

impl SavedFiles {
    fn open(from: &Path) -> Result<Self, HypervisorError> {
        let open = |name| super::launch::open(&from.join(name), false, Operation::Restore);
        Ok(Self { state: open(STATE)?, memory: open(MEMORY)? })
    }
}

/// Files that are removed again unless they are kept.
#[derive(Debug)]
struct NewFiles {
    paths: [PathBuf; 2],
    kept: bool,
}

impl NewFiles {
    /// Makes the files in `into`, which must be empty.
    fn create(into: &Path) -> Result<(Self, [Arc<OwnedFd>; 2]), HypervisorError> {
        let host = |what: String| move |source| HypervisorError::host(Operation::Save, what, source);
        let mut entries = std::fs::read_dir(into).map_err(host(format!("read the directory {}", into.display())))?;
        if entries.next().is_some() {
            let source = io::ErrorKind::DirectoryNotEmpty.into();
            return Err(host(format!("save to {}, which must be empty", into.display()))(source));
        }
        let new = Self { paths: [into.join(STATE), into.join(MEMORY)], kept: false };
        let create = |path: &PathBuf| {
            // For its owner alone: it has all secrets of the guest.
            let file = OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(path);
            file.map(|file| Arc::new(OwnedFd::from(file))).map_err(host(format!("make {}", path.display())))
        };
        let [state, memory] = &new.paths;
        let files = [create(state)?, create(memory)?];
        Ok((new, files))
    }

    /// Lets them stay, once they are on the disk.
    async fn keep(mut self, files: [Arc<OwnedFd>; 2], into: PathBuf) -> Result<(), HypervisorError> {
        let what = format!("write the saved machine to the disk of {}", into.display());
        let sync = move || -> io::Result<()> {
            for file in &files {
                File::from(file.try_clone()?).sync_all()?;
            }
            File::open(into)?.sync_all()
        };
        let synced = tokio::task::spawn_blocking(sync).await.map_err(io::Error::other).and_then(|synced| synced);
        synced.map_err(|source| HypervisorError::host(Operation::Save, what, source))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for path in &self.paths {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "half of a saved machine stays");
            }
        }
    }
}

#[async_trait::async_trait]
impl Snapshots for Kvm {
    async fn save(&self, into: &Path) -> Result<(), HypervisorError> {
        let operation = Operation::Save;
        let shared = &self.shared;
        let _one = shared.life.one_operation().await;
        let running = shared.life.running(operation)?;
        let size = shared.life.config().map_or(MiB(0), |config| MiB(config.memory.0 + hotplug_memory(&config).0));
        let (new, files) = NewFiles::create(into)?;
        let limit = shared.options.answer_limit + Duration::from_secs((size.0 / SAVED_IN_A_SECOND.0).into());
        shared.ask_within(&running, operation, Request::Save, &files, limit).await?;
        new.keep(files, into.to_owned()).await
    }

    async fn restore(&self, from: &Path) -> Result<(), HypervisorError> {
        let shared = &self.shared;
        shared.life.state().check(Operation::Restore)?;
        let source = Source::Saved(SavedFiles::open(from)?);
        let config = shared.life.begin_start()?;
        shared.life.finish_start(Arc::clone(shared).start(config, source)).await
    }
}
