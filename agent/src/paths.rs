//! Directories below a root that must not be left.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::{Mode, mkdirat};

use crate::sys::open_in_root;

/// Opens a directory as a root for [`make_directories`].
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(crate::sys::adopt(open(path, flags, Mode::empty())?))
}

/// Opens the directory `path` below `root`, making what is missing of it with `mode`.
pub(crate) fn make_directories(
    root: BorrowedFd<'_>,
    path: &Path,
    mode: Mode,
    resolve: ResolveFlag,
) -> io::Result<OwnedFd> {
    let open = |path: &Path| open_in_root(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty(), resolve);
    let mut done = PathBuf::new();
    let mut current = open(Path::new("."))?;
    for part in path.components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has \"..\" in it"));
            }
        };
        done.push(name);
        current = match open(&done) {
            Err(Errno::ENOENT) => {
                match mkdirat(Some(current.as_fd().as_raw_fd()), name, mode) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                open(&done)?
            }
            opened => opened?,
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_below_the_root_only() {
        let dir = std::env::temp_dir().join(format!("stockade-agent-paths-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        std::os::unix::fs::symlink("/etc", dir.join("link")).expect("linked");
        let root = open_root(&dir).expect("opened");
        let mode = Mode::from_bits_truncate(0o755);
        let inside = ResolveFlag::RESOLVE_IN_ROOT;
        make_directories(root.as_fd(), Path::new("/a/b/c"), mode, inside).expect("made");
        assert!(dir.join("a/b/c").is_dir());
        // The link is followed as inside the root, where its target does not exist.
        assert!(make_directories(root.as_fd(), Path::new("link/x"), mode, inside).is_err());
        let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        assert!(make_directories(root.as_fd(), Path::new("link/x"), mode, strict).is_err());
        assert!(make_directories(root.as_fd(), Path::new("../x"), mode, strict).is_err());
        assert!(!Path::new("/etc/x").exists());
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
