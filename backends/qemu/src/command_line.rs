//! QEMU's command line: a pure function of the configuration and the numbers of the descriptors that are passed.

use crate::options::{Acceleration, MachineType, QemuOptions};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;
use stockade_hypervisor::{BootSource, VmConfig};

/// The PCI bridge of q35, and its bus.
const BRIDGE: &str = "bridge0";
/// Sockets for memory that is added while the machine runs.
const MEMORY_SLOTS: usize = 8;
/// Requests of virtio-fs in flight; QEMU's largest.
const FS_QUEUE: usize = 1024;
/// The virtio-mmio transports of microvm.
pub(crate) const MMIO_SLOTS: usize = 8;

/// The transport of virtio devices: the end of their names.
fn transport(machine: MachineType) -> &'static str {
    match machine {
        MachineType::Q35 | MachineType::Pc => "pci",
        MachineType::Microvm => "device",
    }
}

/// The name of a virtio device on this board.
pub(crate) fn driver(machine: MachineType, device: &str) -> String {
    format!("{device}-{}", transport(machine))
}

/// The bus that takes devices while the machine runs.
pub(crate) fn hot_plug_bus(machine: MachineType) -> &'static str {
    match machine {
        MachineType::Q35 => BRIDGE,
        MachineType::Pc | MachineType::Microvm => "pci.0",
    }
}

/// The virtio-fs device.
#[derive(Debug, Clone)]
pub(crate) struct FsPart {
    pub(crate) fd: RawFd,
    pub(crate) tag: String,
}

/// A disk of the boot.
#[derive(Debug, Clone)]
pub(crate) struct DiskPart {
    pub(crate) id: String,
    /// The `-blockdev` argument.
    pub(crate) blockdev: String,
}

/// A network interface of the boot.
#[derive(Debug, Clone)]
pub(crate) struct NetPart {
    pub(crate) id: String,
    pub(crate) fds: Vec<RawFd>,
    pub(crate) mac: String,
    pub(crate) mtu: u16,
}

/// What the command line is made of beside the options.
#[derive(Debug, Clone)]
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a VmConfig,
    pub(crate) acceleration: Acceleration,
    pub(crate) tsc_khz: Option<u64>,
    /// QEMU goes on, and takes memory, when the other end of this pipe is closed.
    pub(crate) gate: RawFd,
    pub(crate) qmp: RawFd,
    pub(crate) console: RawFd,
    pub(crate) vsock: RawFd,
    pub(crate) fs: Option<FsPart>,
    pub(crate) disks: Vec<DiskPart>,
    pub(crate) nets: Vec<NetPart>,
}

/// A block node of a raw file or device, as QEMU's JSON takes it. The path may hold any character.
pub(crate) fn blockdev(node: &str, path: &Path, read_only: bool) -> serde_json::Value {
    use std::os::unix::fs::FileTypeExt;
    let is_device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    serde_json::json!({
        "driver": "raw",
        "node-name": node,
        "read-only": read_only,
        "discard": "unmap",
        "file": {
            "driver": if is_device { "host_device" } else { "file" },
            "filename": path.to_string_lossy(),
        },
    })
}

