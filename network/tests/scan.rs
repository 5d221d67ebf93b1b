//! A table of namespaces: what a scan finds is what was set, what the guest is told is what its containers expect, and
//! each can be connected and disconnected without a trace.

mod harness;

use harness::{World, options, plans};
use stockade_network::{
    Address, Change, Endpoint, GuestNetwork, GuestRoute, IpvlanMode, LinkKind, Mac, Neighbour, NotCarried, Scan, diff,
    endpoints,
};

/// One namespace of the table.
struct Case {
    name: &'static str,
    /// Makes it; `false` when the kernel cannot.
    make: fn(&World) -> bool,
    /// An endpoint a line: name, kind, MAC address, MTU, addresses.
    endpoints: &'static [&'static str],
    /// A route of the guest a line.
    routes: &'static [&'static str],
}

fn show_kind(kind: &LinkKind) -> String {
    match kind {
        LinkKind::Veth => "veth".to_owned(),
        LinkKind::Macvlan => "macvlan".to_owned(),
        LinkKind::Macvtap => "macvtap".to_owned(),
        LinkKind::Ipvlan(IpvlanMode::L2) => "ipvlan-l2".to_owned(),
        LinkKind::Ipvlan(IpvlanMode::L3) => "ipvlan-l3".to_owned(),
        LinkKind::Vlan { id } => format!("vlan-{id}"),
        LinkKind::Tap { .. } => "tap".to_owned(),
        other => format!("{other:?}"),
    }
}

fn show_endpoint(endpoint: &Endpoint) -> String {
    // What each link makes for itself is not in the table.
    let own = |address: &&Address| !address.local.to_string().starts_with("fe80");
    let addresses: Vec<String> =
        endpoint.addresses.iter().filter(own).map(|address| address.local.to_string()).collect();
    format!(
        "{} {} {} {} {}",
        endpoint.name,
        show_kind(&endpoint.kind),
        endpoint.id.mac,
        endpoint.mtu,
        addresses.join(" ")
    )
}

fn show_route(route: &GuestRoute) -> String {
    let mut text = route.destination.map_or_else(|| "default".to_owned(), |prefix| prefix.to_string());
    if let Some(gateway) = route.gateway {
        text += &format!(" via {gateway}");
    }
    text += &format!(" dev {} metric {}", route.device, route.metric);
    if let Some(source) = route.source {
        text += &format!(" src {source}");
    }
    if let Some(mtu) = route.mtu {
        text += &format!(" mtu {mtu}");
    }
    if route.on_link {
        text += " onlink";
    }
    if route.scope == 253 {
        text += " link";
    }
    text
}

