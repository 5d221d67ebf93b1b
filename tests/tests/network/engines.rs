//! What engines and their hooks do to a sandbox's namespace after it was made.

use super::world::{World, able_to_ping, path_of};
use std::path::Path;
use stockade_network::NetworkNamespace;
use stockade_tests::harness::{Bundle, HostState, Pod, Stockade};

/// Shell commands that make `eth{number}` in the namespace that they run in, with its other end in `outside`.
fn veth_script(number: u8, outside: &Path) -> String {
    format!(
        "ip link add eth{number} address 02:00:00:00:01:{number:02x} type veth peer name peer{number} netns {} && \
         ip link set eth{number} addrgenmode none && ip link set eth{number} up && \
         ip addr add 10.{number}.0.2/24 dev eth{number}",
        outside.display()
    )
}

fn other_end(world: &World, number: u8) {
    world.ip_outside(&format!("addr add 10.{number}.0.1/24 dev peer{number}"));
    world.ip_outside(&format!("link set peer{number} up"));
}

#[test]
fn what_a_prestart_hook_and_an_engine_between_create_and_start_add_is_the_guests() {
    let stockade = Stockade::new();
    let mut world = World::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("docker");
    // As libnetwork's: the state that it reads names the process whose namespace it is.
    let hook = format!(
        "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); \
         test \"$(readlink /proc/$pid/ns/net)\" = \"$(readlink /proc/self/ns/net)\" || {{ echo another namespace; exit 7; }}; {}",
        veth_script(1, &path_of(&world.outside))
    );
    let script = "ip -o addr; while :; do sleep 1; done";
    let bundle = able_to_ping(Bundle::builder()).shell(script).shell_hook("prestart", &hook).build().unwrap();
    let created = stockade.create(&id, &bundle, &[]).ok();
    let pid = stockade.state(&id)["pid"].as_i64().expect("a pid");
    world.sandbox = NetworkNamespace::join(Path::new(&format!("/proc/{pid}/ns/net"))).expect("the sandbox's own");
    other_end(&world, 1);
    // As Docker 26 and later does.
    world.veth(2, 1500);
    world.ip("route add default via 10.2.0.1");
    let _ = stockade.start(&id).ok();
    // The first thing that the process saw.
    let first = stockade_tests::harness::wait::until_some(
        stockade_tests::harness::wait::scaled(std::time::Duration::from_secs(20)),
        || {
            let text = std::fs::read_to_string(&created.stdout_path).unwrap_or_default();
            text.contains("eth2").then_some(text)
        },
    );
    let first = first.expect("the process sees it from its start");
    assert!(first.contains("10.1.0.2/24") && first.contains("10.2.0.2/24"), "{first}");
    world.guest_agrees(&stockade, &id, "a hook's interface and an engine's");
    world.pings(&stockade, &id, "10.1.0.2", "10.1.0.1", 56);
    world.pings(&stockade, &id, "10.2.0.2", "10.2.0.1", 1400);
    let _ = stockade.delete(&id, &["--force"]).ok();
    world.sandbox = NetworkNamespace::create().expect("another");
    before.assert_same(&stockade);
}

#[test]
fn the_hooks_of_a_pods_further_container_may_add_an_interface_and_its_name_servers_are_the_pods() {
    let world = World::new();
    let names = tempfile::tempdir().unwrap();
    let resolv = names.path().join("resolv.conf");
    std::fs::write(&resolv, "# an engine's\nnameserver 10.1.0.1\nsearch pod.example\n").unwrap();
    let sandbox = world.bundle().bind(&resolv, "/etc/resolv.conf", &["ro"]);
    let pod = Pod::boot_with(sandbox, "");
    let hook = veth_script(1, &path_of(&world.outside));
    let script = "ip -o addr show dev eth1; cat /etc/resolv.conf";
    let text = pod.shell(Bundle::builder().shell_hook("createRuntime", &hook), script).unwrap();
    for wanted in ["inet 10.1.0.2/24", "nameserver 10.1.0.1\nsearch pod.example"] {
        assert!(text.contains(wanted), "{text}");
    }
    assert!(!text.contains("an engine's"), "{text}");
    world.guest_agrees(pod.stockade(), pod.id(), "the hook's interface");
}
