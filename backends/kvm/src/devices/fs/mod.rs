//! virtio-fs (virtio 1.2, section 5.11): a directory of the host, served by the `virtiofsd` crate as a library.
//!
//! What the guest may do there, and with which users, is decided where QEMU's device decides it, in
//! [`stockade_devices::fs`]; here are the device's registers and its queues.
//!
//! ```text
//!   queue 0 (hiprio: forget, interrupt) ─┐
//!   queue 1.. (requests) ────────────────┴─▶ checks ─▶ virtiofsd's Server ─▶ files below the share
//! ```

mod request;
mod sys;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use serde::{Deserialize, Serialize};
use virtiofsd::filesystem::SerializableFileSystem;
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::server::Server;

use crate::virtio::{Activation, ConfigSpace, DeviceError, DeviceKind, F_RING, ThreadKind, VirtioDevice, Worker};

/// Most request queues.
pub const MAX_REQUEST_QUEUES: u16 = 8;

/// Bytes of the tag in the configuration space.
pub const TAG_SIZE: usize = 36;

/// A request of 1 MiB in single pages, with its headers, must fit into a ring, or the driver makes smaller ones.
const REQUEST_QUEUE_SIZE: u16 = 512;
const HIPRIO_QUEUE_SIZE: u16 = 128;

/// Version of [`Saved`].
const VERSION: u32 = 1;

/// Why there can be no such device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The guest mounts it by this name.
    #[error("the tag {0:?} of a virtio-fs device must have 1 to {TAG_SIZE} bytes, none of them zero")]
    Tag(String),
    /// The number of queues.
    #[error("a virtio-fs device has 1 to {MAX_REQUEST_QUEUES} request queues, not {0}")]
    RequestQueues(u16),
    /// No descriptor.
    #[error("cannot make a file in memory")]
    Memory(#[source] io::Error),
}

/// What of the device outlives its process.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// Which files the guest remembers and has open, in the server's own form, as hexadecimal digits; `None` when it has
    /// not mounted the file system.
    session: Option<String>,
}

/// What front and worker share: the guest's files outlive a worker.
struct Shared {
    server: Server<PassthroughFs>,
    /// The guest has mounted the file system.
    session: AtomicBool,
    // Written by the worker when it stops, read when the machine is saved; the other way round when it is restored.
    state: Mutex<SessionState>,
    /// A file in memory, which the server writes its state to and reads it from. Made beforehand: the worker's thread may
    /// make none.
    scratch: File,
}

/// The server's own form of a session. It takes the file system to make it and to take it on again, and so the thread that
/// has the rights to: the worker's.
#[derive(Debug, Default)]
enum SessionState {
    /// None was made.
    #[default]
    None,
    /// Of the session, when the worker stopped.
    Made(Vec<u8>),
    /// To be taken on by the next worker.
    ToTakeOn(Vec<u8>),
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Shared {
    /// A panic ends the process, so that a poisoned lock is never seen.
    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the state of the session, if there is one. On the worker's thread.
    fn make_state(&self) {
        let mut state = self.state();
        if matches!(*state, SessionState::ToTakeOn(_)) {
            return;
        }
        *state = match self.session.load(Ordering::Acquire).then(|| self.serialize()) {
            None => SessionState::None,
            Some(Ok(bytes)) => SessionState::Made(bytes),
            Some(Err(error)) => {
                tracing::error!(%error, "cannot save what the guest remembers of its virtio-fs device");
                // Restoring says so, too: no state of the server is empty.
                SessionState::Made(Vec::new())
            }
        };
    }

    /// Takes on the state of a session, if one waits for that. On the worker's thread.
    fn take_state_on(&self) -> io::Result<()> {
        let state = std::mem::take(&mut *self.state());
        if let SessionState::ToTakeOn(bytes) = state { self.deserialize(&bytes) } else { Ok(()) }
    }

    fn serialize(&self) -> io::Result<Vec<u8>> {
        self.server.prepare_serialization(Arc::new(AtomicBool::new(false)));
        let mut file = self.scratch.try_clone()?;
        file.set_len(0)?;
        file.rewind()?;
        self.server.serialize(file.try_clone()?)?;
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        file.set_len(0)?;
        Ok(bytes)
    }

    fn deserialize(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.scratch.try_clone()?;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(bytes)?;
        file.rewind()?;
        self.server.deserialize_and_apply(file.try_clone()?)?;
        file.set_len(0)
    }
}

/// The front of the device.
#[derive(Debug)]
pub struct Fs {
    shared: Arc<Shared>,
    space: [u8; TAG_SIZE + 4],
    queue_sizes: Vec<u16>,
}

impl Fs {
    /// A device that the guest mounts by `tag`. The file system is one of
    /// [`stockade_devices::fs::file_system`].
    ///
    /// # Errors
    /// The tag does not fit, the number of request queues is out of range, or the kernel has no descriptor to give.
    pub fn new(tag: &str, file_system: PassthroughFs, request_queues: u16) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_SIZE || tag.contains('\0') {
            return Err(FsError::Tag(tag.to_owned()));
        }
        if request_queues == 0 || request_queues > MAX_REQUEST_QUEUES {
            return Err(FsError::RequestQueues(request_queues));
        }
        let mut space = [0; TAG_SIZE + 4];
        space[..tag.len()].copy_from_slice(tag.as_bytes());
        space[TAG_SIZE..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
        let mut queue_sizes = vec![HIPRIO_QUEUE_SIZE];
        queue_sizes.resize(1 + usize::from(request_queues), REQUEST_QUEUE_SIZE);
        let scratch: OwnedFd = memfd_create(c"virtio-fs state", MemFdCreateFlag::MFD_CLOEXEC)
            .map_err(|errno| FsError::Memory(errno.into()))?;
        let shared = Shared {
            server: Server::new(file_system),
            session: AtomicBool::new(false),
            state: Mutex::default(),
            scratch: scratch.into(),
        };
        Ok(Self { shared: Arc::new(shared), space, queue_sizes })
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
    }

    fn features(&self) -> u64 {
        F_RING
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(self.space.to_vec())
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(worker::FsWorker::new(Arc::clone(&self.shared), activation)?))
    }

    fn reset(&mut self) {
        self.shared.server.destroy();
        self.shared.session.store(false, Ordering::Release);
        *self.shared.state() = SessionState::None;
    }

    fn save(&self) -> serde_json::Value {
        let session = match &*self.shared.state() {
            SessionState::Made(bytes) | SessionState::ToTakeOn(bytes) => Some(encode(bytes)),
            SessionState::None => None,
        };
        serde_json::json!(Saved { version: VERSION, session })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let saved =
            Saved::deserialize(state).map_err(|error| format!("this is no state of a virtio-fs device: {error}"))?;
        if saved.version != VERSION {
            return Err(format!("the virtio-fs device's state has version {}, not {VERSION}", saved.version));
        }
        let Some(session) = saved.session else {
            return Ok(());
        };
        let bytes = decode(&session).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or("what the guest remembers of its virtio-fs device was not saved")?;
        *self.shared.state() = SessionState::ToTakeOn(bytes);
        self.shared.session.store(true, Ordering::Release);
        Ok(())
    }

    fn thread(&self) -> ThreadKind {
        ThreadKind::Fs
    }
}

fn encode(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
