//! The process that serves a virtual machine's virtio-fs and vsock devices to another monitor by vhost-user.
//!
//! The monitor's backend makes the sockets, starts `stockade vhost-user` with descriptors and [`VhostUserArgs`], and
//! lets the monitor connect, once to each device. The process ends when the monitor has closed all its connections, or
//! when the other end of the *lifeline* (a Unix stream socket) is closed.
//!
//! ```text
//!   start ─▶ jail ─▶ "ready\n" on the lifeline ─▶ one thread a device: accept, serve ─▶ peer gone ─▶ exit 0
//!              └──▶ "error …\n", exit 1                        lifeline closed ─▶ exit 0
//! ```
//! Clients may connect before `ready`: the sockets listen already. A panic anywhere ends the process, so that the
//! supervisor sees it and no guest waits for a device that is half alive.

mod args;
mod vsock;

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::bitmap::{BitmapReplace, MemRegionBitmap};
use vhost_user_backend::{Error as DaemonError, VhostUserBackend, VhostUserDaemon};
use vm_memory::mmap::NewBitmap;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

pub use args::{ArgsError, FsArgs, VhostUserArgs, VsockArgs};

use crate::error_line::one_line;
use crate::fs::{CachePolicy, FsConfig, FsError, vhost_user_backend};
use crate::jail::{self, Capabilities, JailConfig, JailError};
use crate::vsock::{HostSockets, Muxer, MuxerConfig, MuxerError};

/// The virtio-fs device.
#[derive(Debug)]
pub struct FsDevice {
    /// Listening Unix socket for vhost-user.
    pub listener: OwnedFd,
    /// The directory to share; it becomes the process's root.
    pub root: PathBuf,
    /// What the guest may remember.
    pub cache: CachePolicy,
    /// Threads that serve requests beside the queue's own; 0 for none.
    pub threads: usize,
}

/// The vsock device.
#[derive(Debug)]
pub struct VsockDevice {
    /// Listening Unix socket for vhost-user.
    pub listener: OwnedFd,
    /// Listening Unix socket for `CONNECT` clients.
    pub uds: OwnedFd,
    /// Context id of the guest.
    pub guest_cid: u64,
    /// Where the guest's own connections go; `None` refuses them.
    pub host_sockets: Option<HostSockets>,
}

/// What [`run`] serves.
#[derive(Debug)]
pub struct VhostUserConfig {
    /// The virtio-fs device, if there is one.
    pub fs: Option<FsDevice>,
    /// The vsock device, if there is one.
    pub vsock: Option<VsockDevice>,
    /// Stream socket whose other end the supervisor holds.
    pub lifeline: OwnedFd,
    /// The process that started this one, to die with it.
    pub parent: Option<u32>,
}

