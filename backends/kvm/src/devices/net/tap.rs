//! A tap device that somebody else has made and configured.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};

use super::HEADER;
use super::sys;

/// Flags of linux/if_tun.h.
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_UFO: u32 = 0x10;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// Why a descriptor cannot be a network device's tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is not one.
    #[error("the descriptor is no tap device with an interface")]
    NotTap(#[source] io::Error),
    /// It was opened with other flags than IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    #[error("the tap device's flags are {0:#x}: it must be made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags(u16),
    /// The kernel refuses a setting.
    #[error("cannot {what} of the tap device")]
    Setting {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Which frames the host's kernel can hand over unsegmented, beside those of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// UDP datagrams to be fragmented.
    pub(super) ufo: bool,
    /// UDP datagrams in a row (Linux 6.2).
    pub(super) uso: bool,
}

/// A queue of a tap device, non-blocking, with a virtio header before each frame.
#[derive(Debug)]
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// Prepares it. The settings hold until the device is closed.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let flags = sys::interface_flags(fd.as_fd()).map_err(TapError::NotTap)?;
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(TapError::Flags(flags));
        }
        let setting = |what| move |source: io::Error| TapError::Setting { what, source };
        let size = libc::c_int::try_from(HEADER).unwrap_or(12);
        sys::set_header_size(fd.as_fd(), size).map_err(setting("set the header size"))?;
        let set =
            |flag| fcntl(fd.as_raw_fd(), flag).map_err(|errno| setting("read or set the status flags")(errno.into()));
        let status = OFlag::from_bits_retain(set(FcntlArg::F_GETFL)?);
        set(FcntlArg::F_SETFL(status | OFlag::O_NONBLOCK))?;
        Ok(Self(fd))
    }

    /// Finds out what the kernel can do, and leaves all of it off.
    pub(super) fn abilities(&self) -> Result<Abilities, TapError> {
        let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let can = |flags| sys::set_offload(self.0.as_fd(), tso | flags).is_ok();
        let abilities = Abilities { ufo: can(TUN_F_UFO), uso: can(TUN_F_USO4 | TUN_F_USO6) };
        let source = |source| TapError::Setting { what: "set the offloads", source };
        sys::set_offload(self.0.as_fd(), tso).map_err(source)?;
        sys::set_offload(self.0.as_fd(), 0).map_err(source)?;
        Ok(abilities)
    }

    /// Lets the kernel hand over what a driver with these features can take.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        let mut flags = 0;
        for (feature, flag) in [
            (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
            (VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO),
            (VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4),
            (VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6),
        ] {
            if features & 1 << feature != 0 {
                flags |= flag;
            }
        }
        // Without checksums the kernel knows no other offload, and USO only as a pair.
        if flags & TUN_F_CSUM == 0 {
            flags = 0;
        }
        if flags & (TUN_F_USO4 | TUN_F_USO6) != TUN_F_USO4 | TUN_F_USO6 {
            flags &= !(TUN_F_USO4 | TUN_F_USO6);
        }
        sys::set_offload(self.0.as_fd(), flags)
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
