use super::*;
use std::sync::Arc;
use stockade_hypervisor::{BootSource, ConsoleSink, KernelImage};

fn config() -> VmConfig {
    VmConfig {
        id: "a".to_owned(),
        run_dir: "/".into(),
        kernel: KernelImage("/k".into()),
        boot: BootSource::Initrd("/i".into()),
        kernel_params: Vec::new(),
        vcpus: 1,
        max_vcpus: 4,
        memory: MiB(256),
        max_memory: MiB(1024),
        netns: None,
        memory_cgroups: Vec::new(),
        guest_cid: 3,
        devices: Vec::new(),
        console: ConsoleSink(Arc::new(|_| {})),
        console_log: None,
    }
}

const BOOT: Resized = Resized { vcpus: 1, memory: MiB(256) };

#[test]
fn only_added_vcpus_are_taken_away() {
    let added = Added { vcpus: vec!["cpu0".to_owned()], ..Added::default() };
    let present = Resized { vcpus: 2, ..BOOT };
    assert_eq!(vcpu_steps(present, &added, &config(), 1).unwrap(), -1);
    assert_eq!(vcpu_steps(BOOT, &Added::default(), &config(), 4).unwrap(), 3);
    let too_few = vcpu_steps(Resized { vcpus: 3, ..BOOT }, &added, &config(), 1);
    assert!(matches!(too_few, Err(HypervisorError::Unsupported { .. })));
    assert!(matches!(vcpu_steps(BOOT, &added, &config(), 5), Err(HypervisorError::Config { .. })));
    assert!(matches!(vcpu_steps(BOOT, &added, &config(), 0), Err(HypervisorError::Config { .. })));
}

#[test]
fn memory_grows_by_whole_blocks_up_to_the_ceiling() {
    assert_eq!(memory_step(BOOT, &config(), MiB(256)).unwrap(), None);
    assert_eq!(memory_step(BOOT, &config(), MiB(300)).unwrap(), Some(MiB(128)));
    assert_eq!(memory_step(BOOT, &config(), MiB(1024)).unwrap(), Some(MiB(768)));
    assert!(matches!(memory_step(BOOT, &config(), MiB(1025)), Err(HypervisorError::Config { .. })));
    assert!(matches!(memory_step(BOOT, &config(), MiB(128)), Err(HypervisorError::Unsupported { .. })));
    let odd = Resized { memory: MiB(1000), ..BOOT };
    assert!(matches!(memory_step(odd, &config(), MiB(1010)), Err(HypervisorError::Config { .. })));
}
