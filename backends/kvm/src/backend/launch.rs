//! Starting a machine's process, with everything that it needs open already.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use stockade_hypervisor::{
    BootSource, DeviceConfig, ExitCause, HypervisorError, MiB, NetQueueFds, Operation, ProcessRole, VmConfig, VmState,
    hybrid_vsock,
};
use stockade_machine_process::console::Console;
use stockade_machine_process::devices::Device;
use stockade_machine_process::life::AGENT_SOCKET;
use stockade_machine_process::process::{Launch, Process};
use stockade_machine_process::start::{Passed, StartError, asynchronous, console_log, host, pair};
use stockade_machine_process::stop::Stopping;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::snapshots::SavedFiles;
use super::{KvmOptions, exit};
use crate::control::{self, Answer, Begin, Client, ClientError, Disk, Network, Request, Seen, Share, Sized, Vsock};
use crate::jail::user_of;
use crate::machine::COMMAND_LINE;

/// The steps in which memory can be plugged, in MiB: what Linux adds at least.
const PLUG_STEP: u32 = 128;

/// A machine that runs.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) process: Process,
    pub(super) client: Client,
    /// Reads the console until its end.
    pub(super) console: JoinHandle<()>,
    /// The guest's kernel has said that it panics.
    pub(super) panicked: Arc<AtomicBool>,
    /// What is there.
    pub(super) size: Sized,
}

/// What a machine begins with.
#[derive(Debug)]
pub(super) enum Source {
    /// The kernel that it is configured with.
    Boot,
    /// A machine that was saved.
    Saved(SavedFiles),
}

impl Source {
    /// What the machine is once it has started.
    pub(super) fn state(&self) -> VmState {
        match self {
            Self::Boot => VmState::Running,
            Self::Saved(_) => VmState::Paused,
        }
    }
}

/// Opens a file of the machine's; the kernel's errors name no file.
pub(super) fn open(path: &Path, write: bool, operation: Operation) -> Result<OwnedFd, HypervisorError> {
    let opened = File::options().read(true).write(write).open(path);
    opened.map(Into::into).map_err(|e| HypervisorError::host(operation, format!("open {}", path.display()), e))
}

/// Passes on a copy of each queue, since the process takes each number once and a tap's may be passed twice.
fn copies(passed: &mut Passed, queues: &NetQueueFds) -> Result<Vec<RawFd>, HypervisorError> {
    queues.0.iter().map(|fd| Ok(passed.add(fd.try_clone().map_err(host("copy a tap's descriptor"))?))).collect()
}

/// How much may be plugged later.
pub(super) fn hotplug_memory(config: &VmConfig) -> MiB {
    let room = config.max_memory.0.saturating_sub(config.memory.0);
    MiB(room - room % PLUG_STEP)
}

/// The launch of the process, its description, and our ends of its sockets.
struct Plan {
    launch: Launch,
    begin: Begin,
    control: OwnedFd,
    console: StdStream,
    log: Option<File>,
}

fn plan(options: &KvmOptions, config: &VmConfig, devices: &[Device], source: Source) -> Result<Plan, HypervisorError> {
    let start = Operation::Start;
    let mut passed = Passed::default();
    let (control, control_end) = control::pair().map_err(host("make a socket pair for the control messages"))?;
    let (console, console_end) = pair("the console")?;
    let log = console_log(config)?;
    let mut disks = Vec::new();
    let initrd = match &config.boot {
        BootSource::Initrd(path) => Some(path),
        BootSource::Image { image, initrd } => {
            let fd = passed.add(open(image, false, start)?);
            disks.push(("boot".to_owned(), Disk { read_only: true }, fd));
            initrd.as_ref()
        }
    };
    let mut share = None;
    let mut networks = Vec::new();
    for Device { id, config, .. } in devices {
        let id = id.0.clone();
        match config {
            DeviceConfig::Share { tag, source, cache } => {
                share = Some(Share { tag: tag.clone(), root: source.clone(), cache: *cache });
            }
            DeviceConfig::Block { path, read_only } => {
                let fd = passed.add(open(path, !read_only, start)?);
                disks.push((id, Disk { read_only: *read_only }, fd));
            }
            DeviceConfig::Net { mac, queues, mtu } => {
                networks.push((id, Network { mac: *mac, mtu: *mtu }, copies(&mut passed, queues)?));
            }
        }
    }
    let (kernel, initrd, restore) = match source {
        Source::Boot => (Some(&config.kernel.0), initrd, None),
        // What it has of them is in its memory.
        Source::Saved(SavedFiles { state, memory }) => (None, None, Some((passed.add(state), passed.add(memory)))),
    };
    let mut image = |path: Option<&PathBuf>| -> Result<Option<RawFd>, HypervisorError> {
        path.map(|path| open(path, false, start)).transpose().map(|fd| fd.map(|fd| passed.add(fd)))
    };
    let (kernel, initrd) = (image(kernel)?, image(initrd)?);
    let size = |vcpus: u32| u8::try_from(vcpus).unwrap_or(u8::MAX);
    let socket = config.run_dir.join(AGENT_SOCKET);
    let begin = Begin {
        kvm: passed.add(open(&options.device, true, start)?),
        kernel,
        initrd,
        cmdline: command_line(options, config),
        console: passed.add(console_end),
        vcpus: size(config.vcpus),
        max_vcpus: size(config.max_vcpus),
        memory: config.memory,
        hotplug_memory: hotplug_memory(config),
        vsock: Vsock {
            guest_cid: config.guest_cid,
            listener: passed.add(hybrid_vsock::bind(&socket).map_err(host(format!("listen on {}", socket.display())))?),
        },
        share,
        disks,
        networks,
        reclaim: options.reclaim,
        seccomp: options.seccomp,
        user: user_of(std::process::id()),
        restore,
    };
    let mut args = options.verb.clone();
    args.push(format!("control={}", passed.add(control_end)).into());
    let launch = Launch {
        role: ProcessRole::Hypervisor,
        program: options.stockade_exe.clone(),
        shown_as: Some("stockade"),
        args,
        keep: passed.into_keep(),
        // It makes one of its own, which is empty; the taps are open.
        netns: None,
        cgroups: config.memory_cgroups.clone(),
        pid_namespace: true,
    };
    Ok(Plan { launch, begin, control, console, log })
}

