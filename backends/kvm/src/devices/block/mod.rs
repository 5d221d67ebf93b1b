//! The block device (virtio 1.2, section 5.2): a disk that is a file or a block device of the host.
//!
//! ```text
//!   queue ─▶ request: parse ─▶ at once, on the loop's thread ──▶ io: preadv2, pwritev2 … ─▶ used ring
//!                         └──▶ pool: a few threads that wait ──▶
//! ```
//! Bytes go between the file and the guest's memory, without a copy here. A request that need not wait for the disk is
//! done on the loop's thread: a read of what the host has in memory, or one that no other is waiting behind. All others
//! go to a [pool](pool) of threads, so that several are under way and a slow one holds none up. Not io_uring: its
//! requests pass by the system call filter of the process, in the kernel they run with more rights than its threads, and
//! distributions and container hosts turn it off for that reason; the pool needs four calls.
//!
//! A device may be made without a disk, and its disk [taken out](BlockHandle::eject) and
//! [replaced](BlockHandle::insert) while the guest runs: it sees the capacity change. That is how a disk is added where
//! the guest cannot be told of a new device.
//!
//! What a guest writes is in the host's page cache when its request is done, and on the disk after a flush. A driver that
//! knows no flush has each write put through.

mod disk;
mod io;
mod pool;
mod request;
mod sys;
#[cfg(test)]
mod tests;
mod worker;

pub use disk::{BlockError, Disk, DiskOptions};

use crate::virtio::{
    Activation, ConfigSpace, DeviceError, DeviceKind, F_RING, Interrupt, ThreadKind, Threads, VirtioDevice, Worker,
};
use disk::Drive;
use pool::Pool;
use std::sync::{Arc, Mutex, PoisonError};
use virtio_bindings::virtio_blk as abi;

/// The unit of all addresses and sizes of the protocol.
const SECTOR: u64 = 512;

/// One queue, of requests.
const QUEUE_SIZES: [u16; 1] = [256];

/// The most buffers of a request: what a queue's descriptors allow beside header and status.
const MAX_SEGMENTS: u32 = 254;

/// The most ranges that a request discards.
const MAX_DISCARD_RANGES: u32 = 16;
/// The most sectors of each: 1 GiB, which file systems deallocate quickly.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most sectors that a request fills with zeros: 16 MiB, which may have to be written.
const MAX_ZERO_SECTORS: u32 = 1 << 15;

/// The guest's file systems align to this many sectors (as a power of two): pages of the host's cache.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

const F_BLOCK: u64 = 1 << abi::VIRTIO_BLK_F_SEG_MAX
    | 1 << abi::VIRTIO_BLK_F_BLK_SIZE
    | F_FLUSH
    | 1 << abi::VIRTIO_BLK_F_TOPOLOGY
    | 1 << abi::VIRTIO_BLK_F_DISCARD
    | 1 << abi::VIRTIO_BLK_F_WRITE_ZEROES;

const F_READ_ONLY: u64 = 1 << abi::VIRTIO_BLK_F_RO;
const F_FLUSH: u64 = 1 << abi::VIRTIO_BLK_F_FLUSH;

/// Version of [`Saved`].
const VERSION: u32 = 1;

/// What of the device is not in its configuration.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    /// The capacity that the driver knows.
    sectors: u64,
}

/// What front, worker and handles share.
#[derive(Debug)]
struct Shared {
    drive: Arc<Drive>,
    pool: Pool,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    /// Tells the driver, if there is one, that the capacity has changed.
    fn announce(&self) {
        let interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = interrupt.as_ref() {
            interrupt.config();
        }
    }
}

/// The front of the device.
#[derive(Debug)]
pub struct Block {
    shared: Arc<Shared>,
    read_only: bool,
}

impl Block {
    /// A device with `disk` in it, or none; its threads are started by `threads`, once there is a disk. A `read_only`
    /// device says so to its driver, whatever disks it gets.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub fn new(disk: Option<Disk>, read_only: bool, threads: Threads) -> Result<Self, BlockError> {
        let shared = Shared { drive: Arc::new(Drive::empty()), pool: Pool::new(threads), interrupt: Mutex::new(None) };
        let block = Self { shared: Arc::new(shared), read_only };
        if let Some(disk) = disk {
            block.handle().insert(disk)?;
        }
        Ok(block)
    }

    /// Changes the disk once the device is in a slot.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        BlockHandle { shared: Arc::clone(&self.shared), read_only: self.read_only }
    }
}

impl ConfigSpace for Shared {
    fn bytes(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |offset: usize, bytes: &[u8]| {
            for (to, from) in config.iter_mut().skip(offset).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &self.drive.sectors().to_le_bytes());
        put(12, &MAX_SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT]);
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARD_RANGES.to_le_bytes());
        // Discards are aligned to physical blocks.
        put(44, &(1_u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        put(48, &MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        // Sectors that are filled with zeros may be deallocated.
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        F_RING | F_BLOCK | if self.read_only { F_READ_ONLY } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::clone(&self.shared) as Arc<dyn ConfigSpace>
    }

    fn attached(&mut self, interrupt: Arc<dyn Interrupt>) {
        *self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(interrupt);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(worker::BlockWorker::new(Arc::clone(&self.shared), activation)?))
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!(Saved { version: VERSION, sectors: self.shared.drive.sectors() })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(state.clone()).map_err(|error| error.to_string())?;
        if saved.version != VERSION {
            return Err(format!("its version is {}, and only {VERSION} can be read", saved.version));
        }
        if saved.sectors != self.shared.drive.sectors() {
            // Another disk, or the same one after it has grown.
            self.shared.announce();
        }
        Ok(())
    }

    fn thread(&self) -> ThreadKind {
        ThreadKind::Block
    }
}

/// Changes the disk of a device that may be in a slot.
#[derive(Debug, Clone)]
pub struct BlockHandle {
    shared: Arc<Shared>,
    read_only: bool,
}

impl BlockHandle {
    /// Puts a disk in, and tells the driver its capacity. May start threads, so not for vCPU threads.
    ///
    /// # Errors
    /// There is a disk already, it can be written and the device must not, or the host has no thread to give.
    pub fn insert(&self, disk: Disk) -> Result<(), BlockError> {
        if self.read_only && !disk.is_read_only() {
            return Err(BlockError::Writable);
        }
        self.shared.pool.start().map_err(BlockError::Thread)?;
        self.shared.drive.insert(disk)?;
        self.shared.announce();
        Ok(())
    }

    /// Takes the disk out, once the requests that use it are done, and tells the driver that the capacity is zero. All
    /// further requests fail. `None` if there was none.
    pub fn eject(&self) -> Option<Disk> {
        let disk = self.shared.drive.eject()?;
        self.shared.announce();
        Some(disk)
    }

    /// Looks at the disk's size again, and tells the driver if it has changed.
    ///
    /// # Errors
    /// The size cannot be read; it stays what it was.
    pub fn refresh(&self) -> Result<(), BlockError> {
        if self.shared.drive.refresh()? {
            self.shared.announce();
        }
        Ok(())
    }

    /// The capacity that the driver sees, in sectors of 512 bytes; 0 without a disk.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.shared.drive.sectors()
    }
}
