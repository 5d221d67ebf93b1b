//! Notice of changes in a namespace.

use crate::sys;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use tokio::io::unix::AsyncFd;

/// `RTNLGRP_*` of linux/rtnetlink.h: links, addresses, routes and rules of both families. Neighbours are not among
/// them: those change with traffic, and thus at the guest's will.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// The largest notice is not read to its end: that there is one is enough.
const NOTICE: usize = 512;
/// How many notices are taken at once.
const BATCH: u32 = 1024;

/// Tells that something in a namespace has changed.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
}

impl Watch {
    /// A socket of the calling thread's namespace.
    pub(crate) fn socket() -> io::Result<OwnedFd> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.as_fd().try_clone_to_owned()
    }

    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: sys::watch(socket)? })
    }

    /// Waits until something has changed since the last time. What we change ourselves counts too; a scan tells that
    /// it is no change to the guest. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The socket does not work.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut noticed = false;
        loop {
            let mut ready = self.socket.readable().await?;
            for _ in 0..BATCH {
                let mut notice = [0; NOTICE];
                let take = |socket: &AsyncFd<OwnedFd>| Ok(recv(socket.as_raw_fd(), &mut notice, MsgFlags::empty())?);
                match ready.try_io(take) {
                    Ok(Ok(_)) => noticed = true,
                    // More notices than the kernel keeps: some are lost, and that is one too.
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => noticed = true,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => break,
                }
            }
            if noticed {
                return Ok(());
            }
        }
    }
}
