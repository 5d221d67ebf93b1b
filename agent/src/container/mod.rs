//! Containers and their processes.
//!
//! ```text
//!   create ──► Created ──start──► Running ◄──resume── Paused
//!                 │                 │  └────pause──────►│
//!                 └───── init ends ─┴───────────────────┘
//!                          ▼
//!                       Stopped ──remove──► gone
//! ```
//! A container whose creation or start fails is removed or stopped at once. When init ends, everything else
//! in the container's cgroup is killed: in a shared pid namespace the kernel would leave it running.

pub(crate) mod copy_up;
mod error;
mod executor;
pub(crate) mod guest_hooks;
mod helper;
pub(crate) mod launch;
mod protocol;
mod report;
pub(crate) mod spec;
mod users;
pub(crate) mod zygote;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::{LinuxCapabilities, LinuxResources, LinuxSeccomp, Process as OciProcess};
use stockade_agent_protocol::agent::StringUser;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;

use crate::cgroup::Cgroup;
use crate::devices::{DeviceMap, Program};
use crate::reaper::ExitWatch;
use crate::stdio::{Channel, Input, Output};
pub(crate) use error::ContainerError;
use launch::{Launch, Launcher, ReportReader};
use protocol::Action;
use spec::Prepared;

/// Where the agent keeps what belongs to containers.
const RUN_DIR: &str = "/run/stockade";
/// Ended processes whose status is kept, per container.
const KEPT_EXECS: usize = 256;
/// Longest time that a program may take to begin, start hooks included.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long the kernel may take to freeze, thaw or empty a cgroup.
const CGROUP_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed container may take to end when the caller sets no limit.
const REMOVE_LIMIT: Duration = Duration::from_secs(30);
/// The signal that has no handler.
const SIGKILL: i32 = libc::SIGKILL;

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        })
    }
}

/// One process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) exit: ExitWatch,
    pub(crate) stdin: Input,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    pub(crate) terminal: Option<Arc<Channel>>,
}

impl Process {
    /// Whether it has ended.
    pub(crate) fn ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Sends a signal; one that ended takes it without effect.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), ContainerError> {
        // Reaping happens on this thread too, so that the number cannot become another's in between.
        if self.ended() {
            return Ok(());
        }
        match crate::sys::send_signal(self.pid, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(source) => Err(ContainerError::Signal { signal, pid: self.pid, source }),
        }
    }
}

/// A container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) cgroup: Cgroup,
    pub(crate) init: Arc<Process>,
    /// Storages that are given up with it.
    pub(crate) storages: Vec<PathBuf>,
    rootfs: PathBuf,
    annotations: Option<HashMap<String, String>>,
    seccomp: Option<LinuxSeccomp>,
    /// Of its first process; those that are added have the same unless they bring their own.
    capabilities: Option<LinuxCapabilities>,
    own_user_namespace: bool,
    device_map: DeviceMap,
    // These locks are here because call handlers must be `Sync`; all run on one thread.
    state: Mutex<State>,
    execs: Mutex<Execs>,
    /// The device rules that hold.
    devices: Mutex<Program>,
    /// Held while the container is changed: one change at a time.
    change: AsyncMutex<Option<ReportReader>>,
}

#[derive(Default)]
struct Execs {
    by_id: HashMap<String, Option<Arc<Process>>>,
    order: VecDeque<String>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses ids that are no plain file name.
pub(crate) fn check_id(id: &str) -> Result<(), ContainerError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.chars().all(plain) {
        return Err(ContainerError::BadId(id.to_owned()));
    }
    Ok(())
}

fn state_dir() -> PathBuf {
    Path::new(RUN_DIR).join("state")
}

