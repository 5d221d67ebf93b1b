//! The probe's child: raw KVM calls between fork and exit.
#![expect(unsafe_code, reason = "fork, mmap and the KVM ioctls of a virtual machine of two instructions")]

use super::Outcome;
use crate::sys::{pidfd_open, pidfd_send_signal};
use kvm_bindings::{
    KVM_API_VERSION, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, kvm_cpuid_entry2, kvm_cpuid2, kvm_regs, kvm_run,
    kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const MEMORY_SIZE: usize = 0x10000;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PAGE_DIRECTORY: usize = 0x3000;
const CODE: usize = 0x4000;
/// `pxor xmm0, xmm0; hlt`
const INSTRUCTIONS: [u8; 5] = [0x66, 0x0f, 0xef, 0xc0, 0xf4];
/// Present and writable; in the page directory also a page of 2 MiB.
const TABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x83;
const CPUID_ENTRIES: usize = 128;

const KVMIO: u64 = 0xae;

const fn request(direction: u64, number: u64, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u64) << 16 | KVMIO << 8 | number) as libc::Ioctl
}
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;
const GET_API_VERSION: libc::Ioctl = request(NONE, 0x00, 0);
const CREATE_VM: libc::Ioctl = request(NONE, 0x01, 0);
const GET_VCPU_MMAP_SIZE: libc::Ioctl = request(NONE, 0x04, 0);
const GET_SUPPORTED_CPUID: libc::Ioctl = request(READ | WRITE, 0x05, size_of::<kvm_cpuid2>());
const CREATE_VCPU: libc::Ioctl = request(NONE, 0x41, 0);
const SET_USER_MEMORY_REGION: libc::Ioctl = request(WRITE, 0x46, size_of::<kvm_userspace_memory_region>());
const RUN: libc::Ioctl = request(NONE, 0x80, 0);
const SET_REGS: libc::Ioctl = request(WRITE, 0x82, size_of::<kvm_regs>());
const GET_SREGS: libc::Ioctl = request(READ, 0x83, size_of::<kvm_sregs>());
const SET_SREGS: libc::Ioctl = request(WRITE, 0x84, size_of::<kvm_sregs>());
const SET_CPUID2: libc::Ioctl = request(WRITE, 0x90, size_of::<kvm_cpuid2>());

/// Runs the probe in a child: its exit status, or `None` when it had to be killed.
pub(super) fn in_child(limit: Duration) -> io::Result<Option<i32>> {
    // SAFETY: the child makes system calls only, allocates nothing, takes no lock and leaves by _exit.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: the descriptors are the child's own copies; `run` is made for the child of a fork; _exit runs no
            // handlers of the parent's.
            unsafe {
                // While it hangs it shall hold nobody's end of a socket open. An old kernel refuses.
                libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
                let outcome = match run() {
                    Ok(()) => Outcome::Usable,
                    Err(outcome) => outcome,
                };
                libc::_exit(outcome as i32)
            }
        }
        _ => {}
    }
    let pidfd = pidfd_open(pid)?;
    let end = Instant::now() + limit;
    let mut waiting = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let in_time = loop {
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(count) => break count > 0,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break false,
        }
    };
    if !in_time {
        let _ended = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    loop {
        return match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, status)) => Ok(Some(status)),
            Ok(_) => Ok(None),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => Err(e.into()),
        };
    }
}

fn or(result: libc::c_int, outcome: Outcome) -> Result<libc::c_int, Outcome> {
    if result < 0 { Err(outcome) } else { Ok(result) }
}

