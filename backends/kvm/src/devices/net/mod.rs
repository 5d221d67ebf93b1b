//! The network device (virtio 1.2, section 5.1): frames go straight between guest memory and tap devices that somebody
//! else has made.
//!
//! ```text
//!   receiveq 0 ◀─ tap 0 ◀─┐                     one tap descriptor for each pair of queues;
//!   transmitq 0 ─▶ tap 0 ─┤ the interface       all pairs are served by one thread
//!   receiveq 1 ◀─ tap 1 ◀─┘
//!   controlq: how many pairs the guest uses (with more than one)
//! ```
//! What is not offered: filters for addresses and VLANs (a tap device has one guest at its end, which gets what is sent
//! there), and changing the address.
//!
//! On the host, the thread that runs the worker calls `readv`, `writev` and `ioctl` (TUNSETOFFLOAD) on the taps, and nothing
//! else beside what every event loop needs; making the device also takes `ioctl` (TUNGETIFF, TUNSETVNETHDRSZ) and `fcntl`.

mod control;
mod receive;
mod sys;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod worker;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::virtio::{
    Activation, ConfigSpace, DeviceError, DeviceKind, F_RING, Interrupt, ThreadKind, VirtioDevice, Worker,
};
pub use tap::TapError;
use tap::{Abilities, Tap};

/// Most pairs of queues.
pub const MAX_PAIRS: usize = 8;

/// Bytes of `struct virtio_net_hdr_v1`, before each frame.
const HEADER: usize = 12;

/// Bytes of the largest frame: a packet of 64 KiB, an Ethernet header and two VLAN tags.
const MAX_FRAME: usize = 65535 + 14 + 8;

/// Bytes of the largest frame of a guest that wants whole packets only: jumbo frames included.
const MAX_SMALL_FRAME: usize = 9216;

/// Most pieces of memory that one frame or buffer consists of. A driver needs 2 and a page for each 4 KiB.
const MAX_PIECES: usize = 256;

/// Smallest MTU of IPv4, and largest of an interface.
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;

/// Entries of a receive or transmit queue, and of the control queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Version of [`Saved`].
const VERSION: u32 = 1;

/// A network interface to be made.
#[derive(Debug)]
pub struct NetConfig {
    /// The descriptors of a tap interface, one for each pair of queues; made with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, and
    /// IFF_MULTI_QUEUE if there are several.
    pub taps: Vec<OwnedFd>,
    /// The address that the guest's interface gets.
    pub mac: [u8; 6],
    /// The largest packet that the guest shall send; without it the driver's default, 1500.
    pub mtu: Option<u16>,
}

/// Why there can be no such device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The number of descriptors.
    #[error("a network device has 1 to {MAX_PAIRS} tap descriptors, not {0}")]
    Pairs(usize),
    /// A multicast address, or none.
    #[error("{0:02x?} is no address of an interface")]
    Mac([u8; 6]),
    /// Out of range.
    #[error("an MTU of {0} is not from {min} to {max}", min = MTU.start(), max = MTU.end())]
    Mtu(u16),
    /// A descriptor is not usable.
    #[error("cannot use tap descriptor {number}")]
    Tap {
        /// Its place in the list.
        number: usize,
        /// Why not.
        #[source]
        source: TapError,
    },
}

/// What of the device outlives its process.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    active_pairs: u16,
    link_up: bool,
}

/// What front, worker and the link's handle share.
#[derive(Debug)]
struct Shared {
    taps: Vec<Tap>,
    mac: [u8; 6],
    mtu: Option<u16>,
    /// Set by the control queue; outlives a worker.
    active_pairs: AtomicU16,
    link_up: AtomicBool,
    // Set once, when the device gets its slot; read by whoever changes the link.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

/// The plug of the device's cable.
#[derive(Debug, Clone)]
pub struct Link(Arc<Shared>);

impl Link {
    /// Connects or disconnects the guest's interface, as its driver sees it. To be called before a device is removed, so that
    /// the guest stops using it.
    pub fn set(&self, up: bool) {
        if self.0.link_up.swap(up, Ordering::Relaxed) != up
            && let Some(interrupt) = &*self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
        {
            interrupt.config();
        }
    }
}

/// The front of the device.
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    features: u64,
    queue_sizes: Vec<u16>,
}