/// The kernel's command line: what the machine and its end need, then what the configuration says, which has the last word.
fn command_line(options: &KvmOptions, config: &VmConfig) -> String {
    // A panic, and a reboot, end the machine at once.
    let mut params = vec![COMMAND_LINE, "panic=-1", "reboot=t"];
    if !options.debug {
        params.push("quiet");
    }
    params.extend(config.kernel_params.iter().map(String::as_str));
    params.join(" ")
}

/// Starts the machine; returns when its vCPUs may run, or stand, if it was saved.
pub(super) async fn launch(
    options: &KvmOptions,
    config: &VmConfig,
    devices: &[Device],
    source: Source,
    cancel: &CancellationToken,
) -> Result<Launched, StartError> {
    let plan = plan(options, config, devices, source)?;
    let process = Process::launch(plan.launch).await?;
    let panicked = Arc::new(AtomicBool::new(false));
    let talk = async {
        let console = asynchronous(plan.console, "the console")?;
        let sink = Console::new(config.console.clone(), plan.log, Arc::clone(&panicked));
        let console = tokio::spawn(sink.read(console));
        let client = Client::new(plan.control).map_err(host("watch the control socket"))?;
        Ok::<_, HypervisorError>((client, console))
    };
    let (client, console) = match talk.await {
        Ok(ends) => ends,
        Err(error) => {
            process.signal(libc::SIGKILL);
            process.ended().await;
            return Err(StartError::from(error));
        }
    };
    let started = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Cancelled),
        started = tokio::time::timeout(options.start_limit, start(&client, plan.begin, options)) => match started {
            Ok(started) => started,
            Err(_) => Err(Failure::Late),
        },
    };
    let failure = match started {
        Ok(size) => return Ok(Launched { process, client, console, panicked, size }),
        Err(failure) => failure,
    };
    // A process that has closed its socket is ending, and says why.
    if !matches!(failure, Failure::Closed) {
        process.signal(libc::SIGKILL);
    }
    let (ended, seen) = exit::ended(&process, client.seen()).await;
    let operation = Operation::Start;
    Err(match failure {
        Failure::Refused(message) => HypervisorError::Refused { operation, message }.into(),
        Failure::Late => HypervisorError::Timeout { operation, limit: options.start_limit }.into(),
        Failure::Cancelled => StartError::ended(ExitCause::NeverStarted),
        Failure::Closed => StartError::ended(exit::cause(&ended, &seen, exit::has_panicked(&panicked), Stopping::No)),
    })
}

/// Why a process that was spawned has no running machine.
enum Failure {
    /// It has ended, or is about to.
    Closed,
    /// It said no.
    Refused(String),
    /// It did not answer in time.
    Late,
    /// Nobody wants it any more.
    Cancelled,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Closed => Self::Closed,
            ClientError::Timeout(_) => Self::Late,
            ClientError::Send(error) => Self::Refused(error.to_string()),
        }
    }
}

/// Describes the machine, waits until it is built, and lets it run. Answers with its size.
async fn start(client: &Client, begin: Begin, options: &KvmOptions) -> Result<Sized, Failure> {
    client.begin(begin).await?;
    let mut seen = client.seen();
    let built = |seen: &Seen| seen.ready || seen.exited.is_some() || seen.closed;
    match seen.wait_for(built).await {
        Ok(seen) if seen.ready && seen.exited.is_none() => {}
        _ => return Err(Failure::Closed),
    }
    match client.ask(Request::Start, &[], options.start_limit).await? {
        Answer::Sized(size) => Ok(size),
        Answer::Failed { message } => Err(Failure::Refused(control::bounded(&message))),
        other => Err(Failure::Refused(format!("the order to start was answered by {other:?}"))),
    }
}
