//! What a test has on the host, so that it can say that nothing of it is left.
//!
//! Tests run side by side, so only what belongs to one of them is looked at: what carries its state root or one of its
//! container ids, and what such processes made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Stockade, wait};

/// How long the last of a sandbox may take to go.
const SETTLE: Duration = Duration::from_secs(15);
const CGROUPS: &str = "/sys/fs/cgroup";

/// A description of all that a test has on the host: processes, mounts, network namespaces, control groups, sockets,
/// and files under its state root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState(BTreeSet<String>);

impl HostState {
    /// What is there now.
    #[must_use]
    pub fn capture(stockade: &Stockade) -> Self {
        let marks = stockade.marks();
        let mut found = BTreeSet::new();
        processes(&marks, &mut found);
        mounts(&marks, &mut found);
        sockets(&marks, &mut found);
        named_namespaces(&marks, &mut found);
        cgroups(Path::new(CGROUPS), &marks, &mut found);
        // Also what belongs to containerd's namespaces, and the short names of sockets.
        let namespaces = fs::read_dir(stockade.root().join("containerd")).into_iter().flatten().flatten();
        for root in namespaces.map(|entry| entry.path()).chain([stockade.root()]) {
            for part in ["containers", "sandboxes", "s"] {
                files(&root.join(part), &mut found);
            }
        }
        Self(found)
    }

    /// Leaves out what `belongs_elsewhere`.
    pub fn without(&mut self, mut belongs_elsewhere: impl FnMut(&str) -> bool) {
        self.0.retain(|line| !belongs_elsewhere(line));
    }

    /// Adds something that a test looks at beside all this.
    pub fn add(&mut self, line: String) {
        self.0.insert(line);
    }

    /// Waits until the host is as it was when `self` was captured.
    ///
    /// # Panics
    /// With what is left over, or missing, when that does not come within fifteen seconds.
    pub fn assert_same(&self, stockade: &Stockade) {
        self.assert_same_as(|| Self::capture(stockade));
    }

    /// [`Self::assert_same`], with another way to look.
    ///
    /// # Panics
    /// As that one.
    pub fn assert_same_as(&self, look: impl Fn() -> Self) {
        let mut now = look();
        wait::until(SETTLE, || {
            now = look();
            now == *self
        });
        let left: Vec<_> = now.0.difference(&self.0).collect();
        let missing: Vec<_> = self.0.difference(&now.0).collect();
        assert!(left.is_empty() && missing.is_empty(), "left behind: {left:#?}, gone: {missing:#?}");
    }

    /// Whether something of it contains `text`.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }
}

/// What is shorter may stand in anybody's command line, and what is found is killed at a test's end.
pub(super) const SHORTEST_MARK: usize = 8;

/// Processes of a test: their pids, with the words of their command lines.
///
/// # Panics
/// When a mark is too short to be a test's own.
#[must_use]
pub fn processes_of(marks: &[String]) -> BTreeMap<i32, String> {
    assert!(marks.iter().all(|mark| mark.len() >= SHORTEST_MARK), "a mark of {marks:?} is too short");
    let mut ours = BTreeMap::new();
    let mut parents = BTreeMap::new();
    let own = std::process::id().cast_signed();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == own {
            continue;
        }
        let folder = entry.path();
        let read = |name: &str| fs::read(folder.join(name)).unwrap_or_default();
        let (line, environment, groups) = (text(&read("cmdline")), text(&read("environ")), text(&read("cgroup")));
        let stat = text(&read("stat"));
        // After the name, which may contain anything but ends with the last parenthesis: state and parent.
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let state = rest.next().unwrap_or_default().to_owned();
        if let Some(parent) = rest.next().and_then(|parent| parent.parse::<i32>().ok()) {
            parents.insert(pid, parent);
        }
        // A zombie is its parent's business: the tests' own children are waited for by the tests.
        if state != "Z" && !state.is_empty() && [&line, &environment, &groups].iter().any(|text| marked(text, marks)) {
            ours.insert(pid, line);
        } else if state == "Z" || state.is_empty() {
            parents.remove(&pid);
        }
    }
    loop {
        let children: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| !ours.contains_key(pid) && ours.contains_key(parent))
            .map(|(pid, _)| *pid)
            .collect();
        if children.is_empty() {
            return ours;
        }
        for pid in children {
            ours.insert(pid, text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()));
        }
    }
}

fn processes(marks: &[String], found: &mut BTreeSet<String>) {
    for (pid, line) in processes_of(marks) {
        found.insert(format!("process {pid}: {line}"));
        let (ours, theirs) = (namespace("self"), namespace(&pid.to_string()));
        if let Some(theirs) = theirs.filter(|theirs| ours.as_ref() != Some(theirs)) {
            found.insert(format!("network namespace {} of process {pid}", theirs.display()));
        }
    }
}

fn namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

fn mounts(marks: &[String], found: &mut BTreeSet<String>) {
    for process in ["1", "self"] {
        let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        for line in table.lines().filter(|line| marked(line, marks)) {
            found.insert(format!("mount of process {process}: {line}"));
        }
    }
}

fn sockets(marks: &[String], found: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for line in table.lines().filter(|line| marked(line, marks)) {
        found.insert(format!("socket {}", line.split_whitespace().last().unwrap_or_default()));
    }
}

fn named_namespaces(marks: &[String], found: &mut BTreeSet<String>) {
    for folder in ["/run/netns", "/var/run/netns", "/sys/class/net"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if marked(&name, marks) {
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
}

fn cgroups(folder: &Path, marks: &[String], found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if marked(&entry.file_name().to_string_lossy(), marks) {
                found.insert(format!("control group {}", path.display()));
            }
            cgroups(&path, marks, found);
        }
    }
}

fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let what = if kind.is_socket() { "socket file" } else { "file" };
        found.insert(format!("{what} {}", entry.path().display()));
        if kind.is_dir() {
            files(&entry.path(), found);
        }
    }
}

fn marked(text: &str, marks: &[String]) -> bool {
    marks.iter().any(|mark| text.contains(mark.as_str()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_by_its_environment_and_its_children_by_it() {
        let mark = super::super::unique_id("stockade-mark");
        let mut shell = Command::new("sh").args(["-c", "env -i sleep 60 & wait"]).env("MARK", &mark).spawn().unwrap();
        let marks = [mark];
        assert!(wait::until(Duration::from_secs(10), || processes_of(&marks).values().any(|line| line == "sleep 60 ")));
        for pid in processes_of(&marks).into_keys() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        shell.wait().unwrap();
        assert!(processes_of(&marks).is_empty());
    }
}
