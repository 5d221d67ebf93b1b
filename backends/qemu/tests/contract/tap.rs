//! A tap device for the tests.
#![expect(unsafe_code, reason = "the ioctl that names a tap device")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

/// `struct ifreq` as far as the tun driver reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// A tap device whose name the kernel chooses; it goes with the descriptor.
pub(crate) fn open() -> io::Result<Arc<OwnedFd>> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    let address = (&raw mut request).addr() as u64;
    // SAFETY: the driver reads a struct ifreq of 40 bytes and writes the name back into it; the value lives over the call.
    unsafe { tun_set_iff(tun.as_raw_fd(), address) }?;
    Ok(Arc::new(tun.into()))
}
