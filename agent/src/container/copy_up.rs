//! The mount option `tmpcopyup`: a tmpfs that begins with what the image has in its place.
//!
//! libcontainer does not know it, so the option is taken out of the specification, and a hook of ours, which runs when the
//! container's file systems are mounted and its root is not changed yet, copies what they cover.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, openat, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use oci_spec::runtime::{Mount, Spec};

use super::{ContainerError, RUN_DIR, spec::look};
use crate::paths::open_root;
use crate::sys::{adopt, open_in_root};

/// Argument by which the agent, re-executed as a hook, copies.
pub(crate) const COPY_UP: &str = "copy-up";
/// The option.
const OPTION: &str = "tmpcopyup";

/// Takes the option from the tmpfs mounts that have it, and returns their destinations. Where no option says otherwise,
/// such a tmpfs gets the owner and mode of the directory that it covers.
pub(super) fn take(spec: &mut Spec, rootfs: &Path) -> Result<Vec<PathBuf>, ContainerError> {
    let Some(mut mounts) = spec.mounts().clone() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("tmpfs")) {
        let mut options = mount.options().clone().unwrap_or_default();
        if !options.iter().any(|option| option == OPTION) {
            continue;
        }
        options.retain(|option| option != OPTION);
        if read_only(&options) {
            let destination = mount.destination().display();
            let reason = format!("the mount {destination} is read-only and cannot be filled: {OPTION} with ro");
            return Err(ContainerError::BadSpec { reason });
        }
        options.extend(like_the_covered(mount, rootfs, &options));
        found.push(mount.destination().clone());
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
    Ok(found)
}

fn read_only(options: &[String]) -> bool {
    options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rw")).is_some_and(|option| option == "ro")
}

fn like_the_covered(mount: &Mount, rootfs: &Path, options: &[String]) -> Vec<String> {
    let covered = look(rootfs, mount.destination()).ok().and_then(|directory| fstat(directory.as_raw_fd()).ok());
    let Some(stat) = covered else { return Vec::new() };
    let like = [
        ("mode", format!("{:o}", stat.st_mode & 0o7777)),
        ("uid", stat.st_uid.to_string()),
        ("gid", stat.st_gid.to_string()),
    ];
    let given = |name: &str| options.iter().any(|option| option.split('=').next() == Some(name));
    like.into_iter().filter(|(name, _)| !given(name)).map(|(name, value)| format!("{name}={value}")).collect()
}

/// The hook: fills the file systems at `destinations` with what the root file system has there.
pub(crate) fn run(root: &Path, destinations: &[&str]) -> Result<()> {
    let shown = open_root(root).with_context(|| format!("cannot open {root:?}"))?;
    let covered = without_mounts(root).with_context(|| format!("cannot look below the mounts in {root:?}"))?;
    for destination in destinations {
        let open = |root: &OwnedFd| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            open_in_root(root.as_fd(), Path::new(destination), flags, Mode::empty(), ResolveFlag::RESOLVE_IN_ROOT)
        };
        let source = match open(&covered) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            opened => opened.with_context(|| format!("cannot open what {destination} covers"))?,
        };
        let target = open(&shown).with_context(|| format!("cannot open {destination}"))?;
        copy_entries(source, target.as_fd()).with_context(|| format!("cannot copy into {destination}"))?;
    }
    Ok(())
}

/// The root file system alone, as a mount that only this process, a hook that ends, has.
fn without_mounts(root: &Path) -> io::Result<OwnedFd> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some(root), RUN_DIR, none, MsFlags::MS_BIND, none)?;
    open_root(Path::new(RUN_DIR))
}

/// Copies what is in one directory into another. What is there already, such as the place of a further mount, stays.
fn copy_entries(source: OwnedFd, target: BorrowedFd<'_>) -> io::Result<()> {
    let device = fstat(target.as_raw_fd())?.st_dev;
    let mut directory = Dir::from(source)?;
    let names: Vec<_> =
        directory.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        let name = name.as_c_str();
        let (from, to) = (Some(directory.as_raw_fd()), Some(target.as_raw_fd()));
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let open = |at, flags, mode| openat(at, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode).map(adopt);
        let private = Mode::S_IRWXU;
        let made = match kind {
            SFlag::S_IFDIR => {
                let made = mkdirat(to, name, private);
                if made.is_err_and(|errno| errno != Errno::EEXIST) {
                    made?;
                }
                let into = match open(to, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()) {
                    Err(Errno::ENOTDIR | Errno::ELOOP) => continue,
                    opened => opened?,
                };
                if fstat(into.as_raw_fd())?.st_dev != device {
                    continue;
                }
                copy_entries(open(from, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?, into.as_fd())?;
                made
            }
            SFlag::S_IFREG => match open(to, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, private) {
                Ok(into) => {
                    let mut reader = File::from(open(from, OFlag::O_RDONLY, Mode::empty())?);
                    io::copy(&mut reader, &mut File::from(into))?;
                    Ok(())
                }
                Err(errno) => Err(errno),
            },
            SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name),
            SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFBLK => mknodat(to, name, kind, private, stat.st_rdev),
            // A socket is of no use without who made it.
            _ => continue,
        };
        match made {
            Err(Errno::EEXIST) => {}
            made => {
                made?;
                describe(target, name, &stat, kind == SFlag::S_IFLNK)?;
            }
        }
    }
    Ok(())
}

