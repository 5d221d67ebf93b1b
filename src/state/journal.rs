//! What to undo, written down before it is done.
//!
//! A supervisor that is killed cannot undo anything; whoever cleans up after it reads the journal and performs the
//! records in reverse. So a record must say all there is to know, and performing one that was never done, or was
//! undone already, is no error.

use super::{ProcessId, write_atomically};
use crate::hooks;
use crate::oci::OciState;
use nix::sys::signal::Signal;
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One thing to undo on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "kebab-case")]
pub enum UndoRecord {
    /// A process to kill. Its record is written before it is spawned with what is known then (nothing), and again
    /// when its number is known; between the two, the kernel kills it with its parent (PR_SET_PDEATHSIG).
    KillProcess {
        /// The process.
        process: ProcessId,
        /// What it is, for messages.
        role: String,
    },
    /// A directory to remove with all in it. Mount points under it are detached first, never followed.
    RemoveTree {
        /// Absolute path, inside the state root.
        path: PathBuf,
    },
    /// A file to remove.
    RemoveFile {
        /// Absolute path.
        path: PathBuf,
    },
    /// A mount in the supervisor's own mount namespace; gone with it, so that recovery has nothing to do.
    Unmount {
        /// The mount point.
        path: PathBuf,
    },
    /// Control group directories that we made, outermost first.
    RemoveCgroup {
        /// Absolute paths.
        directories: Vec<PathBuf>,
    },
    /// The poststop hooks, once the prestart or createRuntime hooks have begun.
    PoststopHooks {
        /// The hooks, in order.
        hooks: Vec<Hook>,
        /// The state that they read.
        state: OciState,
    },
    /// Nothing on disk outlives the supervisor: what is undone is in the guest or held by a descriptor.
    Live {
        /// What it is, for messages.
        what: String,
    },
}

impl UndoRecord {
    /// What it undoes, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::KillProcess { process, role } => format!("end {role} (process {})", process.pid),
            Self::RemoveTree { path } => format!("remove the directory {}", path.display()),
            Self::RemoveFile { path } => format!("remove {}", path.display()),
            Self::Unmount { path } => format!("unmount {}", path.display()),
            Self::RemoveCgroup { directories } => match directories.last() {
                Some(path) => format!("remove the control group {}", path.display()),
                None => "remove the control group".to_owned(),
            },
            Self::PoststopHooks { .. } => "run the poststop hooks".to_owned(),
            Self::Live { what } => what.clone(),
        }
    }

    /// Undoes it, with blocking calls. Idempotent.
    ///
    /// # Errors
    /// What the host refused; whatever else can be undone still should be.
    pub fn perform(&self) -> io::Result<()> {
        match self {
            Self::KillProcess { process, .. } => kill_and_wait(*process, Duration::from_secs(5)),
            Self::RemoveTree { path } => remove_tree(path),
            Self::RemoveFile { path } => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Self::Unmount { path } => unmount(path),
            Self::RemoveCgroup { directories } => crate::cgroup::remove_directories(directories),
            Self::PoststopHooks { hooks, state } => hooks::run_poststop_blocking(hooks, state),
            Self::Live { .. } => Ok(()),
        }
    }
}

/// Detaches a mount without following a symlink at its end; not mounted is no error.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::mount::{MntFlags, umount2};
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn kill_and_wait(process: ProcessId, limit: Duration) -> io::Result<()> {
    process.signal(Signal::SIGKILL);
    let deadline = Instant::now() + limit;
    while process.is_alive() {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} survives SIGKILL", process.pid)));
        }
        // It is not our child, so there is nothing to wait on.
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for mount in mounts_below(path)?.iter().rev() {
        unmount(mount)?;
    }
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        // A volume may be a file.
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Mount points at or below `path` in this mount namespace, in the order they were made.
fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(path)).collect())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(code, character);
    }
    PathBuf::from(text)
}

/// A record with its place in the order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Grows by one with each entry of a journal.
    pub number: u64,
    /// What to undo.
    pub record: UndoRecord,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    entries: Vec<JournalEntry>,
}

