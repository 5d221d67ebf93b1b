//! Which backend runs a sandbox. The only file of the supervisor that names backends.

mod kvm;
mod qemu;

use crate::error::{ErrorKind, OpError};
use crate::ids::SandboxId;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::sysinfo::sysinfo;
use nix::unistd::Pid;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stockade_agent_protocol::READY;
use stockade_config::{Accelerator, Backend, Config, HypervisorChoice, ImageRoot, guest_kernel_params};
use stockade_hypervisor::{BootSource, ConsoleSink, Hypervisor, HypervisorError, KernelImage, MiB, VmConfig};
use stockade_machine_process::probe::{KvmProbe, known_kvm_probe, kvm_probe};
use tokio::sync::Notify;

/// A backend, and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChosenBackend {
    /// Which.
    pub backend: Backend,
    /// Why, in words.
    pub reason: String,
}

/// Makes machines.
#[async_trait::async_trait]
pub trait Backends: fmt::Debug + Send + Sync {
    /// The backend that a choice means on this host; waits for a probe of the host where one is needed.
    ///
    /// # Errors
    /// None of it can run here; says why.
    async fn choose(&self, choice: HypervisorChoice) -> Result<ChosenBackend, OpError>;

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

#[async_trait::async_trait]
impl Backends for BuiltIn {
    async fn choose(&self, choice: HypervisorChoice) -> Result<ChosenBackend, OpError> {
        match choice {
            HypervisorChoice::Qemu => {
                Ok(ChosenBackend { backend: Backend::Qemu, reason: "[runtime] hypervisor = \"qemu\"".into() })
            }
            HypervisorChoice::Auto => Ok(automatic(&probed().await?)),
            HypervisorChoice::Kvm => {
                let probe = probed().await?;
                if !probe.usable {
                    return Err(OpError::new(ErrorKind::InvalidArgument, kvm::refusal(&probe)));
                }
                Ok(ChosenBackend { backend: Backend::Kvm, reason: "[runtime] hypervisor = \"kvm\"".into() })
            }
        }
    }