impl Net {
    /// A device on these tap descriptors.
    ///
    /// # Errors
    /// A value is out of range, or a descriptor cannot be used.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let pairs = config.taps.len();
        if pairs == 0 || pairs > MAX_PAIRS {
            return Err(NetError::Pairs(pairs));
        }
        if config.mac == [0; 6] || config.mac[0] & 1 != 0 {
            return Err(NetError::Mac(config.mac));
        }
        if let Some(mtu) = config.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(NetError::Mtu(mtu));
        }
        let failed = |number| move |source| NetError::Tap { number, source };
        let taps = config.taps.into_iter().enumerate();
        let taps: Vec<Tap> = taps.map(|(number, fd)| Tap::new(fd).map_err(failed(number))).collect::<Result<_, _>>()?;
        let abilities = taps.first().map_or(Err(NetError::Pairs(0)), |tap| tap.abilities().map_err(failed(0)))?;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let shared = Shared {
            taps,
            mac: config.mac,
            mtu: config.mtu,
            active_pairs: AtomicU16::new(1),
            link_up: AtomicBool::new(true),
            interrupt: Mutex::new(None),
        };
        Ok(Self {
            shared: Arc::new(shared),
            features: features(abilities, pairs > 1, config.mtu.is_some()),
            queue_sizes,
        })
    }

    /// The handle that connects and disconnects it.
    #[must_use]
    pub fn link(&self) -> Link {
        Link(Arc::clone(&self.shared))
    }
}

fn features(abilities: Abilities, multiqueue: bool, mtu: bool) -> u64 {
    let mut features = F_RING;
    let mut offer = |offered: bool, bits: &[u32]| {
        if offered {
            features |= bits.iter().fold(0, |all, bit| all | 1 << bit);
        }
    };
    offer(true, &[VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MRG_RXBUF]);
    offer(true, &[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN]);
    let guest = [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN];
    offer(true, &guest);
    offer(abilities.ufo, &[VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_GUEST_UFO]);
    offer(abilities.uso, &[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]);
    offer(mtu, &[VIRTIO_NET_F_MTU]);
    offer(multiqueue, &[VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ]);
    features
}

impl ConfigSpace for Shared {
    fn bytes(&self) -> Vec<u8> {
        let mut space = vec![0; 12];
        space[..6].copy_from_slice(&self.mac);
        let status = if self.link_up.load(Ordering::Relaxed) { VIRTIO_NET_S_LINK_UP } else { 0 };
        space[6] = status.to_le_bytes()[0];
        // At most MAX_PAIRS.
        space[8] = self.taps.len().to_le_bytes()[0];
        space[10..].copy_from_slice(&self.mtu.unwrap_or_default().to_le_bytes());
        space
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_space(&self) -> Arc<dyn ConfigSpace> {
        Arc::clone(&self.shared) as Arc<dyn ConfigSpace>
    }

    fn attached(&mut self, interrupt: Arc<dyn Interrupt>) {
        *self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(interrupt);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(worker::NetWorker::new(Arc::clone(&self.shared), activation)?))
    }

    fn reset(&mut self) {
        self.shared.active_pairs.store(1, Ordering::Relaxed);
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!(Saved {
            version: VERSION,
            active_pairs: self.shared.active_pairs.load(Ordering::Relaxed),
            link_up: self.shared.link_up.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        let saved =
            Saved::deserialize(state).map_err(|error| format!("this is no state of a network device: {error}"))?;
        if saved.version != VERSION {
            return Err(format!("the network device's state has version {}, not {VERSION}", saved.version));
        }
        if saved.active_pairs == 0 || usize::from(saved.active_pairs) > self.shared.taps.len() {
            return Err(format!(
                "the guest uses {} pairs of queues and the network device has {} tap descriptors",
                saved.active_pairs,
                self.shared.taps.len()
            ));
        }
        self.shared.active_pairs.store(saved.active_pairs, Ordering::Relaxed);
        self.shared.link_up.store(saved.link_up, Ordering::Relaxed);
        Ok(())
    }

    fn thread(&self) -> ThreadKind {
        ThreadKind::Net
    }
}
