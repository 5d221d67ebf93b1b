//! Starting a machine's two processes, all their sockets made beforehand so that nothing is waited for by polling.
//!
//! ```text
//!   supervisor ── pair: monitor, console; gate ────────▶ QEMU
//!       │  listens on and connects to vhost-user sockets:   ▲ the connected ends
//!       │                                                   │
//!       └── listening ends, hybrid vsock's, lifeline ──▶ stockade vhost-user
//! ```

use crate::command_line::{self, DiskPart, FsPart, NetPart, Parts};
use crate::exit::{self, Processes};
use crate::options::{Acceleration, QemuOptions};
use crate::qmp::{Client, Seen};
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use stockade_devices::fs::CachePolicy;
use stockade_devices::vhost_user::{FsArgs, VhostUserArgs, VsockArgs};
use stockade_hypervisor::{
    BootSource, DeviceConfig, ExitCause, HypervisorError, Operation, ProcessRole, ShareCache, VmConfig, hybrid_vsock,
};
use stockade_machine_process::console::Console;
use stockade_machine_process::devices::Device;
use stockade_machine_process::life::AGENT_SOCKET;
use stockade_machine_process::process::{Ended, Launch, Process};
use stockade_machine_process::start::{Passed, StartError, asynchronous, console_log, host, pair};
use stockade_machine_process::stop::Stopping;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Serves virtio-fs requests beside the queue's own thread.
const FS_THREADS: usize = 0;

/// What this host does for a guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) acceleration: Acceleration,
    /// How fast the time stamp counter runs, for a guest that cannot measure it.
    pub(crate) tsc_khz: Option<u64>,
}

/// A machine whose monitor has answered.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) processes: Processes,
    pub(crate) qmp: Client,
    /// Reads the console until its end.
    pub(crate) console: JoinHandle<()>,
    /// The guest's kernel has said that it panics.
    pub(crate) panicked: Arc<AtomicBool>,
    /// The device process ends with it.
    pub(crate) lifeline: StdStream,
}

/// A listening vhost-user socket and a connection to it. No path is left: nobody else shall connect.
fn vhost_socket(run_dir: &Path, name: &str) -> Result<(OwnedFd, StdStream), HypervisorError> {
    let path = run_dir.join(name);
    let listener = hybrid_vsock::bind(&path).map_err(host(format!("listen on {}", path.display())))?;
    let connected = hybrid_vsock::open_blocking(&path).map_err(host(format!("connect to {}", path.display())));
    std::fs::remove_file(&path).map_err(host(format!("remove {}", path.display())))?;
    Ok((listener.into(), connected?))
}

fn cache_policy(cache: ShareCache) -> CachePolicy {
    match cache {
        ShareCache::Never => CachePolicy::Never,
        ShareCache::Metadata => CachePolicy::Metadata,
        ShareCache::Auto => CachePolicy::Auto,
        ShareCache::Always => CachePolicy::Always,
    }
}

/// The launches of both processes and our ends of their sockets.
struct Plan {
    hypervisor: Launch,
    devices: Launch,
    /// QEMU takes no memory before this is closed.
    gate: PipeWriter,
    qmp: StdStream,
    console: StdStream,
    log: Option<File>,
    lifeline: StdStream,
}

fn plan(
    binary: PathBuf,
    options: &QemuOptions,
    on: Host,
    config: &VmConfig,
    devices: &[Device],
) -> Result<Plan, HypervisorError> {
    let mut to_qemu = Passed::default();
    let mut to_devices = Passed::default();
    let run_dir = &config.run_dir;
    let (qmp, qmp_end) = pair("QEMU's monitor")?;
    let (console, console_end) = pair("the console")?;
    let (lifeline, lifeline_end) = pair("the device process")?;
    let (gate_end, gate) = std::io::pipe().map_err(host("make a pipe for QEMU"))?;
    let log = console_log(config)?;
    let agent_socket = run_dir.join(AGENT_SOCKET);
    let uds = hybrid_vsock::bind(&agent_socket).map_err(host(format!("listen on {}", agent_socket.display())))?;
    let directory = File::open(run_dir).map_err(host(format!("open {}", run_dir.display())))?;
    let (vsock_listener, vsock) = vhost_socket(run_dir, "vhost-vsock.sock")?;
    let mut args = VhostUserArgs {
        fs: None,
        vsock: Some(VsockArgs {
            listener: to_devices.add(vsock_listener),
            uds: to_devices.add(uds),
            guest_cid: u64::from(config.guest_cid),
            host_sockets: Some((to_devices.add(directory), AGENT_SOCKET.to_owned())),
        }),
        lifeline: to_devices.add(lifeline_end),
        parent: Some(std::process::id()),
    };
    let mut parts = Parts {
        config,
        acceleration: on.acceleration,
        tsc_khz: on.tsc_khz,
        gate: to_qemu.add(gate_end),
        qmp: to_qemu.add(qmp_end),
        console: to_qemu.add(console_end),
        vsock: to_qemu.add(vsock),
        fs: None,
        disks: Vec::new(),
        nets: Vec::new(),
    };
    if let BootSource::Image { image, .. } = &config.boot {
        let blockdev = command_line::blockdev("boot", image, true).to_string();
        parts.disks.push(DiskPart { id: "boot".to_owned(), blockdev });
    }
    for Device { id, config, .. } in devices {
        let id = id.0.clone();
        match config {
            DeviceConfig::Share { tag, source, cache } => {
                let (listener, connected) = vhost_socket(run_dir, "vhost-fs.sock")?;
                parts.fs = Some(FsPart { fd: to_qemu.add(connected), tag: tag.clone() });
                args.fs = Some(FsArgs {
                    listener: to_devices.add(listener),
                    root: source.clone(),
                    cache: cache_policy(*cache),
                    threads: FS_THREADS,
                });
            }
            DeviceConfig::Block { path, read_only } => {
                let blockdev = command_line::blockdev(&id, path, *read_only).to_string();
                parts.disks.push(DiskPart { id, blockdev });
            }
            DeviceConfig::Net { mac, queues, mtu } => parts.nets.push(NetPart {
                id,
                fds: queues.0.iter().map(|fd| to_qemu.share(fd)).collect(),
                mac: crate::devices::mac_text(*mac),
                mtu: *mtu,
            }),
        }
    }
    let hypervisor = Launch {
        role: ProcessRole::Hypervisor,
        program: binary,
        shown_as: None,
        args: command_line::build(options, &parts),
        keep: to_qemu.into_keep(),
        netns: config.netns.clone(),
        cgroups: config.memory_cgroups.clone(),
        pid_namespace: false,
    };
    let devices = Launch {
        role: ProcessRole::Devices,
        program: options.stockade_exe.clone(),
        // Else a process list would show the link that this program starts itself by.
        shown_as: Some("stockade"),
        args: std::iter::once("vhost-user".to_owned()).chain(args.to_args()).map(Into::into).collect(),
        keep: to_devices.into_keep(),
        netns: None,
        cgroups: config.memory_cgroups.clone(),
        pid_namespace: false,
    };
    Ok(Plan { hypervisor, devices, gate, qmp, console, log, lifeline })
}

