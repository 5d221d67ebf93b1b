//! The disk, and the drive that it is in.

use super::SECTOR;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use virtio_bindings::virtio_blk as abi;

/// The longest name of a disk that a driver can ask for.
const SERIAL: usize = abi::VIRTIO_BLK_ID_BYTES as usize;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Neither a regular file nor a block device.
    #[error("a disk is a regular file or a block device, and this is neither")]
    Type,
    /// The file is opened for direct access.
    #[error("a disk must not be opened with O_DIRECT: guests' buffers are not aligned as that takes")]
    Direct,
    /// The name is too long for a driver, or not plain.
    #[error("a disk's serial has at most {SERIAL} visible characters of ASCII; this is '{0}'")]
    Serial(String),
    /// The file or its size cannot be examined.
    #[error("cannot examine the disk")]
    Examine(#[source] io::Error),
    /// The device has a disk.
    #[error("a disk is in the device already")]
    Taken,
    /// The device is read-only and the disk is not.
    #[error("the device is read-only, so the disk must be")]
    Writable,
    /// The host has no thread to give.
    #[error("cannot start a thread for the disk")]
    Thread(#[source] io::Error),
}

/// How a disk is used.
#[derive(Debug, Clone, Default)]
pub struct DiskOptions {
    /// Writes fail, whatever the file would allow.
    pub read_only: bool,
    /// The name that a guest finds it by, at most 20 visible characters of ASCII.
    pub serial: String,
}

/// A file or a block device that is a guest's disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    read_only: bool,
    serial: [u8; SERIAL],
    sectors: u64,
    /// Reads that do not wait are worth trying.
    nowait: AtomicBool,
    /// An error of the host has been told; the guest can make more of them.
    error_told: AtomicBool,
}

impl Disk {
    /// A disk of `file`, which is open for reading, and for writing unless it is to be read-only. What is behind the last
    /// whole sector of 512 bytes is not part of it.
    ///
    /// # Errors
    /// It is nothing that can be a disk.
    pub fn new(mut file: File, options: &DiskOptions) -> Result<Self, BlockError> {
        let kind = file.metadata().map_err(BlockError::Examine)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::Type);
        }
        let flags = nix::fcntl::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), nix::fcntl::FcntlArg::F_GETFL)
            .map_err(|error| BlockError::Examine(error.into()))?;
        if flags & libc::O_DIRECT != 0 {
            return Err(BlockError::Direct);
        }
        let text = options.serial.as_bytes();
        let mut serial = [0; SERIAL];
        match serial.get_mut(..text.len()) {
            Some(place) if text.iter().all(u8::is_ascii_graphic) => place.copy_from_slice(text),
            _ => return Err(BlockError::Serial(options.serial.escape_default().to_string())),
        }
        let sectors = sectors(&mut file)?;
        Ok(Self {
            file,
            read_only: options.read_only,
            serial,
            sectors,
            nowait: AtomicBool::new(true),
            error_told: AtomicBool::new(false),
        })
    }

    /// Whether all writes fail.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn serial(&self) -> &[u8; SERIAL] {
        &self.serial
    }

    /// The byte at which `count` sectors begin at `sector`, if the disk has them all.
    pub(super) fn offset(&self, sector: u64, count: u64) -> Option<u64> {
        let end = sector.checked_add(count)?;
        if end > self.sectors { None } else { sector.checked_mul(SECTOR) }
    }

    /// Whether reads that do not wait are worth trying.
    pub(super) fn has_nowait(&self) -> bool {
        self.nowait.load(Ordering::Relaxed)
    }

    /// The file cannot do them.
    pub(super) fn forget_nowait(&self) {
        self.nowait.store(false, Ordering::Relaxed);
    }

    /// The host has failed. Said once a disk; the device counts them all.
    pub(super) fn report(&self, what: &'static str, error: &io::Error) {
        if !self.error_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "cannot {what} a guest's disk; further errors of this disk are only counted");
        }
    }
}

/// The number of sectors. The end of a block device is its size too.
fn sectors(file: &mut File) -> Result<u64, BlockError> {
    file.seek(SeekFrom::End(0)).map(|size| size / SECTOR).map_err(BlockError::Examine)
}

/// Where a disk is put in, while requests are served.
#[derive(Debug)]
pub(super) struct Drive {
    /// Read while a request uses the disk: whoever takes it out waits for those.
    disk: RwLock<Option<Disk>>,
    /// The disk's, for readers of the configuration, which must not wait for requests.
    sectors: AtomicU64,
}

impl Drive {
    pub(super) fn empty() -> Self {
        Self { disk: RwLock::new(None), sectors: AtomicU64::new(0) }
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::SeqCst)
    }

    /// Lets `request` use the disk, if there is one.
    pub(super) fn with<T>(&self, request: impl FnOnce(Option<&Disk>) -> T) -> T {
        // A panic ends the process, so that a poisoned lock is never seen.
        request(self.disk.read().unwrap_or_else(PoisonError::into_inner).as_ref())
    }

    pub(super) fn insert(&self, disk: Disk) -> Result<(), BlockError> {
        let mut place = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        if place.is_some() {
            return Err(BlockError::Taken);
        }
        self.sectors.store(disk.sectors, Ordering::SeqCst);
        *place = Some(disk);
        Ok(())
    }

    pub(super) fn eject(&self) -> Option<Disk> {
        let mut place = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        self.sectors.store(0, Ordering::SeqCst);
        place.take()
    }

    /// Reads the disk's size anew. True if it has changed.
    pub(super) fn refresh(&self) -> Result<bool, BlockError> {
        let mut place = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        let Some(disk) = place.as_mut() else { return Ok(false) };
        disk.sectors = sectors(&mut disk.file)?;
        Ok(self.sectors.swap(disk.sectors, Ordering::SeqCst) != disk.sectors)
    }
}
