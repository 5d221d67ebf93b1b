//! The contract suite on the fake backend.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use stockade_hypervisor::contract::{Fixture, GUEST_PORT, Machine};
use stockade_hypervisor::fake::{AgentHandler, FakeControl, FakeHypervisor, FakeOptions};
use stockade_hypervisor::{
    BootSource, Capabilities, ConsoleSink, DeviceConfig, ExitCause, HypervisorError, KernelImage, MiB, Operation,
    ShareCache, VmConfig,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

struct Fake {
    capabilities: Capabilities,
}

impl Fake {
    fn able() -> Self {
        Self { capabilities: FakeOptions::default().capabilities }
    }

    fn unable() -> Self {
        Self {
            capabilities: Capabilities {
                block_hotplug: false,
                net_hotplug: false,
                vcpu_hotplug: false,
                memory_hotplug: false,
                ..FakeOptions::default().capabilities
            },
        }
    }
}

/// What the machine is made of, kept for the case: its directory and its control.
struct Keep {
    _directory: tempfile::TempDir,
    control: FakeControl,
}

/// Plays the contract's guest.
async fn guest(stream: UnixStream, control: FakeControl) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        let answer = match line.trim_end().split_once(' ') {
            Some(("echo", text)) => text.to_owned(),
            Some(("read", names)) => read(&control, names),
            _ => match line.trim_end() {
                "poweroff" => return control.crash(ExitCause::GuestShutdown),
                "reset" => return control.crash(ExitCause::GuestReset),
                "panic" => return control.crash(ExitCause::GuestPanic),
                other => format!("what is {other}?"),
            },
        };
        line.clear();
        if stream.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

fn read(control: &FakeControl, names: &str) -> String {
    let (wanted, name) = names.split_once(' ').unwrap();
    let devices = control.devices();
    let source = devices.iter().find_map(|(_, device)| match device {
        DeviceConfig::Share { tag, source, .. } if tag == wanted => Some(source),
        _ => None,
    });
    std::fs::read_to_string(source.unwrap().join(name)).unwrap().trim_end().to_owned()
}

impl Fixture for Fake {
    fn machine(&self) -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // A directory so deep that its sockets' paths do not fit into an address.
        let run_dir = path.join("d".repeat(120));
        let share = path.join("share");
        std::fs::create_dir(&run_dir).unwrap();
        std::fs::create_dir(&share).unwrap();
        std::fs::write(share.join("hello"), "hello from the host\n").unwrap();
        let kernel = path.join("vmlinuz");
        std::fs::write(&kernel, "kernel").unwrap();
        let own: Arc<OnceLock<FakeControl>> = Arc::default();
        let agent = AgentHandler::new({
            let own = Arc::clone(&own);
            move |port, stream| {
                if let (GUEST_PORT, Some(control)) = (port, own.get()) {
                    tokio::spawn(guest(stream, control.clone()));
                }
            }
        });
        let (hypervisor, control) =
            FakeHypervisor::new(FakeOptions { capabilities: self.capabilities.clone(), agent: Some(agent) });
        own.set(control.clone()).unwrap();
        let config = VmConfig {
            id: "contract".to_owned(),
            run_dir,
            kernel: KernelImage(kernel.clone()),
            boot: BootSource::Initrd(kernel),
            kernel_params: vec!["quiet".to_owned()],
            vcpus: 1,
            max_vcpus: 1,
            memory: MiB(128),
            max_memory: MiB(128),
            netns: None,
            memory_cgroups: Vec::new(),
            guest_cid: 3,
            devices: vec![DeviceConfig::Share { tag: "contract".to_owned(), source: share, cache: ShareCache::Auto }],
            console: ConsoleSink(Arc::new(|_| {})),
            console_log: None,
        };
        let keep = Box::new(Keep { _directory: directory, control });
        Machine { hypervisor: Arc::new(hypervisor), config, keep }
    }

    fn has_processes(&self) -> bool {
        false
    }

    fn break_start(&self, machine: &mut Machine) -> bool {
        let control = &machine.keep.downcast_ref::<Keep>().unwrap().control;
        control.fail_once(Operation::Start, || HypervisorError::Refused {
            operation: Operation::Start,
            message: "as the test asked".to_owned(),
        });
        true
    }

    fn boot_limit(&self) -> Duration {
        Duration::from_secs(5)
    }
}

mod with_every_ability {
    use super::Fake;
    stockade_hypervisor::hypervisor_contract!(Fake::able());
}

mod with_no_ability {
    use super::Fake;
    stockade_hypervisor::hypervisor_contract!(Fake::unable());
}

mod scripted {
    use super::*;
    use stockade_hypervisor::fake::AgentMode;
    use stockade_hypervisor::{AgentChannel, Hypervisor, StopDeadlines, VmState, hybrid_vsock};

    async fn prepared() -> (Arc<dyn Hypervisor>, Box<Keep>) {
        let Machine { hypervisor, config, keep } = Fake::able().machine();
        hypervisor.prepare(config).await.unwrap();
        (hypervisor, keep.downcast().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_operation_takes_its_time_and_calls_are_noted() {
        let (vm, keep) = prepared().await;
        keep.control.delay(Operation::Start, Duration::from_secs(3600));
        let begun = tokio::time::Instant::now();
        vm.start().await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(3600));
        assert_eq!(keep.control.calls(), [Operation::Prepare, Operation::Start]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_cuts_a_delayed_operation_short() {
        let (vm, keep) = prepared().await;
        vm.start().await.unwrap();
        keep.control.delay(Operation::Pause, Duration::from_secs(3600));
        let (paused, ()) = tokio::join!(vm.pause(), async { keep.control.crash(ExitCause::GuestPanic) });
        assert!(matches!(paused, Err(HypervisorError::Exited { cause: ExitCause::GuestPanic, .. })), "{paused:?}");
    }

    #[tokio::test]
    async fn failures_come_once_or_until_they_are_taken_back() {
        let (vm, keep) = prepared().await;
        vm.start().await.unwrap();
        let refuse = || HypervisorError::Refused { operation: Operation::Pause, message: String::new() };
        keep.control.fail_once(Operation::Pause, refuse);
        vm.pause().await.unwrap_err();
        assert_eq!(vm.state(), VmState::Running);
        vm.pause().await.unwrap();
        keep.control.fail_always(Operation::Stop, refuse);
        vm.stop(StopDeadlines::NOW).await.unwrap_err();
        vm.stop(StopDeadlines::NOW).await.unwrap_err();
        keep.control.succeed(Operation::Stop);
        vm.stop(StopDeadlines::NOW).await.unwrap();
    }

    #[tokio::test]
    async fn an_agent_can_refuse() {
        let (vm, keep) = prepared().await;
        keep.control.set_agent_mode(AgentMode::Refuse);
        vm.start().await.unwrap();
        let AgentChannel::HybridVsock(path) = vm.agent_channel().unwrap();
        let error = hybrid_vsock::connect(&path, GUEST_PORT).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
