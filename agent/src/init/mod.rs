//! What the agent does as the guest's first process, before it serves calls.

mod modules;
mod mounts;
mod root;

use crate::log;

/// Makes the guest usable: root, file systems, modules, cgroups. Needs no runtime.
///
/// Only what nothing works without ends the agent; anything else is reported on the console.
pub(crate) fn prepare() -> Result<Vec<String>, InitError> {
    root::leave_initramfs()?;
    let mut problems = mounts::mount_all()?;
    problems.extend(modules::load_all());
    if let Err(e) = crate::cgroup::enable_controllers() {
        problems.push(format!("cgroup controllers: {e}"));
    }
    Ok(problems)
}

/// Why the guest cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The root could not be made one that containers can leave.
    #[error("cannot {step} to leave the initramfs")]
    Root {
        step: &'static str,
        #[source]
        source: nix::errno::Errno,
    },
    /// A file system without which no container runs.
    #[error("cannot mount {what} at {target}")]
    Mount {
        what: &'static str,
        target: &'static str,
        #[source]
        source: nix::errno::Errno,
    },
}

/// Ends the machine: in order, or at once.
pub(crate) fn power_off() {
    use nix::sys::reboot::{RebootMode, reboot};
    nix::unistd::sync();
    // Returns only when it fails, and then the end of init makes the kernel panic, which ends the machine too.
    let Err(e) = reboot(RebootMode::RB_POWER_OFF);
    log::error!("cannot power off: {e}");
}
