//! Which backend runs the tests' machines: the one parameter that every test with a machine has.

/// A backend, and for QEMU what executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// QEMU with an emulated processor, which runs anywhere.
    QemuTcg,
    /// QEMU with KVM.
    QemuKvm,
    /// The built-in monitor.
    Kvm,
}

/// The variable that names the backend.
const VARIABLE: &str = "STOCKADE_TEST_BACKEND";

impl Backend {
    const ALL: [Self; 3] = [Self::QemuTcg, Self::QemuKvm, Self::Kvm];

    /// The one of STOCKADE_TEST_BACKEND: "qemu-tcg", which it is without, "qemu-kvm" or "kvm".
    ///
    /// # Panics
    /// When it is another word.
    #[must_use]
    pub fn under_test() -> Self {
        let Ok(name) = std::env::var(VARIABLE) else { return Self::QemuTcg };
        let known = Self::ALL.into_iter().find(|backend| backend.name() == name);
        known.unwrap_or_else(|| panic!("{VARIABLE} is {name:?}, not one of {:?}", Self::ALL.map(Self::name)))
    }

    /// As STOCKADE_TEST_BACKEND has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QemuTcg => "qemu-tcg",
            Self::QemuKvm => "qemu-kvm",
            Self::Kvm => "kvm",
        }
    }

    /// What `[runtime] hypervisor` calls it, and its section of `[hypervisor]`.
    #[must_use]
    pub fn section(self) -> &'static str {
        match self {
            Self::QemuTcg | Self::QemuKvm => "qemu",
            Self::Kvm => "kvm",
        }
    }

    /// The value of `accelerator`, where the section has it.
    #[must_use]
    pub fn accelerator(self) -> Option<&'static str> {
        match self {
            Self::QemuTcg => Some("tcg"),
            Self::QemuKvm => Some("kvm"),
            Self::Kvm => None,
        }
    }

    /// A part of the command line of the process that runs the machine.
    #[must_use]
    pub fn monitor_process(self) -> &'static str {
        match self {
            Self::QemuTcg | Self::QemuKvm => "qemu-system",
            Self::Kvm => " vmm",
        }
    }

    /// A part of the command line of the process that serves the machine's devices; it may be the monitor.
    #[must_use]
    pub fn devices_process(self) -> &'static str {
        match self {
            Self::QemuTcg | Self::QemuKvm => " vhost-user ",
            Self::Kvm => self.monitor_process(),
        }
    }
}
