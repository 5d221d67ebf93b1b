//! The sandbox's network while it lives: what is added to its namespace reaches machine and guest, what is taken away
//! leaves them, and nothing of it remains. The namespaces and links are real.

use crate::harness::{PATIENCE, Sandbox, eventually, run};
use serde_json::{Value, json};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::Command;
use stockade::actors::container::{ContainerState, Start};
use stockade::actors::sandbox::{Inspect, PauseSandbox, ResumeSandbox};
use stockade::network::{NetworkNamespace, run_in};
use stockade_hypervisor::{DeviceConfig, HypervisorError, Operation};

/// A namespace for a sandbox, and one outside.
struct World {
    sandbox: NetworkNamespace,
    outside: NetworkNamespace,
}

fn path_of(namespace: &NetworkNamespace) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()).into()
}

impl World {
    fn new() -> Self {
        let create = || NetworkNamespace::create().expect("a network namespace");
        Self { sandbox: create(), outside: create() }
    }

    fn call(&self, program: &str, words: &str) -> String {
        let output = run_in(self.sandbox.as_fd(), || Command::new(program).args(words.split_whitespace()).output());
        let output = output.expect("entered").expect("iproute2 is installed");
        assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn ip(&self, words: &str) {
        self.call("ip", words);
    }

    fn veth(&self, number: u8) {
        let outside = path_of(&self.outside);
        self.ip(&format!(
            "link add eth{number} address 02:00:00:00:00:{number:02x} type veth peer name peer{number} netns {}",
            outside.display()
        ));
        self.ip(&format!("link set eth{number} addrgenmode none up"));
        self.ip(&format!("addr add 10.{number}.0.2/24 dev eth{number}"));
    }

    /// What of ours is in it.
    fn ours(&self) -> Vec<String> {
        let links = self.call("ip", "-o link");
        let qdiscs = self.call("tc", "qdisc show");
        let taps = links.lines().filter(|line| line.contains(": stk"));
        taps.chain(qdiscs.lines().filter(|line| line.contains("ingress"))).map(str::to_owned).collect()
    }

    fn joined(&self, spec: &mut Value) {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "network", "path": path_of(&self.sandbox)}));
    }
}

/// The MAC addresses' last bytes of the machine's network devices.
fn devices(sandbox: &Sandbox) -> Vec<u8> {
    let all = sandbox.backends.control().devices();
    let mac = |device: &DeviceConfig| if let DeviceConfig::Net { mac, .. } = device { Some(mac[5]) } else { None };
    all.iter().filter_map(|(_, device)| mac(device)).collect()
}

async fn start(sandbox: &Sandbox) -> Result<(), stockade::error::OpError> {
    sandbox.find(&sandbox.id).await.start.ask(Start {}).await
}

