//! The vsock device as a vhost-user backend.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringMutex, VringState, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::vsock::{EVENT_QUEUE, Muxer, RX_QUEUE, TX_QUEUE, process_rx, process_tx};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringMutex<Memory>;
type Handler = VringEpollHandler<Arc<VsockBackend>>;

const QUEUES: usize = EVENT_QUEUE + 1;
const MAX_QUEUE_SIZE: usize = 1024;

/// Epoll tokens beyond those of the queues and of the exit event.
const MUXER_EVENT: u16 = QUEUES as u16 + 1;
const RETRY_EVENT: u16 = QUEUES as u16 + 2;

/// How long events of host sockets wait while the monitor has stopped the queues (the machine is paused).
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// The device and where its guest's memory is.
pub(super) struct VsockBackend {
    device: Mutex<Device>,
    /// The event loop of the queues' thread; it holds this backend, hence weak.
    handler: OnceLock<Weak<Handler>>,
    retry: TimerFd,
}

struct Device {
    muxer: Muxer,
    memory: Option<Memory>,
    /// The event loop watches the muxer's sockets.
    watched: bool,
}

impl VsockBackend {
    pub(super) fn new(muxer: Muxer) -> nix::Result<Self> {
        Ok(Self {
            device: Mutex::new(Device { muxer, memory: None, watched: false }),
            handler: OnceLock::new(),
            retry: TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?,
        })
    }

    /// Learns of the event loop that serves the queues.
    pub(super) fn attach(&self, handlers: &[Arc<Handler>]) -> io::Result<()> {
        if let Some(handler) = handlers.first() {
            let _ = self.handler.set(Arc::downgrade(handler));
            let retry = self.retry.as_fd().as_raw_fd();
            handler.register_listener(retry, EventSet::IN, RETRY_EVENT.into())?;
        }
        Ok(())
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // A panic ends the process, so that a poisoned lock is never seen.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts or stops watching the host sockets.
    fn watch(&self, device: &mut Device, wanted: bool) {
        let Some(handler) = self.handler.get().and_then(Weak::upgrade) else {
            return;
        };
        if device.watched == wanted {
            return;
        }
        let fd: RawFd = device.muxer.event_fd().as_raw_fd();
        let done = if wanted {
            handler.register_listener(fd, EventSet::IN, MUXER_EVENT.into())
        } else {
            handler.unregister_listener(fd, EventSet::IN, MUXER_EVENT.into())
        };
        match done {
            Ok(()) => device.watched = wanted,
            Err(error) => tracing::error!(%error, "cannot change what the vsock device watches"),
        }
    }

    /// The queues are stopped: looks away from the host sockets, and again after a while. The monitor says nothing
    /// when it starts the queues again, and the guest has no reason to.
    fn suspend(&self, device: &mut Device) {
        self.watch(device, false);
        let after = Expiration::OneShot(TimeSpec::from(RETRY_AFTER));
        if let Err(error) = self.retry.set(after, TimerSetTimeFlags::empty()) {
            tracing::error!(%error, "cannot set the vsock device's timer");
        }
    }
}

impl Device {
    /// Moves everything that can be moved, then asks the guest for notifications.
    fn drive(&mut self, rx: &Vring, tx: &Vring) -> Result<(), crate::vsock::QueueError> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let memory = memory.memory();
        let (mut rx, mut tx) = (rx.get_mut(), tx.get_mut());
        // Twice without progress: the ring claims to have buffers that cannot be taken.
        let mut idle = 0;
        while idle < 2 {
            let _ = rx.disable_notification();
            let _ = tx.disable_notification();
            idle += 1;
            loop {
                let sent = process_tx(&mut self.muxer, tx.get_queue_mut(), memory.clone())?;
                let polled = self.muxer.poll();
                let received = process_rx(&mut self.muxer, rx.get_queue_mut(), memory.clone())?;
                notify(&mut tx, sent.used);
                notify(&mut rx, received.used);
                if !(sent.used || received.used || polled) {
                    break;
                }
                idle = 0;
            }
            // The guest's filling of receive buffers is of interest only while packets wait for some.
            let waiting = self.muxer.has_packets();
            let rx_more = waiting && rx.enable_notification().unwrap_or(false);
            let tx_more = tx.enable_notification().unwrap_or(false) && self.muxer.can_handle();
            if !(rx_more || tx_more) {
                break;
            }
        }
        Ok(())
    }
}

/// Tells the guest of used buffers unless it asked not to hear.
fn notify(vring: &mut VringState<Memory>, used: bool) {
    if used
        && vring.needs_notification().unwrap_or(true)
        && let Err(error) = vring.signal_used_queue()
    {
        tracing::error!(%error, "cannot notify the guest of vsock packets");
    }
}

fn is_running(vring: &Vring) -> bool {
    let state = vring.get_ref();
    state.is_enabled() && state.get_queue().ready()
}

impl VhostUserBackend for VsockBackend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.device().muxer.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The vrings know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let cid = self.device().muxer.guest_cid().to_le_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        cid.into_iter().skip(offset).take(size).collect()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.device().memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    /// Never fails: the library would end the thread and leave the device dead.
    fn handle_event(&self, event: u16, _events: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        if event == RETRY_EVENT {
            // A read would wait, but an event is there; the timer is not armed again until the next suspension.
            let _ = self.retry.set(Expiration::OneShot(TimeSpec::from(Duration::ZERO)), TimerSetTimeFlags::empty());
        }
        let device = &mut *self.device();
        let (Some(rx), Some(tx)) = (vrings.get(RX_QUEUE), vrings.get(TX_QUEUE)) else {
            return Ok(());
        };
        if !is_running(rx) || !is_running(tx) {
            if device.watched || event == RETRY_EVENT {
                self.suspend(device);
            }
            return Ok(());
        }
        self.watch(device, true);
        device.muxer.activate();
        if let Err(error) = device.drive(rx, tx) {
            // The guest broke its own queue.
            tracing::warn!(%error, "the vsock device skips a broken queue");
        }
        Ok(())
    }
}
