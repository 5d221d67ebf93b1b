//! The typed configuration and its defaults. Serialised, it has the keys and units of the TOML, so that the supervisor
//! can be handed it as JSON; a value that came through [`Config::load`](crate::Config::load) or
//! [`apply_annotations`](crate::apply_annotations) has been checked against [`crate::schema`].

use crate::kernel_params::KernelParams;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use stockade_hypervisor::{MiB, ShareCache, StopDeadlines};

/// A closed set of words: the enum, its TOML form and its `Display` from one list.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The word in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// A backend that can run a sandbox.
    Backend {
        /// The QEMU process.
        Qemu = "qemu",
        /// The built-in monitor on KVM.
        Kvm = "kvm",
    }
}

words! {
    /// `[runtime] hypervisor`.
    HypervisorChoice {
        /// The first backend that works on this host.
        Auto = "auto",
        /// The built-in monitor on KVM.
        Kvm = "kvm",
        /// The QEMU process.
        Qemu = "qemu",
    }
}

words! {
    /// `[hypervisor.qemu] machine_type`.
    MachineType {
        /// PCI Express chipset.
        Q35 = "q35",
        /// PCI chipset; boots fastest where the processor is emulated.
        Pc = "pc",
        /// No PCI, virtio-mmio devices only.
        Microvm = "microvm",
    }
}

words! {
    /// `[hypervisor.qemu] accelerator`.
    Accelerator {
        /// KVM where it can run a stock guest, else emulation.
        Auto = "auto",
        /// KVM or an error.
        Kvm = "kvm",
        /// Emulation.
        Tcg = "tcg",
    }
}

words! {
    /// `block_device_driver`.
    BlockDeviceDriver {
        /// What the machine has.
        Auto = "auto",
        /// On PCI.
        VirtioBlkPci = "virtio-blk-pci",
        /// On virtio-mmio.
        VirtioBlkMmio = "virtio-blk-mmio",
    }
}

words! {
    /// `shared_fs`.
    SharedFs {
        /// The built-in virtio-fs device.
        VirtioFs = "virtio-fs",
    }
}

words! {
    /// `rootfs_type`.
    RootfsType {
        /// ext4.
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// EROFS.
        Erofs = "erofs",
    }
}

words! {
    /// `[runtime] internetworking_model`.
    InternetworkingModel {
        /// A tap, with tc redirecting between it and the interface of the namespace.
        Tcfilter = "tcfilter",
        /// A macvtap on the interface of the namespace.
        Macvtap = "macvtap",
        /// The guest gets no interface.
        None = "none",
    }
}

words! {
    /// `[runtime] log_level`, from all to little.
    LogLevel {
        /// Everything.
        Trace = "trace",
        /// For a developer.
        Debug = "debug",
        /// What an operator wants to know.
        Info = "info",
        /// What may go wrong.
        Warn = "warn",
        /// What went wrong.
        Error = "error",
    }
}

words! {
    /// `[agent.kata] log_level`, from little to all, so that the greater one says more.
    AgentLogLevel {
        /// What ends the agent.
        Critical = "critical",
        /// What went wrong.
        Error = "error",
        /// What may go wrong.
        Warn = "warn",
        /// What an operator wants to know.
        Info = "info",
        /// For a developer.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// Durations as whole numbers of the unit that the key has.
mod seconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_secs())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

mod milliseconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A path that may be absent, as a string that may be empty: TOML has no null, and `""` in a drop-in takes a path away.
mod optional_path {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::path::PathBuf;

    pub(super) fn serialize<S: Serializer>(value: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(path) => path.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        Ok((!path.as_os_str().is_empty()).then_some(path))
    }
}

/// The whole configuration. `default()` is the built-in one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[runtime]`.
    pub runtime: RuntimeOptions,
    /// `[hypervisor.*]`.
    pub hypervisor: HypervisorTables,
    /// `[agent.*]`.
    pub agent: AgentTables,
    /// `[factory]`.
    pub factory: FactoryOptions,
}

impl Config {
    /// The options that every backend has, of this one.
    pub fn machine(&self, backend: Backend) -> &MachineOptions {
        match backend {
            Backend::Qemu => &self.hypervisor.qemu.machine,
            Backend::Kvm => &self.hypervisor.kvm.machine,
        }
    }
}

/// One table for each backend.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HypervisorTables {
    /// `[hypervisor.qemu]`.
    pub qemu: QemuOptions,
    /// `[hypervisor.kvm]`.
    pub kvm: KvmOptions,
}