/// Lets the container's process end, if it runs, and deletes the container.
async fn end(sandbox: &Sandbox) {
    if sandbox.state_of(&sandbox.id).await == ContainerState::Running {
        sandbox.agent.end(&sandbox.id, "", 0);
        while sandbox.state_of(&sandbox.id).await != ContainerState::Stopped {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    sandbox.delete(&sandbox.id).await.unwrap();
}

/// What `inspect` shows of the network once it is so.
async fn described_once(sandbox: &Sandbox, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let shown = sandbox.handle.inspect.ask(Inspect {}).await.expect("inspected")["network"].clone();
        if wanted(&shown) {
            return shown;
        }
        assert!(tokio::time::Instant::now() < deadline, "not so in time: {shown}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn recorded(sandbox: &Sandbox) -> usize {
    sandbox.journal().iter().filter(|entry| entry.contains("disconnect the network namespace")).count()
}

#[test]
fn interfaces_are_there_from_the_boot_added_at_the_start_and_with_each_event_and_go_with_their_links() {
    run(async |root| {
        let (sandbox, world) = (Sandbox::new(&root), World::new());
        world.veth(1);
        sandbox.create(sandbox.request(&sandbox.id, |spec| world.joined(spec))).await.unwrap();
        assert_eq!(devices(&sandbox), [1]);
        assert!(sandbox.agent.was_asked("update_interface eth1 10.1.0.2"), "{:?}", sandbox.agent.calls());

        // As Docker does: between create and start.
        world.veth(2);
        start(&sandbox).await.unwrap();
        assert_eq!(devices(&sandbox), [1, 2]);
        let calls = sandbox.agent.calls();
        let at = |call: &str| calls.iter().position(|made| made == call).unwrap_or_else(|| panic!("{call}: {calls:?}"));
        assert!(at("update_interface eth2 10.2.0.2") < at(&format!("start_container {}", sandbox.id)));
        assert_eq!(recorded(&sandbox), 2);

        world.veth(3);
        eventually("a third device", || devices(&sandbox) == [1, 2, 3]).await;
        eventually("told", || sandbox.agent.was_asked("update_interface eth3 10.3.0.2")).await;
        world.ip("addr add 10.3.0.9/24 dev eth3");
        eventually("told anew", || sandbox.agent.was_asked("update_interface eth3 10.3.0.2 10.3.0.9")).await;
        world.ip("route add 192.0.2.0/24 via 10.1.0.1");
        eventually("a route", || sandbox.agent.was_asked("update_routes 192.0.2.0/24")).await;

        world.ip("link del eth2");
        eventually("no second device", || devices(&sandbox) == [1, 3]).await;
        assert!(sandbox.agent.was_asked("release_interface eth2 02:00:00:00:00:02"), "{:?}", sandbox.agent.calls());
        eventually("its record is struck out", || recorded(&sandbox) == 2).await;
        // The same link with another MAC address is another interface.
        world.ip("link set eth3 address 02:00:00:00:00:33");
        eventually("another device", || devices(&sandbox) == [1, 0x33]).await;
        let shown = described_once(&sandbox, |shown| shown["interfaces"][1]["mac"] == "02:00:00:00:00:33").await;
        assert_eq!(shown["left_out"], json!([]));

        end(&sandbox).await;
        assert_eq!(world.ours(), Vec::<String>::new());
        drop(world);
        sandbox.leaves_nothing("a network that changed").await;
    });
}

#[test]
fn a_machine_that_takes_no_interface_while_it_runs_fails_the_start_with_the_reason_and_events_only_note_it() {
    run(async |root| {
        let (sandbox, world) = (Sandbox::new(&root), World::new());
        sandbox.create(sandbox.request(&sandbox.id, |spec| world.joined(spec))).await.unwrap();
        sandbox.backends.control().fail_always(Operation::AddDevice, || HypervisorError::Unsupported {
            operation: Operation::AddDevice,
            backend: "fake",
            reason: "it takes none while it runs".into(),
        });
        world.veth(1);
        let error = start(&sandbox).await.unwrap_err().one_line();
        for wanted in ["\"eth1\" came after the start", "it takes none while it runs"] {
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(sandbox.state_of(&sandbox.id).await, ContainerState::Created);
        assert_eq!(world.ours(), Vec::<String>::new(), "what was begun for it is undone");
        assert_eq!(recorded(&sandbox), 0);
        // Without it the start goes through; later the lack is shown and nothing else happens.
        world.ip("link del eth1");
        start(&sandbox).await.unwrap();
        world.veth(2);
        let tried = || sandbox.backends.control().calls().iter().filter(|call| **call == Operation::AddDevice).count();
        let before = tried();
        eventually("an attempt", || tried() > before).await;
        let shown = described_once(&sandbox, |shown| shown["left_out"][0]["reason"].is_string()).await;
        assert!(shown["left_out"][0]["reason"].as_str().unwrap_or_default().contains("it takes none"), "{shown}");
        let attempts = tried();
        world.ip("addr add 10.2.0.8/24 dev eth2");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(tried(), attempts, "an event does not try again what failed");
        assert_eq!(sandbox.state_of(&sandbox.id).await, ContainerState::Running);
        end(&sandbox).await;
        assert_eq!(world.ours(), Vec::<String>::new());
        drop(world);
        sandbox.leaves_nothing("a machine without hot-plug").await;
    });
}

#[test]
fn a_link_that_cannot_be_connected_fails_creation_and_start_by_its_name() {
    run(async |root| {
        let world = World::new();
        world.ip("link add br0 type bridge");
        world.ip("link set br0 up");
        world.ip("addr add 10.0.0.2/24 dev br0");
        let sandbox = Sandbox::new(&root);
        let error = sandbox.create(sandbox.request(&sandbox.id, |spec| world.joined(spec))).await.unwrap_err();
        let error = error.one_line();
        assert!(error.starts_with("step network: ") && error.contains("\"br0\" is of kind \"bridge\""), "{error}");
        assert_eq!(world.ours(), Vec::<String>::new());

        world.ip("link del br0");
        let sandbox = Sandbox::new(&root);
        sandbox.create(sandbox.request(&sandbox.id, |spec| world.joined(spec))).await.unwrap();
        world.ip("tuntap add tun0 mode tun");
        world.ip("link set tun0 up");
        world.ip("addr add 10.0.0.2/24 dev tun0");
        let error = start(&sandbox).await.unwrap_err().one_line();
        assert!(error.contains("\"tun0\" carries IP packets"), "{error}");
        end(&sandbox).await;
        drop(world);
        sandbox.leaves_nothing("a tun at the start").await;
    });
}

#[test]
fn what_the_guest_refuses_at_the_creation_is_undone_in_the_namespace() {
    run(async |root| {
        for call in ["update_interface", "update_routes"] {
            let (sandbox, world) = (Sandbox::new(&root), World::new());
            world.veth(1);
            sandbox.agent.refuse(call);
            let error = sandbox.create(sandbox.request(&sandbox.id, |spec| world.joined(spec))).await.unwrap_err();
            assert!(error.one_line().starts_with("step guest-network: "), "{}", error.one_line());
            assert_eq!(world.ours(), Vec::<String>::new(), "{call}");
            drop(world);
            sandbox.leaves_nothing(call).await;
        }
    });
}

#[test]
fn a_paused_machine_gets_what_came_meanwhile_when_it_goes_on() {
    run(async |root| {
        let (sandbox, world) = (Sandbox::new(&root), World::new());
        sandbox.create(sandbox.request(&sandbox.id, |spec| world.joined(spec))).await.unwrap();
        start(&sandbox).await.unwrap();
        sandbox.handle.pause.ask(PauseSandbox {}).await.unwrap();
        world.veth(1);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert!(devices(&sandbox).is_empty());
        sandbox.handle.resume.ask(ResumeSandbox {}).await.unwrap();
        eventually("a device", || devices(&sandbox) == [1]).await;
        end(&sandbox).await;
        assert_eq!(world.ours(), Vec::<String>::new());
        drop(world);
        sandbox.leaves_nothing("a pause").await;
    });
}