    fn make(&self, config: &Config, chosen: &ChosenBackend) -> Result<Arc<dyn Hypervisor>, OpError> {
        match chosen.backend {
            Backend::Qemu => Ok(qemu::make(config, &self.executable)?),
            Backend::Kvm => Ok(kvm::make(config, &self.executable)?),
        }
    }
}

/// What the probe of KVM finds, on a thread that may block unless it is known.
async fn probed() -> Result<KvmProbe, OpError> {
    match known_kvm_probe() {
        Some(known) => Ok(known),
        None => tokio::task::spawn_blocking(kvm_probe)
            .await
            .map_err(|error| OpError::internal("cannot choose a hypervisor", error)),
    }
}

/// Looks at the host ahead of the first sandbox: begins to measure its clock, and probes KVM, on a thread of its own, unless
/// QEMU is to emulate a processor in any case.
pub fn look_ahead(config: &Config) {
    stockade_qemu::look_ahead();
    let runtime = &config.runtime;
    let emulated = config.hypervisor.qemu.accelerator == Accelerator::Tcg;
    if runtime.hypervisor != HypervisorChoice::Qemu || !emulated {
        // Whoever needs it and does not find it known probes again.
        _ = std::thread::Builder::new().name("kvm-probe".to_owned()).spawn(kvm_probe);
    }
}

/// The built-in monitor where KVM runs stock guests, else QEMU, which can emulate a processor.
fn automatic(probe: &KvmProbe) -> ChosenBackend {
    let (backend, what) = if probe.usable { (Backend::Kvm, "the built-in monitor") } else { (Backend::Qemu, "QEMU") };
    ChosenBackend { backend, reason: format!("[runtime] hypervisor = \"auto\": {what}, as {}", probe.reason) }
}

/// Refuses what is no kernel: a monitor's words for it name neither the option nor the file. That it is there is checked
/// with the rest of the machine's configuration.
fn bootable(kernel: &Path) -> Result<(), HypervisorError> {
    let Ok(mut file) = File::open(kernel) else { return Ok(()) };
    let mut head = [0; BZIMAGE_MAGIC + 4];
    let read = file.read_exact(&mut head);
    if read.is_ok() && (head.starts_with(b"\x7fELF") || head[BZIMAGE_MAGIC..] == *b"HdrS") {
        return Ok(());
    }
    let problem = format!("{} is neither a bzImage nor an ELF file", kernel.display());
    Err(HypervisorError::Config { option: "kernel", problem })
}

/// Where the header of a bzImage has "HdrS" (Linux's boot protocol for x86).
const BZIMAGE_MAGIC: usize = 0x202;

/// What a machine of `sandbox` is made of; the network namespace and the devices are added by the caller. `agent_ready` is
/// told when the guest says so on its console.
///
/// # Errors
/// The kernel parameters are too long, or a number does not fit.
pub fn machine_config(
    config: &Config,
    chosen: &ChosenBackend,
    sandbox: &SandboxId,
    directory: &Path,
    agent_ready: Arc<Notify>,
) -> Result<VmConfig, OpError> {
    let options = config.machine(chosen.backend);
    let root = options.image.as_ref().map(|_| ImageRoot { device: "/dev/vda".into(), fstype: options.rootfs_type });
    let params = guest_kernel_params(
        root.as_ref(),
        options.enable_debug,
        options.guest_tracing,
        &config.agent.kata,
        &options.kernel_params,
    )
    .map_err(|error| OpError::because(ErrorKind::InvalidArgument, "kernel_params", error))?;
    let boot = match (&options.image, &options.initrd) {
        (Some(image), _) => BootSource::Image { image: image.clone(), initrd: options.image_initrd.clone() },
        (None, Some(initrd)) => BootSource::Initrd(initrd.clone()),
        (None, None) => {
            return Err(OpError::new(ErrorKind::InvalidArgument, "neither initrd nor image is configured"));
        }
    };
    let host_cpus = host_cpus();
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
        memory_cgroups: Vec::new(),
        // The machine's vsock ends in a process of its own, so every machine may have the same address.
        guest_cid: 3,
        devices: Vec::new(),
        console: console(agent_ready),
        console_log: Some(directory.join("console.log")),
    })
}

fn console(agent_ready: Arc<Notify>) -> ConsoleSink {
    // A guest may write what it likes, as often as it likes.
    let told = AtomicBool::new(false);
    ConsoleSink(Arc::new(move |line| {
        if line.trim_end() == READY && !told.swap(true, Ordering::Relaxed) {
            agent_ready.notify_one();
        }
        log_console_line(line);
    }))
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

/// How many of the host's processors this process may run on, as nproc(1) counts them.
fn host_cpus() -> u32 {
    let mine = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let count = (0..CpuSet::count()).filter(|cpu| mine.is_set(*cpu).unwrap_or(false)).count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// The host's memory; what cannot be asked for counts as 1 GiB.
fn host_memory() -> MiB {
    let bytes = sysinfo().map(|info| info.ram_total()).ok();
    MiB(bytes.and_then(|bytes| u32::try_from(bytes >> 20).ok()).unwrap_or(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_built_in_monitor_where_kvm_works_and_says_why() {
        let probe = |usable| KvmProbe { usable, reason: "so it is".into() };
        assert_eq!(automatic(&probe(true)).backend, Backend::Kvm);
        let other = automatic(&probe(false));
        assert_eq!(other.backend, Backend::Qemu);
        assert!(other.reason.contains("so it is") && other.reason.contains("QEMU"), "{}", other.reason);
    }

    #[test]
    fn a_kernel_is_known_by_its_magic() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        let write = |at: usize, magic: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            std::fs::write(&path, bytes).unwrap();
        };
        write(0, b"\x7fELF");
        bootable(&path).unwrap();
        write(BZIMAGE_MAGIC, b"HdrS");
        bootable(&path).unwrap();
        write(0, b"root:x:0");
        assert!(bootable(&path).unwrap_err().to_string().contains("kernel"));
        std::fs::write(&path, "x").unwrap();
        bootable(&path).unwrap_err();
    }
}
