//! A sandbox's control group: planned, made, filled, emptied, removed.

use super::hierarchy::{self, Hierarchy};
use super::path::{DEFAULT_PARENT, Place, slice_directory};
use super::{CgroupError, remove_directories, systemd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a directory is made again that another sandbox's end took away.
const ATTEMPTS: usize = 16;
/// How long systemd may take to make a scope's directory.
const SCOPE_WITHIN: Duration = Duration::from_secs(5);

/// A group of version 2 that has it counts memory.
const MEMORY_FILE: &str = "memory.current";

/// Where a sandbox's group goes, by its bundle.
#[derive(Debug)]
pub struct CgroupPlace {
    place: Place,
    hierarchies: Vec<Hierarchy>,
}

/// What [`CgroupPlan::create`] would make.
#[derive(Debug)]
pub struct CgroupPlan {
    place: Place,
    hierarchies: Vec<Hierarchy>,
    directories: Vec<PathBuf>,
}

/// The made control group: one directory per hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCgroup {
    /// Where processes go.
    leaves: Vec<PathBuf>,
    /// Those that count memory.
    memory: Vec<PathBuf>,
    /// What we made, outermost first.
    made: Vec<PathBuf>,
}

impl SandboxCgroup {
    /// Finds where the group of sandbox `id` goes: `given` is the bundle's `linux.cgroupsPath`, by default
    /// `/stockade/<id>`; `systemd` says that it has the form `slice:prefix:name`.
    ///
    /// # Errors
    /// A path that is not allowed or of the wrong form; the host's mounts cannot be read.
    pub fn place(id: &str, given: Option<&Path>, systemd: bool) -> Result<CgroupPlace, CgroupError> {
        Ok(CgroupPlace { place: Place::parse(id, given, systemd)?, hierarchies: hierarchy::mounted()? })
    }

    /// What we made, outermost first.
    pub fn directories(&self) -> &[PathBuf] {
        &self.made
    }

    /// Where its processes are, a directory a hierarchy.
    pub fn leaves(&self) -> &[PathBuf] {
        &self.leaves
    }

    /// `cgroup.procs`, open for writing, where memory is counted.
    pub fn memory_procs(&self) -> Vec<File> {
        let open = |leaf: &PathBuf| File::options().write(true).open(leaf.join("cgroup.procs")).ok();
        self.memory.iter().filter_map(open).collect()
    }

    /// Puts a process, with its threads, into the group; see [`join`].
    ///
    /// # Errors
    /// No hierarchy took it.
    pub fn add_process(&self, pid: i32) -> Result<(), CgroupError> {
        join(&self.leaves, pid)
    }

    /// The processes in it and in the groups below it.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        let mut directories = self.leaves.clone();
        while let Some(directory) = directories.pop() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            // A process of another pid namespace reads as 0.
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            let below = fs::read_dir(&directory).into_iter().flatten().flatten();
            directories.extend(
                below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
        found
    }

    /// Kills every process in it but this one. They may take a moment to be gone: [`Self::remove`] waits for that.
    pub fn kill(&self) {
        let own = std::process::id().cast_signed();
        for pid in self.processes().into_iter().filter(|pid| *pid != own) {
            // One that has ended meanwhile is what we want.
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Removes the directories that we made. Waits a few seconds for ending processes. Blocks. Idempotent.
    ///
    /// # Errors
    /// A process is still in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_directories(&self.made)
            .map_err(|source| CgroupError::Remove { path: self.leaves.first().cloned().unwrap_or_default(), source })
    }
}

/// Puts process `pid`, with its threads, into the group whose directories are `leaves`, where it is not yet. A hierarchy of
/// version 1 that refuses it is passed over. Blocks.
///
/// # Errors
/// No hierarchy took it.
pub fn join<P: AsRef<Path>>(leaves: &[P], pid: i32) -> Result<(), CgroupError> {
    let mut joined = false;
    let mut refused = None;
    for leaf in leaves {
        let leaf = leaf.as_ref();
        // Joining makes the whole host wait for a grace period of the kernel's, also where it changes nothing.
        match has_process(leaf, pid).and_then(|there| if there { Ok(()) } else { put(leaf, pid) }) {
            Ok(()) => joined = true,
            Err(source) => {
                tracing::debug!(?leaf, pid, error = %source, "process does not join");
                refused = Some(CgroupError::Join { pid, path: leaf.to_owned(), source });
            }
        }
    }
    match refused {
        Some(error) if !joined => Err(error),
        _ => Ok(()),
    }
}

/// Whether process `pid` is in this group, and not in one below it.
pub(super) fn has_process(group: &Path, pid: i32) -> io::Result<bool> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().any(|line| line.parse() == Ok(pid)))
}

