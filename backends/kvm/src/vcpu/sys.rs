//! How a vCPU's thread is brought out of the guest: by a signal whose handler makes the next entry return at once.
//!
//! The handler runs on the thread itself, so there is no moment between looking for orders and entering the guest in which
//! one could be missed.
#![expect(unsafe_code, reason = "a signal handler reaches the vCPU of its thread by a pointer")]

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs; null on other threads. Constant at first and without
    /// anything to drop, so that a handler may use it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that brings a vCPU's thread out of the guest.
pub(super) fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let place = IMMEDIATE_EXIT.get();
    if !place.is_null() {
        // SAFETY: Not null means that `Kickable` is alive on this thread, so that the vCPU and its mapping are. The byte is
        // only accessed by this thread and the kernel.
        unsafe { AtomicU8::from_ptr(place) }.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler, for the whole process.
pub(super) fn install_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// While this lives, the signal concerns the vCPU that it was made of. It stays on its thread.
#[derive(Debug)]
pub(super) struct Kickable<'a>(PhantomData<(&'a VcpuFd, *mut u8)>);

impl<'a> Kickable<'a> {
    /// Lets this thread's signals concern `vcpu`.
    pub(super) fn new(vcpu: &'a mut VcpuFd) -> (Self, &'a mut VcpuFd) {
        IMMEDIATE_EXIT.set(ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit));
        (Self(PhantomData), vcpu)
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// Sets the extended state of a vCPU, whose size is that of `kvm_xsave`: larger states (AMX) have to be asked for before the
/// guest is told of them, and this machine does not.
pub(super) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads as many bytes as the vCPU's extended state has, which without dynamically enabled features is at
    // most the size of `kvm_xsave`.
    unsafe { vcpu.set_xsave(xsave) }
}
