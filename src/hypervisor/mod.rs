//! Which backend runs a sandbox. The only file of the supervisor that names backends.

mod qemu;

use crate::error::{ErrorKind, OpError};
use crate::ids::SandboxId;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stockade_config::{Backend, Config, HypervisorChoice, ImageRoot, guest_kernel_params};
use stockade_hypervisor::{BootSource, ConsoleSink, Hypervisor, KernelImage, MiB, VmConfig};

/// A backend, and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChosenBackend {
    /// Which.
    pub backend: Backend,
    /// Why, in words.
    pub reason: String,
}

/// Makes machines.
pub trait Backends: fmt::Debug + Send + Sync {
    /// The backend that a choice means on this host.
    ///
    /// # Errors
    /// None of it can run here; says why.
    fn choose(&self, choice: HypervisorChoice) -> Result<ChosenBackend, OpError>;

    /// A new machine. Blocks for a probe of the host, a millisecond or so.
    ///
    /// # Errors
    /// The configuration cannot be used.
    fn make(&self, config: &Config, chosen: &ChosenBackend) -> Result<Arc<dyn Hypervisor>, OpError>;
}

/// The backends of this build.
#[derive(Debug)]
pub struct BuiltIn {
    /// This program, for the helper processes that backends start.
    pub executable: PathBuf,
}

impl Backends for BuiltIn {
    fn choose(&self, choice: HypervisorChoice) -> Result<ChosenBackend, OpError> {
        match choice {
            HypervisorChoice::Qemu => {
                Ok(ChosenBackend { backend: Backend::Qemu, reason: "[runtime] hypervisor = \"qemu\"".into() })
            }
            HypervisorChoice::Auto => Ok(ChosenBackend {
                backend: Backend::Qemu,
                reason: "[runtime] hypervisor = \"auto\": QEMU is the backend that this build has".into(),
            }),
            HypervisorChoice::Kvm => {
                let what = "[runtime] hypervisor = \"kvm\": this build has no built-in KVM backend; use \"qemu\" or \"auto\"";
                Err(OpError::new(ErrorKind::InvalidArgument, what))
            }
        }
    }

    fn make(&self, config: &Config, chosen: &ChosenBackend) -> Result<Arc<dyn Hypervisor>, OpError> {
        match chosen.backend {
            Backend::Qemu => Ok(qemu::make(config, &self.executable)?),
            Backend::Kvm => Err(OpError::new(ErrorKind::Unimplemented, "this build has no built-in KVM backend")),
        }
    }
}

/// What a machine of `sandbox` is made of; the network namespace and the devices are added by the caller.
///
/// # Errors
/// The kernel parameters are too long, or a number does not fit.
pub fn machine_config(
    config: &Config,
    chosen: &ChosenBackend,
    sandbox: &SandboxId,
    directory: &Path,
) -> Result<VmConfig, OpError> {
    let options = config.machine(chosen.backend);
    let root = options.image.as_ref().map(|_| ImageRoot { device: "/dev/vda".into(), fstype: options.rootfs_type });
    let params = guest_kernel_params(root.as_ref(), options.enable_debug, &config.agent.kata, &options.kernel_params)
        .map_err(|error| OpError::because(ErrorKind::InvalidArgument, "kernel_params", error))?;
    let boot = match (&options.image, &options.initrd) {
        (Some(image), _) => BootSource::Image { image: image.clone(), initrd: options.image_initrd.clone() },
        (None, Some(initrd)) => BootSource::Initrd(initrd.clone()),
        (None, None) => {
            return Err(OpError::new(ErrorKind::InvalidArgument, "neither initrd nor image is configured"));
        }
    };
    let host_cpus = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    Ok(VmConfig {
        id: sandbox.to_string(),
        run_dir: directory.to_owned(),
        kernel: KernelImage(options.kernel.clone()),
        boot,
        kernel_params: params.0.iter().map(ToString::to_string).collect(),
        vcpus: options.boot_vcpus(host_cpus),
        max_vcpus: options.max_vcpus(host_cpus),
        memory: options.default_memory,
        max_memory: options.max_memory(host_memory()),
        netns: None,
        // The machine's vsock ends in a process of its own, so every machine may have the same address.
        guest_cid: 3,
        devices: Vec::new(),
        console: ConsoleSink(Arc::new(log_console_line)),
        console_log: Some(directory.join("console.log")),
    })
}

/// The guest's console goes into the log. The agent writes its own log there, a JSON object a line.
fn log_console_line(line: &str) {
    #[derive(serde::Deserialize)]
    struct AgentLine {
        msg: String,
        #[serde(default)]
        level: String,
    }
    match serde_json::from_str::<AgentLine>(line) {
        Ok(AgentLine { msg, level }) => match level.as_str() {
            "error" | "critical" => tracing::error!(target: "agent", "{msg}"),
            "warning" | "warn" => tracing::warn!(target: "agent", "{msg}"),
            "debug" | "trace" => tracing::debug!(target: "agent", "{msg}"),
            _ => tracing::info!(target: "agent", "{msg}"),
        },
        Err(_) => tracing::info!(target: "guest", "{line}"),
    }
}

/// The host's memory; what cannot be read counts as 1 GiB.
fn host_memory() -> MiB {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    MiB(kib.and_then(|kib| u32::try_from(kib / 1024).ok()).unwrap_or(1024))
}
