//! What must be looked up on the host to place a mount.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A character or block device.
    Device,
    /// A socket.
    Socket,
    /// A named pipe.
    Pipe,
}

/// A mount's source on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceInfo {
    /// Its absolute path without symbolic links.
    pub real: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Its owning group.
    pub gid: u32,
}

/// The file system that a path is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesystemInfo {
    /// Whether it lives in memory (tmpfs).
    pub is_tmpfs: bool,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Looks things up on the host; tests give a table instead.
pub trait HostFiles {
    /// Follows `path` to its end.
    ///
    /// # Errors
    /// As `stat`: there is nothing, or it may not be seen.
    fn source(&self, path: &Path) -> io::Result<SourceInfo>;

    /// The file system at `path`.
    ///
    /// # Errors
    /// As `statfs`.
    fn filesystem(&self, path: &Path) -> io::Result<FilesystemInfo>;
}

/// The host's own files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealHostFiles;

impl HostFiles for RealHostFiles {
    fn source(&self, path: &Path) -> io::Result<SourceInfo> {
        let real = path.canonicalize()?;
        let metadata = real.metadata()?;
        let kind = metadata.file_type();
        let kind = if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_char_device() || kind.is_block_device() {
            FileKind::Device
        } else if kind.is_socket() {
            FileKind::Socket
        } else if kind.is_fifo() {
            FileKind::Pipe
        } else {
            FileKind::File
        };
        Ok(SourceInfo { real, kind, gid: metadata.gid() })
    }

    fn filesystem(&self, path: &Path) -> io::Result<FilesystemInfo> {
        let info = nix::sys::statfs::statfs(path)?;
        Ok(FilesystemInfo {
            is_tmpfs: info.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC,
            bytes: info.blocks().saturating_mul(u64::try_from(info.block_size()).unwrap_or_default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_files_are_told_apart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").expect("file");
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("socket");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        std::os::unix::fs::symlink("/dev/null", path("link")).expect("link");
        let cases = [
            (path("file"), FileKind::File),
            (path("."), FileKind::Directory),
            (path("socket"), FileKind::Socket),
            (path("pipe"), FileKind::Pipe),
            (path("link"), FileKind::Device),
        ];
        for (path, kind) in cases {
            assert_eq!(RealHostFiles.source(&path).expect("there").kind, kind, "{path:?}");
        }
        assert_eq!(RealHostFiles.source(&path("link")).expect("there").real, Path::new("/dev/null"));
        assert_eq!(RealHostFiles.source(&path("no")).expect_err("missing").kind(), io::ErrorKind::NotFound);
        assert!(!RealHostFiles.filesystem(Path::new("/proc")).expect("proc").is_tmpfs);
        assert!(RealHostFiles.filesystem(dir.path()).expect("some file system").bytes > 0);
    }
}