const TABLE: &[Case] = &[
    Case { name: "nothing but lo", make: |_| true, endpoints: &[], routes: &[] },
    Case {
        name: "one veth without an address",
        make: |world| {
            world.veth(0);
            world.ip("link set eth0 addrgenmode none");
            world.ip("addr flush dev eth0");
            true
        },
        endpoints: &[],
        routes: &[],
    },
    Case {
        name: "one veth",
        make: |world| {
            world.veth(0);
            world.ip("addr add 10.0.0.2/24 brd + dev eth0");
            world.ip("route add default via 10.0.0.1");
            true
        },
        endpoints: &["eth0 veth 02:00:00:00:00:00 1500 10.0.0.2/24"],
        routes: &["default via 10.0.0.1 dev eth0 metric 0"],
    },
    Case {
        name: "three veths with two default routes of different metric",
        make: |world| {
            for number in 0..3 {
                world.veth(number);
                world.ip(&format!("addr add 10.{number}.0.2/24 dev eth{number}"));
            }
            world.ip("route add default via 10.0.0.1 metric 100");
            world.ip("route add default via 10.1.0.1 metric 50");
            world.ip("route add 192.0.2.0/24 via 10.2.0.1 src 10.2.0.2 mtu 1400");
            true
        },
        endpoints: &[
            "eth0 veth 02:00:00:00:00:00 1500 10.0.0.2/24",
            "eth1 veth 02:00:00:00:00:01 1500 10.1.0.2/24",
            "eth2 veth 02:00:00:00:00:02 1500 10.2.0.2/24",
        ],
        routes: &[
            "default via 10.1.0.1 dev eth1 metric 50",
            "default via 10.0.0.1 dev eth0 metric 100",
            "192.0.2.0/24 via 10.2.0.1 dev eth2 metric 0 src 10.2.0.2 mtu 1400",
        ],
    },
    Case {
        name: "IPv6 only",
        make: |world| {
            world.veth(0);
            world.ip("addr add fd00::2/64 dev eth0");
            world.ip("addr add fd00::3/128 dev eth0");
            world.ip("-6 route add default via fd00::1 metric 7");
            true
        },
        endpoints: &["eth0 veth 02:00:00:00:00:00 1500 fd00::3/128 fd00::2/64"],
        routes: &["default via fd00::1 dev eth0 metric 7"],
    },
    Case {
        name: "both families, on-link and scoped routes, as Calico has them",
        make: |world| {
            world.veth(0);
            world.ip("addr add 192.168.7.5/32 dev eth0");
            world.ip("route add 169.254.1.1 dev eth0 scope link");
            world.ip("route add default via 169.254.1.1 dev eth0");
            world.ip("route add 203.0.113.0/24 via 198.51.100.1 dev eth0 onlink");
            world.ip("addr add fd00::2/128 dev eth0");
            world.ip("-6 route add default via fe80::1 dev eth0");
            true
        },
        endpoints: &["eth0 veth 02:00:00:00:00:00 1500 192.168.7.5/32 fd00::2/128"],
        routes: &[
            "169.254.1.1/32 dev eth0 metric 0 link",
            "default via 169.254.1.1 dev eth0 metric 0",
            "203.0.113.0/24 via 198.51.100.1 dev eth0 metric 0 onlink",
            "default via fe80::1 dev eth0 metric 1024",
        ],
    },
    Case {
        name: "a default route over two ways",
        make: |world| {
            for number in 0..2 {
                world.veth(number);
                world.ip(&format!("addr add 10.{number}.0.2/24 dev eth{number}"));
            }
            world.ip("route add default metric 5 nexthop via 10.0.0.1 weight 1 nexthop via 10.1.0.1 weight 3");
            world.ip("route add default via 10.0.0.9 metric 6");
            true
        },
        endpoints: &["eth0 veth 02:00:00:00:00:00 1500 10.0.0.2/24", "eth1 veth 02:00:00:00:00:01 1500 10.1.0.2/24"],
        routes: &[
            "default via 10.1.0.1 dev eth1 metric 5",
            "default via 10.0.0.1 dev eth0 metric 7",
            "default via 10.0.0.9 dev eth0 metric 6",
        ],
    },
    Case {
        name: "macvlan",
        make: |world| {
            world.veth(0);
            world.ip("addr flush dev eth0");
            let made = world.ip_if_known("link add net1 link eth0 address 02:00:00:00:00:11 type macvlan mode bridge");
            if made {
                world.ip("link set net1 up");
                world.ip("addr add 10.0.0.2/24 dev net1");
            }
            made
        },
        endpoints: &["net1 macvlan 02:00:00:00:00:11 1500 10.0.0.2/24"],
        routes: &[],
    },
    Case {
        name: "ipvlan L2",
        make: |world| ipvlan(world, "l2"),
        endpoints: &["net1 ipvlan-l2 02:00:00:00:00:00 1500 10.0.0.2/24"],
        routes: &["default via 10.0.0.1 dev net1 metric 0"],
    },
    Case {
        name: "ipvlan L3",
        make: |world| ipvlan(world, "l3"),
        endpoints: &["net1 ipvlan-l3 02:00:00:00:00:00 1500 10.0.0.2/24"],
        routes: &["default via 10.0.0.1 dev net1 metric 0"],
    },
    Case {
        name: "a VLAN on a veth, both with addresses",
        make: |world| {
            world.veth(0);
            world.ip("addr add 10.0.0.2/24 dev eth0");
            let made = world.ip_if_known("link add eth0.5 link eth0 type vlan id 5");
            if made {
                world.ip("link set eth0.5 up");
                world.ip("addr add 10.5.0.2/24 dev eth0.5");
            }
            made
        },
        endpoints: &[
            "eth0 veth 02:00:00:00:00:00 1500 10.0.0.2/24",
            "eth0.5 vlan-5 02:00:00:00:00:00 1500 10.5.0.2/24",
        ],
        routes: &[],
    },
    Case {
        name: "an MTU of 9000",
        make: |world| {
            world.veth(0);
            world.ip("link set eth0 mtu 9000");
            world.ip("addr add 10.0.0.2/24 dev eth0");
            true
        },
        endpoints: &["eth0 veth 02:00:00:00:00:00 9000 10.0.0.2/24"],
        routes: &[],
    },
];

