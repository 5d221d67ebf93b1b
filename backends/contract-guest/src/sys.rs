//! A device's registers, past the kernel, whose drivers break nothing.
#![expect(unsafe_code, reason = "memory that is a device's")]

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt as _;
use std::ptr::NonNull;

use nix::fcntl::OFlag;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

const PAGE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// A page of registers; stays mapped until the guest ends.
pub(crate) struct Registers(NonNull<c_void>);

impl Registers {
    /// Those at `address`, a page's beginning, which no driver holds.
    pub(crate) fn map(address: u64) -> io::Result<Self> {
        let memory = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_SYNC.bits()).open("/dev/mem")?;
        let offset = i64::try_from(address).map_err(io::Error::other)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe { mmap(None, PAGE, protection, MapFlags::MAP_SHARED, memory, offset) }?;
        Ok(Self(page))
    }

    /// Writes the register at `offset`.
    pub(crate) fn write(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset < PAGE.get(), "no register is at {offset:#x}");
        // SAFETY: within the mapping, and aligned, by the assertion; nothing of this program is there.
        unsafe { self.0.cast::<u32>().byte_add(offset).write_volatile(value) };
    }
}
