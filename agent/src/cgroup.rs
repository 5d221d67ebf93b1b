//! A container's cgroup (version 2).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libcgroups::common::{CgroupConfig, CgroupManager as _, ControllerOpt, create_cgroup_manager};
use oci_spec::runtime::LinuxResources;
use tokio::time::Instant;

use crate::devices::{Filter, Program};

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// The parent of all containers' cgroups.
const PARENT: &str = "stockade";
/// How often the kernel's progress is looked at while there is something to wait for.
const POLL: Duration = Duration::from_millis(5);

/// Why a cgroup could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// A file of the cgroup.
    #[error("cgroup file {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Limits that were not taken.
    #[error("the limits of cgroup {cgroup:?} cannot be set: {reason}")]
    Limits { cgroup: PathBuf, reason: String },
    /// Device rules that do not hold.
    #[error(
        "cannot {what} the device rules of cgroup {cgroup:?}, for which the guest's kernel must have CONFIG_BPF_SYSCALL \
         and CONFIG_CGROUP_BPF"
    )]
    Devices {
        what: &'static str,
        cgroup: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel did not do it in time.
    #[error("cgroup {cgroup:?} did not become {wanted} within {limit:?}")]
    Slow { cgroup: PathBuf, wanted: &'static str, limit: Duration },
}

/// One container's cgroup.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    name: PathBuf,
}

impl Cgroup {
    /// The cgroup of a container; it need not exist yet.
    pub(crate) fn of_container(id: &str) -> Cgroup {
        let name = Path::new("/").join(PARENT).join(id);
        Cgroup { path: Path::new(ROOT).join(PARENT).join(id), name }
    }

    /// The path inside the hierarchy, as a specification names it.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// Where one of its files is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it anew: what an earlier container of this name left is removed.
    pub(crate) fn create(&self) -> Result<(), CgroupError> {
        // A system manager in the guest may have taken back what was enabled when the agent began.
        enable_controllers().map_err(|source| CgroupError::File { path: ROOT.into(), source })?;
        self.remove()?;
        fs::create_dir(&self.path).map_err(|source| CgroupError::File { path: self.path.clone(), source })
    }

    /// Lets the kernel check device rules, which hold when they are attached.
    pub(crate) fn load_devices(&self, filter: &Filter) -> Result<Program, CgroupError> {
        filter.load().map_err(|source| CgroupError::Devices { what: "load", cgroup: self.path.clone(), source })
    }

    /// Makes device rules hold for its processes, in the place of those of `instead_of`.
    pub(crate) fn attach_devices(&self, rules: &Program, instead_of: Option<&Program>) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Devices { what: "attach", cgroup: self.path.clone(), source };
        rules.attach(&self.path, instead_of).map_err(failed)
    }

    /// Reads a file of the cgroup.
    pub(crate) fn read(&self, name: &str) -> Result<String, CgroupError> {
        let path = self.file(name);
        fs::read_to_string(&path).map_err(|source| CgroupError::File { path, source })
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.file(name);
        fs::write(&path, value).map_err(|source| CgroupError::File { path, source })
    }

    /// One number; "max", and a file that is not there, are `None`.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.read(name).ok()?.trim().parse().ok()
    }

    /// The "key value" lines of a file; a file that is not there has none.
    pub(crate) fn pairs(&self, name: &str) -> HashMap<String, u64> {
        let text = self.read(name).unwrap_or_default();
        pairs(&text).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Kills every process in it, frozen ones too. A cgroup that is gone has none.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::File { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// The processes in it and below it, as the guest numbers them.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        collect(&self.path, &mut pids);
        pids
    }

    /// Stops all processes, or lets them go on, and waits until that is so.
    pub(crate) async fn freeze(&self, frozen: bool, limit: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen" } else { "thawed" };
        self.until(wanted, limit, |cgroup| cgroup.pairs("cgroup.events").get("frozen") == Some(&u64::from(frozen)))
            .await
    }

    /// Waits until no process is left in it.
    pub(crate) async fn emptied(&self, limit: Duration) -> Result<(), CgroupError> {
        self.until("empty", limit, |cgroup| cgroup.pairs("cgroup.events").get("populated") != Some(&1)).await
    }

    async fn until(
        &self,
        wanted: &'static str,
        limit: Duration,
        reached: impl Fn(&Cgroup) -> bool,
    ) -> Result<(), CgroupError> {
        let deadline = Instant::now() + limit;
        while !reached(self) {
            if Instant::now() >= deadline {
                let cgroup = self.path.clone();
                return Err(CgroupError::Slow { cgroup, wanted, limit });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Removes it and what the container made below it. One that is gone already is no error.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.path)
    }

    /// Sets limits.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let refused = |reason: String| CgroupError::Limits { cgroup: self.path.clone(), reason };
        let manager = create_cgroup_manager(CgroupConfig {
            cgroup_path: self.name.clone(),
            systemd_cgroup: false,
            container_name: String::new(),
        })
        .map_err(|e| refused(crate::log::Causes(&e).to_string()))?;
        manager
            .apply(&ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None })
            .map_err(|e| refused(crate::log::Causes(&e).to_string()))
    }
}

fn collect(dir: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in subdirectories(dir) {
        collect(&child, pids);
    }
}

fn subdirectories(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    for child in subdirectories(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::File { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Lets child cgroups use every controller that the kernel has.
pub(crate) fn enable_controllers() -> io::Result<()> {
    let root = Path::new(ROOT);
    let parent = root.join(PARENT);
    fs::create_dir_all(&parent)?;
    for dir in [root, &parent] {
        let controllers = fs::read_to_string(dir.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            // One that cannot be delegated, as "cpu" with real-time tasks, leaves the others.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}
/// The "key value" lines of a text.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}
