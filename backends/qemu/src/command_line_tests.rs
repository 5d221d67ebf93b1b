use super::*;
use std::sync::Arc;
use stockade_hypervisor::{ConsoleSink, KernelImage, MiB};

fn config() -> VmConfig {
    VmConfig {
        id: "sandbox1".to_owned(),
        run_dir: "/run/stockade/sandbox1".into(),
        kernel: KernelImage("/boot/vmlinuz".into()),
        boot: BootSource::Initrd("/boot/initrd, with comma.img".into()),
        kernel_params: vec!["agent.log=debug".to_owned(), "panic=5".to_owned()],
        vcpus: 1,
        max_vcpus: 4,
        memory: MiB(256),
        max_memory: MiB(2048),
        netns: None,
        memory_cgroups: Vec::new(),
        guest_cid: 3,
        devices: Vec::new(),
        console: ConsoleSink(Arc::new(|_| {})),
        console_log: None,
    }
}

fn lines(machine_type: MachineType, acceleration: Acceleration) -> Vec<String> {
    let config = config();
    let options = QemuOptions { machine_type, cpu_features: "pmu=off".to_owned(), ..QemuOptions::default() };
    let parts = Parts {
        config: &config,
        acceleration,
        tsc_khz: (acceleration == Acceleration::Tcg).then_some(2_400_000),
        gate: 9,
        qmp: 10,
        console: 11,
        vsock: 12,
        fs: Some(FsPart { fd: 13, tag: "kataShared".to_owned() }),
        disks: vec![DiskPart { id: "dev1".to_owned(), blockdev: "{}".to_owned() }],
        nets: vec![NetPart {
            id: "dev2".to_owned(),
            fds: vec![14, 15],
            mac: "02:00:00:00:00:01".to_owned(),
            mtu: 1450,
        }],
    };
    let mut lines: Vec<String> = Vec::new();
    for arg in build(&options, &parts) {
        let arg = arg.into_string().unwrap();
        // An option and its value on one line.
        match lines.last_mut() {
            Some(last) if !arg.starts_with('-') => *last = format!("{last} {arg}"),
            _ => lines.push(arg),
        }
    }
    lines
}

const BEFORE_DEVICES: [&str; 14] = [
    "-object memory-backend-memfd,id=mem,size=256M,share=on",
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display none",
    "-action reboot=shutdown,shutdown=poweroff,panic=shutdown",
    "-rtc base=utc",
    "-chardev socket,id=qmp,fd=10,server=off",
    "-mon chardev=qmp,mode=control",
    "-chardev socket,id=console,fd=11,server=off",
    "-serial chardev:console",
    "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-kernel /boot/vmlinuz",
    "-initrd /boot/initrd, with comma.img",
];

fn check(machine_type: MachineType, acceleration: Acceleration, head: [&str; 7], append: &str, devices: &[&str]) {
    let mut expected: Vec<&str> = head.to_vec();
    expected.extend(BEFORE_DEVICES);
    // An emulated guest does not measure its clock, on whichever board; under KVM the hypervisor tells it.
    let clock = if acceleration == Acceleration::Tcg { " tsc_early_khz=2400000" } else { "" };
    let append = format!("{append}{clock} agent.log=debug panic=5");
    expected.push(&append);
    expected.extend(devices);
    assert_eq!(lines(machine_type, acceleration), expected);
}

#[test]
fn microvm_has_virtio_mmio_and_no_hot_plug() {
    check(
        MachineType::Microvm,
        Acceleration::Tcg,
        [
            "-name sandbox1,debug-threads=on",
            "-readconfig /proc/self/fd/9",
            "-machine microvm,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,memory-backend=mem",
            "-accel tcg",
            "-cpu max,pmu=off",
            "-smp cpus=1,maxcpus=1",
            "-m size=256M",
        ],
        "-append console=ttyS0 panic=-1 reboot=t cryptomgr.notests no_timer_check tsc=reliable random.trust_cpu=on \
         8250.nr_uarts=1 pci=off quiet",
        &[
            "-global virtio-mmio.force-legacy=false",
            "-chardev socket,id=vsock,fd=12,server=off",
            "-device vhost-user-vsock-device,id=vsock0,chardev=vsock",
            "-chardev socket,id=fs,fd=13,server=off",
            "-device vhost-user-fs-device,id=fs0,chardev=fs,tag=kataShared,queue-size=1024",
            "-object rng-random,id=rng,filename=/dev/urandom",
            "-device virtio-rng-device,id=rng0,rng=rng",
            "-blockdev {}",
            "-device virtio-blk-device,id=dev1,drive=dev1",
            "-netdev tap,id=dev2,fds=14:15,vhost=off",
            "-device virtio-net-device,id=dev2,netdev=dev2,mac=02:00:00:00:00:01,host_mtu=1450,mq=on",
        ],
    );
}

const PCI_APPEND: &str = "-append console=ttyS0 panic=-1 reboot=t cryptomgr.notests no_timer_check tsc=reliable \
    random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd pci=lastbus=0 quiet";

const PCI_DEVICES: [&str; 10] = [
    "-chardev socket,id=vsock,fd=12,server=off",
    "-device vhost-user-vsock-pci,id=vsock0,chardev=vsock",
    "-chardev socket,id=fs,fd=13,server=off",
    "-device vhost-user-fs-pci,id=fs0,chardev=fs,tag=kataShared,queue-size=1024",
    "-object rng-random,id=rng,filename=/dev/urandom",
    "-device virtio-rng-pci,id=rng0,rng=rng",
    "-blockdev {}",
    "-device virtio-blk-pci,id=dev1,drive=dev1",
    "-netdev tap,id=dev2,fds=14:15,vhost=off",
    "-device virtio-net-pci,id=dev2,netdev=dev2,mac=02:00:00:00:00:01,host_mtu=1450,mq=on,vectors=6,romfile=",
];

#[test]
fn pc_hot_plugs_into_its_own_bus() {
    check(
        MachineType::Pc,
        Acceleration::Tcg,
        [
            "-name sandbox1,debug-threads=on",
            "-readconfig /proc/self/fd/9",
            "-machine pc,usb=off,vmport=off,smm=off,memory-backend=mem",
            "-accel tcg",
            "-cpu max,pmu=off",
            "-smp cpus=1,maxcpus=4",
            "-m size=256M,slots=8,maxmem=2048M",
        ],
        PCI_APPEND,
        &PCI_DEVICES,
    );
}

#[test]
fn q35_under_kvm_has_a_bridge_to_plug_into_and_the_hosts_processor() {
    let mut devices = vec![
        "-device pci-bridge,id=bridge0,bus=pcie.0,chassis_nr=1,shpc=off,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m",
    ];
    devices.extend(PCI_DEVICES);
    check(
        MachineType::Q35,
        Acceleration::Kvm,
        [
            "-name sandbox1,debug-threads=on",
            "-readconfig /proc/self/fd/9",
            "-machine q35,usb=off,vmport=off,smm=off,sata=off,smbus=off,memory-backend=mem",
            "-accel kvm",
            "-cpu host,pmu=off",
            "-smp cpus=1,maxcpus=4",
            "-m size=256M,slots=8,maxmem=2048M",
        ],
        PCI_APPEND,
        &devices,
    );
}
