//! What the agent knows of its sandbox.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};

use crate::container::guest_hooks::{self, Kind};
use crate::container::launch::Launcher;
use crate::container::spec::{SELF, Surroundings};
use crate::container::{Container, ContainerError, check_id};
use crate::kernel_params::Options;
use crate::mounts::Storages;
use crate::reaper::Reaper;

/// Argument by which the agent, re-executed, makes a pid namespace.
pub(crate) const PID_NAMESPACE: &str = "pid-namespace";
/// Argument by which the agent, re-executed, is the first process of a pid namespace.
pub(crate) const PAUSE: &str = "pause";
/// Memory-shortage events that wait to be fetched; later ones are dropped.
const OOM_EVENTS: usize = 64;
/// Containers of one sandbox.
const MAX_CONTAINERS: usize = 1024;

/// The state that all calls share.
pub(crate) struct Sandbox {
    pub(crate) options: Options,
    pub(crate) reaper: Reaper,
    pub(crate) launcher: Launcher,
    /// The whole guest ends with the sandbox.
    is_guest: bool,
    pub(crate) storages: Mutex<Storages>,
    /// Asks the main task to end.
    pub(crate) ended: Notify,
    pub(crate) oom_sender: mpsc::Sender<String>,
    pub(crate) oom_events: AsyncMutex<mpsc::Receiver<String>>,
    // Locks because call handlers must be `Sync`; all run on one thread, and none is held across a wait.
    containers: Mutex<HashMap<String, Slot>>,
    surroundings: Mutex<Surroundings>,
    pid_namespace: Mutex<Option<i32>>,
}

enum Slot {
    /// Being made: the id is taken.
    Reserved,
    Made(Arc<Container>),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// A sandbox without containers.
    pub(crate) fn new(options: Options, reaper: Reaper, launcher: Launcher, is_guest: bool) -> Arc<Sandbox> {
        let (oom_sender, oom_events) = mpsc::channel(OOM_EVENTS);
        Arc::new(Sandbox {
            options,
            launcher,
            is_guest,
            reaper,
            storages: Mutex::default(),
            ended: Notify::new(),
            oom_sender,
            oom_events: AsyncMutex::new(oom_events),
            containers: Mutex::default(),
            surroundings: Mutex::default(),
            pid_namespace: Mutex::default(),
        })
    }

    /// Takes an id for a container that is about to be made.
    pub(crate) fn reserve(&self, id: &str) -> Result<(), ContainerError> {
        check_id(id)?;
        let mut containers = locked(&self.containers);
        if containers.contains_key(id) {
            return Err(ContainerError::Exists { what: "container", id: id.to_owned() });
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(ContainerError::Refused(format!("there are {MAX_CONTAINERS} containers already")));
        }
        containers.insert(id.to_owned(), Slot::Reserved);
        Ok(())
    }

    /// Puts a made container in the place of its reservation.
    pub(crate) fn insert(&self, container: Arc<Container>) {
        locked(&self.containers).insert(container.id.clone(), Slot::Made(container));
    }

    /// Frees an id.
    pub(crate) fn forget(&self, id: &str) {
        locked(&self.containers).remove(id);
    }

    /// A container by its id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match locked(&self.containers).get(id) {
            Some(Slot::Made(container)) => Ok(Arc::clone(container)),
            _ => Err(ContainerError::NotFound { what: "container", id: id.to_owned() }),
        }
    }

    /// All containers.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let containers = locked(&self.containers);
        containers
            .values()
            .filter_map(|slot| match slot {
                Slot::Made(container) => Some(Arc::clone(container)),
                Slot::Reserved => None,
            })
            .collect()
    }

    /// What new containers get beside their specification.
    pub(crate) fn surroundings(&self, sandbox_pidns: bool) -> Surroundings {
        let mut surroundings = locked(&self.surroundings).clone();
        if !sandbox_pidns {
            surroundings.shared_pid_namespace = None;
        }
        surroundings
    }

    /// Changes what new containers get.
    pub(crate) fn change_surroundings(&self, change: impl FnOnce(&mut Surroundings)) {
        change(&mut locked(&self.surroundings));
    }

    /// Runs the guest image's own hooks of a kind for a container.
    pub(crate) async fn run_guest_hooks(&self, kind: Kind, container: &Container) {
        let dir = locked(&self.surroundings).guest_hooks.clone();
        if let Some(dir) = dir {
            guest_hooks::run(&self.reaper, &dir, kind, &container.document()).await;
        }
    }

    /// Makes the pid namespace that the pod's containers share, once.
    pub(crate) async fn share_pid_namespace(&self) -> io::Result<()> {
        if locked(&self.pid_namespace).is_some() {
            return Ok(());
        }
        let mut helper =
            Command::new(SELF).arg(PID_NAMESPACE).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = helper.stdout.take();
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            output.map_or(Ok(0), |pipe| pipe.take(32).read_to_string(&mut text)).map(|_| text)
        })
        .await
        .map_err(io::Error::other)??;
        let pid: i32 = text.trim().parse().map_err(|_| io::Error::other("the helper made no namespace"))?;
        *locked(&self.pid_namespace) = Some(pid);
        self.change_surroundings(|surroundings| {
            surroundings.shared_pid_namespace = Some(PathBuf::from(format!("/proc/{pid}/ns/pid")));
        });
        Ok(())
    }

    /// Ends all containers, and undoes all of them and of the storages that does not end with the guest, as far as it goes.
    ///
    /// # Errors
    /// The first container that did not end: it may have more to write.
    pub(crate) async fn tear_down(&self) -> Result<(), ContainerError> {
        let mut failed = None;
        for container in self.all() {
            let ended = if self.is_guest { container.end().await } else { container.remove(None).await };
            if let Err(e) = ended {
                crate::log::warning!("{}", crate::log::Causes(&e));
                failed.get_or_insert(e);
            }
            self.run_guest_hooks(Kind::Poststop, &container).await;
            self.forget(&container.id);
        }
        if let Some(pid) = locked(&self.pid_namespace).take() {
            // Ours, and never waited for, so that the number is still its own.
            let _ = crate::sys::send_signal(pid, libc::SIGKILL);
        }
        let mut storages = locked(&self.storages);
        if !self.is_guest || storages.on_disks() {
            storages.release_all();
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The helper's part of [`Sandbox::share_pid_namespace`]: prints the number of the namespace's first process.
pub(crate) fn make_pid_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID)?;
    let pause = Command::new(SELF).arg(PAUSE).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    println!("{}", pause.id());
    Ok(())
}

/// Is the first process of a pid namespace: reaps, and does nothing else, until it is killed.
pub(crate) fn pause() -> io::Result<()> {
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGCHLD);
    // A blocked signal is kept until it is waited for, also when its default action is to be ignored.
    signals.thread_block()?;
    loop {
        while crate::sys::reap_child().is_some() {}
        signals.wait()?;
    }
}

/// Writes resolv.conf for the guest and for containers that bring none.
pub(crate) fn write_resolv_conf(lines: &[String]) -> io::Result<PathBuf> {
    let path = Path::new("/run/stockade/resolv.conf");
    let mut text = String::new();
    for line in lines {
        // An address alone is a name server; anything else is a line of the file.
        if line.parse::<std::net::IpAddr>().is_ok() {
            text.push_str("nameserver ");
        }
        text.push_str(line);
        text.push('\n');
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, &text)?;
    if let Err(e) = fs::create_dir_all("/etc").and_then(|()| fs::write("/etc/resolv.conf", &text)) {
        crate::log::debug!("the guest's own resolv.conf stays: {e}");
    }
    Ok(path.to_owned())
}
