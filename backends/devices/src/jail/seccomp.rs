//! The system call filter: an allow list for all threads, by what the calls are for.
//!
//! One list serves every thread: the queue threads of both devices share an allocator, a vhost-user library and a
//! panic path, so that separate lists would differ by a handful of socket calls.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::JailError;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Memory, threads, time and signals, as the standard library and glibc use them.
const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_time,
];

/// Descriptors and events, of both devices.
const EVENTS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Sockets: vhost-user's and the streams of vsock. None can be made but Unix ones.
const SOCKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Files, all below the root of the jail.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Acting as the guest's users, within the capabilities that are left.
const IDENTITY: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
];

/// Installs both filters on this thread.
pub(super) fn install() -> Result<(), JailError> {
    let allowed = compile(allow_list()?, SeccompAction::KillProcess, SeccompAction::Allow)?;
    // The flags of clone3 are behind a pointer that a filter cannot follow. Told that there is none, glibc uses clone.
    let no_clone3 = compile(
        Rules::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
    )?;
    // The stricter filter is the last, since it does not allow installing another.
    for filter in [&no_clone3, &allowed] {
        seccompiler::apply_filter(filter).map_err(JailError::Install)?;
    }
    Ok(())
}

fn compile(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> Result<BpfProgram, JailError> {
    SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(JailError::Filter)
}

/// The calls that may be made, some with certain arguments only.
fn allow_list() -> Result<Rules, JailError> {
    let mut rules: Rules =
        [RUNTIME, EVENTS, SOCKETS, FILES, IDENTITY].into_iter().flatten().map(|call| (*call, vec![])).collect();
    // Allowed here for the other filter to refuse.
    rules.insert(libc::SYS_clone3, vec![]);
    // Threads, but no processes.
    let thread = flag_set(0, libc::CLONE_THREAD.cast_unsigned().into())?;
    rules.insert(libc::SYS_clone, vec![thread]);
    // No memory is ever made executable.
    let exec: u64 = libc::PROT_EXEC.cast_unsigned().into();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![argument(2, Op::MaskedEq(exec), 0)?]);
    }
    rules.insert(libc::SYS_socket, vec![argument(0, Op::Eq, libc::AF_UNIX.cast_unsigned().into())?]);
    // A working directory of the thread's own, and nothing else.
    rules.insert(libc::SYS_unshare, vec![argument(0, Op::Eq, libc::CLONE_FS.cast_unsigned().into())?]);
    rules.insert(libc::SYS_ioctl, vec![argument(1, Op::Eq, libc::FIONBIO)?]);
    // Thread names, and looking at capability sets: libcap-ng does so when a file is made for a user of the guest.
    let reads_ambient = SeccompRule::new(vec![
        condition(0, Op::Eq, libc::PR_CAP_AMBIENT.cast_unsigned().into())?,
        condition(1, Op::Eq, libc::PR_CAP_AMBIENT_IS_SET.cast_unsigned().into())?,
    ])
    .map_err(JailError::Filter)?;
    rules.insert(
        libc::SYS_prctl,
        vec![
            argument(0, Op::Eq, libc::PR_SET_NAME.cast_unsigned().into())?,
            argument(0, Op::Eq, libc::PR_CAPBSET_READ.cast_unsigned().into())?,
            reads_ambient,
        ],
    );
    // abort(3), on this process.
    let own_pid = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![argument(0, Op::Eq, own_pid)?]);
    Ok(rules)
}

fn condition(index: u8, op: Op, value: u64) -> Result<SeccompCondition, JailError> {
    SeccompCondition::new(index, Len::Dword, op, value).map_err(JailError::Filter)
}

fn argument(index: u8, op: Op, value: u64) -> Result<SeccompRule, JailError> {
    SeccompRule::new(vec![condition(index, op, value)?]).map_err(JailError::Filter)
}

fn flag_set(index: u8, flag: u64) -> Result<SeccompRule, JailError> {
    argument(index, Op::MaskedEq(flag), flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_has_no_way_to_run_kill_or_look_into_others() {
        let rules = allow_list().unwrap();
        for forbidden in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_kill,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_open,
            libc::SYS_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
        ] {
            assert!(!rules.contains_key(&forbidden), "system call {forbidden}");
        }
        compile(rules, SeccompAction::KillProcess, SeccompAction::Allow).unwrap();
    }
}