fn bundle_dir(id: &str) -> PathBuf {
    Path::new(RUN_DIR).join("bundles").join(id)
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), ContainerError> {
    let failed = |source| ContainerError::File { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(path, content).map_err(failed)
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, ContainerError> {
    serde_json::to_vec(value).map_err(|e| ContainerError::BadSpec { reason: e.to_string() })
}

/// Makes a container up to the point before its program runs. On failure nothing of it is left.
pub(crate) async fn create(
    launcher: &Launcher,
    id: &str,
    prepared: Prepared,
    storages: Vec<PathBuf>,
    pipe_size: Option<usize>,
) -> Result<Arc<Container>, ContainerError> {
    let cgroup = Cgroup::of_container(id);
    let result = try_create(launcher, id, prepared, storages, pipe_size, &cgroup).await;
    if result.is_err() {
        clean_up(id, &cgroup).await;
    }
    result
}

async fn try_create(
    launcher: &Launcher,
    id: &str,
    prepared: Prepared,
    storages: Vec<PathBuf>,
    pipe_size: Option<usize>,
    cgroup: &Cgroup,
) -> Result<Arc<Container>, ContainerError> {
    let Prepared { spec, execution, network_sysctls, device_map, device_filter } = prepared;
    for (name, value) in &network_sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(ContainerError::BadSpec { reason: format!("sysctl {name:?}") });
        }
        fs::write(&path, value).map_err(|source| ContainerError::File { path, source })?;
    }
    let bundle = bundle_dir(id);
    write_file(&bundle.join("config.json"), &to_json(&spec)?)?;
    let state_dir = state_dir();
    fs::create_dir_all(&state_dir).map_err(|source| ContainerError::File { path: state_dir.clone(), source })?;

    let process = spec.process().as_ref();
    let seccomp = execution.seccomp.clone();
    let capabilities = process.and_then(|p| p.capabilities().clone()).or_else(|| execution.capabilities.clone());
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own_user_namespace = namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == oci_spec::runtime::LinuxNamespaceType::User);
    // Before the first process is in it, so that none is without the rules.
    cgroup.create()?;
    let devices = cgroup.load_devices(&device_filter)?;
    cgroup.attach_devices(&devices, None)?;
    let (init, report) = launcher
        .launch(Launch {
            id,
            state_dir: &state_dir,
            action: Action::Create { bundle },
            execution,
            terminal: process.and_then(|p| p.terminal()).unwrap_or(false),
            uid: process.map_or(0, |p| p.user().uid()),
            pipe_size,
        })
        .await?;
    let rootfs = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let container = Arc::new(Container {
        id: id.to_owned(),
        cgroup: cgroup.clone(),
        init: Arc::new(init),
        storages,
        rootfs,
        annotations: spec.annotations().clone(),
        seccomp,
        capabilities,
        own_user_namespace,
        device_map,
        devices: Mutex::new(devices),
        state: Mutex::new(State::Created),
        execs: Mutex::default(),
        change: AsyncMutex::new(Some(report)),
    });
    tokio::spawn(end_with_init(Arc::clone(&container)));
    Ok(container)
}

async fn end_with_init(container: Arc<Container>) {
    let status = crate::reaper::wait(&mut container.init.exit.clone()).await;
    *locked(&container.state) = State::Stopped;
    crate::log::debug!("container {:?} ended with status {status}", container.id);
    if let Err(e) = container.cgroup.kill() {
        crate::log::warning!("container {:?} ended, but: {}", container.id, crate::log::Causes(&e));
    }
}

/// Removes what a container has on the guest's file systems and in its cgroups, as far as it goes.
async fn clean_up(id: &str, cgroup: &Cgroup) {
    let mut problems: Vec<String> = Vec::new();
    if let Err(e) = cgroup.kill() {
        problems.push(crate::log::Causes(&e).to_string());
    }
    if let Err(e) = cgroup.emptied(CGROUP_LIMIT).await {
        problems.push(e.to_string());
    }
    if let Err(e) = cgroup.remove() {
        problems.push(crate::log::Causes(&e).to_string());
    }
    for dir in [bundle_dir(id), state_dir().join(id)] {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => problems.push(format!("{dir:?}: {e}")),
            _ => {}
        }
    }
    if !problems.is_empty() {
        crate::log::warning!("container {id:?} left something behind: {}", problems.join("; "));
    }
}

impl Container {
    /// What it does now.
    pub(crate) fn state(&self) -> State {
        if self.init.ended() {
            return State::Stopped;
        }
        *locked(&self.state)
    }

    /// The OCI state document, for hooks.
    pub(crate) fn document(&self) -> serde_json::Value {
        let state = self.state();
        let pid = (state != State::Stopped).then_some(self.init.pid);
        serde_json::json!({
            "ociVersion": "1.0.2",
            "id": self.id,
            "status": state.to_string(),
            "pid": pid,
            "bundle": bundle_dir(&self.id),
            "annotations": self.annotations,
        })
    }

