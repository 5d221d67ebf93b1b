//! Descriptors of taps and macvtaps: one open file a queue.

use crate::netlink::NetlinkError;
use crate::sys::tun::{self, TunFlags};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The device that makes taps.
const TUN_DEVICE: &str = "/dev/net/tun";

/// How a tap's queues are opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct TapQueues<'a> {
    /// The tap's name.
    pub(super) name: &'a str,
    /// How many.
    pub(super) queues: u16,
    /// Whether the tap has or shall have several.
    pub(super) multi_queue: bool,
    /// With a virtio-net header.
    pub(super) vnet_hdr: bool,
    /// Nothing may have the name yet.
    pub(super) new: bool,
}

impl TapQueues<'_> {
    /// Opens them in the calling thread's namespace.
    pub(super) fn open(self) -> Result<Vec<OwnedFd>, NetlinkError> {
        let flags = TunFlags::TAP.with(TunFlags::VNET_HDR, self.vnet_hdr).with(TunFlags::MULTI_QUEUE, self.multi_queue);
        (0..self.queues)
            .map(|queue| {
                let file = device(Path::new(TUN_DEVICE))?;
                let flags = flags.with(TunFlags::EXCLUSIVE, self.new && queue == 0);
                tun::attach(file.as_fd(), self.name, flags).map_err(NetlinkError::System)?;
                Ok(file.into())
            })
            .collect()
    }
}

/// Opens the queues of a macvtap by its device.
pub(super) fn open_macvtap(path: &Path, name: &str, queues: u16) -> Result<Vec<OwnedFd>, NetlinkError> {
    let flags = TunFlags::TAP.with(TunFlags::VNET_HDR, true).with(TunFlags::MULTI_QUEUE, queues > 1);
    (0..queues)
        .map(|_| {
            let file = device(path)?;
            tun::attach(file.as_fd(), name, flags).map_err(NetlinkError::System)?;
            Ok(file.into())
        })
        .collect()
}

fn device(path: &Path) -> Result<File, NetlinkError> {
    // Hypervisors wait for frames by epoll, not in read(2).
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(NetlinkError::System)
}
