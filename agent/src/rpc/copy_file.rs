//! Files that the supervisor pushes into the guest.
//!
//! They land below one directory, whatever links are in the way; a file that comes in pieces appears
//! under its name when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{FchownatFlags, Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use stockade_agent_protocol::agent::CopyFileRequest;
use ttrpc::Code;

use super::error::{RpcError, io_failure};
use crate::paths::{make_directories, open_root};

/// Where files may land.
const SHARED_DIR: &str = "/run/kata-containers/shared/containers";

fn refused(text: impl Into<String>) -> RpcError {
    RpcError::new(Code::INVALID_ARGUMENT, text)
}

pub(super) fn copy(request: &CopyFileRequest) -> Result<(), RpcError> {
    std::fs::create_dir_all(SHARED_DIR).map_err(io_failure("make the shared directory"))?;
    copy_below(Path::new(SHARED_DIR), request)
}

fn copy_below(root: &Path, request: &CopyFileRequest) -> Result<(), RpcError> {
    let path = Path::new(&request.path);
    let outside = || refused(format!("{path:?} is not below {root:?}"));
    let relative = path.strip_prefix(root).map_err(|_| outside())?;
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
        return Err(outside());
    };
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let root = open_root(root).map_err(io_failure(format_args!("open {root:?}")))?;
    let dir_mode = Mode::from_bits_truncate(if request.dir_mode == 0 { 0o750 } else { request.dir_mode & 0o7777 });
    let parent = make_directories(root.as_fd(), parent, dir_mode, strict)
        .map_err(io_failure(format_args!("make the directory of {path:?}")))?;
    let owner = Owner::of(request);
    match request.file_mode & libc::S_IFMT {
        libc::S_IFDIR => directory(&parent, name, request, &owner),
        libc::S_IFLNK => link(&parent, name, request, &owner),
        libc::S_IFREG | 0 => file(&parent, name, request, &owner),
        kind => return Err(refused(format!("{path:?} has file type {kind:#o}, which is not copied"))),
    }
    .map_err(io_failure(format_args!("copy to {path:?}")))
}

struct Owner(Option<Uid>, Option<Gid>);

impl Owner {
    /// Negative numbers leave the owner alone.
    fn of(request: &CopyFileRequest) -> Owner {
        Owner(u32::try_from(request.uid).ok().map(Uid::from_raw), u32::try_from(request.gid).ok().map(Gid::from_raw))
    }

    fn apply(&self, dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        fchownat(Some(dir.as_raw_fd()), name, self.0, self.1, FchownatFlags::AT_SYMLINK_NOFOLLOW)
    }
}

fn mode(request: &CopyFileRequest) -> Mode {
    Mode::from_bits_truncate(request.file_mode & 0o7777)
}

fn directory(dir: &OwnedFd, name: &OsStr, request: &CopyFileRequest, owner: &Owner) -> std::io::Result<()> {
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    make_directories(dir.as_fd(), Path::new(name), mode(request), strict)?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
    let made = crate::sys::open_in_root(dir.as_fd(), Path::new(name), flags, Mode::empty(), strict)?;
    fchmod(made.as_raw_fd(), mode(request))?;
    Ok(owner.apply(dir, name)?)
}

fn link(dir: &OwnedFd, name: &OsStr, request: &CopyFileRequest, owner: &Owner) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    match unlinkat(Some(dir.as_raw_fd()), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    symlinkat(OsStr::from_bytes(&request.data), Some(dir.as_raw_fd()), name)?;
    Ok(owner.apply(dir, name)?)
}

fn file(dir: &OwnedFd, name: &OsStr, request: &CopyFileRequest, owner: &Owner) -> std::io::Result<()> {
    let (offset, size) = match (u64::try_from(request.offset), u64::try_from(request.file_size)) {
        (Ok(offset), Ok(size)) => (offset, size),
        _ => return Err(std::io::ErrorKind::InvalidInput.into()),
    };
    let mut part = OsString::from(".stockade-part-");
    part.push(name);
    let mut flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
    if offset == 0 {
        flags |= OFlag::O_TRUNC;
    }
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let private = Mode::from_bits_truncate(0o600);
    let opened = crate::sys::open_in_root(dir.as_fd(), Path::new(&part), flags, private, strict)?;
    let target = File::from(opened);
    target.write_all_at(&request.data, offset)?;
    let written = offset.saturating_add(request.data.len().try_into().unwrap_or(u64::MAX));
    if written < size {
        return Ok(());
    }
    // The owner first: changing it clears set-user-id bits.
    owner.apply(dir, &part)?;
    fchmod(target.as_raw_fd(), mode(request))?;
    Ok(renameat(Some(dir.as_raw_fd()), part.as_os_str(), Some(dir.as_raw_fd()), name)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn root(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("stockade-agent-copy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        dir
    }

    fn request(path: &Path, data: &[u8], offset: i64, size: i64) -> CopyFileRequest {
        CopyFileRequest {
            path: path.to_string_lossy().into_owned(),
            file_size: size,
            file_mode: libc::S_IFREG | 0o640,
            offset,
            uid: -1,
            gid: -1,
            data: data.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_in_pieces_appears_when_it_is_complete() {
        let root = root("pieces");
        let path = root.join("a/b");
        copy_below(&root, &request(&path, b"hello ", 0, 11)).expect("first piece");
        assert!(!path.exists());
        copy_below(&root, &request(&path, b"world", 6, 11)).expect("second piece");
        assert_eq!(std::fs::read(&path).expect("read"), b"hello world");
        std::fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn nothing_lands_outside() {
        let root = root("outside");
        std::os::unix::fs::symlink("/tmp", root.join("link")).expect("linked");
        for path in ["/etc/passwd".into(), root.join("../x"), root.join("link/x"), root.clone()] {
            let result = copy_below(&root, &request(&path, b"x", 0, 1));
            assert!(result.is_err(), "{path:?}");
        }
        std::fs::remove_dir_all(&root).expect("removed");
    }
}