    fn expect(&self, what: &'static str, allowed: &[State]) -> Result<(), ContainerError> {
        let state = self.state();
        if allowed.contains(&state) {
            return Ok(());
        }
        Err(ContainerError::BadState { what, id: self.id.clone(), state })
    }

    /// Runs the program, and tells why it cannot be run.
    pub(crate) async fn start(&self) -> Result<(), ContainerError> {
        let mut change = self.change.lock().await;
        self.expect("start", &[State::Created])?;
        self.open_start_gate()?;
        let report = change.take().ok_or_else(|| ContainerError::BadState {
            what: "start",
            id: self.id.clone(),
            state: State::Running,
        })?;
        let report = match timeout(START_LIMIT, report.to_end()).await {
            Ok(Ok(report)) => report,
            Ok(Err(source)) => {
                return Err(ContainerError::Launch { what: "read how the start went", source });
            }
            Err(_) => {
                self.cgroup.kill()?;
                let text = format!("its start took longer than {START_LIMIT:?}");
                return Err(ContainerError::Refused(text));
            }
        };
        if report.reason.is_some() || !report.running {
            // It ends by itself, with a status that says nothing.
            self.cgroup.kill()?;
            return Err(ContainerError::Refused(report.explain("the container ended before its program ran")));
        }
        if !self.init.ended() {
            *locked(&self.state) = State::Running;
        }
        Ok(())
    }

    /// Connects to the socket on which libcontainer's init process waits.
    fn open_start_gate(&self) -> Result<(), ContainerError> {
        let failed = |source| ContainerError::Launch { what: "tell the container to start", source };
        let dir = OwnedFd::from(fs::File::open(state_dir().join(&self.id)).map_err(failed)?);
        // A socket's address is short; a path by descriptor is, whatever the id.
        let path = format!("/proc/self/fd/{}/notify.sock", dir.as_raw_fd());
        let mut socket = UnixStream::connect(path).map_err(failed)?;
        socket.write_all(b"start container").map_err(failed)
    }

    /// Runs a further process in it.
    pub(crate) async fn exec(
        &self,
        launcher: &Launcher,
        exec_id: &str,
        process: OciProcess,
        string_user: Option<&StringUser>,
        pipe_size: Option<usize>,
    ) -> Result<(), ContainerError> {
        check_id(exec_id)?;
        let _change = self.change.lock().await;
        self.expect("run a process in", &[State::Running])?;
        if self.own_user_namespace {
            let reason = "a process cannot join a container that has its own user namespace".to_owned();
            return Err(ContainerError::BadSpec { reason });
        }
        self.reserve(exec_id)?;
        let file = bundle_dir(&self.id).join(format!("exec-{exec_id}.json"));
        let result = self.try_exec(launcher, process, string_user, pipe_size, &file).await;
        // Only the helper needed it.
        let _ = fs::remove_file(&file);
        let mut execs = locked(&self.execs);
        match result {
            Ok(process) => {
                execs.by_id.insert(exec_id.to_owned(), Some(Arc::new(process)));
                Ok(())
            }
            Err(e) => {
                execs.by_id.remove(exec_id);
                execs.order.retain(|id| id != exec_id);
                Err(e)
            }
        }
    }

    async fn try_exec(
        &self,
        launcher: &Launcher,
        process: OciProcess,
        string_user: Option<&StringUser>,
        pipe_size: Option<usize>,
        file: &Path,
    ) -> Result<Process, ContainerError> {
        let capabilities = self.capabilities.as_ref();
        let (process, execution) =
            spec::prepare_process(process, self.seccomp.clone(), capabilities, &self.rootfs, string_user)?;
        spec::check_cwd(Path::new(&format!("/proc/{}/root", self.init.pid)), process.cwd())?;
        write_file(file, &to_json(&process)?)?;
        let (process, _report) = launcher
            .launch(Launch {
                id: &self.id,
                state_dir: &state_dir(),
                action: Action::Exec { process: file.to_owned() },
                execution,
                terminal: process.terminal().unwrap_or(false),
                uid: process.user().uid(),
                pipe_size,
            })
            .await?;
        Ok(process)
    }