/// Owner, mode and times, in this order: a change of the owner takes bits of the mode away.
fn describe(directory: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &FileStat, link: bool) -> io::Result<()> {
    let at = Some(directory.as_raw_fd());
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(at, name, Some(owner), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !link {
        fchmodat(at, name, Mode::from_bits_truncate(stat.st_mode), FchmodatFlags::FollowSymlink)?;
    }
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(at, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("stockade-agent-copy-up-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("made");
        path
    }

    fn spec(root: &Path, options: &[&str]) -> Spec {
        let mounts = json!([
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options},
            {"destination": "/other", "type": "tmpfs", "source": "tmpfs", "options": ["nodev"]},
        ]);
        let spec = json!({"ociVersion": "1.0.2", "root": {"path": root}, "mounts": mounts});
        serde_json::from_value(spec).expect("a specification")
    }

    #[test]
    fn the_option_is_taken_and_the_mount_is_like_what_it_covers() {
        let root = folder("option");
        fs::create_dir_all(root.join("tmp")).expect("made");
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("set");
        let owner = fs::metadata(&root).expect("there");
        let mut changed = spec(&root, &["rw", "tmpcopyup", "nosuid", "uid=7"]);
        assert_eq!(take(&mut changed, &root).expect("taken"), [Path::new("/tmp")]);
        let mounts = changed.mounts().clone().expect("mounts");
        let gid = format!("gid={}", owner.gid());
        assert_eq!(mounts[0].options().clone().expect("options"), ["rw", "nosuid", "uid=7", "mode=1777", gid.as_str()]);
        assert_eq!(mounts[1].options().clone().expect("options"), ["nodev"]);
        let mut covering_nothing = spec(&root.join("tmp"), &["tmpcopyup", "mode=0700"]);
        assert_eq!(take(&mut covering_nothing, &root.join("tmp")).expect("taken").len(), 1);
        let error = take(&mut spec(&root, &["ro", "tmpcopyup"]), &root).expect_err("refused");
        assert!(error.to_string().contains("/tmp"), "{error}");
        fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn files_links_and_folders_are_copied_and_what_is_there_stays() {
        let folder = folder("tree");
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::create_dir_all(from.join("deep/er")).expect("made");
        fs::create_dir_all(to.join("kept")).expect("made");
        fs::create_dir_all(from.join("kept")).expect("made");
        for (name, mode) in [("file", 0o640), ("deep/er/program", 0o4755), ("there", 0o644), ("kept/new", 0o600)] {
            fs::write(from.join(name), name).expect("written");
            fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).expect("set");
        }
        fs::write(to.join("there"), "mine").expect("written");
        symlink("/etc/passwd", from.join("link")).expect("linked");
        symlink(&folder, to.join("deep")).expect("linked");
        nix::unistd::mkfifo(&from.join("pipe"), Mode::S_IRWXU).expect("made");
        fs::set_permissions(from.join("deep"), fs::Permissions::from_mode(0o711)).expect("set");
        let open = |path: &Path| {
            adopt(
                nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                    .expect("opened"),
            )
        };
        copy_entries(open(&from), open(&to).as_fd()).expect("copied");
        // The link in the target was not followed.
        assert!(!folder.join("er").exists() && fs::symlink_metadata(to.join("deep")).expect("there").is_symlink());
        fs::remove_file(to.join("deep")).expect("removed");
        copy_entries(open(&from), open(&to).as_fd()).expect("copied");
        assert_eq!(fs::read_to_string(to.join("file")).expect("read"), "file");
        assert_eq!(fs::read_to_string(to.join("there")).expect("read"), "mine");
        assert_eq!(fs::read_to_string(to.join("kept/new")).expect("read"), "kept/new");
        assert_eq!(fs::read_link(to.join("link")).expect("read"), Path::new("/etc/passwd"));
        for name in ["file", "deep", "deep/er/program", "pipe"] {
            let [a, b] = [&from, &to].map(|root| fs::symlink_metadata(root.join(name)).expect("there"));
            assert_eq!(
                (a.mode(), a.uid(), a.gid(), a.mtime(), a.mtime_nsec()),
                (b.mode(), b.uid(), b.gid(), b.mtime(), b.mtime_nsec()),
                "{name}"
            );
        }
        fs::remove_dir_all(&folder).expect("removed");
    }
}