/// One table for each kind of agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentTables {
    /// `[agent.kata]`: any agent that speaks Kata's agent contract, Stockade's own among them.
    pub kata: AgentOptions,
}

/// `[runtime]`: the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeOptions {
    /// Which backend runs sandboxes.
    pub hypervisor: HypervisorChoice,
    /// How an interface of the namespace reaches the guest.
    pub internetworking_model: InternetworkingModel,
    /// Run in the caller's network namespace, without a network for the guest.
    pub disable_new_netns: bool,
    /// Drop the containers' seccomp profiles.
    pub disable_guest_seccomp: bool,
    /// Put every process of a sandbox into the pod's cgroup.
    pub sandbox_cgroup_only: bool,
    /// Size a machine once, from its pod's limits.
    pub static_sandbox_resource_mgmt: bool,
    /// The longest that a whole creation may take.
    #[serde(with = "seconds")]
    pub create_timeout: Duration,
    /// For hooks that name no timeout; zero: they may take for ever.
    #[serde(with = "seconds")]
    pub default_hook_timeout: Duration,
    /// Log at `debug` at least.
    pub enable_debug: bool,
    /// What the supervisor logs.
    pub log_level: LogLevel,
    /// Experimental features that are switched on.
    pub experimental: Vec<String>,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            hypervisor: HypervisorChoice::Auto,
            internetworking_model: InternetworkingModel::Tcfilter,
            disable_new_netns: false,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: false,
            static_sandbox_resource_mgmt: true,
            create_timeout: Duration::from_secs(120),
            default_hook_timeout: Duration::from_secs(60),
            enable_debug: false,
            log_level: LogLevel::Info,
            experimental: Vec::new(),
        }
    }
}

impl RuntimeOptions {
    /// The level that is in force.
    pub fn effective_log_level(&self) -> LogLevel {
        if self.enable_debug { self.log_level.min(LogLevel::Debug) } else { self.log_level }
    }
}

/// `[hypervisor.qemu]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QemuOptions {
    /// The program; a name without a slash is searched in `PATH`.
    pub path: PathBuf,
    /// Globs that an annotation's `path` must match.
    pub valid_hypervisor_paths: Vec<String>,
    /// `-machine`.
    pub machine_type: MachineType,
    /// Properties that are added to `-machine`, separated by commas.
    pub machine_accelerators: String,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Features that are added to `-cpu`, separated by commas.
    pub cpu_features: String,
    /// `-sandbox`; empty: without it.
    pub seccomp_sandbox: String,
    /// How block devices are attached.
    pub block_device_driver: BlockDeviceDriver,
    /// What every backend has.
    #[serde(flatten)]
    pub machine: MachineOptions,
}

impl Default for QemuOptions {
    fn default() -> Self {
        Self {
            path: "qemu-system-x86_64".into(),
            valid_hypervisor_paths: vec!["/usr/bin/qemu-system-x86_64".into()],
            machine_type: MachineType::Q35,
            machine_accelerators: String::new(),
            accelerator: Accelerator::Auto,
            cpu_features: "pmu=off".into(),
            seccomp_sandbox: "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
            block_device_driver: BlockDeviceDriver::Auto,
            machine: MachineOptions::default(),
        }
    }
}

/// `[hypervisor.kvm]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvmOptions {
    /// Run the monitor without its system call filter.
    pub disable_seccomp: bool,
    /// How block devices are attached.
    pub block_device_driver: BlockDeviceDriver,
    /// What every backend has.
    #[serde(flatten)]
    pub machine: MachineOptions,
}

impl Default for KvmOptions {
    fn default() -> Self {
        Self {
            disable_seccomp: false,
            block_device_driver: BlockDeviceDriver::Auto,
            machine: MachineOptions::default(),
        }
    }
}

