//! Accesses of the guest that KVM could not do itself.

/// What answers accesses in a range of guest-physical (or port) addresses.
///
/// Called by vCPU threads: quick, and never panics whatever the guest asks. Lengths are 1, 2, 4 or 8.
pub trait BusDevice: Send {
    /// Answers a read at `offset` from the range's start. What is not there reads as it finds it: `data` is zeroed before.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes a write at `offset` from the range's start.
    fn write(&mut self, offset: u64, data: &[u8]);
}
