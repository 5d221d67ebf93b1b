//! What the configuration says of QEMU.

use std::path::{Path, PathBuf};
use std::time::Duration;
use stockade_hypervisor::HypervisorError;
use stockade_machine_process::probe::{self, KvmProbe};

/// The board that QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MachineType {
    /// PCI Express; hot-plug into a PCI bridge.
    Q35,
    /// The old PCI board. Its ACPI table of interrupts is a program, which a guest runs once for each device of the boot.
    Pc,
    /// No PCI: virtio over memory-mapped registers, the fastest boot, no hot-plug.
    #[default]
    Microvm,
}

impl MachineType {
    /// Its name on QEMU's command line and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
            Self::Microvm => "microvm",
        }
    }
}

impl std::str::FromStr for MachineType {
    type Err = HypervisorError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Q35, Self::Pc, Self::Microvm].into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
            HypervisorError::Config {
                option: "machine_type",
                problem: format!("{name:?} is not one of q35, pc, microvm"),
            }
        })
    }
}

/// How the guest's instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accelerator {
    /// KVM where the probe finds that it can run a stock guest, else TCG.
    #[default]
    Auto,
    /// KVM; a host without a usable one is an error.
    Kvm,
    /// Software emulation: slow, and works everywhere.
    Tcg,
}

impl std::str::FromStr for Accelerator {
    type Err = HypervisorError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(HypervisorError::Config {
                option: "accelerator",
                problem: format!("{name:?} is not one of auto, kvm, tcg"),
            }),
        }
    }
}

/// How machines of this backend are made.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// QEMU's program: a path, or a name that is looked up in the usual directories.
    pub binary: PathBuf,
    /// The board.
    pub machine_type: MachineType,
    /// More of QEMU's machine options, appended to the board's name (Kata's `machine_accelerators`).
    pub machine_options: String,
    /// KVM or emulation.
    pub accelerator: Accelerator,
    /// CPU features that are appended to the model: `pmu=off,-vmx`.
    pub cpu_features: String,
    /// The `stockade` program, whose `vhost-user` command serves shares and vsock.
    pub stockade_exe: PathBuf,
    /// QEMU's `-sandbox`: which system calls its own seccomp filter denies. Empty: no filter.
    pub seccomp_sandbox: String,
    /// Lets the guest's kernel and QEMU say more.
    pub debug: bool,
    /// The limit from the spawn to the first answer of QEMU's monitor.
    pub start_limit: Duration,
    /// The limit for each later answer of the monitor, and for the guest to let a device go.
    pub answer_limit: Duration,
}

impl Default for QemuOptions {
    fn default() -> Self {
        Self {
            binary: "qemu-system-x86_64".into(),
            machine_type: MachineType::default(),
            machine_options: String::new(),
            accelerator: Accelerator::default(),
            cpu_features: String::new(),
            stockade_exe: "/proc/self/exe".into(),
            seccomp_sandbox: "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
            debug: false,
            start_limit: Duration::from_secs(10),
            answer_limit: Duration::from_secs(5),
        }
    }
}

/// What the accelerator came out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acceleration {
    Kvm,
    Tcg,
}

impl QemuOptions {
    /// QEMU's program as an absolute path of an existing file.
    ///
    /// # Errors
    /// [`HypervisorError::Config`] that says what to install.
    pub fn find_binary(&self) -> Result<PathBuf, HypervisorError> {
        let executable = |path: &Path| {
            use std::os::unix::fs::PermissionsExt;
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let found = if self.binary.components().count() > 1 {
            Some(self.binary.clone()).filter(|path| executable(path))
        } else {
            ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/bin"]
                .iter()
                .map(|directory| Path::new(directory).join(&self.binary))
                .find(|path| executable(path))
        };
        found.ok_or_else(|| HypervisorError::Config {
            option: "path",
            problem: format!(
                "there is no program {}; install it with: apt-get install qemu-system-x86",
                self.binary.display()
            ),
        })
    }

    pub(crate) fn acceleration(&self, kvm: &KvmProbe) -> Result<Acceleration, HypervisorError> {
        match (self.accelerator, kvm.usable) {
            (Accelerator::Tcg, _) | (Accelerator::Auto, false) => Ok(Acceleration::Tcg),
            (Accelerator::Kvm | Accelerator::Auto, true) => Ok(Acceleration::Kvm),
            (Accelerator::Kvm, false) => {
                Err(HypervisorError::Config { option: "accelerator", problem: kvm.reason.clone() })
            }
        }
    }

    pub(crate) fn probe(&self) -> KvmProbe {
        if self.accelerator == Accelerator::Tcg {
            return KvmProbe { usable: false, reason: "the configuration asks for tcg".to_owned() };
        }
        probe::kvm_probe()
    }
}