/// The part of a hypervisor's table that every backend has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineOptions {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The initrd whose /init is the agent; `None` when `image` is set.
    #[serde(with = "optional_path")]
    pub initrd: Option<PathBuf>,
    /// The disk image whose systemd starts the agent.
    #[serde(with = "optional_path")]
    pub image: Option<PathBuf>,
    /// The initrd that finds and mounts `image`, for a kernel whose disk drivers are modules.
    #[serde(with = "optional_path")]
    pub image_initrd: Option<PathBuf>,
    /// The file system of `image`.
    pub rootfs_type: RootfsType,
    /// Globs that an annotation's kernel, initrd and image must match.
    pub valid_guest_paths: Vec<String>,
    /// The user's own kernel parameters, which come last.
    pub kernel_params: KernelParams,
    /// vCPUs at boot; see [`boot_vcpus`](Self::boot_vcpus).
    pub default_vcpus: i32,
    /// The ceiling of vCPUs; see [`max_vcpus`](Self::max_vcpus).
    pub default_maxvcpus: u32,
    /// Added to a pod's vCPU limit.
    pub overhead_vcpus: f64,
    /// Memory of a machine whose pod sets no limit.
    pub default_memory: MiB,
    /// The ceiling of memory; see [`max_memory`](Self::max_memory).
    pub default_maxmemory: MiB,
    /// Added to a pod's memory limit.
    pub overhead_memory: MiB,
    /// How many times memory may be added.
    pub memory_slots: u32,
    /// Give memory back to the host that the guest freed.
    pub reclaim_guest_freed_memory: bool,
    /// How directories reach the guest.
    pub shared_fs: SharedFs,
    /// How much of a share the guest caches.
    pub virtio_fs_cache: ShareCache,
    /// Requests in a virtio-fs queue.
    pub virtio_fs_queue_size: u16,
    /// Never pass a block device; mount it on the host and share it.
    pub disable_block_device_use: bool,
    /// Serve network queues in the monitor, without the host kernel's vhost-net.
    pub disable_vhost_net: bool,
    /// Queue pairs of each network interface.
    pub network_queues: u16,
    /// What a network interface may receive, in bits a second; 0: without limit.
    pub rx_rate_limiter_max_rate: u64,
    /// What a network interface may send, in bits a second; 0: without limit.
    pub tx_rate_limiter_max_rate: u64,
    /// The host file that feeds the guest's virtio-rng.
    pub entropy_source: PathBuf,
    /// Globs that an annotation's `entropy_source` must match.
    pub valid_entropy_sources: Vec<String>,
    /// A directory in the guest with hooks for each container.
    #[serde(with = "optional_path")]
    pub guest_hook_path: Option<PathBuf>,
    /// The time that a guest has at least until its agent answers; `reconnect_timeout` counts where it is longer.
    #[serde(with = "seconds")]
    pub boot_timeout: Duration,
    /// First rung of the stop ladder: the guest powers off.
    #[serde(with = "seconds")]
    pub stop_timeout: Duration,
    /// Second rung: the monitor is told to quit.
    #[serde(with = "seconds")]
    pub quit_timeout: Duration,
    /// Third rung: SIGTERM. SIGKILL follows.
    #[serde(with = "seconds")]
    pub term_timeout: Duration,
    /// Make the files of the guest kernel's tracer.
    pub guest_tracing: bool,
    /// Let the guest's kernel and the monitor talk.
    pub enable_debug: bool,
    /// Which annotations are allowed, of all namespaces.
    pub enable_annotations: Vec<String>,
}

impl Default for MachineOptions {
    fn default() -> Self {
        let stop = StopDeadlines::default();
        Self {
            kernel: "/usr/share/stockade/guest/vmlinux".into(),
            initrd: Some("/usr/share/stockade/guest/initrd.img".into()),
            image: None,
            image_initrd: None,
            rootfs_type: RootfsType::Ext4,
            valid_guest_paths: vec!["/usr/share/stockade/guest/*".into()],
            kernel_params: KernelParams::default(),
            default_vcpus: 1,
            default_maxvcpus: 0,
            overhead_vcpus: 0.0,
            default_memory: MiB(512),
            default_maxmemory: MiB(0),
            overhead_memory: MiB(128),
            memory_slots: 10,
            reclaim_guest_freed_memory: false,
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_cache: ShareCache::Auto,
            virtio_fs_queue_size: 1024,
            disable_block_device_use: false,
            disable_vhost_net: false,
            network_queues: 1,
            rx_rate_limiter_max_rate: 0,
            tx_rate_limiter_max_rate: 0,
            entropy_source: "/dev/urandom".into(),
            valid_entropy_sources: vec!["/dev/urandom".into(), "/dev/random".into(), "/dev/hwrng".into()],
            guest_hook_path: None,
            boot_timeout: Duration::from_secs(30),
            stop_timeout: stop.guest,
            quit_timeout: stop.quit,
            term_timeout: stop.term,
            guest_tracing: false,
            enable_debug: false,
            enable_annotations: Vec::new(),
        }
    }
}

impl MachineOptions {
    /// vCPUs at boot on a host with this many: 0 means one, -1 all of them, and never more than there are.
    pub fn boot_vcpus(&self, host: u32) -> u32 {
        let host = host.max(1);
        match u32::try_from(self.default_vcpus) {
            Ok(0) => 1,
            Ok(count) => count.min(host),
            Err(_) => host,
        }
    }

