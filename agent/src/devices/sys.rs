//! bpf(2), for which there is no safe form.
#![expect(unsafe_code, reason = "bpf(2) takes structures whose fields are addresses")]

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::program::Instruction;

/// Commands, kinds and flags (linux/bpf.h).
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// How often a verification that a signal interrupted begins again.
const ATTEMPTS: usize = 30;

/// `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what is behind it as zero.
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Gives the kernel a program that decides about devices. It is kept while the descriptor is open or it is attached.
pub(super) fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let attributes = LoadAttributes {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"stockade_device\0",
    };
    for _ in 1..ATTEMPTS {
        match bpf(PROG_LOAD, &attributes) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other.map(crate::sys::adopt),
        }
    }
    bpf(PROG_LOAD, &attributes).map(crate::sys::adopt)
}

/// Attaches a program to a cgroup's directory, at once in the place of another one that is attached there.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    instead_of: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF);
    let attributes = AttachAttributes {
        target_fd: number(cgroup)?,
        attach_bpf_fd: number(program)?,
        attach_type: CGROUP_DEVICE,
        attach_flags: if instead_of.is_some() { F_ALLOW_MULTI | F_REPLACE } else { F_ALLOW_MULTI },
        replace_bpf_fd: instead_of.map_or(Ok(0), number)?,
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<libc::c_int, Errno> {
    // SAFETY: the kernel reads as many bytes of `attributes` as the size says, which lives through the call. The
    // addresses in it are those of a slice and of a constant, with the length beside the one and a zero behind the
    // other, and both live longer than the call; neither command writes to memory, as there is no log.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    Errno::result(result).map(|value| libc::c_int::try_from(value).unwrap_or(-1))
}
