//! Requests to the tun driver (linux/if_tun.h), which taps and macvtaps answer alike.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `TUNSETIFF`: attach a descriptor to an interface, which is made when nothing has its name.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// The flags of an interface of the tun driver: `IFF_*` of linux/if_tun.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TunFlags(u16);

impl TunFlags {
    /// Ethernet frames without the driver's own packet information: what a virtual NIC needs.
    pub(crate) const TAP: Self = Self(0x0002 | 0x1000);
    /// A virtio-net header before each frame.
    pub(crate) const VNET_HDR: Self = Self(0x4000);
    /// Several descriptors, one a queue.
    pub(crate) const MULTI_QUEUE: Self = Self(0x0100);
    /// Refuse a name that an interface has.
    pub(crate) const EXCLUSIVE: Self = Self(0x8000);

    /// These and, when `wanted`, `others`.
    pub(crate) fn with(self, others: Self, wanted: bool) -> Self {
        if wanted { Self(self.0 | others.0) } else { self }
    }
}

/// Attaches `descriptor` (an open /dev/net/tun or macvtap device) to the interface `name`, in the network namespace
/// that the calling thread was in when the descriptor was opened.
///
/// # Errors
/// As ioctl(2); `EINVAL` when the name is longer than 15 bytes.
pub(crate) fn attach(descriptor: BorrowedFd<'_>, name: &str, flags: TunFlags) -> io::Result<()> {
    // SAFETY: an ifreq is numbers and a union of numbers and addresses, for all of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (place, letter) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([letter]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(flags.0.to_ne_bytes());
    // SAFETY: `request` is a whole ifreq with a name that ends in zero, and lives until the call returns.
    if unsafe { libc::ioctl(descriptor.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
