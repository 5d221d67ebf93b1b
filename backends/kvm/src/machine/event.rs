//! What happens to a machine by itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::SlotIndex;
use crate::virtio::{DeviceKind, FailureListener};

/// How the guest has asked for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ResetCause {
    /// By the reset register that ACPI tells of.
    Register,
    /// By the keyboard controller's reset line.
    KeyboardController,
    /// By an exception that cannot be delivered (a triple fault): on purpose (`reboot=t`), or because it crashed.
    TripleFault,
}

/// What has happened. After those that [end](MachineEvent::ends) the machine, the vCPU that it happened on runs no more, the
/// others do not after their next exit, and the machine is only good to be dropped.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum MachineEvent {
    /// The guest has powered off.
    Shutdown,
    /// The guest wants to be reset.
    Reset(ResetCause),
    /// The guest's kernel said on its console that it panics. It may still run, or hang; usually a reset follows.
    Panic,
    /// A device has failed, and waits for its driver to reset it; the machine goes on. Only the first few failures of a
    /// device are told.
    DeviceFailed {
        /// Where the device is, or was: it may have been taken away since.
        slot: SlotIndex,
        /// What it is.
        kind: DeviceKind,
        /// What is wrong.
        problem: String,
    },
    /// The machine cannot go on.
    Failed(String),
}

impl MachineEvent {
    /// Whether the machine has ended with it.
    #[must_use]
    pub fn ends(&self) -> bool {
        match self {
            Self::Shutdown | Self::Reset(_) | Self::Failed(_) => true,
            Self::Panic | Self::DeviceFailed { .. } => false,
        }
    }
}

/// The most events that wait of those that end the machine, and of the others: a guest can make any number. Beyond these
/// they tell nothing new, and the others never take the place of an end.
const LIMIT: usize = 16;

/// The queue of events and the descriptor that tells of them.
#[derive(Debug, Clone)]
pub struct Events {
    queue: Arc<Mutex<VecDeque<MachineEvent>>>,
    ready: Arc<EventFd>,
    ended: Arc<AtomicBool>,
}

impl Events {
    /// An empty queue.
    ///
    /// # Errors
    /// The kernel has no descriptor to give.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Arc::default(),
            ready: Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?),
            ended: Arc::default(),
        })
    }

    pub(crate) fn push(&self, event: MachineEvent) {
        let ends = event.ends();
        if ends {
            self.ended.store(true, Ordering::Release);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.iter().filter(|waiting| waiting.ends() == ends).count() < LIMIT {
            queue.push_back(event);
        }
        // Fails only when the counter is full, and then the descriptor is readable already.
        let _ = self.ready.write(1);
    }

    /// Whether anything has happened that ends the machine.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The oldest event that has not been taken. Clears the descriptor once none is left.
    pub fn take(&self) -> Option<MachineEvent> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let event = queue.pop_front();
        if queue.is_empty() {
            let _ = self.ready.read();
        }
        event
    }
}

/// Tells of the failures of the device in a slot.
#[derive(Debug)]
pub(super) struct SlotFailures {
    pub(super) slot: SlotIndex,
    pub(super) events: Events,
}

impl FailureListener for SlotFailures {
    fn device_failed(&self, kind: DeviceKind, problem: String) {
        self.events.push(MachineEvent::DeviceFailed { slot: self.slot, kind, problem });
    }
}

impl AsRawFd for Events {
    /// Readable while an event waits.
    fn as_raw_fd(&self) -> RawFd {
        self.ready.as_fd().as_raw_fd()
    }
}

impl AsFd for Events {
    /// Readable while an event waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_in_their_order_and_then_the_descriptor_is_quiet() {
        let events = Events::new().unwrap();
        events.push(MachineEvent::Panic);
        events.push(MachineEvent::Reset(ResetCause::TripleFault));
        assert_eq!(events.take(), Some(MachineEvent::Panic));
        assert_eq!(events.ready.read().unwrap(), 2);
        assert_eq!(events.take(), Some(MachineEvent::Reset(ResetCause::TripleFault)));
        assert_eq!(events.take(), None);
        assert!(events.ready.read().is_err(), "nothing is left to read");
    }

    #[test]
    fn more_events_than_anyone_reads_are_dropped() {
        let events = Events::new().unwrap();
        for _ in 0..100 {
            events.push(MachineEvent::Panic);
        }
        assert_eq!(std::iter::from_fn(|| events.take()).count(), LIMIT);
    }

    #[test]
    fn an_end_is_told_after_any_number_of_other_events() {
        let events = Events::new().unwrap();
        for number in 0..1000 {
            let listener = SlotFailures { slot: SlotIndex(3), events: events.clone() };
            listener.device_failed(DeviceKind::Net, format!("problem {number}"));
            events.push(MachineEvent::Panic);
        }
        assert!(!events.ended());
        for end in [
            MachineEvent::Reset(ResetCause::Register),
            MachineEvent::Shutdown,
            MachineEvent::Failed("KVM cannot run it".to_owned()),
        ] {
            events.push(end.clone());
            let waiting: Vec<_> = std::iter::from_fn(|| events.take()).collect();
            assert_eq!(waiting.last(), Some(&end));
            assert!(waiting.len() <= LIMIT + 1);
            events.push(MachineEvent::Panic);
        }
        assert!(events.ended());
    }

    #[test]
    fn a_failed_device_is_told_with_its_slot_and_reason_and_ends_nothing() {
        let events = Events::new().unwrap();
        let listener = SlotFailures { slot: SlotIndex(3), events: events.clone() };
        listener.device_failed(DeviceKind::Block, "queue 0 is broken".to_owned());
        let expected = MachineEvent::DeviceFailed {
            slot: SlotIndex(3),
            kind: DeviceKind::Block,
            problem: "queue 0 is broken".to_owned(),
        };
        assert_eq!(events.take(), Some(expected));
        assert!(!events.ended());
    }
}
