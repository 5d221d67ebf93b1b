//! A queue that the driver has set up, and how it is served within bounds.

use super::{DeviceError, Interrupt};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// The descriptors of one request. Iterating over it ends: at its last descriptor, or where the guest has written what
/// makes no sense. A descriptor's address and length are the guest's word, to be checked by whoever uses them.
pub type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// A queue that the driver has set up, and what tells that the guest has made buffers available in it.
#[derive(Debug)]
pub struct LiveQueue {
    /// Its index in the device.
    pub index: usize,
    /// The rings; they lie in guest memory when the worker gets them.
    pub queue: Queue,
    /// Readable when the guest has notified the device. KVM writes it (ioeventfd); non-blocking.
    pub kick: Arc<EventFd>,
}

impl LiveQueue {
    /// Takes the next request that the driver has made available.
    ///
    /// # Errors
    /// The available ring makes no sense: it claims more requests than there are descriptors, or one that there is not.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, DeviceError> {
        let size = self.queue.size();
        let next = self.queue.iter(memory).map(|mut available| available.next());
        match next {
            Ok(Some(chain)) if chain.head_index() >= size => {
                Err(self.broken(format!("the request at descriptor {} is beyond its size {size}", chain.head_index())))
            }
            Ok(next) => Ok(next),
            Err(error) => Err(self.broken(error.to_string())),
        }
    }

    /// Puts back the request that was taken last, to be taken again.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a request back to the driver; `written` bytes of its writable descriptors have been written.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) -> Result<(), DeviceError> {
        self.queue.add_used(memory, head, written).map_err(|error| self.broken(error.to_string()))
    }

    /// Interrupts the guest if it wants to know of the requests that were given back since the last call.
    ///
    /// # Errors
    /// The rings cannot be read.
    pub fn notify(&mut self, memory: &GuestMemoryMmap, interrupt: &dyn Interrupt) -> Result<(), DeviceError> {
        if self.wants_interrupt(memory)? {
            interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Whether the guest wants to know of the requests that were given back since the last call of this or of
    /// [`notify`](Self::notify).
    ///
    /// # Errors
    /// The rings cannot be read.
    pub fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        self.queue.needs_notification(memory).map_err(|error| self.broken(error.to_string()))
    }

    /// Asks the driver to notify of new requests (`true`), or to leave that until asked again. `Ok(true)` when asked to
    /// and there are new requests already, for which no notification may come.
    ///
    /// # Errors
    /// The rings cannot be accessed.
    pub fn want_kicks(&mut self, memory: &GuestMemoryMmap, want: bool) -> Result<bool, DeviceError> {
        let answer = if want {
            self.queue.enable_notification(memory)
        } else {
            self.queue.disable_notification(memory).map(|()| false)
        };
        answer.map_err(|error| self.broken(error.to_string()))
    }

    /// Asks the driver to notify of the next request that it adds, while those that are available wait untaken: of which
    /// it need not notify again, as [`want_kicks`](Self::want_kicks) would have it (virtio 1.2, section 2.7.10). Answers with the
    /// available ring's index up to which it has added.
    ///
    /// # Errors
    /// The rings cannot be accessed.
    pub fn want_next_kick(&mut self, memory: &GuestMemoryMmap) -> Result<u16, DeviceError> {
        let added = |queue: &Queue| queue.avail_idx(memory, Ordering::Acquire).map(|index| index.0);
        if !self.queue.event_idx_enabled() {
            // Then a driver tells of each.
            self.want_kicks(memory, true)?;
            return added(&self.queue).map_err(|error| self.broken(error.to_string()));
        }
        let mut index = added(&self.queue).map_err(|error| self.broken(error.to_string()))?;
        let at = 4 + 8 * u64::from(self.queue.size());
        let event = self.queue.used_ring().checked_add(at).map(GuestAddress);
        let event = event.ok_or_else(|| self.broken("its used ring is beyond all memory".to_owned()))?;
        // Again while the driver adds: what it added before it saw this it did not tell of.
        for _ in 0..=self.queue.size() {
            memory.store(index.to_le(), event, Ordering::Release).map_err(|error| self.broken(error.to_string()))?;
            fence(Ordering::SeqCst);
            let now = added(&self.queue).map_err(|error| self.broken(error.to_string()))?;
            if now == index {
                return Ok(index);
            }
            index = now;
        }
        Err(self.broken("its available ring never rests".to_owned()))
    }

    /// Has the loop come back to this queue, as if the guest had notified it.
    pub fn kick_again(&self) {
        // Fails only if the counter is at its limit, and then the descriptor is readable anyway.
        let _ = self.kick.write(1);
    }

    /// Serves the requests that are available, each by `request`, and tells the guest. `request` returns how many bytes
    /// it has written, or `None` for a request that is kept and [pushed](Self::push) later.
    ///
    /// A driver that adds requests as fast as they are served would keep the loop here for ever: after as many requests
    /// as the queue has entries, the rest waits for the loop's next round.
    ///
    /// # Errors
    /// The queue is broken, or `request` says that the device cannot go on.
    pub fn serve<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        interrupt: &dyn Interrupt,
        mut request: impl FnMut(Chain<'m>) -> Result<Option<u32>, DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut pushed = false;
        let mut drained = false;
        self.want_kicks(memory, false)?;
        for _ in 0..=self.queue.size() {
            if let Some(chain) = self.pop(memory)? {
                let head = chain.head_index();
                if let Some(written) = request(chain)? {
                    self.push(memory, head, written)?;
                    pushed = true;
                }
            } else if self.want_kicks(memory, true)? {
                self.want_kicks(memory, false)?;
            } else {
                drained = true;
                break;
            }
        }
        if !drained {
            self.want_kicks(memory, true)?;
            self.kick_again();
        }
        if pushed {
            self.notify(memory, interrupt)?;
        }
        Ok(())
    }

    /// The error that this queue makes no sense.
    #[must_use]
    pub fn broken(&self, problem: String) -> DeviceError {
        DeviceError::Queue { queue: self.index, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DriverQueue, Part, QUEUE_SPAN, RecordingInterrupt, guest_memory};
    use super::super::{F_RING, F_VERSION_1};
    use super::*;

    const SIZE: u16 = 8;

    fn queue() -> (crate::memory::GuestMemory, DriverQueue, RecordingInterrupt) {
        let memory = guest_memory(QUEUE_SPAN as usize);
        let driver = DriverQueue::new(&memory, 0, SIZE);
        (memory, driver, RecordingInterrupt::default())
    }

    #[test]
    fn all_available_requests_are_served_and_the_guest_is_told_once() {
        let (memory, mut driver, interrupt) = queue();
        let mut live = driver.live(F_RING);
        let heads: Vec<u16> = (0..3).map(|_| driver.request(&[Part::Out(b"a"), Part::In(4)]).head).collect();
        live.serve(&memory, &interrupt, |chain| Ok(Some(chain.writable().map(|part| part.len()).sum()))).unwrap();
        assert_eq!(driver.take_used(), heads.iter().map(|head| (*head, 4)).collect::<Vec<_>>());
        assert_eq!(interrupt.take_queues(), [0]);
    }

    #[test]
    fn a_guest_that_asked_for_a_later_entry_is_not_told() {
        let (memory, mut driver, interrupt) = queue();
        let mut live = driver.live(F_RING);
        driver.request(&[Part::In(4)]);
        live.serve(&memory, &interrupt, |_| Ok(Some(0))).unwrap();
        assert_eq!(interrupt.take_queues(), [0]);
        // The driver's used_event still names the first entry: it has not looked.
        driver.request(&[Part::In(4)]);
        live.serve(&memory, &interrupt, |_| Ok(Some(0))).unwrap();
        assert!(interrupt.take_queues().is_empty());
    }

    #[test]
    fn a_request_that_is_kept_is_given_back_later() {
        let (memory, mut driver, interrupt) = queue();
        let mut live = driver.live(F_RING);
        let head = driver.indirect_request(&[Part::In(4), Part::In(4)]).head;
        live.serve(&memory, &interrupt, |chain| {
            assert_eq!(chain.count(), 2);
            Ok(None)
        })
        .unwrap();
        assert!(driver.take_used().is_empty());
        live.push(&memory, head, 8).unwrap();
        live.notify(&memory, &interrupt).unwrap();
        assert_eq!(driver.take_used(), [(head, 8)]);
        assert_eq!(interrupt.take_queues(), [0]);
    }

    #[test]
    fn a_driver_tells_of_the_next_request_though_others_wait() {
        for features in [F_RING, F_VERSION_1] {
            let (memory, mut driver, _) = queue();
            let mut live = driver.live(features);
            for _ in 0..3 {
                driver.request(&[Part::In(4)]);
            }
            live.pop(&memory).unwrap().unwrap();
            assert_eq!(live.want_next_kick(&memory).unwrap(), 3);
            driver.request(&[Part::In(4)]);
            assert!(driver.must_kick(features));
            driver.request(&[Part::In(4)]);
            assert!(features == F_VERSION_1 || !driver.must_kick(features), "once");
            assert_eq!(live.want_next_kick(&memory).unwrap(), 5);
        }
    }

    #[test]
    fn a_request_that_is_put_back_comes_again() {
        let (memory, mut driver, _) = queue();
        let mut live = driver.live(F_RING);
        let head = driver.request(&[Part::In(4)]).head;
        assert_eq!(live.pop(&memory).unwrap().unwrap().head_index(), head);
        live.put_back();
        assert_eq!(live.pop(&memory).unwrap().unwrap().head_index(), head);
        assert!(live.pop(&memory).unwrap().is_none());
    }

    #[test]
    fn a_driver_that_never_stops_adding_is_left_to_the_next_round() {
        for features in [F_RING, F_VERSION_1] {
            let (memory, mut driver, interrupt) = queue();
            let mut live = driver.live(features);
            let mut served = 0;
            driver.make_available(0);
            live.serve(&memory, &interrupt, |_| {
                served += 1;
                driver.make_available(0);
                Ok(Some(0))
            })
            .unwrap();
            assert_eq!(served, usize::from(SIZE) + 1);
            assert_eq!(live.kick.read().unwrap(), 1, "the loop is told to come back");
        }
    }

    #[test]
    fn a_ring_that_claims_more_requests_than_it_has_room_for_is_broken() {
        let (memory, mut driver, interrupt) = queue();
        let mut live = driver.live(F_RING);
        driver.set_available_index(SIZE + 1);
        let error = live.serve(&memory, &interrupt, |_| Ok(Some(0))).unwrap_err();
        assert!(matches!(error, DeviceError::Queue { queue: 0, .. }), "{error}");
    }

    #[test]
    fn a_request_at_a_descriptor_that_does_not_exist_breaks_the_queue() {
        let (memory, mut driver, _) = queue();
        let mut live = driver.live(F_RING);
        driver.make_available(SIZE);
        let error = live.pop(&memory).unwrap_err();
        assert_eq!(
            error.to_string(),
            "queue 0 of the guest is broken: the request at descriptor 8 is beyond its size 8"
        );
    }
}
