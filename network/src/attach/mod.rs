//! An endpoint's connection to the virtual machine: what is added to the namespace for it, and how that is taken away.
//!
//! | wiring | for | what is added |
//! |---|---|---|
//! | redirect | the `tcfilter` model: veth, macvlan, ipvlan, VLAN, physical | a tap; on tap and link an `ingress` qdisc and a filter that sends all that one receives out of the other |
//! | macvtap | the `macvtap` model: veth, physical | a macvtap with the link's MAC address; the link gets another and loses its addresses |
//! | direct | taps and macvtaps that someone else made | nothing: they are opened |
//!
//! What is to be done and to be undone is planned from a scan, before anything is touched, so that the undo can be
//! written down first.

mod macvtap;
mod perform;
mod plan;
mod tap;
mod undo;

pub(crate) use perform::attach_all;
pub(crate) use undo::detach_all;

pub use plan::{Plan, PlanError, plan};
pub use undo::{Undo, UndoAction};

use crate::endpoint::Endpoint;
use std::io;
use std::os::fd::OwnedFd;

/// Kata's `internetworking_model`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Model {
    /// A tap, and traffic redirected between it and the link.
    #[default]
    TcFilter,
    /// A macvtap on the link, where the link can have one; a redirect elsewhere.
    Macvtap,
}

/// What tells one sandbox's redirections from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark([u8; 8]);

impl Mark {
    /// Begins each mark in the kernel, so that nobody takes an interface that somebody else has.
    const OURS: &'static [u8; 8] = b"stockade";

    /// One that nobody has.
    ///
    /// # Errors
    /// No random numbers to be had.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    fn cookie(self) -> [u8; 16] {
        let mut cookie = [0; 16];
        cookie[..8].copy_from_slice(Self::OURS);
        cookie[8..].copy_from_slice(&self.0);
        cookie
    }
}

/// How an endpoint is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachOptions {
    /// By which means.
    pub model: Model,
    /// Queue pairs, 1 to 256; one descriptor each.
    pub queues: u16,
    /// What the guest may receive, in bits a second; 0: without limit (`rx_rate_limiter_max_rate`).
    pub rx_rate: u64,
    /// What the guest may send, in bits a second; 0: without limit (`tx_rate_limiter_max_rate`).
    pub tx_rate: u64,
    /// The sandbox's.
    pub mark: Mark,
}

impl AttachOptions {
    /// The default model with one queue and without limits.
    pub fn new(mark: Mark) -> Self {
        Self { model: Model::TcFilter, queues: 1, rx_rate: 0, tx_rate: 0, mark }
    }
}

/// A connected endpoint.
#[derive(Debug)]
pub struct Attachment {
    /// What is connected. Its MAC address is that of the guest's interface.
    pub endpoint: Endpoint,
    /// One descriptor a queue, non-blocking, with a virtio-net header of ten bytes before each frame until the
    /// hypervisor sets another (`TUNSETVNETHDRSZ`). Offloads are off until the hypervisor sets those that the guest
    /// has (`TUNSETOFFLOAD`). A tap of ours goes with its last descriptor.
    pub queues: Vec<OwnedFd>,
    /// Takes all of it away again.
    pub undo: Undo,
}