/// Why the process could not serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// The arguments make no sense.
    #[error("cannot use the arguments of vhost-user")]
    Args(#[from] ArgsError),
    /// There is nothing to serve.
    #[error("neither a virtio-fs nor a vsock device was asked for")]
    NoDevice,
    /// The jail could not be closed.
    #[error("cannot enter the jail")]
    Jail(#[from] JailError),
    /// The share could not be served.
    #[error("cannot serve virtio-fs")]
    Fs(#[from] FsError),
    /// The vsock device could not be made.
    #[error("cannot serve vsock")]
    Vsock(#[from] MuxerError),
    /// A device failed.
    #[error("the {device} device failed")]
    Device {
        /// Which.
        device: &'static str,
        /// What the library said.
        #[source]
        source: DeviceError,
    },
    /// Waiting failed.
    #[error("cannot {what}")]
    Wait {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What the vhost-user library said; its own error is no [`Error`](std::error::Error).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(DaemonError);

/// Enters the jail and serves until the monitor or the supervisor is gone. Must be called by the process's only thread.
///
/// # Errors
/// The jail could not be closed, or a device failed. After an error the process must end: it may be half inside.
pub fn run(config: VhostUserConfig) -> Result<(), VhostUserError> {
    let mut lifeline = UnixStream::from(config.lifeline);
    let served = serve(config.fs, config.vsock, config.parent, &mut lifeline);
    if let Err(error) = &served {
        // The supervisor may be gone; then nobody wants to know.
        let _ = writeln!(lifeline, "error {}", one_line(error));
    }
    served
}

/// What `stockade vhost-user` does: reads its arguments (those after the verb), and runs.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let served =
        VhostUserArgs::parse(args).and_then(VhostUserArgs::into_config).map_err(VhostUserError::from).and_then(run);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "stockade vhost-user: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(
    fs: Option<FsDevice>,
    vsock: Option<VsockDevice>,
    parent: Option<u32>,
    lifeline: &mut UnixStream,
) -> Result<(), VhostUserError> {
    if fs.is_none() && vsock.is_none() {
        return Err(VhostUserError::NoDevice);
    }
    abort_on_panic();
    let jailed = jail::enter(&JailConfig {
        root: fs.as_ref().map(|fs| fs.root.clone()),
        keep: descriptors(fs.as_ref(), vsock.as_ref(), lifeline),
        parent,
    })?;
    let fs = fs.map(|fs| {
        let config = FsConfig {
            root: PathBuf::from("/"),
            cache: fs.cache,
            threads: fs.threads,
            proc_self_fd: Some(jailed.proc_self_fd),
            descriptor_limit: jailed.descriptor_limit,
        };
        (config, fs.listener)
    });
    let vsock = vsock
        .map(|device| {
            let muxer = Muxer::new(MuxerConfig {
                guest_cid: device.guest_cid,
                listener: device.uds,
                host_sockets: device.host_sockets,
            })?;
            let backend = vsock::VsockBackend::new(muxer).map_err(wait("create a timer"))?;
            Ok::<_, VhostUserError>((Arc::new(backend), device.listener))
        })
        .transpose()?;
    jail::confine(if fs.is_some() { Capabilities::FileServer } else { Capabilities::None })?;

    // From here on there are threads, all confined.
    let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(wait("create an event descriptor"))?);
    let (sender, results) = mpsc::channel();
    let report = Report { sender, ended };
    let mut running = 0;
    if let Some((config, listener)) = fs {
        let backend = Arc::new(vhost_user_backend(config)?);
        let daemon = daemon("virtio-fs", backend)?;
        spawn("virtio-fs", daemon, listener, report.clone())?;
        running += 1;
    }
    if let Some((backend, listener)) = vsock {
        let daemon = daemon("vsock", Arc::clone(&backend))?;
        backend.attach(&daemon.get_epoll_handlers()).map_err(wait("watch the vsock sockets"))?;
        spawn("vsock", daemon, listener, report.clone())?;
        running += 1;
    }
    lifeline.write_all(b"ready\n").map_err(wait("tell the supervisor"))?;
    watch(running, lifeline, &report.ended, &results)
}

/// A device's name, and how serving it ended.
type Outcome = (&'static str, Result<(), DaemonError>);

/// How a device's thread tells that it has ended.
#[derive(Clone)]
struct Report {
    sender: mpsc::Sender<Outcome>,
    /// Readable when there is an outcome; a channel cannot be polled beside the lifeline.
    ended: Arc<EventFd>,
}

/// Waits for all devices to end, or the supervisor.
fn watch(
    mut running: usize,
    lifeline: &UnixStream,
    ended: &EventFd,
    results: &mpsc::Receiver<Outcome>,
) -> Result<(), VhostUserError> {
    while running > 0 {
        let mut fds = [PollFd::new(lifeline.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.map_err(wait("wait for the devices"))?,
        };
        // Nobody writes to this end: whatever happens there is its end.
        if fds[0].any().unwrap_or(true) {
            return Ok(());
        }
        let _ = ended.read();
        for (device, result) in results.try_iter() {
            running = running.saturating_sub(1);
            if let Err(error) = result
                && !is_disconnection(&error)
            {
                let source = DeviceError(error);
                return Err(VhostUserError::Device { device, source });
            }
        }
    }
    Ok(())
}

/// Whether the monitor went away, which is how serving ends.
fn is_disconnection(error: &DaemonError) -> bool {
    matches!(
        error,
        DaemonError::HandleRequest(
            ProtocolError::Disconnected | ProtocolError::PartialMessage | ProtocolError::SocketBroken(_)
        )
    )
}

/// A vhost-user daemon for a backend, with its queue threads.
fn daemon<T>(device: &'static str, backend: T) -> Result<VhostUserDaemon<T>, VhostUserError>
where
    T: VhostUserBackend + Clone + 'static,
    T::Bitmap: BitmapReplace + NewBitmap + Clone + Send + Sync,
    T::Vring: Clone + Send + Sync,
    <T::Bitmap as BitmapReplace>::InnerBitmap: MemRegionBitmap,
{
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    VhostUserDaemon::new(device.to_owned(), backend, memory).map_err(|error| {
        let source = DeviceError(error);
        VhostUserError::Device { device, source }
    })
}

/// Accepts one connection and serves it on a thread of its own, which reports its end.
fn spawn<T>(
    device: &'static str,
    mut daemon: VhostUserDaemon<T>,
    listener: OwnedFd,
    report: Report,
) -> Result<(), VhostUserError>
where
    T: VhostUserBackend + Clone + 'static,
    T::Bitmap: BitmapReplace + NewBitmap + Clone + Send + Sync,
    T::Vring: Clone + Send + Sync,
    <T::Bitmap as BitmapReplace>::InnerBitmap: MemRegionBitmap,
{
    thread::Builder::new()
        .name(format!("{device} server"))
        .spawn(move || {
            let mut listener = Listener::from(UnixListener::from(listener));
            let started = daemon.start(&mut listener);
            // One monitor, one connection: the next to come is refused rather than left waiting.
            drop(listener);
            let result = started.and_then(|()| daemon.wait());
            // The outcome goes first, so that whoever wakes finds it.
            let _ = report.sender.send((device, result));
            let _ = report.ended.write(1);
        })
        .map(drop)
        .map_err(wait("start a device's thread"))
}

/// A panic on any thread ends the process, after the usual message.
fn abort_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        std::process::abort();
    }));
}

/// All descriptors that the process was given.
fn descriptors(fs: Option<&FsDevice>, vsock: Option<&VsockDevice>, lifeline: &UnixStream) -> Vec<RawFd> {
    let fs = fs.map(|fs| fs.listener.as_raw_fd());
    let vsock = vsock.into_iter().flat_map(|vsock| {
        let directory = vsock.host_sockets.as_ref();
        [vsock.listener.as_raw_fd(), vsock.uds.as_raw_fd()]
            .into_iter()
            .chain(directory.map(|sockets| sockets.directory.as_raw_fd()))
    });
    std::iter::once(lifeline.as_raw_fd()).chain(fs).chain(vsock).collect()
}

/// Names what could not be waited for.
fn wait<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> VhostUserError {
    move |source| VhostUserError::Wait { what, source: source.into() }
}
