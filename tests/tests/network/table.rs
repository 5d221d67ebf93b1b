//! A table of namespaces: the guest's network equals the namespace's, packets pass both ways, and nothing remains.

use std::time::Duration;

use super::world::{World, assert_as_before, call, path_of};
use stockade_tests::harness::{Bundle, HostState, Stockade, wait};

/// A container that waits to be looked into.
const WAIT: &str = "while :; do sleep 1; done";

/// Three veths, of which one has large frames, one IPv6 alone, and two a default route; forty more routes, a gateway that
/// no address tells of, a neighbour that somebody set, and a macvlan.
fn everything() -> World {
    let world = World::new();
    world.veth(1, 1500);
    world.veth(2, 9000);
    world.bare_veth(3, "02:00:00:00:01:03", 1400);
    world.ip("addr add fd00:3::2/64 dev eth3");
    world.ip_outside("addr add fd00:3::1/64 dev peer3");
    world.ip("route add default via 10.1.0.1 metric 100");
    world.ip("route add default via 10.2.0.1 metric 50");
    world.ip("-6 route add default via fd00:3::1 metric 7");
    for number in 0..40 {
        world.ip(&format!("route add 172.16.{number}.0/24 via 10.1.0.1 metric {}", number + 1));
    }
    world.ip("route add 192.0.2.0/24 via 203.0.113.1 dev eth2 onlink");
    world.ip("route add 198.51.100.0/24 via 10.2.0.1 src 10.2.0.2 mtu 1300");
    world.ip("neigh add 10.1.0.9 lladdr 02:00:00:00:09:09 dev eth1 nud permanent");
    world.uplink();
    assert!(world.on_uplink("net4", "macvlan mode bridge"), "every kernel has macvlan");
    world.ip("addr add 10.4.0.2/24 dev net4");
    world.ip("addr add fd00:4::2/64 dev net4");
    world.ip_outside("addr add 10.4.0.1/24 dev peer-up");
    world.ip_outside("addr add fd00:4::1/64 dev peer-up");
    world
}

#[test]
fn a_guest_has_the_namespaces_whole_network_from_its_boot() {
    let limits = "network_queues = 2\ndefault_vcpus = 2\nrx_rate_limiter_max_rate = 800000000\ntx_rate_limiter_max_rate = 800000000";
    let stockade = Stockade::with_config(limits, "");
    let world = everything();
    let picture = world.picture();
    let before = HostState::capture(&stockade);
    let id = stockade.id("everything");
    let bundle = world.bundle().shell(WAIT).build().unwrap();
    let _ = stockade.launch(&id, &bundle);
    world.guest_agrees(&stockade, &id, "everything from the boot");
    for (guest, outside, bytes) in [
        ("10.1.0.2", "10.1.0.1", 1400),
        ("10.2.0.2", "10.2.0.1", 8900),
        ("fd00:3::2", "fd00:3::1", 1300),
        ("10.4.0.2", "10.4.0.1", 1400),
        ("fd00:4::2", "fd00:4::1", 56),
    ] {
        world.pings(&stockade, &id, guest, outside, bytes);
    }
    // By the default route of the smaller metric, also where the other one would do.
    world.ip_outside("addr add 192.168.77.1/32 dev lo");
    world.pings(&stockade, &id, "10.2.0.2", "192.168.77.1", 56);
    // Linux uses no more of them than it has processors, and a guest has no more of those than its host.
    let queues = stockade.exec_shell(&id, "nproc; ls /sys/class/net/eth1/queues").ok().text();
    let (processors, queues) = queues.split_once('\n').unwrap();
    assert_eq!(queues.contains("rx-1") && queues.contains("tx-1"), processors != "1", "{queues}");
    let limited = call(&world.sandbox, "tc", "qdisc show");
    assert_eq!(limited.lines().filter(|line| line.contains("tbf") && line.contains("800Mbit")).count(), 8, "{limited}");
    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
    assert_as_before(&picture, &world.picture());
}

/// One namespace of the table: what is in it beside nothing.
struct Case {
    name: &'static str,
    /// Makes it; `false` where this kernel lacks the kind of link.
    make: fn(&World) -> bool,
    /// Takes it away.
    remove: fn(&World),
    /// Addresses that ping one another: the guest's, one outside, and with how much.
    pings: &'static [(&'static str, &'static str, u32)],
}

fn remove_eth1(world: &World) {
    world.ip("link del eth1");
}

fn remove_net1(world: &World) {
    world.ip("link del net1");
    world.ip_host("link del up0");
}

