//! Starts a machine, tells its processes, and waits to be killed.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use stockade_hypervisor::{BootSource, ConsoleSink, Hypervisor, KernelImage, MiB, VmConfig};
use stockade_qemu::{QemuBackend, QemuOptions};

/// `args`: the kernel, the directory of the run, and what executes the guest's instructions.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> ExitCode {
    let (Some(kernel), Some(run_dir), Some(accelerator)) = (args.next(), args.next(), args.next()) else {
        return ExitCode::FAILURE;
    };
    let config = VmConfig {
        id: "supervised".to_owned(),
        run_dir: run_dir.into(),
        kernel: KernelImage(kernel.clone().into()),
        boot: BootSource::Initrd(kernel.into()),
        kernel_params: Vec::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory: MiB(192),
        max_memory: MiB(192),
        netns: None,
        memory_cgroups: Vec::new(),
        guest_cid: 3,
        devices: Vec::new(),
        console: ConsoleSink(Arc::new(|_| {})),
        console_log: None,
    };
    let accelerator = accelerator.parse().expect("an accelerator is named");
    // The tests time it: here nothing is limited.
    let start_limit = Duration::from_secs(600);
    let options = QemuOptions { accelerator, start_limit, ..QemuOptions::default() };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        let machine = QemuBackend::new(options).expect("QEMU is there").machine();
        machine.prepare(config).await.expect("the configuration is good");
        machine.start().await.expect("it starts");
        for process in machine.processes() {
            println!("{}", process.pid);
        }
        println!("started");
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}
