//! What to undo, written down before it is done.
//!
//! A supervisor that is killed cannot undo anything; whoever cleans up after it reads the journal and performs the
//! records in reverse. So a record must say all there is to know, and performing one that was never done, or was
//! undone already, is no error.

use super::ProcessId;
use super::records::VERSION;
use crate::hooks;
use crate::network::{Limits, NetnsError, Network, NetworkNamespace, Undo};
use crate::oci::OciState;
use nix::sys::signal::Signal;
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
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
    /// What was added to a network namespace that is someone else's. One of ours goes with the sandbox.
    DetachNetwork {
        /// Where the namespace is found.
        netns: PathBuf,
        /// One an interface.
        undos: Vec<Undo>,
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
            Self::DetachNetwork { netns, .. } => format!("disconnect the network namespace {}", netns.display()),
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
            Self::DetachNetwork { netns, undos } => detach_network(netns, undos),
            Self::Live { .. } => Ok(()),
        }
    }
}

/// Undoes in the namespace at `netns`; when nothing is there any more, nothing of ours is.
fn detach_network(netns: &Path, undos: &[Undo]) -> io::Result<()> {
    let joined = match NetworkNamespace::join(netns) {
        Ok(joined) => joined,
        Err(NetnsError::Open { .. } | NetnsError::NotNamespace { .. }) => return Ok(()),
        Err(error) => return Err(io::Error::other(error)),
    };
    let network = Network::new(joined.into_shared(), Limits::default()).map_err(io::Error::other)?;
    network.detach_blocking(undos).map_err(io::Error::other)
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

/// One line of the file. It only ever grows, so that a killed supervisor loses nothing that was written; a line that has
/// no end was not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    /// The first.
    Version { version: u32 },
    /// Something to undo.
    Entry(JournalEntry),
    /// The entry of this number was undone.
    Struck { struck: u64 },
}

/// The undo list of one sandbox, on disk. One writer: the sandbox's supervisor, or whoever recovers after its death.
///
/// It is not synchronised to the disk: with the power, a host loses the processes, mounts and control groups as well.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Open from the first write on, with its length: nobody else writes to it.
    file: Option<(File, u64)>,
    entries: Vec<JournalEntry>,
    next: u64,
}

impl Journal {
    /// A new, empty journal. The file appears with the first entry.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, entries: Vec::new(), next: 1 }
    }

    /// Reads a journal; one that was never written is empty.
    ///
    /// # Errors
    /// Unreadable, not JSON lines, or another version.
    pub fn load(path: PathBuf) -> io::Result<Self> {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(path)),
            Err(error) => return Err(error),
        };
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let mut entries: Vec<JournalEntry> = Vec::new();
        let mut next = 1;
        let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for (index, line) in whole.enumerate() {
            let line = serde_json::from_slice(line).map_err(|error| invalid(format!("line {}: {error}", index + 1)))?;
            match (index, line) {
                (0, Line::Version { version: VERSION }) => {}
                (0, Line::Version { version }) => {
                    return Err(invalid(format!("it has version {version}; this program knows {VERSION}")));
                }
                (0, _) | (_, Line::Version { .. }) => {
                    return Err(invalid("the version stands in its first line, and nowhere else".to_owned()));
                }
                (_, Line::Entry(entry)) => {
                    next = next.max(entry.number.saturating_add(1));
                    entries.push(entry);
                }
                (_, Line::Struck { struck }) => entries.retain(|entry| entry.number != struck),
            }
        }
        Ok(Self { path, file: None, entries, next })
    }

    /// Writes down what will be undone, before it is done. Returns its number.
    ///
    /// # Errors
    /// The write failed: the thing must then not be done.
    pub fn append(&mut self, record: UndoRecord) -> io::Result<u64> {
        let number = self.next;
        let entry = JournalEntry { number, record };
        self.write(&Line::Entry(entry.clone()))?;
        self.entries.push(entry);
        self.next += 1;
        Ok(number)
    }

    /// Strikes an entry out, once it is undone.
    ///
    /// # Errors
    /// The write failed; the entry may then be performed again, which is harmless.
    pub fn strike(&mut self, number: u64) -> io::Result<()> {
        self.entries.retain(|entry| entry.number != number);
        match self.write(&Line::Struck { struck: number }) {
            // The sandbox's directory is undone last, and its journal with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.entries.is_empty() => Ok(()),
            other => other,
        }
    }

    /// What is to be undone, oldest first.
    pub fn entries(&self) -> &[JournalEntry] {
        &self.entries
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = Vec::new();
        let (file, length) = match &mut self.file {
            Some(open) => open,
            None => {
                let create = !matches!(line, Line::Struck { .. });
                let file = File::options().append(true).create(create).mode(0o600).open(&self.path)?;
                let length = file.metadata()?.len();
                self.file.insert((file, length))
            }
        };
        if *length == 0 {
            serde_json::to_writer(&mut text, &Line::Version { version: VERSION })?;
            text.push(b'\n');
        }
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
        match file.write_all(&text) {
            Ok(()) => *length += text.len() as u64,
            Err(error) => {
                // A part of a line would spoil the next one. Where not even that works, nothing more will be written either.
                let _ = file.set_len(*length);
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_reads_back_in_order_and_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
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
    fn a_line_that_was_cut_off_was_not_written_and_the_rest_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut journal = Journal::new(path.clone());
        journal.append(UndoRecord::RemoveFile { path: "/a".into() }).unwrap();
        journal.append(UndoRecord::RemoveFile { path: "/b".into() }).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let ends = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(Journal::load(path.clone()).unwrap().entries().len(), ends.saturating_sub(1), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_journal_of_this_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        for text in ["{\"version\":999}\n", "{\"struck\":1}\n", "{}\n", "x\n", "{\"version\":1}\n{\"version\":1}\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Journal::load(path.clone()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
        }
    }

    #[test]
    fn a_journal_goes_on_where_another_ended_and_one_that_is_gone_takes_what_is_struck_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let first = Journal::new(path.clone()).append(UndoRecord::Live { what: "a".into() }).unwrap();
        let mut again = Journal::load(path.clone()).unwrap();
        again.append(UndoRecord::Live { what: "b".into() }).unwrap();
        again.strike(first).unwrap();
        assert_eq!(Journal::load(path.clone()).unwrap().entries(), again.entries());
        let mut gone = Journal::load(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        gone.strike(2).unwrap();
        assert!(!path.exists());
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