/// Sets up and runs the virtual machine. Its descriptors and mappings go with the child.
///
/// # Safety
/// To be called in the child of a fork only: nothing is given back.
unsafe fn run() -> Result<(), Outcome> {
    // SAFETY: the path is a C string.
    let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if kvm < 0 {
        return Err(match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOENT) => Outcome::Missing,
            Some(libc::EACCES | libc::EPERM) => Outcome::Forbidden,
            _ => Outcome::CannotOpen,
        });
    }
    // SAFETY: these calls take numbers, or pointers to values of the size in the request that live over the call; the
    // memory given to the machine is never unmapped.
    unsafe {
        if libc::ioctl(kvm, GET_API_VERSION, 0) != libc::c_int::try_from(KVM_API_VERSION).unwrap_or(12) {
            return Err(Outcome::OldApi);
        }
        let vm = or(libc::ioctl(kvm, CREATE_VM, 0), Outcome::NoVm)?;
        let memory = guest_memory()?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_SIZE as u64,
            userspace_addr: memory as u64,
        };
        or(libc::ioctl(vm, SET_USER_MEMORY_REGION, &raw const region), Outcome::NoMemory)?;
        let vcpu = or(libc::ioctl(vm, CREATE_VCPU, 0), Outcome::NoVcpu)?;
        set_cpuid(kvm, vcpu);
        set_registers(vcpu)?;
        let size = or(libc::ioctl(kvm, GET_VCPU_MMAP_SIZE, 0), Outcome::NoVcpu)?;
        let size = usize::try_from(size).ok().filter(|size| *size >= size_of::<kvm_run>()).ok_or(Outcome::NoVcpu)?;
        let shared =
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, vcpu, 0);
        if shared == libc::MAP_FAILED {
            return Err(Outcome::NoVcpu);
        }
        or(libc::ioctl(vcpu, RUN, 0), Outcome::RunFailed)?;
        match (*shared.cast::<kvm_run>()).exit_reason {
            KVM_EXIT_HLT => Ok(()),
            KVM_EXIT_INTERNAL_ERROR => Err(Outcome::InternalError),
            _ => Err(Outcome::OtherExit),
        }
    }
}

/// Memory with the code and page tables that map the first 2 MiB to themselves.
fn guest_memory() -> Result<*mut libc::c_void, Outcome> {
    // SAFETY: a new anonymous mapping, and writes within its size.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            MEMORY_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED {
            return Err(Outcome::NoMemory);
        }
        let base = memory.cast::<u8>();
        base.add(PML4).cast::<u64>().write(PDPT as u64 | TABLE);
        base.add(PDPT).cast::<u64>().write(PAGE_DIRECTORY as u64 | TABLE);
        base.add(PAGE_DIRECTORY).cast::<u64>().write(LARGE_PAGE);
        base.add(CODE).copy_from_nonoverlapping(INSTRUCTIONS.as_ptr(), INSTRUCTIONS.len());
        Ok(memory)
    }
}

/// Tells the vCPU what the host's can do; some kernels want that before 64-bit mode. A failure shows in what follows.
fn set_cpuid(kvm: libc::c_int, vcpu: libc::c_int) {
    #[repr(C)]
    struct Cpuid {
        header: kvm_cpuid2,
        entries: [kvm_cpuid_entry2; CPUID_ENTRIES],
    }
    let mut cpuid = Cpuid {
        header: kvm_cpuid2 { nent: CPUID_ENTRIES as u32, ..Default::default() },
        entries: [kvm_cpuid_entry2::default(); CPUID_ENTRIES],
    };
    // SAFETY: the header says how many entries follow it in the same value.
    unsafe {
        if libc::ioctl(kvm, GET_SUPPORTED_CPUID, &raw mut cpuid) == 0 {
            libc::ioctl(vcpu, SET_CPUID2, &raw const cpuid);
        }
    }
}

fn set_registers(vcpu: libc::c_int) -> Result<(), Outcome> {
    let mut sregs = kvm_sregs::default();
    // SAFETY: the value has the size in the request and lives over the call.
    or(unsafe { libc::ioctl(vcpu, GET_SREGS, &raw mut sregs) }, Outcome::NoRegisters)?;
    let data =
        kvm_segment { limit: u32::MAX, selector: 0x10, type_: 3, present: 1, db: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x8, type_: 11, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PML4 as u64;
    // PAE, OSFXSR and OSXMMEXCPT: page tables of 64-bit mode, and SSE.
    sregs.cr4 = 0x620;
    // PE, MP, ET, NE, WP and PG.
    sregs.cr0 = 0x8001_0033;
    // LME and LMA.
    sregs.efer = 0x500;
    let regs = kvm_regs { rip: CODE as u64, rsp: MEMORY_SIZE as u64, rflags: 2, ..Default::default() };
    // SAFETY: both values have the sizes in the requests and live over the calls.
    unsafe {
        or(libc::ioctl(vcpu, SET_SREGS, &raw const sregs), Outcome::NoRegisters)?;
        or(libc::ioctl(vcpu, SET_REGS, &raw const regs), Outcome::NoRegisters)?;
    }
    Ok(())
}
