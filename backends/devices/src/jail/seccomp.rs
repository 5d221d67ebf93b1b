//! System call filters: lists of what a thread may do, by what the calls are for, and anything else kills the process.
//!
//! In the device process one list serves every thread: the queue threads of both devices share an allocator, a vhost-user
//! library and a panic path, so that separate lists would differ by a handful of socket calls. The built-in monitor, whose
//! threads differ more, makes a list for each kind of thread of the same parts.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::JailError;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Memory, threads, time and signals, as the standard library and glibc use them.
pub const RUNTIME: &[i64] = &[
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

/// Descriptors and events.
pub const EVENTS: &[i64] = &[
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

/// Sockets that are there, and their connections. Making one is another matter: see [`Allowed::unix_sockets`].
pub const SOCKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Files, all below the root of the jail.
pub const FILES: &[i64] = &[
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
    // By which a saved file is known again. Opening by a handle is another call, and takes a capability.
    libc::SYS_name_to_handle_at,
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
pub const IDENTITY: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
];

/// The calls that a thread may make.
#[derive(Debug, Clone, Default)]
pub struct Allowed(Rules);

impl Allowed {
    /// What every thread of a Rust program needs: memory that is never made executable, and ending itself.
    ///
    /// # Errors
    /// None that can be helped: a condition does not make sense.
    pub fn runtime() -> Result<Self, JailError> {
        let mut allowed = Self::default();
        allowed.calls(RUNTIME);
        let exec: u64 = libc::PROT_EXEC.cast_unsigned().into();
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            allowed.rule(call, vec![condition(2, Op::MaskedEq(exec), 0)?])?;
        }
        allowed.argument(libc::SYS_prctl, 0, &[libc::PR_SET_NAME.cast_unsigned().into()])?;
        // abort(3), and kicking a thread of this process.
        allowed.argument(libc::SYS_tgkill, 0, &[u64::from(std::process::id())])?;
        Ok(allowed)
    }

    /// These calls, whatever their arguments.
    pub fn calls(&mut self, calls: &[i64]) -> &mut Self {
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// `call` where the low 32 bits of its argument `index` are one of `values`.
    ///
    /// # Errors
    /// There is no argument of that index.
    pub fn argument(&mut self, call: i64, index: u8, values: &[u64]) -> Result<&mut Self, JailError> {
        for value in values {
            self.rule(call, vec![condition(index, Op::Eq, *value)?])?;
        }
        Ok(self)
    }

    /// `call` where all of `conditions` hold, beside what is allowed of it already.
    ///
    /// # Errors
    /// There are no conditions.
    pub fn rule(&mut self, call: i64, conditions: Vec<SeccompCondition>) -> Result<&mut Self, JailError> {
        let rule = SeccompRule::new(conditions).map_err(JailError::Filter)?;
        // A call that is allowed whatever its arguments has no rules.
        match self.0.get_mut(&call) {
            Some(rules) if rules.is_empty() => {}
            Some(rules) => rules.push(rule),
            None => drop(self.0.insert(call, vec![rule])),
        }
        Ok(self)
    }

    /// Starting threads of this process, but no processes.
    ///
    /// # Errors
    /// None that can be helped: a condition makes no sense.
    pub fn threads(&mut self) -> Result<&mut Self, JailError> {
        // Allowed here for `refuse_clone3` to refuse.
        self.calls(&[libc::SYS_clone3]);
        let thread: u64 = libc::CLONE_THREAD.cast_unsigned().into();
        self.rule(libc::SYS_clone, vec![condition(0, Op::MaskedEq(thread), thread)?])
    }

    /// Making Unix sockets, and no others.
    ///
    /// # Errors
    /// None that can be helped: a condition makes no sense.
    pub fn unix_sockets(&mut self) -> Result<&mut Self, JailError> {
        self.argument(libc::SYS_socket, 0, &[libc::AF_UNIX.cast_unsigned().into()])
    }

    /// A working directory and umask of the thread's own, and no other `unshare`.
    ///
    /// # Errors
    /// None that can be helped: a condition makes no sense.
    pub fn own_directory(&mut self) -> Result<&mut Self, JailError> {
        self.argument(libc::SYS_unshare, 0, &[libc::CLONE_FS.cast_unsigned().into()])
    }

    /// Serving files as any user: all below the root of the jail, within the capabilities that are left.
    ///
    /// # Errors
    /// None that can be helped: a condition makes no sense.
    pub fn file_server(&mut self) -> Result<&mut Self, JailError> {
        self.calls(FILES).calls(IDENTITY).own_directory()?;
        // Looking at capability sets: libcap-ng does so when a file is made for a user of the guest.
        self.argument(libc::SYS_prctl, 0, &[libc::PR_CAPBSET_READ.cast_unsigned().into()])?;
        self.rule(
            libc::SYS_prctl,
            vec![
                condition(0, Op::Eq, libc::PR_CAP_AMBIENT.cast_unsigned().into())?,
                condition(1, Op::Eq, libc::PR_CAP_AMBIENT_IS_SET.cast_unsigned().into())?,
            ],
        )
    }

    /// Whether `call` may be made, with some arguments at least.
    #[must_use]
    pub fn allows(&self, call: i64) -> bool {
        self.0.contains_key(&call)
    }

    /// The filter, ready to be installed.
    ///
    /// # Errors
    /// It is too large for the kernel.
    pub fn compile(&self) -> Result<Filter, JailError> {
        compile(self.0.clone(), SeccompAction::KillProcess, SeccompAction::Allow)
    }
}

/// A compiled filter.
#[derive(Debug, Clone)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Installs it on this thread, for good; threads that it starts have it too. Where several are installed, all must allow
    /// a call.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn install(&self) -> Result<(), JailError> {
        seccompiler::apply_filter(&self.0).map_err(JailError::Install)
    }
}

/// Has `clone3` answered by ENOSYS on this thread and those that it starts. Its flags are behind a pointer that a filter
/// cannot follow; told that there is no such call, glibc uses `clone`.
///
/// # Errors
/// The kernel refuses.
pub fn refuse_clone3() -> Result<(), JailError> {
    let refused = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    compile(Rules::from([(libc::SYS_clone3, vec![])]), SeccompAction::Allow, refused)?.install()
}

/// Installs both filters of the device process on this thread.
pub(super) fn install() -> Result<(), JailError> {
    let allowed = device_process()?.compile()?;
    // The stricter filter is the last, since it does not allow installing another.
    refuse_clone3()?;
    allowed.install()
}

fn compile(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> Result<Filter, JailError> {
    SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map(Filter)
        .map_err(JailError::Filter)
}

/// What the threads of the device process may do.
fn device_process() -> Result<Allowed, JailError> {
    let mut allowed = Allowed::runtime()?;
    allowed.calls(EVENTS).calls(SOCKETS).threads()?.unix_sockets()?.file_server()?;
    allowed.argument(libc::SYS_ioctl, 1, &[libc::FIONBIO])?;
    Ok(allowed)
}

/// A condition on the low 32 bits of the argument `index`.
///
/// # Errors
/// There is no argument of that index.
pub fn condition(index: u8, op: Op, value: u64) -> Result<SeccompCondition, JailError> {
    SeccompCondition::new(index, Len::Dword, op, value).map_err(JailError::Filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_has_no_way_to_run_kill_or_look_into_others() {
        let allowed = device_process().unwrap();
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
            assert!(!allowed.allows(forbidden), "system call {forbidden}");
        }
        allowed.compile().unwrap();
    }
}