/// On an uplink, with the addresses 10.1.0.2 and .1 outside.
fn on_uplink(world: &World, kind: &str) -> bool {
    world.uplink();
    if !world.on_uplink("net1", kind) {
        world.ip_host("link del up0");
        return false;
    }
    world.ip("addr add 10.1.0.2/24 dev net1");
    world.ip_outside("addr add 10.1.0.1/24 dev peer-up");
    true
}

const VETHS: &[Case] = &[
    Case {
        name: "a veth with both families and a default route",
        make: |world| {
            world.veth(1, 1500);
            world.ip("route add default via 10.1.0.1");
            world.ip("-6 route add default via fd00:1::1");
            true
        },
        remove: remove_eth1,
        pings: &[("10.1.0.2", "10.1.0.1", 1400), ("fd00:1::2", "fd00:1::1", 1400)],
    },
    Case {
        name: "IPv6 alone",
        make: |world| {
            world.bare_veth(1, "02:00:00:00:01:01", 1500);
            world.ip("addr add fd00:1::2/64 dev eth1");
            world.ip_outside("addr add fd00:1::1/64 dev peer1");
            world.ip("-6 route add default via fd00:1::1");
            true
        },
        remove: remove_eth1,
        pings: &[("fd00:1::2", "fd00:1::1", 56)],
    },
    Case {
        name: "large frames",
        make: |world| {
            world.veth(1, 9000);
            true
        },
        remove: remove_eth1,
        pings: &[("10.1.0.2", "10.1.0.1", 8900), ("fd00:1::2", "fd00:1::1", 8900)],
    },
    Case {
        name: "two interfaces with one MAC address",
        make: |world| {
            for number in [1, 2] {
                world.bare_veth(number, "02:00:00:00:01:77", 1500);
                world.ip(&format!("addr add 10.{number}.0.2/24 dev eth{number}"));
                world.ip_outside(&format!("addr add 10.{number}.0.1/24 dev peer{number}"));
            }
            true
        },
        remove: |world| {
            world.ip("link del eth1");
            world.ip("link del eth2");
        },
        pings: &[("10.1.0.2", "10.1.0.1", 56), ("10.2.0.2", "10.2.0.1", 56)],
    },
];

const ON_AN_UPLINK: &[Case] = &[
    Case {
        name: "a macvlan",
        make: |world| on_uplink(world, "macvlan mode bridge"),
        remove: remove_net1,
        pings: &[("10.1.0.2", "10.1.0.1", 1400)],
    },
    Case {
        name: "an ipvlan of layer 2",
        make: |world| on_uplink(world, "ipvlan mode l2"),
        remove: remove_net1,
        pings: &[("10.1.0.2", "10.1.0.1", 1400)],
    },
    Case {
        name: "an ipvlan of layer 3",
        make: |world| {
            if !on_uplink(world, "ipvlan mode l3") {
                return false;
            }
            // It routes in the namespace of the link below, and answers no ARP for its address.
            world.ip_host("route add 10.1.0.0/24 dev up0");
            world.ip_outside("neigh replace 10.1.0.2 lladdr 02:00:00:00:02:01 dev peer-up nud permanent");
            true
        },
        remove: remove_net1,
        pings: &[("10.1.0.2", "10.1.0.1", 1400)],
    },
    Case {
        name: "a VLAN",
        make: |world| {
            if !on_uplink(world, "vlan id 5") {
                return false;
            }
            world.ip_outside("addr del 10.1.0.1/24 dev peer-up");
            world.ip_outside("link add peer5 link peer-up type vlan id 5");
            world.ip_outside("link set peer5 up");
            world.ip_outside("addr add 10.1.0.1/24 dev peer5");
            true
        },
        remove: remove_net1,
        pings: &[("10.1.0.2", "10.1.0.1", 1400)],
    },
];

/// A container in a namespace with `lo` alone, with its world and what that looked like, runs while `work` does its
/// own; nothing remains of it then.
fn while_a_container_runs(work: impl FnOnce(&World, &Stockade, &str)) {
    let stockade = Stockade::new();
    let world = World::new();
    let empty = world.picture();
    let before = HostState::capture(&stockade);
    let id = stockade.id("table");
    let bundle = world.bundle().shell(WAIT).build().unwrap();
    let _ = stockade.launch(&id, &bundle);
    world.guest_agrees(&stockade, &id, "lo alone");
    work(&world, &stockade, &id);
    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
    assert_as_before(&empty, &world.picture());
}

/// Checks that the namespace comes to look so: what is undone on a netlink event is undone a little later.
fn assert_becomes(world: &World, wanted: &[String], what: &str) {
    let became = wait::until(Duration::from_secs(10), || world.picture() == wanted);
    assert!(became, "{what}: {:#?}", world.picture());
}