fn ipvlan(world: &World, mode: &str) -> bool {
    world.veth(0);
    world.ip("addr flush dev eth0");
    let made = world.ip_if_known(&format!("link add net1 link eth0 type ipvlan mode {mode}"));
    if made {
        world.ip("link set net1 up");
        world.ip("addr add 10.0.0.2/24 dev net1");
        world.ip("route add default via 10.0.0.1 dev net1");
    }
    made
}

#[tokio::test]
async fn a_scan_finds_what_was_set_and_an_attachment_leaves_no_trace() {
    for case in TABLE {
        let name = case.name;
        let world = World::new();
        if !(case.make)(&world) {
            continue;
        }
        let network = world.network();
        let scan = network.scan().await.expect("scanned");
        let found = endpoints(&scan).expect("endpoints");
        assert_eq!(found.iter().map(show_endpoint).collect::<Vec<_>>(), case.endpoints, "{name}");
        let guest = GuestNetwork::new(&scan, &found);
        assert_eq!(guest.routes.iter().map(show_route).collect::<Vec<_>>(), case.routes, "{name}");
        assert_eq!(guest.interfaces.len(), found.len(), "{name}");

        let before = world.picture();
        let attachments = network.attach(plans(&network, &scan, &options())).await.expect(name);
        assert_eq!(attachments.len(), case.endpoints.len(), "{name}");
        // What we added is no change, and seen from without us the namespace is as it was.
        let mut now = network.scan().await.expect("scanned");
        for attachment in attachments.iter().rev() {
            attachment.undo.apply_to(&mut now);
        }
        assert_eq!(diff(&found, &now), Change::default(), "{name}");
        assert_eq!(GuestNetwork::new(&now, &found), guest, "{name}");
        let undos = attachments.into_iter().map(|attachment| attachment.undo).collect();
        network.detach(undos).await.expect(name);
        world.picture().must_be(&before, name);
    }
}

#[tokio::test]
async fn forty_routes_are_all_carried() {
    let world = World::with_veth(1500);
    for number in 0..40 {
        world.ip(&format!("route add 172.16.{number}.0/24 via 10.0.0.1 metric {}", number + 1));
    }
    let network = world.network();
    let scan = network.scan().await.expect("scanned");
    let guest = GuestNetwork::new(&scan, &endpoints(&scan).expect("endpoints"));
    // The default route too.
    assert_eq!(guest.routes.len(), 41);
    for number in 0..40u32 {
        let wanted = format!("172.16.{number}.0/24 via 10.0.0.1 dev eth0 metric {}", number + 1);
        assert!(guest.routes.iter().any(|route| show_route(route) == wanted), "{wanted}");
    }
    assert_eq!(guest.not_carried, []);
}