/// The undo list of one sandbox, on disk. One writer: the sandbox's supervisor, or whoever recovers after its death.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entries: Vec<JournalEntry>,
    next: u64,
}

impl Journal {
    /// A new, empty journal. The file appears with the first entry.
    pub fn new(path: PathBuf) -> Self {
        Self { path, entries: Vec::new(), next: 1 }
    }

    /// Reads a journal; one that was never written is empty.
    ///
    /// # Errors
    /// Unreadable, not JSON, or another version.
    pub fn load(path: PathBuf) -> io::Result<Self> {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(path)),
            Err(error) => return Err(error),
        };
        let file: File = serde_json::from_slice(&text)?;
        if file.version != super::records::VERSION {
            let message = format!(
                "{} has version {}; this program knows {}",
                path.display(),
                file.version,
                super::records::VERSION
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let next = file.entries.iter().map(|entry| entry.number).max().unwrap_or(0) + 1;
        Ok(Self { path, entries: file.entries, next })
    }

    /// Writes down what will be undone, before it is done. Returns its number.
    ///
    /// # Errors
    /// The write failed: the thing must then not be done.
    pub fn append(&mut self, record: UndoRecord) -> io::Result<u64> {
        let number = self.next;
        self.entries.push(JournalEntry { number, record });
        if let Err(error) = self.write() {
            self.entries.pop();
            return Err(error);
        }
        self.next += 1;
        Ok(number)
    }

    /// Strikes an entry out, once it is undone.
    ///
    /// # Errors
    /// The write failed; the entry may then be performed again, which is harmless.
    pub fn strike(&mut self, number: u64) -> io::Result<()> {
        self.entries.retain(|entry| entry.number != number);
        self.write()
    }

    /// What is to be undone, oldest first.
    pub fn entries(&self) -> &[JournalEntry] {
        &self.entries
    }

    fn write(&self) -> io::Result<()> {
        let file = File { version: super::records::VERSION, entries: self.entries.clone() };
        match write_atomically(&self.path, &serde_json::to_vec(&file)?) {
            // The sandbox's directory is undone last, and its journal with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.entries.is_empty() => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_reads_back_in_order_and_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.json");
        let mut journal = Journal::new(path.clone());
        let first = journal.append(UndoRecord::RemoveFile { path: "/a".into() }).unwrap();
        let second = journal.append(UndoRecord::Live { what: "b".into() }).unwrap();
        journal.strike(first).unwrap();
        let mut again = Journal::load(path).unwrap();
        assert_eq!(again.entries().len(), 1);
        assert_eq!(again.entries()[0].number, second);
        assert!(again.append(UndoRecord::Live { what: "c".into() }).unwrap() > second);
    }

    #[test]
    fn undoing_what_was_never_done_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("nothing");
        for record in [
            UndoRecord::RemoveTree { path: nowhere.clone() },
            UndoRecord::RemoveFile { path: nowhere.clone() },
            UndoRecord::Unmount { path: nowhere.clone() },
            UndoRecord::RemoveCgroup { directories: vec![nowhere] },
            UndoRecord::KillProcess { process: ProcessId { pid: 1, start_time: u64::MAX }, role: "nobody".into() },
        ] {
            record.perform().unwrap();
        }
    }

    #[test]
    fn a_tree_is_removed_without_following_symlinks() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, kept) = (directory.path().join("tree"), directory.path().join("kept"));
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::create_dir_all(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        UndoRecord::RemoveTree { path: tree.clone() }.perform().unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
    }

    #[test]
    fn a_volume_that_is_a_file_is_removed_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        UndoRecord::RemoveTree { path: file.clone() }.perform().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_process_is_killed_only_if_it_is_the_one_meant() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id().cast_signed()).unwrap();
        let other = ProcessId { start_time: process.start_time + 1, ..process };
        UndoRecord::KillProcess { process: other, role: "another".into() }.perform().unwrap();
        assert!(process.is_alive());
        UndoRecord::KillProcess { process, role: "ours".into() }.perform().unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
