//! Starts a machine, tells its processes, and waits to be killed.

use std::process::ExitCode;
use std::sync::Arc;
use stockade_hypervisor::{BootSource, ConsoleSink, Hypervisor, KernelImage, MiB, VmConfig};
use stockade_qemu::{Accelerator, QemuBackend, QemuOptions};

/// `args`: the kernel and the directory of the run.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> ExitCode {
    let (Some(kernel), Some(run_dir)) = (args.next(), args.next()) else { return ExitCode::FAILURE };
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
        guest_cid: 3,
        devices: Vec::new(),
        console: ConsoleSink(Arc::new(|_| {})),
        console_log: None,
    };
    let options = QemuOptions { accelerator: Accelerator::Tcg, ..QemuOptions::default() };
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