#[tokio::test]
async fn a_link_tells_its_queues_mac_address_and_what_was_set_by_hand() {
    let world = World::with_veth(1400);
    world.ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
    world.ip("neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    world.ip("neigh add 10.0.0.78 lladdr 02:00:00:00:00:78 dev eth0 nud stale");
    let scan = world.network().scan().await.expect("scanned");
    let tap = scan.named("tap0").expect("tap0");
    assert_eq!(tap.kind, LinkKind::Tap { multi_queue: true, vnet_hdr: true });
    assert!(tap.queues.0 > 1, "{:?}", tap.queues);
    let veth = scan.named("eth0").expect("eth0");
    assert_eq!((veth.mtu, veth.mac, veth.up, veth.no_arp), (1400, Some(Mac([2, 0, 0, 0, 0, 0])), true, false));
    assert_eq!(veth.lower, None, "the other end is in another namespace");
    let known: Vec<&Neighbour> = scan.neighbours.iter().filter(|entry| entry.address.is_ipv4()).collect();
    assert_eq!(known.len(), 2, "{known:?}");
    let guest = GuestNetwork::new(&scan, &endpoints(&scan).expect("endpoints"));
    let told: Vec<String> =
        guest.neighbours.iter().map(|entry| format!("{} {} {}", entry.address, entry.device, entry.mac)).collect();
    assert_eq!(told, ["10.0.0.77 eth0 02:00:00:00:00:77"]);
}

#[tokio::test]
async fn what_the_guest_cannot_be_told_is_listed() {
    let world = World::with_veth(1500);
    world.ip("route add 198.51.100.0/24 via 10.0.0.1 table 77");
    world.ip("rule add from 10.0.0.2 table 77 priority 1000");
    world.ip("route add unreachable 203.0.113.0/24");
    let scan = world.network().scan().await.expect("scanned");
    assert_eq!(scan.rules.iter().filter(|rule| rule.built_in).count(), 5, "{:?}", scan.rules);
    let guest = GuestNetwork::new(&scan, &endpoints(&scan).expect("endpoints"));
    let texts: Vec<String> = guest.not_carried.iter().map(NotCarried::to_string).collect();
    assert_eq!(
        texts,
        [
            "the route to 203.0.113.0/24: it has no way: it refuses or throws packets away",
            "the 1 routes of table 77: the guest has the main table alone",
            "the rule of priority 1000 to table 77: the guest has no policy routing",
        ]
    );
}

#[tokio::test]
async fn a_tun_with_an_address_and_an_unknown_kind_are_refused() {
    for (make, wanted) in [
        ("tuntap add tun0 mode tun", "\"tun0\" carries IP packets"),
        ("link add br0 type bridge", "\"br0\" is of kind \"bridge\""),
    ] {
        let world = World::new();
        world.ip(make);
        let name = make.split_whitespace().nth(2).expect("a name");
        let scan = world.network().scan().await.expect("scanned");
        assert_eq!(endpoints(&scan), Ok(vec![]), "without an address it is left alone");
        world.ip(&format!("link set {name} up"));
        world.ip(&format!("addr add 10.0.0.2/24 dev {name}"));
        let scan = world.network().scan().await.expect("scanned");
        let error = endpoints(&scan).expect_err("refused").to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn a_change_is_found_once_and_noticed_when_it_happens() {
    let world = World::with_veth(1500);
    let network = world.network();
    let watch = network.watch().expect("watched");
    let all = |scan: &Scan| endpoints(scan).expect("endpoints");
    let mut known = network.scan().await.expect("scanned");
    let mut change = async |what: &dyn Fn(&World)| {
        what(&world);
        tokio::time::timeout(std::time::Duration::from_secs(10), watch.changed())
            .await
            .expect("in time")
            .expect("noticed");
        assert!(watch.take().expect("looked"), "what was waited for can still be asked for");
        let now = network.scan().await.expect("scanned");
        let change = diff(&all(&known), &now);
        assert_eq!(diff(&all(&now), &now), Change::default());
        let routes = GuestNetwork::new(&known, &all(&known)).routes != GuestNetwork::new(&now, &all(&now)).routes;
        known = now;
        (change, routes)
    };
    let names = |list: &[Endpoint]| list.iter().map(|endpoint| endpoint.name.clone()).collect::<Vec<_>>();

    let (added, routes) = change(&|world| {
        world.veth(1);
        world.ip("addr add 10.1.0.2/24 dev eth1");
    })
    .await;
    assert_eq!((names(&added.added), routes), (vec!["eth1".to_owned()], false), "{added:?}");
    let (moved, _) = change(&|world| world.ip("addr add 10.1.0.3/24 dev eth1")).await;
    assert_eq!((names(&moved.changed), moved.added.len(), moved.removed.len()), (vec!["eth1".to_owned()], 0, 0));
    let (route, routes) = change(&|world| world.ip("route add 192.0.2.0/24 via 10.1.0.1")).await;
    assert!(routes && route.changed.is_empty(), "{route:?}");
    let (other, _) = change(&|world| world.ip("link set eth1 address 02:00:00:00:00:99")).await;
    assert_eq!((names(&other.added), names(&other.removed)), (vec!["eth1".to_owned()], vec!["eth1".to_owned()]));
    let (gone, routes) = change(&|world| world.ip("link del eth1")).await;
    assert_eq!((names(&gone.removed), routes), (vec!["eth1".to_owned()], true));
}

#[tokio::test]
async fn a_fault_at_any_step_of_a_scan_is_named() {
    let world = World::with_veth(1500);
    let network = world.network().with_faults(Vec::new());
    let scan: Scan = network.scan().await.expect("scanned");
    assert!(scan.named("eth0").is_some());
    let steps = network.steps();
    assert!(steps >= 8, "{steps} steps");
    for at in 0..steps {
        let fault = stockade_network::Fault { at, kind: stockade_network::FaultKind::Refused };
        let error = world.network().with_faults(vec![fault]).scan().await.expect_err("a fault").to_string();
        assert!(error.starts_with("cannot list the "), "{error}");
    }
}