fn come_and_go(cases: &[Case]) {
    while_a_container_runs(|world, stockade, id| {
        let empty = world.picture();
        for case in cases {
            let name = case.name;
            if !(case.make)(world) {
                continue;
            }
            world.guest_agrees(stockade, id, name);
            for (guest, outside, bytes) in case.pings {
                world.pings(stockade, id, guest, outside, *bytes);
            }
            (case.remove)(world);
            world.guest_agrees(stockade, id, &format!("{name}, gone"));
            assert_becomes(world, &empty, name);
        }
    });
}

#[test]
fn veths_come_and_go_while_the_container_runs() {
    come_and_go(VETHS);
}

/// The built-in monitor has places for 32 devices, of which a machine takes some for itself.
#[test]
fn an_interface_comes_and_goes_more_often_than_the_machine_has_places_for_devices() {
    while_a_container_runs(|world, stockade, id| {
        let empty = world.picture();
        for number in 1..=32 {
            world.veth(1, 1500);
            world.guest_agrees(stockade, id, &format!("interface {number}"));
            world.ip("link del eth1");
            assert_becomes(world, &empty, &format!("interface {number}, gone"));
        }
        world.veth(1, 1500);
        world.guest_agrees(stockade, id, "the last interface");
        world.pings(stockade, id, "10.1.0.2", "10.1.0.1", 1400);
        world.ip("link del eth1");
        world.guest_agrees(stockade, id, "no interface");
    });
}

#[test]
fn links_on_an_uplink_come_and_go_while_the_container_runs() {
    come_and_go(ON_AN_UPLINK);
}

#[test]
fn a_link_that_stays_may_change_while_the_container_runs() {
    while_a_container_runs(|world, stockade, id| {
        world.veth(1, 1500);
        world.guest_agrees(stockade, id, "a link to be changed");
        world.ip("addr add 10.1.0.7/24 dev eth1");
        world.ip("route add 192.0.2.0/24 via 10.1.0.1");
        world.guest_agrees(stockade, id, "one address and one route more");
        world.ip("addr del 10.1.0.7/24 dev eth1");
        world.ip("route del 192.0.2.0/24");
        world.ip("link set eth1 mtu 1280");
        world.guest_agrees(stockade, id, "fewer again, and a smaller MTU");
        world.pings(stockade, id, "10.1.0.2", "10.1.0.1", 1200);
        let with_link = stockade.call(["inspect", id]).ok().json();
        assert_eq!(with_link["network"]["interfaces"][0]["name"], "eth1", "{with_link}");
        world.ip("link del eth1");
        world.guest_agrees(stockade, id, "no link");
    });
}

#[test]
fn with_the_model_none_the_namespace_is_not_touched_and_the_guest_has_no_interface() {
    let stockade = Stockade::with_config("", "[runtime]\ninternetworking_model = \"none\"");
    let world = World::new();
    world.veth(1, 1500);
    let picture = world.picture();
    let id = stockade.id("none");
    let bundle = world.bundle().shell("ip -o link").build().unwrap();
    let text = stockade.run(&id, &bundle, &[]).ok().text();
    assert!(text.contains("lo:") && text.trim().lines().count() == 1, "{text}");
    assert_as_before(&picture, &world.picture());
}

#[test]
fn a_path_that_is_no_network_namespace_fails_the_creation_and_leaves_nothing() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let file = stockade.folder().join("file");
    std::fs::write(&file, "").unwrap();
    // Seen from the supervisor it is the supervisor's, which is in the host's.
    let own = std::path::PathBuf::from("/proc/self/ns/net");
    let cases = [
        (stockade.folder().join("missing"), "cannot be opened"),
        (file, "is not a namespace"),
        ("/proc/self/ns/mnt".into(), "is a mount namespace, not a network namespace"),
        (own, "host networking is not supported"),
    ];
    for (path, wanted) in cases {
        let id = stockade.id("wrong");
        let bundle = Bundle::builder().shell("true").namespace("network", Some(&path)).build().unwrap();
        let failure = stockade.create(&id, &bundle, &[]).failure();
        assert!(failure.contains("network-namespace") && failure.contains(wanted), "{path:?}: {failure}");
        assert!(failure.contains(path.to_str().unwrap()), "{failure}");
        before.assert_same(&stockade);
    }
    // None listed is the host's, by the OCI.
    let world = World::new();
    let bundle = Bundle::builder().edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
    });
    let failure = stockade.create(&stockade.id("host"), &bundle.build().unwrap(), &[]).failure();
    assert!(failure.contains("host networking is not supported"), "{failure}");
    before.assert_same(&stockade);
    assert!(path_of(&world.sandbox).exists());
}