    /// The ceiling of vCPUs on a host with this many: 0 means all of them. At least [`boot_vcpus`](Self::boot_vcpus).
    pub fn max_vcpus(&self, host: u32) -> u32 {
        let most = if self.default_maxvcpus == 0 { host } else { self.default_maxvcpus.min(host) };
        most.max(self.boot_vcpus(host))
    }

    /// The ceiling of memory on a host with this much: 0 means all of it. At least `default_memory`.
    pub fn max_memory(&self, host: MiB) -> MiB {
        let most = if self.default_maxmemory == MiB(0) { host } else { self.default_maxmemory.min(host) };
        most.max(self.default_memory)
    }

    /// The rungs of the stop ladder.
    pub fn stop_deadlines(&self) -> StopDeadlines {
        StopDeadlines { guest: self.stop_timeout, quit: self.quit_timeout, term: self.term_timeout }
    }
}

/// `[agent.kata]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentOptions {
    /// Log at `debug` at least.
    pub enable_debug: bool,
    /// What the agent logs.
    pub log_level: AgentLogLevel,
    /// Modules that the agent loads for a sandbox: `name parameter=value ...`.
    pub kernel_modules: Vec<String>,
    /// A shell on vsock port [`crate::DEBUG_CONSOLE_PORT`], without any authentication.
    pub debug_console_enabled: bool,
    /// The pause between two attempts to reach the agent.
    #[serde(rename = "dial_timeout_ms", with = "milliseconds")]
    pub dial_timeout: Duration,
    /// How long the agent is tried in all, from the start of the machine.
    #[serde(rename = "reconnect_timeout_ms", with = "milliseconds")]
    pub reconnect_timeout: Duration,
    /// The deadline of CreateContainer.
    #[serde(with = "seconds")]
    pub create_container_timeout: Duration,
    /// The deadline of any other call that does not wait for a process.
    #[serde(with = "seconds")]
    pub request_timeout: Duration,
    /// Bytes in the pipe of a container's output; 0: what the guest's kernel gives.
    pub container_pipe_size: u32,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            enable_debug: false,
            log_level: AgentLogLevel::Info,
            kernel_modules: Vec::new(),
            debug_console_enabled: false,
            dial_timeout: Duration::from_millis(10),
            reconnect_timeout: Duration::from_secs(60),
            create_container_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            container_pipe_size: 0,
        }
    }
}

/// `[factory]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FactoryOptions {
    /// Start machines from a template.
    pub enable_template: bool,
    /// Where the template is kept.
    pub template_path: PathBuf,
    /// Machines that are kept ready; 0: none.
    pub vm_cache_number: u32,
    /// The socket of the cache.
    pub vm_cache_endpoint: PathBuf,
}

impl Default for FactoryOptions {
    fn default() -> Self {
        Self {
            enable_template: false,
            template_path: "/run/stockade/template".into(),
            vm_cache_number: 0,
            vm_cache_endpoint: "/run/stockade/cache.sock".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_follow_the_host_and_never_exceed_it() {
        let vcpus = |default_vcpus, default_maxvcpus, host| {
            let machine = MachineOptions { default_vcpus, default_maxvcpus, ..MachineOptions::default() };
            (machine.boot_vcpus(host), machine.max_vcpus(host))
        };
        assert_eq!(vcpus(0, 0, 8), (1, 8));
        assert_eq!(vcpus(-1, 2, 8), (8, 8));
        assert_eq!(vcpus(4, 6, 8), (4, 6));
        assert_eq!(vcpus(4, 6, 2), (2, 2));
        assert_eq!(vcpus(1, 0, 0), (1, 1));
    }

    #[test]
    fn the_configuration_survives_the_way_to_the_supervisor() {
        let mut config = Config::default();
        config.hypervisor.qemu.machine.kernel_params = "a b=1 a".parse().unwrap();
        config.hypervisor.qemu.machine.initrd = None;
        config.hypervisor.kvm.machine.overhead_vcpus = 0.5;
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }

    #[test]
    fn enabling_debug_never_makes_a_log_say_less() {
        let level = |enable_debug, log_level| {
            RuntimeOptions { enable_debug, log_level, ..RuntimeOptions::default() }.effective_log_level()
        };
        assert_eq!(level(true, LogLevel::Info), LogLevel::Debug);
        assert_eq!(level(true, LogLevel::Trace), LogLevel::Trace);
        assert_eq!(level(false, LogLevel::Error), LogLevel::Error);
    }
}
