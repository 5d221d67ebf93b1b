//! The control group hierarchies that the host has mounted.

use super::CgroupError;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// What it controls: `unified` for version 2, else as `cpu,cpuacct` or `name=systemd`.
    pub(super) name: String,
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
}

impl Hierarchy {
    /// Whether it is version 2's.
    pub(super) fn is_unified(&self) -> bool {
        self.name == "unified"
    }

    /// Whether it is version 1's of CPU and memory node lists, which a new group must be given.
    pub(super) fn has_cpuset(&self) -> bool {
        self.name.split(',').any(|controller| controller == "cpuset")
    }

    /// Whether it is version 1's of memory.
    pub(super) fn has_memory(&self) -> bool {
        self.name.split(',').any(|controller| controller == "memory")
    }

    /// Whether systemd keeps its units here.
    pub(super) fn is_systemds(&self) -> bool {
        self.is_unified() || self.name == "name=systemd"
    }
}

/// Those of this process's mount namespace, each once. They are looked up by the first call: a host mounts them at its
/// boot, and the table of mounts is long where there are many containers.
pub(super) fn mounted() -> Result<Vec<Hierarchy>, CgroupError> {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(|source| CgroupError::Mounts { path: path.to_owned(), source })?;
    Ok(FOUND.get_or_init(|| parse(&text)).clone())
}

/// Reads mountinfo: `... root mount-point options ... - type source super-options`.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let name = match (right.next(), right.next(), right.next()) {
            (Some("cgroup2"), ..) => "unified".to_owned(),
            (Some("cgroup"), _, Some(options)) => controllers(options),
            _ => continue,
        };
        if seen.insert(name.clone()) {
            found.push(Hierarchy { name, mount_point: PathBuf::from(unescape(mount_point)) });
        }
    }
    found
}

fn controllers(options: &str) -> String {
    // Beside the controllers stand the flags of every mount, and options about the hierarchy.
    const OTHERS: [&str; 5] = ["rw", "ro", "xattr", "clone_children", "noprefix"];
    let own = options.split(',').filter(|option| !OTHERS.contains(option) && !option.starts_with("release_agent="));
    own.collect::<Vec<_>>().join(",")
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<(String, String)> {
        parse(text).into_iter().map(|found| (found.name, found.mount_point.display().to_string())).collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect()
    }

    #[test]
    fn version_2_is_one_hierarchy() {
        let text = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n\
            31 24 0:27 / /proc rw - proc proc rw";
        assert_eq!(of(text), pairs(&[("unified", "/sys/fs/cgroup")]));
    }

    #[test]
    fn a_hybrid_host_has_version_1_beside_version_2_and_each_hierarchy_counts_once() {
        let text = "1 0 0:1 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
            2 1 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            3 1 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            4 1 0:3 / /mnt/with\\040space rw - cgroup cgroup rw,cpu,cpuacct\n\
            5 1 0:4 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd";
        let wanted = [
            ("unified", "/sys/fs/cgroup/unified"),
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
        ];
        assert_eq!(of(text), pairs(&wanted));
        let found = parse(text);
        assert!(found[0].is_unified() && found[2].is_systemds() && !found[1].is_systemds());
    }

    #[test]
    fn lines_that_are_no_mounts_are_passed_over() {
        assert_eq!(of("\nx\n1 2 3 - cgroup\n - cgroup2 a b"), []);
        assert_eq!(unescape("a\\040b\\134"), "a b\\");
    }
}
