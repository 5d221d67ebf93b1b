//! The one instruction that has no safe face.
#![expect(unsafe_code, reason = "reading the time stamp counter")]

/// The processor's time stamp counter.
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space run it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