/// Moves process `pid` to this group.
pub(super) fn put(group: &Path, pid: i32) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

impl CgroupPlace {
    /// Looks which of its directories are not there. Blocks for a look at each.
    pub fn plan(self) -> CgroupPlan {
        let Self { place, mut hierarchies } = self;
        let mut directories = Vec::new();
        match &place {
            Place::Directory { path, .. } => {
                for hierarchy in &hierarchies {
                    directories.extend(absent(&hierarchy.mount_point, path));
                }
            }
            Place::Scope { slice, unit } => {
                hierarchies.retain(Hierarchy::is_systemds);
                let path = slice_directory(slice).join(unit);
                directories.extend(hierarchies.iter().map(|hierarchy| hierarchy.mount_point.join(&path)));
            }
        }
        CgroupPlan { place, hierarchies, directories }
    }
}

impl CgroupPlan {
    /// The directories that will be made, outermost first: to be written down before [`Self::create`].
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Makes them. `None` when the host lets us make none and the bundle asked for none. Blocks.
    ///
    /// # Errors
    /// The bundle asked for a group that no hierarchy takes; systemd cannot be reached, or refused.
    pub fn create(self) -> Result<Option<SandboxCgroup>, CgroupError> {
        match &self.place {
            Place::Scope { slice, unit } => {
                systemd::start_scope(slice, unit, std::process::id())?;
                let leaf = slice_directory(slice).join(unit);
                let leaves = self.hierarchies.iter().map(|hierarchy| hierarchy.mount_point.join(&leaf)).collect();
                let leaves = wait_for_any(leaves, unit)?;
                let counts = |hierarchy: &&Hierarchy| counts_memory(hierarchy, &hierarchy.mount_point.join(&leaf));
                let memory =
                    self.hierarchies.iter().filter(counts).map(|found| found.mount_point.join(&leaf)).collect();
                Ok(Some(SandboxCgroup { leaves, memory, made: self.directories }))
            }
            Place::Directory { path, explicit } => self.make(path, *explicit),
        }
    }

    fn make(&self, path: &Path, explicit: bool) -> Result<Option<SandboxCgroup>, CgroupError> {
        let (mut leaves, mut memory) = (Vec::new(), Vec::new());
        let mut refused = None;
        for hierarchy in &self.hierarchies {
            let leaf = hierarchy.mount_point.join(path);
            match make_directory(&leaf, &hierarchy.mount_point, hierarchy.has_cpuset()) {
                Ok(()) => {
                    if hierarchy.is_unified() {
                        hand_out_controllers(&hierarchy.mount_point, &leaf);
                    }
                    if counts_memory(hierarchy, &leaf) {
                        memory.push(leaf.clone());
                    }
                    leaves.push(leaf);
                }
                Err(error) => {
                    tracing::debug!(hierarchy = hierarchy.name, %error, "control group hierarchy is skipped");
                    // What was made of it on the way goes at once; the rest was never there.
                    let begun: Vec<PathBuf> =
                        self.directories.iter().filter(|made| leaf.starts_with(made)).cloned().collect();
                    _ = remove_directories(&begun);
                    refused = Some(error);
                }
            }
        }
        if leaves.is_empty() {
            if explicit {
                return Err(CgroupError::NoHierarchy { path: Path::new("/").join(path), source: refused });
            }
            return Ok(None);
        }
        let made =
            self.directories.iter().filter(|made| leaves.iter().any(|leaf| leaf.starts_with(made))).cloned().collect();
        Ok(Some(SandboxCgroup { leaves, memory, made }))
    }
}

