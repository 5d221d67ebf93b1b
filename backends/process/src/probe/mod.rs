//! Tells a KVM that can run a stock guest from one that cannot.
//!
//! Some hosts have a /dev/kvm whose guests must be made for it (a virtual machine monitor inside a container with a
//! paravirtual KVM is one). Such a KVM has no answer to an SSE instruction in long mode, which any stock kernel and
//! libc uses, so the probe runs exactly one: `pxor xmm0, xmm0`, then `hlt`. It takes about a millisecond. It runs in a
//! child that is killed when it takes longer than [`LIMIT`], because a vCPU that never leaves the kernel cannot be left
//! from inside.

mod sys;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmProbe {
    /// A stock guest will run.
    pub usable: bool,
    /// Why, in a person's words.
    pub reason: String,
}

/// How long the probe may take. On a host whose processors are many times overcommitted, the first use of KVM took longer
/// than a second; to take its KVM for unusable then would be wrong for as long as the sandbox lives.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Where the probe's child ended; its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Outcome {
    Usable = 0,
    Missing = 1,
    Forbidden = 2,
    CannotOpen = 3,
    OldApi = 4,
    NoVm = 5,
    NoMemory = 6,
    NoVcpu = 7,
    NoRegisters = 8,
    RunFailed = 9,
    InternalError = 10,
    OtherExit = 11,
}

impl Outcome {
    const ALL: [Self; 12] = [
        Self::Usable,
        Self::Missing,
        Self::Forbidden,
        Self::CannotOpen,
        Self::OldApi,
        Self::NoVm,
        Self::NoMemory,
        Self::NoVcpu,
        Self::NoRegisters,
        Self::RunFailed,
        Self::InternalError,
        Self::OtherExit,
    ];

    fn as_probe(self) -> KvmProbe {
        KvmProbe { usable: self == Self::Usable, reason: self.reason().to_owned() }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Usable => "/dev/kvm runs stock guests",
            Self::Missing => "there is no /dev/kvm: the processor's virtualisation is off or hidden from this host",
            Self::Forbidden => "/dev/kvm may not be opened: run as root or join the group kvm",
            Self::CannotOpen => "/dev/kvm is there and cannot be opened: no kvm module drives it",
            Self::OldApi => "/dev/kvm speaks another version of the interface than 12",
            Self::NoVm => "/dev/kvm makes no virtual machine",
            Self::NoMemory => "/dev/kvm takes no memory for a virtual machine",
            Self::NoVcpu => "/dev/kvm makes no virtual processor",
            Self::NoRegisters => "/dev/kvm does not take the registers of 64-bit mode",
            Self::RunFailed => "/dev/kvm refuses to run a virtual processor",
            Self::InternalError => {
                "/dev/kvm cannot run stock guests: an SSE instruction in 64-bit mode is an internal error of this KVM"
            }
            Self::OtherExit => "/dev/kvm did not run the two instructions of the probe as a processor does",
        }
    }
}

/// What the probe found, where that is known already. Does not block.
pub fn known_kvm_probe() -> Option<KvmProbe> {
    FOUND.get().map(|found| found.as_probe())
}

/// Runs the probe; takes about a millisecond, at most [`LIMIT`]. Blocks. What it found is remembered for the process's
/// life; that it could not find out is not. Of several callers at once, one probes and the others wait for what it finds.
pub fn kvm_probe() -> KvmProbe {
    static PROBING: Mutex<()> = Mutex::new(());
    let _turn = PROBING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known_kvm_probe() {
        return known;
    }
    let unknown = |reason| KvmProbe { usable: false, reason };
    match sys::in_child(LIMIT) {
        Ok(Some(status)) => match Outcome::ALL.into_iter().find(|outcome| *outcome as i32 == status) {
            Some(outcome) => FOUND.get_or_init(|| outcome).as_probe(),
            None => unknown(format!("the probe of /dev/kvm ended with status {status}")),
        },
        Ok(None) => unknown(format!("/dev/kvm did not run two instructions within {} s", LIMIT.as_secs())),
        Err(e) => unknown(format!("cannot probe /dev/kvm: {e}")),
    }
}

static FOUND: OnceLock<Outcome> = OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_ends_in_time_and_says_why() {
        let begun = std::time::Instant::now();
        let probe = kvm_probe();
        assert!(begun.elapsed() < LIMIT * 2);
        assert!(probe.reason.contains("/dev/kvm"), "{probe:?}");
    }
}
