//! What a caller finds that enters the container's mount namespace by the pid it was given.
//!
//! Engines do: Podman's `cp` into a running container joins the mount namespace of its pid and writes to `/` of it. A
//! stand-in in the host's namespace would hand it the host's files. So its root is the container's, with the container's
//! volumes in their places and nothing else of the host. What only the guest has (its proc, its tmpfs) is not there.

use crate::error::{ErrorKind, OpError};
use crate::ids::ContainerId;
use crate::oci::{
    BindShare, FileKind, GuestSpecOptions, MountKind, RealHostFiles, guest_spec, load_spec, resolve_root,
};
use crate::storage::private_mount_namespace;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The files of one container's stand-in.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    read_only: bool,
    /// Each with its place in the container.
    binds: Vec<(PathBuf, BindShare)>,
}

impl Files {
    /// Reads what a container's bundle says of its files.
    ///
    /// # Errors
    /// A bundle that has changed since the supervisor took it.
    pub(super) fn of(container: &ContainerId, bundle: &Path) -> Result<Self, OpError> {
        let failed = |error| OpError::because(ErrorKind::InvalidArgument, "cannot read the bundle again", error);
        let spec = load_spec(bundle).map_err(failed)?;
        let root = resolve_root(&spec, bundle).map_err(failed)?;
        let options = GuestSpecOptions::new(container.as_str(), bundle);
        let mounts = guest_spec(&spec, &options, &RealHostFiles).map_err(failed)?.mounts;
        let binds = mounts.into_iter().filter_map(|mount| match mount.kind {
            MountKind::Bind(share) => Some((mount.destination, share)),
            _ => None,
        });
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        Ok(Self { root, read_only, binds: binds.collect() })
    }

    /// Gives the calling thread a mount namespace with nothing but them: to be called while the process has no other.
    ///
    /// # Errors
    /// What the host refuses; the process must end then, for it may be anywhere in between.
    pub(super) fn enter(&self) -> Result<(), OpError> {
        let failed = |error| OpError::internal("cannot make the container's root the root of its stand-in", error);
        self.enter_root().map_err(failed)
    }

    fn enter_root(&self) -> io::Result<()> {
        private_mount_namespace()?;
        // Sources are opened in the new namespace, which alone they can be bound in, and before its root changes.
        let sources = self.binds.iter().map(|(_, share)| Source::open(share)).collect::<io::Result<Vec<_>>>()?;
        bind(&self.root, &self.root, true)?;
        restrict(&self.root, self.read_only)?;
        let old = directory(Path::new("/"))?;
        chdir(&self.root)?;
        // The old root comes to lie on the new one, where only who has it open still sees it.
        pivot_root(".", ".")?;
        for ((destination, share), source) in self.binds.iter().zip(&sources) {
            match source.bind_to(destination, share) {
                // The guest has made a file system of its own there, or nothing.
                Err(error)
                    if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENOTDIR)) => {}
                bound => bound?,
            }
        }
        fchdir(old.as_raw_fd())?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")?;
        Ok(())
    }
}

/// A volume that is bound from where it is to a path under another root: by its name in a directory that is open.
struct Source<'a> {
    directory: File,
    name: &'a OsStr,
}

impl<'a> Source<'a> {
    fn open(share: &'a BindShare) -> io::Result<Self> {
        let (folder, name) = match (share.kind, share.source.parent(), share.source.file_name()) {
            (FileKind::Directory, ..) | (_, None, _) | (.., None) => (share.source.as_path(), OsStr::new(".")),
            (_, Some(folder), Some(name)) => (folder, name),
        };
        Ok(Self { directory: directory(folder)?, name })
    }

    /// `destination` is looked up under the root of the process, so that no link in it leads out of the container.
    fn bind_to(&self, destination: &Path, share: &BindShare) -> io::Result<()> {
        fchdir(self.directory.as_raw_fd())?;
        bind(Path::new(self.name), destination, share.recursive)?;
        restrict(destination, share.read_only)
    }
}

fn directory(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)
}

fn bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    let depth = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | depth, None::<&str>)?)
}

/// Nothing that the guest has put there can be run by who enters, or act as a device.
fn restrict(target: &Path, read_only: bool) -> io::Result<()> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, read_only);
    Ok(mount(None::<&str>, target, None::<&str>, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::BindPropagation;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn volume(source: &Path, kind: FileKind, read_only: bool) -> BindShare {
        BindShare {
            source: source.canonicalize().unwrap(),
            kind,
            share_name: "volume".into(),
            guest_path: "/volume".into(),
            read_only,
            recursive: true,
            propagation: BindPropagation::Private,
        }
    }

    /// In a thread, whose root and namespaces are its own from then on.
    fn inside(files: Files, look: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            files.enter().map_err(|error| error.one_line()).unwrap();
            look();
        });
        thread.join().unwrap();
    }

    #[test]
    fn the_root_is_the_containers_with_its_volumes_and_nothing_of_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["root/data", "root/gone", "outside/in", "volume", "shut"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        for name in ["root/hosts", "volume/file", "outside/hosts", "shut/file"] {
            fs::write(path(name), name).unwrap();
        }
        symlink(path("outside"), path("root/link")).unwrap();
        symlink("../../../../../../outside", path("root/up")).unwrap();
        let files = Files {
            root: path("root"),
            read_only: false,
            binds: vec![
                ("/data".into(), volume(&path("volume"), FileKind::Directory, false)),
                ("/hosts".into(), volume(&path("outside/hosts"), FileKind::File, true)),
                // All three would be places of the host if links were followed there.
                ("/link/in".into(), volume(&path("volume"), FileKind::Directory, false)),
                ("/up/in".into(), volume(&path("volume"), FileKind::Directory, false)),
                ("/gone/../../outside/in".into(), volume(&path("volume"), FileKind::Directory, false)),
                ("/gone".into(), volume(&path("shut"), FileKind::Directory, true)),
            ],
        };
        let host = folder.path().to_owned();
        inside(files, move || {
            assert_eq!(fs::read_to_string("/data/file").unwrap(), "volume/file");
            assert_eq!(fs::read_to_string("/hosts").unwrap(), "outside/hosts");
            assert!(!host.exists() && !Path::new("/proc/self").exists());
            fs::write("/data/new", "new").unwrap();
            fs::write("/new", "new").unwrap();
            for shut in ["/gone/new", "/hosts"] {
                assert_eq!(fs::write(shut, "").unwrap_err().raw_os_error(), Some(Errno::EROFS as i32), "{shut}");
            }
            let names: Vec<_> = fs::read_dir("/..").unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(
                names.iter().all(|name| ["data", "gone", "hosts", "link", "new", "up"].iter().any(|own| name == own))
            );
        });
        assert_eq!(fs::read_to_string(path("volume/new")).unwrap(), "new");
        assert_eq!(fs::read_to_string(path("root/new")).unwrap(), "new");
        assert_eq!(fs::read_dir(path("outside/in")).unwrap().count(), 0);
        assert!(folder.close().is_ok(), "nothing is mounted in the host's namespace");
    }

    #[test]
    fn nothing_in_a_read_only_root_can_be_written_or_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::copy("/bin/true", folder.path().join("true")).unwrap();
        let files = Files { root: folder.path().to_owned(), read_only: true, binds: Vec::new() };
        inside(files, || {
            assert_eq!(fs::write("/new", "").unwrap_err().raw_os_error(), Some(Errno::EROFS as i32));
            let run = std::process::Command::new("/true").status();
            assert_eq!(run.unwrap_err().raw_os_error(), Some(Errno::EACCES as i32));
        });
    }
}
