//! Users and groups by name, as the container's own files define them.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::User;
use stockade_agent_protocol::agent::StringUser;

use super::ContainerError;

/// Most of a passwd or group file that is read.
const MAX_FILE: u64 = 4 << 20;

/// Turns names into numbers; what is empty stays as `current` has it.
pub(crate) fn resolve(rootfs: &Path, wanted: &StringUser, current: &User) -> Result<User, ContainerError> {
    let mut user = current.clone();
    if !wanted.uid.is_empty() {
        let (uid, gid) = match wanted.uid.parse() {
            Ok(uid) => (uid, None),
            Err(_) => {
                let passwd = read(rootfs, "/etc/passwd");
                let fields = find(&passwd, &wanted.uid).ok_or_else(|| unknown("user", &wanted.uid))?;
                fields.ok_or_else(|| unknown("user", &wanted.uid))?
            }
        };
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    let group_file = read(rootfs, "/etc/group");
    let group = |name: &str| match name.parse() {
        Ok(gid) => Ok(gid),
        Err(_) => find(&group_file, name).flatten().map(|(gid, _)| gid).ok_or_else(|| unknown("group", name)),
    };
    if !wanted.gid.is_empty() {
        user.set_gid(group(&wanted.gid)?);
    }
    if !wanted.additionalGids.is_empty() {
        let gids: Result<Vec<u32>, _> = wanted.additionalGids.iter().map(|name| group(name)).collect();
        user.set_additional_gids(Some(gids?));
    }
    Ok(user)
}

fn unknown(what: &'static str, name: &str) -> ContainerError {
    ContainerError::UnknownUser { what, name: name.to_owned() }
}

/// The numbers in a line of passwd or group: its third field, and for passwd its fourth.
fn find(text: &str, name: &str) -> Option<Option<(u32, Option<u32>)>> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let first = fields.next().and_then(|field| field.parse().ok());
    let second = fields.next().and_then(|field| field.parse().ok());
    Some(first.map(|first| (first, second)))
}

fn read(rootfs: &Path, path: &str) -> String {
    let mut text = String::new();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    if let Ok(root) = open(rootfs, flags, Mode::empty()) {
        let root = crate::sys::adopt(root);
        let file = crate::sys::open_in_root(
            root.as_fd(),
            Path::new(path),
            OFlag::O_RDONLY | OFlag::O_NONBLOCK,
            Mode::empty(),
            ResolveFlag::RESOLVE_IN_ROOT,
        );
        if let Ok(file) = file {
            // A file that cannot be read defines no names.
            let _ = File::from(file).take(MAX_FILE).read_to_string(&mut text);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_numbers_need_no_entry() {
        let wanted = StringUser {
            uid: "root".to_owned(),
            gid: "4242".to_owned(),
            additionalGids: vec!["root".to_owned(), "7".to_owned()],
            ..Default::default()
        };
        let user = resolve(Path::new("/"), &wanted, &User::default()).expect("resolved");
        assert_eq!((user.uid(), user.gid()), (0, 4242));
        assert_eq!(user.additional_gids().as_deref(), Some(&[0, 7][..]));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let wanted = StringUser { uid: "nobody-such".to_owned(), ..Default::default() };
        let error = resolve(Path::new("/"), &wanted, &User::default()).expect_err("refused");
        assert_eq!(error.to_string(), "the container has no user \"nobody-such\"");
    }
}