/// Starts the machine; returns when QEMU's monitor has answered, which it does when the machine is complete.
pub(crate) async fn launch(
    binary: PathBuf,
    options: &QemuOptions,
    on: Host,
    config: &VmConfig,
    devices: &[Device],
    cancel: &CancellationToken,
) -> Result<Launched, StartError> {
    let plan = plan(binary, options, on, config, devices)?;
    tracing::debug!(program = %plan.hypervisor.program.display(), args = ?plan.hypervisor.args, "starting QEMU");
    // The first to join a control group waits for a grace period of the kernel's. QEMU loads its libraries meanwhile.
    let hypervisor = Process::launch(plan.hypervisor).await?;
    // Now it is where its memory is counted.
    drop(plan.gate);
    let devices = match Process::launch(plan.devices).await {
        Ok(devices) => devices,
        Err(e) => {
            hypervisor.signal(libc::SIGKILL);
            hypervisor.ended().await;
            return Err(e.into());
        }
    };
    let processes = Processes::new(hypervisor, devices);
    let panicked = Arc::new(AtomicBool::new(false));
    let talk = async {
        let console = asynchronous(plan.console, "the console")?;
        let sink = Console::new(config.console.clone(), plan.log, Arc::clone(&panicked));
        let console = tokio::spawn(sink.read(console));
        let stream = asynchronous(plan.qmp, "QEMU's monitor")?;
        match tokio::time::timeout(options.start_limit, Client::connect(stream, options.answer_limit)).await {
            Ok(client) => Ok((client, console)),
            Err(_) => Err(HypervisorError::Timeout { operation: Operation::Start, limit: options.start_limit }),
        }
    };
    let outcome = {
        let ended = std::pin::pin!(processes.ended(None));
        first(ended, talk, &processes, cancel, options.start_limit).await
    };
    let failed = match outcome {
        Outcome::Answered(qmp, console) => {
            return Ok(Launched { processes, qmp, console, panicked, lifeline: plan.lifeline });
        }
        Outcome::Failed(error) => error.into(),
        Outcome::Ended(cause) => StartError::ended(cause),
    };
    processes.kill();
    processes.ended(None).await;
    Err(failed)
}

/// How a start came out.
enum Outcome {
    Answered(Client, JoinHandle<()>),
    Failed(HypervisorError),
    Ended(ExitCause),
}

/// Waits for the monitor's answer, the end of a process, or the order to give up.
async fn first(
    mut ended: Pin<&mut impl Future<Output = (Ended, Option<Ended>)>>,
    talk: impl Future<Output = Result<(io::Result<Client>, JoinHandle<()>), HypervisorError>>,
    processes: &Processes,
    cancel: &CancellationToken,
    limit: Duration,
) -> Outcome {
    let broken = tokio::select! {
        biased;
        ended = &mut ended => return Outcome::Ended(never_ready(&ended)),
        () = cancel.cancelled() => return Outcome::Ended(ExitCause::NeverStarted),
        answer = talk => match answer {
            Ok((Ok(client), console)) if !processes.is_killed() => return Outcome::Answered(client, console),
            Ok((Ok(_), _)) => None,
            Ok((Err(e), _)) => Some(e),
            Err(error) => return Outcome::Failed(error),
        },
    };
    // The connection breaks with the process, whose end says more.
    match (tokio::time::timeout(limit, ended).await, broken) {
        (Ok(ended), _) => Outcome::Ended(never_ready(&ended)),
        (Err(_), Some(e)) => Outcome::Failed(HypervisorError::host(Operation::Start, "greet QEMU's monitor", e)),
        (Err(_), None) => Outcome::Failed(HypervisorError::Timeout { operation: Operation::Start, limit }),
    }
}

fn never_ready((hypervisor, devices): &(Ended, Option<Ended>)) -> ExitCause {
    exit::cause(hypervisor, devices.as_ref(), Seen::default(), false, Stopping::No)
}
