//! Removing control group directories, and only those.

use super::sandbox::{has_process, put};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the processes of a group that were killed may take to be gone.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked at: the kernel tells nobody.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Removes `directories` (outermost first), deepest first; one that is gone is no error, and one that holds someone
/// else's groups stays. Waits a few seconds for processes that are ending; this process itself steps out first. Blocks.
///
/// # Errors
/// The first directory that stays, after the others were tried.
pub fn remove_directories(directories: &[PathBuf]) -> io::Result<()> {
    remove_until(directories, Instant::now() + EMPTY_WITHIN)
}

fn remove_until(directories: &[PathBuf], deadline: Instant) -> io::Result<()> {
    let mut failed = None;
    for directory in directories.iter().rev() {
        if let Err(error) = remove_one(directory, deadline) {
            tracing::warn!(?directory, %error, "control group stays");
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn remove_one(directory: &Path, deadline: Instant) -> io::Result<()> {
    step_out_of(directory, std::process::id().cast_signed());
    loop {
        let error = match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        let busy = [Errno::EBUSY, Errno::ENOTEMPTY].map(|errno| Some(errno as i32)).contains(&error.raw_os_error());
        if busy && has_groups(directory) {
            return Ok(());
        }
        if !busy || Instant::now() >= deadline {
            return Err(error);
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// Whether there are groups in it. Ours are gone already, so they are another's.
fn has_groups(directory: &Path) -> bool {
    fs::read_dir(directory)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())))
}

/// Moves process `pid` out of those of `directories` that it is in. Blocks.
pub fn step_out(directories: &[PathBuf], pid: i32) {
    for directory in directories.iter().rev() {
        step_out_of(directory, pid);
    }
}

/// Moves process `pid` up, to the first group around this one that takes it.
fn step_out_of(directory: &Path, pid: i32) {
    if has_process(directory, pid).unwrap_or(false) {
        // A group of version 2 whose children have controllers takes no process; its root always does.
        let mut outer = directory.ancestors().skip(1).take_while(|outer| outer.join("cgroup.procs").exists());
        let left = outer.any(|outer| put(outer, pid).is_ok());
        tracing::debug!(?directory, pid, left, "stepped out of the control group");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_directories_go_deepest_first_and_what_is_gone_is_no_error() {
        let root = tempfile::tempdir().expect("temporary directory");
        let outer = root.path().join("outer");
        let both = [outer.clone(), outer.join("inner")];
        fs::create_dir_all(&both[1]).expect("made");
        remove_directories(&both).expect("removed");
        assert!(!outer.exists());
        remove_directories(&both).expect("again");
    }

    #[test]
    fn anothers_group_keeps_the_parent() {
        let root = tempfile::tempdir().expect("temporary directory");
        let outer = root.path().join("outer");
        fs::create_dir_all(outer.join("ours")).expect("made");
        fs::create_dir_all(outer.join("theirs")).expect("made");
        remove_directories(&[outer.clone(), outer.join("ours")]).expect("done");
        assert!(outer.join("theirs").exists() && !outer.join("ours").exists());
    }

    #[test]
    fn a_directory_that_cannot_go_is_an_error_and_the_others_go() {
        let root = tempfile::tempdir().expect("temporary directory");
        let [full, empty] = ["full", "empty"].map(|name| root.path().join(name));
        fs::create_dir(&full).expect("made");
        fs::write(full.join("file"), "").expect("made");
        fs::create_dir(&empty).expect("made");
        assert!(remove_until(&[empty.clone(), full.clone()], Instant::now()).is_err());
        assert!(full.exists() && !empty.exists());
    }
}
