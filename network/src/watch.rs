//! Notice of changes in a namespace.

use crate::sys;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::unix::AsyncFd;

/// `RTNLGRP_*` of linux/rtnetlink.h: links, addresses, routes and rules of both families. Neighbours are not among
/// them: those change with traffic, and thus at the guest's will.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// The largest notice is not read to its end: that there is one is enough.
const NOTICE: usize = 512;
/// How many notices are taken at once.
const BATCH: u32 = 1024;

/// Tells that something in a namespace has changed. What we change ourselves counts too; a scan tells that it is no
/// change to the guest.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
    /// A notice was taken by [`Watch::changed`], and nobody has [taken](Watch::take) it since.
    noticed: AtomicBool,
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
        Ok(Self { socket: sys::watch(socket)?, noticed: AtomicBool::new(false) })
    }

    /// Waits until something has changed since the last time. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The socket does not work.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let Drained { noticed, emptied } = self.drain()?;
            if emptied {
                // Does nothing where more has come since.
                ready.clear_ready();
            }
            if noticed {
                self.noticed.store(true, Ordering::Release);
                return Ok(());
            }
        }
    }

    /// Whether something has changed since the last time, be it known to [`Watch::changed`] already or not. Does not
    /// wait. To be asked before a scan, so that what changes meanwhile counts for the next time.
    ///
    /// # Errors
    /// The socket does not work.
    pub fn take(&self) -> io::Result<bool> {
        let fresh = self.drain()?.noticed;
        Ok(self.noticed.swap(false, Ordering::AcqRel) || fresh)
    }

    /// Takes what is there off the socket.
    fn drain(&self) -> io::Result<Drained> {
        let mut noticed = false;
        for _ in 0..BATCH {
            let mut notice = [0; NOTICE];
            match recv(self.socket.get_ref().as_raw_fd(), &mut notice, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => noticed = true,
                // More notices than the kernel keeps: some are lost, and that is one too.
                Err(nix::Error::ENOBUFS) => noticed = true,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(Drained { noticed, emptied: true }),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Drained { noticed, emptied: false })
    }
}

/// What was on the socket.
struct Drained {
    noticed: bool,
    /// And nothing is left there.
    emptied: bool,
}