/// Parameters that the machine needs or that make a boot shorter; those of the configuration come after.
fn kernel_command_line(options: &QemuOptions, parts: &Parts<'_>) -> String {
    let mut params = vec![
        // The first lines of a boot, panics included, are written before any driver of virtio is there.
        "console=ttyS0",
        // A panic, and a reboot that ends by a triple fault, end the machine at once.
        "panic=-1",
        "reboot=t",
        "cryptomgr.notests",
        "no_timer_check",
        "tsc=reliable",
        "random.trust_cpu=on",
        "8250.nr_uarts=1",
    ];
    match options.machine_type {
        MachineType::Q35 | MachineType::Pc => {
            params.extend(["i8042.noaux", "i8042.nomux", "i8042.nopnp", "i8042.dumbkbd", "pci=lastbus=0"]);
        }
        MachineType::Microvm => params.push("pci=off"),
    }
    if !options.debug {
        params.push("quiet");
    }
    // A guest that measures the rate by a timer while it waits for a processor believes in one that is wrong by any factor,
    // and so does its clock, in which every time limit passes too early or too late. On microvm, where that timer has no
    // gate, it finds one by luck, and where it finds none the kernel hangs.
    let tsc = parts.tsc_khz.map(|khz| format!("tsc_early_khz={khz}"));
    params.extend(tsc.as_deref());
    params.into_iter().chain(parts.config.kernel_params.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

fn machine(options: &QemuOptions) -> String {
    let board = match options.machine_type {
        MachineType::Q35 => "q35,usb=off,vmport=off,smm=off,sata=off,smbus=off",
        MachineType::Pc => "pc,usb=off,vmport=off,smm=off",
        // The interrupt controller, timer and clock of a PC stay: without the timer the kernel hangs under TCG, without
        // the clock it searches one for a second.
        MachineType::Microvm => "microvm,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off",
    };
    let mut machine = format!("{board},memory-backend=mem");
    if !options.machine_options.is_empty() {
        machine.push(',');
        machine.push_str(&options.machine_options);
    }
    machine
}

/// Everything after QEMU's name.
pub(crate) fn build(options: &QemuOptions, parts: &Parts<'_>) -> Vec<OsString> {
    let config = parts.config;
    let hot_plug = options.machine_type != MachineType::Microvm;
    let mut args = Args(Vec::new());
    args.add("-name", format!("{},debug-threads=on", config.id));
    // Read to its end while the options are parsed. It has nothing to say.
    args.add("-readconfig", format!("/proc/self/fd/{}", parts.gate));
    args.add("-machine", machine(options));
    let (accelerator, model) = match parts.acceleration {
        Acceleration::Kvm => ("kvm", "host"),
        Acceleration::Tcg => ("tcg", "max"),
    };
    args.add("-accel", accelerator);
    let features = if options.cpu_features.is_empty() { String::new() } else { format!(",{}", options.cpu_features) };
    args.add("-cpu", format!("{model}{features}"));
    let max_vcpus = if hot_plug { config.max_vcpus } else { config.vcpus };
    args.add("-smp", format!("cpus={},maxcpus={max_vcpus}", config.vcpus));
    let more = if hot_plug && config.max_memory > config.memory {
        format!(",slots={MEMORY_SLOTS},maxmem={}M", config.max_memory.0)
    } else {
        String::new()
    };
    args.add("-m", format!("size={}M{more}", config.memory.0));
    // Shared, so that the device process sees the queues and buffers.
    args.add("-object", format!("memory-backend-memfd,id=mem,size={}M,share=on", config.memory.0));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.flag(flag);
    }
    args.add("-display", "none");
    args.add("-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown");
    args.add("-rtc", "base=utc");
    args.add("-chardev", format!("socket,id=qmp,fd={},server=off", parts.qmp));
    args.add("-mon", "chardev=qmp,mode=control");
    args.add("-chardev", format!("socket,id=console,fd={},server=off", parts.console));
    args.add("-serial", "chardev:console");
    if !options.seccomp_sandbox.is_empty() {
        args.add("-sandbox", &options.seccomp_sandbox);
    }
    args.add("-kernel", config.kernel.0.as_os_str());
    if let BootSource::Initrd(path) | BootSource::Image { initrd: Some(path), .. } = &config.boot {
        args.add("-initrd", path.as_os_str());
    }
    args.add("-append", kernel_command_line(options, parts));
    devices(options.machine_type, parts, &mut args);
    args.0
}

fn devices(machine: MachineType, parts: &Parts<'_>, args: &mut Args) {
    let name = |device| driver(machine, device);
    match machine {
        MachineType::Q35 => {
            // Nothing can be plugged into the root complex itself. A bridge takes 31 devices by ACPI, where each root port
            // takes one and costs the boot what the bridge does. Windows for as many virtio devices, as none is there yet.
            let windows = "io-reserve=4k,mem-reserve=1m,pref64-reserve=1m";
            args.add("-device", format!("pci-bridge,id={BRIDGE},bus=pcie.0,chassis_nr=1,shpc=off,{windows}"));
        }
        MachineType::Pc => {}
        // vsock and virtio-fs exist in the modern form only.
        MachineType::Microvm => args.add("-global", "virtio-mmio.force-legacy=false"),
    }
    args.add("-chardev", format!("socket,id=vsock,fd={},server=off", parts.vsock));
    args.add("-device", format!("{},id=vsock0,chardev=vsock", name("vhost-user-vsock")));
    if let Some(FsPart { fd, tag }) = &parts.fs {
        args.add("-chardev", format!("socket,id=fs,fd={fd},server=off"));
        args.add("-device", format!("{},id=fs0,chardev=fs,tag={tag},queue-size={FS_QUEUE}", name("vhost-user-fs")));
    }
    args.add("-object", "rng-random,id=rng,filename=/dev/urandom");
    args.add("-device", format!("{},id=rng0,rng=rng", name("virtio-rng")));
    for DiskPart { id, blockdev } in &parts.disks {
        args.add("-blockdev", blockdev);
        args.add("-device", format!("{},id={id},drive={id}", name("virtio-blk")));
    }
    for NetPart { id, fds, mac, mtu } in &parts.nets {
        let list = fds.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
        args.add("-netdev", format!("tap,id={id},fds={list},vhost=off"));
        let queues = queue_properties(machine, fds.len());
        args.add(
            "-device",
            format!(
                "{},id={id},netdev={id},mac={mac},host_mtu={mtu}{queues}{}",
                name("virtio-net"),
                no_boot_program(machine)
            ),
        );
    }
}

/// On PCI it brings no program for the firmware to boot from the network by, which the firmware would run at each boot.
fn no_boot_program(machine: MachineType) -> &'static str {
    match machine {
        MachineType::Microvm => "",
        MachineType::Pc | MachineType::Q35 => ",romfile=",
    }
}

/// What a network device with several queue pairs needs beside.
fn queue_properties(machine: MachineType, pairs: usize) -> String {
    match (pairs, machine) {
        (0 | 1, _) => String::new(),
        (_, MachineType::Microvm) => ",mq=on".to_owned(),
        // One for each queue, one for the control queue, one for changes of the configuration.
        (_, MachineType::Pc | MachineType::Q35) => format!(",mq=on,vectors={}", 2 * pairs + 2),
    }
}

#[cfg(test)]
#[path = "command_line_tests.rs"]
mod tests;
