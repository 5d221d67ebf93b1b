//! Starts a machine, tells its process, and waits to be killed.

use std::process::ExitCode;
use std::sync::Arc;

use stockade_hypervisor::{BootSource, ConsoleSink, Hypervisor, KernelImage, MiB, VmConfig};
use stockade_kvm::backend::{KvmBackend, KvmOptions};

/// `args`: the directory of the run, a file that serves for all that a machine is made of, and the verb that its process
/// begins with, with the words after that.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> ExitCode {
    let (Some(run_dir), Some(file)) = (args.next(), args.next()) else { return ExitCode::FAILURE };
    let options =
        KvmOptions { verb: args.map(Into::into).collect(), device: "/dev/null".into(), ..KvmOptions::default() };
    let config = VmConfig {
        id: "supervised".to_owned(),
        run_dir: run_dir.into(),
        kernel: KernelImage(file.clone().into()),
        boot: BootSource::Initrd(file.into()),
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
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        let machine = KvmBackend::new(options).machine();
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