    /// Takes an id, and forgets the oldest ended process when there are too many.
    fn reserve(&self, exec_id: &str) -> Result<(), ContainerError> {
        let mut execs = locked(&self.execs);
        if execs.by_id.contains_key(exec_id) {
            return Err(ContainerError::Exists { what: "process", id: exec_id.to_owned() });
        }
        if execs.order.len() >= KEPT_EXECS {
            let Execs { by_id, order } = &mut *execs;
            let ended = |id: &String| by_id.get(id).is_some_and(|p| p.as_ref().is_some_and(|p| p.ended()));
            let oldest = order.iter().position(ended).and_then(|index| order.remove(index));
            if let Some(id) = oldest {
                by_id.remove(&id);
            }
        }
        execs.by_id.insert(exec_id.to_owned(), None);
        execs.order.push_back(exec_id.to_owned());
        Ok(())
    }

    /// A process by its id; the empty id is init.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, ContainerError> {
        // Kata's runtimes name init by the container's own id.
        if exec_id.is_empty() || exec_id == self.id {
            return Ok(Arc::clone(&self.init));
        }
        let found = locked(&self.execs).by_id.get(exec_id).cloned().flatten();
        found.ok_or_else(|| ContainerError::NotFound { what: "process", id: exec_id.to_owned() })
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) -> Result<(), ContainerError> {
        self.cgroup.kill()?;
        self.init.signal(SIGKILL)
    }

    /// Sends a signal to every process in it.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), ContainerError> {
        if signal == SIGKILL {
            return self.kill();
        }
        for pid in self.cgroup.processes() {
            match crate::sys::send_signal(pid, signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(source) => return Err(ContainerError::Signal { signal, pid, source }),
            }
        }
        Ok(())
    }

    /// Stops all its processes.
    pub(crate) async fn pause(&self) -> Result<(), ContainerError> {
        let _change = self.change.lock().await;
        self.expect("pause", &[State::Running])?;
        if let Err(e) = self.cgroup.freeze(true, CGROUP_LIMIT).await {
            // Half a pause is none.
            let _ = self.cgroup.freeze(false, CGROUP_LIMIT).await;
            return Err(e.into());
        }
        *locked(&self.state) = State::Paused;
        Ok(())
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self) -> Result<(), ContainerError> {
        let _change = self.change.lock().await;
        self.expect("resume", &[State::Paused])?;
        self.cgroup.freeze(false, CGROUP_LIMIT).await?;
        *locked(&self.state) = State::Running;
        Ok(())
    }

    /// Changes its limits, and its device rules if there are some among them.
    pub(crate) async fn update(&self, mut resources: LinuxResources) -> Result<(), ContainerError> {
        let _change = self.change.lock().await;
        self.expect("update", &[State::Created, State::Running, State::Paused])?;
        let rules = resources.devices().clone().filter(|rules| !rules.is_empty());
        resources.set_devices(None);
        let filter = rules.map(|rules| self.device_map.filter(&rules)).transpose().map_err(spec::bad_rules)?;
        let devices = filter.map(|filter| self.cgroup.load_devices(&filter)).transpose()?;
        self.cgroup.apply(&resources)?;
        if let Some(devices) = devices {
            let mut held = locked(&self.devices);
            self.cgroup.attach_devices(&devices, Some(&held))?;
            *held = devices;
        }
        Ok(())
    }

    /// Kills it if it lives, and waits until nothing of it runs.
    pub(crate) async fn end(&self) -> Result<(), ContainerError> {
        self.kill_and_wait(REMOVE_LIMIT).await?;
        Ok(self.cgroup.emptied(CGROUP_LIMIT).await?)
    }

    async fn kill_and_wait(&self, limit: Duration) -> Result<(), ContainerError> {
        self.kill()?;
        let mut exit = self.init.exit.clone();
        match timeout(limit, crate::reaper::wait(&mut exit)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ContainerError::Unkillable { id: self.id.clone(), limit }),
        }
    }

    /// Kills it if it lives, waits for its end, and removes what it has. `None` waits as long as is sensible.
    pub(crate) async fn remove(&self, limit: Option<Duration>) -> Result<(), ContainerError> {
        self.kill_and_wait(limit.unwrap_or(REMOVE_LIMIT)).await?;
        let _change = self.change.lock().await;
        clean_up(&self.id, &self.cgroup).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_ids() {
        for good in ["a", "A-b_c.d+e", "0123456789abcdef"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "é", "*", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