/// Whether the group `leaf` of `hierarchy` counts memory.
fn counts_memory(hierarchy: &Hierarchy, leaf: &Path) -> bool {
    hierarchy.has_memory() || (hierarchy.is_unified() && leaf.join(MEMORY_FILE).exists())
}

/// Those of `path`'s directories below `mount_point` that are not there, outermost first. Our own parent counts as not
/// there: whichever sandbox goes last takes it away.
fn absent(mount_point: &Path, path: &Path) -> Vec<PathBuf> {
    let mut directory = mount_point.to_owned();
    let mut found = Vec::new();
    for (depth, part) in path.components().enumerate() {
        directory.push(part);
        let ours = depth == 0 && part.as_os_str() == DEFAULT_PARENT;
        if ours || !directory.exists() {
            found.push(directory.clone());
        }
    }
    found
}

fn make_directory(leaf: &Path, mount_point: &Path, cpuset: bool) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        match make_each(leaf, mount_point, cpuset) {
            // The parent went away in between, with the sandbox that was in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && mount_point.exists() => {}
            result => return result,
        }
    }
    make_each(leaf, mount_point, cpuset)
}

fn make_each(leaf: &Path, mount_point: &Path, cpuset: bool) -> io::Result<()> {
    let mut directories: Vec<&Path> = leaf.ancestors().take_while(|directory| *directory != mount_point).collect();
    directories.reverse();
    for directory in directories {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if cpuset {
            inherit_cpuset(directory)?;
        }
    }
    Ok(())
}

/// A new cpuset group of version 1 has no CPU and no memory, and takes no process until it has: it gets its parent's.
fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        // On a hierarchy that is mounted with noprefix the files have other names, and no init system does that.
        let Ok(own) = fs::read_to_string(directory.join(name)) else { continue };
        if own.trim().is_empty() {
            fs::write(directory.join(name), fs::read_to_string(parent.join(name))?.trim())?;
        }
    }
    Ok(())
}

/// A group of version 2 has the controllers that the one above hands out. Each above `leaf` hands out all that it has
/// itself, as runc does it; one that has processes cannot, and the group counts and limits that much less.
fn hand_out_controllers(mount_point: &Path, leaf: &Path) {
    let mut above: Vec<&Path> = leaf.ancestors().skip(1).take_while(|group| group.starts_with(mount_point)).collect();
    above.reverse();
    for group in above {
        let words = |name: &str| fs::read_to_string(group.join(name)).unwrap_or_default();
        let (has, gives) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
        let wanted: Vec<String> = has
            .split_whitespace()
            .filter(|controller| !gives.split_whitespace().any(|given| given == *controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        let give = |words: &str| fs::write(group.join("cgroup.subtree_control"), words);
        if wanted.is_empty() || give(&wanted.join(" ")).is_ok() {
            continue;
        }
        // Together they are all or none.
        for controller in wanted {
            if let Err(error) = give(&controller) {
                tracing::debug!(?group, controller, %error, "a controller is not handed out");
            }
        }
    }
}

fn wait_for_any(leaves: Vec<PathBuf>, unit: &str) -> Result<Vec<PathBuf>, CgroupError> {
    let deadline = Instant::now() + SCOPE_WITHIN;
    loop {
        let there: Vec<PathBuf> = leaves.iter().filter(|leaf| leaf.is_dir()).cloned().collect();
        if !there.is_empty() {
            return Ok(there);
        }
        if Instant::now() >= deadline {
            let what = format!("it made {unit}, but the control group does not appear");
            return Err(CgroupError::Systemd { what, source: None });
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
