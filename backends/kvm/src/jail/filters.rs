//! Which system calls each kind of thread may make. Any other kills the process.
//!
//! | thread | has, beside memory, time and its own end |
//! |---|---|
//! | vCPU | KVM_RUN and the registers of its vCPU; writing to the console and to event descriptors |
//! | all devices | events; the guest's interrupts |
//! | vsock | Unix sockets, their connections |
//! | block | reading, writing, discarding in files that are open |
//! | net | the tap's queues and their offloads |
//! | fs | files below the share, acting as the guest's users |
//! | main | the control socket; KVM but KVM_RUN; starting threads for what is plugged in later, so what those have |
//!
//! What is plugged in later are disks, network interfaces and, where more may come than there are at the boot, vCPUs. Then the
//! main thread has KVM_RUN as well: a filter cannot be given to a thread that is looser than that of who starts it.
//!
//! None has a way to run a program, to make another process, to signal or trace one, to mount, to open a file by path
//! (but fs), to make a socket that is not a Unix one, or an io_uring.

use seccompiler::SeccompCmpOp as Op;
use stockade_devices::jail::JailError;
use stockade_devices::jail::seccomp::{Allowed, EVENTS, Filter, SOCKETS, condition};

use crate::virtio::ThreadKind;

/// The type of KVM's requests (`_IOC_TYPE`), and the bits that it is in.
const KVM_TYPE: u64 = 0xae00;
const TYPE_BITS: u64 = 0xff00;

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`: a driver that comes or goes.
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: u64 = 0x4020_ae76;
/// `_IOW(KVMIO, 0x61, struct kvm_irq_level)`: a device's interrupt.
const KVM_IRQ_LINE: u64 = 0x4008_ae61;

/// Requests from this number on are a vCPU's own (KVM_RUN is the first), for its registers.
const VCPU_BIT: u64 = 0x80;

/// `_IO(0x12, 119)`, discarding blocks, and `_IO(0x12, 127)`, zeroing them.
const BLOCK_DEVICE: [u64; 2] = [0x1277, 0x127f];

/// `_IOW('T', 208, unsigned int)`, the tap's offloads; `_IOW('T', 216, int)`, the length of its headers; and
/// `_IOR('T', 210, unsigned int)`, what kind of interface it is.
const TAP: [u64; 3] = [0x4004_54d0, 0x4004_54d8, 0x8004_54d2];

/// Reading and writing files that are open.
const OPEN_FILES: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_statx,
];

/// The filters, compiled.
#[derive(Debug)]
pub struct Filters {
    pub(super) vcpu: Filter,
    pub(super) main: Filter,
    devices: Filter,
    vsock: Filter,
    block: Filter,
    net: Filter,
    fs: Filter,
}

impl Filters {
    /// Compiles all of them; with `vcpu_hotplug`, the main thread may start threads of vCPUs.
    ///
    /// # Errors
    /// One is too large for the kernel.
    pub fn compile(vcpu_hotplug: bool) -> Result<Self, JailError> {
        Ok(Self {
            vcpu: vcpu()?.compile()?,
            main: main(vcpu_hotplug)?.compile()?,
            devices: device(ThreadKind::Devices)?.compile()?,
            vsock: device(ThreadKind::Vsock)?.compile()?,
            block: device(ThreadKind::Block)?.compile()?,
            net: device(ThreadKind::Net)?.compile()?,
            fs: device(ThreadKind::Fs)?.compile()?,
        })
    }

    pub(super) fn device(&self, kind: ThreadKind) -> &Filter {
        match kind {
            ThreadKind::Devices => &self.devices,
            ThreadKind::Vsock => &self.vsock,
            ThreadKind::Block => &self.block,
            ThreadKind::Net => &self.net,
            ThreadKind::Fs => &self.fs,
        }
    }
}

fn vcpu() -> Result<Allowed, JailError> {
    let mut allowed = Allowed::runtime()?;
    run_vcpu(&mut allowed)?;
    Ok(allowed)
}

/// Adds what a vCPU's thread does.
fn run_vcpu(allowed: &mut Allowed) -> Result<(), JailError> {
    // The console, event descriptors, and waiting while the machine is paused.
    allowed.calls(&[libc::SYS_read, libc::SYS_write, libc::SYS_writev, libc::SYS_poll, libc::SYS_ppoll]);
    allowed.calls(&[libc::SYS_close, libc::SYS_epoll_ctl, libc::SYS_sendto]);
    allowed.argument(libc::SYS_ioctl, 1, &[KVM_IOEVENTFD, KVM_IRQFD, KVM_IRQ_LINE])?;
    allowed.rule(
        libc::SYS_ioctl,
        vec![condition(1, Op::MaskedEq(TYPE_BITS), KVM_TYPE)?, condition(1, Op::MaskedEq(VCPU_BIT), VCPU_BIT)?],
    )?;
    Ok(())
}

fn device(kind: ThreadKind) -> Result<Allowed, JailError> {
    let mut allowed = Allowed::runtime()?;
    allowed.calls(EVENTS).argument(libc::SYS_ioctl, 1, &[KVM_IRQ_LINE])?;
    match kind {
        ThreadKind::Devices => {
            // Memory that the guest gives back is punched out of its file.
            allowed.calls(&[libc::SYS_fallocate]);
        }
        ThreadKind::Vsock => {
            // Sockets are reached by names relative to a directory of the thread's own.
            allowed.calls(SOCKETS).calls(&[libc::SYS_fchdir]).unix_sockets()?.own_directory()?;
            allowed.argument(libc::SYS_ioctl, 1, &[libc::FIONBIO])?;
        }
        ThreadKind::Block => {
            allowed.calls(OPEN_FILES).argument(libc::SYS_ioctl, 1, &BLOCK_DEVICE)?;
        }
        ThreadKind::Net => {
            allowed.argument(libc::SYS_ioctl, 1, &TAP)?;
        }
        ThreadKind::Fs => {
            allowed.file_server()?;
        }
    }
    Ok(allowed)
}

fn main(vcpu_hotplug: bool) -> Result<Allowed, JailError> {
    let mut allowed = Allowed::runtime()?;
    // The control socket, and devices that are plugged in later, whose threads can do no more than the thread that
    // starts them.
    allowed.calls(EVENTS).calls(OPEN_FILES).calls(&[libc::SYS_recvmsg, libc::SYS_sendmsg]).threads()?;
    allowed.argument(libc::SYS_ioctl, 1, &BLOCK_DEVICE)?.argument(libc::SYS_ioctl, 1, &TAP)?;
    // Those threads look whether they have privileges to give up, and add a filter of their own.
    allowed.calls(&[libc::SYS_geteuid, libc::SYS_seccomp]);
    allowed.argument(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS.cast_unsigned().into()])?;
    allowed.rule(
        libc::SYS_ioctl,
        vec![condition(1, Op::MaskedEq(TYPE_BITS), KVM_TYPE)?, condition(1, Op::Ne, KVM_RUN)?],
    )?;
    if vcpu_hotplug {
        run_vcpu(&mut allowed)?;
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ThreadKind; 5] =
        [ThreadKind::Devices, ThreadKind::Vsock, ThreadKind::Block, ThreadKind::Net, ThreadKind::Fs];

    fn all() -> Vec<(String, Allowed)> {
        let mut lists = vec![("vcpu".to_owned(), vcpu().unwrap()), ("main".to_owned(), main(true).unwrap())];
        lists.extend(KINDS.map(|kind| (kind.name().to_owned(), device(kind).unwrap())));
        lists
    }

    #[test]
    fn no_thread_can_run_a_program_reach_another_process_or_mount() {
        for (name, allowed) in all() {
            for forbidden in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_kill,
                libc::SYS_tkill,
                libc::SYS_ptrace,
                libc::SYS_process_vm_readv,
                libc::SYS_process_vm_writev,
                libc::SYS_pidfd_open,
                libc::SYS_pidfd_getfd,
                libc::SYS_pidfd_send_signal,
                libc::SYS_mount,
                libc::SYS_open_tree,
                libc::SYS_setns,
                libc::SYS_pivot_root,
                libc::SYS_chroot,
                libc::SYS_open_by_handle_at,
                libc::SYS_bpf,
                libc::SYS_keyctl,
                libc::SYS_userfaultfd,
                libc::SYS_perf_event_open,
                libc::SYS_io_uring_setup,
                libc::SYS_socketpair,
                libc::SYS_bind,
                libc::SYS_listen,
            ] {
                assert!(!allowed.allows(forbidden), "system call {forbidden} on the thread {name}");
            }
        }
    }

    #[test]
    fn files_are_opened_by_the_file_server_alone_and_threads_started_by_the_main_thread() {
        for (name, allowed) in all() {
            for call in [libc::SYS_openat, libc::SYS_open, libc::SYS_openat2, libc::SYS_setresuid, libc::SYS_capset] {
                assert!(!allowed.allows(call) || name == "fs", "system call {call} on the thread {name}");
            }
            assert_eq!(allowed.allows(libc::SYS_clone), name == "main", "{name}");
            assert_eq!(allowed.allows(libc::SYS_socket), name == "vsock", "{name}");
        }
    }

    #[test]
    fn what_the_main_thread_may_start_later_may_do_no_more_than_itself() {
        // The kernel runs the filters of both, so a call that the main thread lacks would kill the new one.
        let main = main(true).unwrap();
        let devices = [ThreadKind::Devices, ThreadKind::Block, ThreadKind::Net].map(|kind| device(kind).unwrap());
        for allowed in devices.into_iter().chain([vcpu().unwrap()]) {
            for call in 0..=450 {
                assert!(!allowed.allows(call) || main.allows(call), "system call {call}");
            }
        }
    }

    #[test]
    fn the_filters_fit_the_kernel() {
        Filters::compile(true).unwrap();
    }
}
