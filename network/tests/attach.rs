//! Endpoints are connected and disconnected in real namespaces: packets pass meanwhile, and nothing remains.

mod harness;

use harness::frames::Nic;
use harness::{World, attach, options, plans};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};
use stockade_network::{
    AttachOptions, Attachment, Fault, FaultKind, LinkKind, Mac, Model, NetworkError, PlanError, Undo, endpoints, plan,
};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

fn undos(attachments: Vec<Attachment>) -> Vec<Undo> {
    attachments.into_iter().map(|attachment| attachment.undo).collect()
}

fn exchange_packets(attachment: &Attachment, payload: usize) {
    let mut nic = Nic::new(&attachment.queues[0], attachment.endpoint.id.mac);
    let other = nic.arp(OWN, OTHER);
    nic.ping(other, OWN, OTHER, payload);
    let other6 = nic.solicit(OWN6, OTHER6);
    assert_eq!(other, other6);
    nic.ping6(other, OWN6, OTHER6, payload);
}

#[tokio::test]
async fn packets_pass_both_ways_and_the_namespace_is_as_before_when_they_no_longer_do() {
    for (mtu, payload) in [(1500, 1400), (9000, 8900)] {
        let world = World::with_veth(mtu);
        let before = world.picture();
        let network = world.network();
        let attachments = attach(&network, &options()).await;
        assert_eq!(attachments.len(), 1);
        assert_ne!(world.picture(), before);
        exchange_packets(&attachments[0], 56);
        exchange_packets(&attachments[0], payload);
        network.detach(undos(attachments)).await.expect("detached");
        world.picture().must_be(&before, "");
    }
}

#[tokio::test]
async fn packets_pass_through_a_macvlan() {
    let world = World::with_veth(1500);
    world.ip("addr flush dev eth0");
    if !world.ip_if_known("link add net1 link eth0 address 02:00:00:00:00:11 type macvlan mode bridge") {
        return;
    }
    world.ip("link set net1 up");
    world.ip("addr add 10.0.0.2/24 dev net1");
    world.ip("addr add fd00::2/64 dev net1");
    let before = world.picture();
    let network = world.network();
    // Also by the model that it cannot have.
    for model in [Model::TcFilter, Model::Macvtap] {
        let attachments = attach(&network, &AttachOptions { model, ..options() }).await;
        exchange_packets(&attachments[0], 1400);
        network.detach(undos(attachments)).await.expect("detached");
        world.picture().must_be(&before, "");
    }
}

#[tokio::test]
async fn packets_pass_through_an_ipvlan_in_both_modes() {
    for mode in ["l2", "l3"] {
        let world = World::with_veth(1500);
        world.ip("addr flush dev eth0");
        if !world.ip_if_known(&format!("link add net1 link eth0 type ipvlan mode {mode}")) {
            return;
        }
        world.ip("link set net1 up");
        world.ip("addr add 10.0.0.2/24 dev net1");
        world.ip("addr add fd00::2/64 dev net1");
        if mode == "l3" {
            // It routes in the namespace of the link below, which is this one, and knows no ARP: answers for its address,
            // which are its own and not the link's, are dropped.
            world.ip_outside("link set peer0 address 02:00:00:00:01:00");
            world.ip("route add 10.0.0.1/32 dev eth0");
            world.ip("neigh add 10.0.0.1 lladdr 02:00:00:00:01:00 dev eth0");
            world.ip_outside("neigh add 10.0.0.2 lladdr 02:00:00:00:00:00 dev peer0");
        }
        let before = world.picture();
        let network = world.network();
        let attachments = attach(&network, &options()).await;
        assert_eq!(attachments[0].endpoint.no_arp, mode == "l3");
        if mode == "l2" {
            exchange_packets(&attachments[0], 1400);
        } else {
            let mac = attachments[0].endpoint.id.mac;
            Nic::new(&attachments[0].queues[0], mac).ping(mac, OWN, OTHER, 1400);
        }
        network.detach(undos(attachments)).await.expect("detached");
        world.picture().must_be(&before, mode);
    }
}

#[tokio::test]
async fn a_link_and_the_vlan_on_it_each_carry_their_own_packets() {
    let world = World::with_veth(1500);
    if !world.ip_if_known("link add eth0.5 link eth0 type vlan id 5") {
        return;
    }
    world.ip("link set eth0.5 up");
    world.ip("addr add 10.5.0.2/24 dev eth0.5");
    world.ip_outside("link add peer0.5 link peer0 type vlan id 5");
    world.ip_outside("link set peer0.5 up");
    world.ip_outside("addr add 10.5.0.1/24 dev peer0.5");
    let before = world.picture();
    let network = world.network();
    let attachments = attach(&network, &options()).await;
    let [link, vlan] = attachments.as_slice() else { panic!("two endpoints") };
    exchange_packets(link, 1400);
    let (own, other) = (Ipv4Addr::new(10, 5, 0, 2), Ipv4Addr::new(10, 5, 0, 1));
    let mut nic = Nic::new(&vlan.queues[0], vlan.endpoint.id.mac);
    let mac = nic.arp(own, other);
    nic.ping(mac, own, other, 1400);
    drop(nic);
    network.detach(undos(attachments)).await.expect("detached");
    world.picture().must_be(&before, "");
}

#[tokio::test]
async fn a_macvtap_takes_the_address_of_the_link_and_gives_it_back() {
    let world = World::with_veth(1500);
    world.ip("addr add 10.0.0.3/24 dev eth0");
    world.ip("route add 192.0.2.0/24 via 10.0.0.1 metric 7 src 10.0.0.3 mtu 1400");
    world.ip("-6 route add 2001:db8::/32 via fd00::1");
    let before = world.picture();
    let network = world.network();
    let wanted = AttachOptions { model: Model::Macvtap, ..options() };
    let attachments = attach(&network, &wanted).await;
    assert!(!world.picture().contains("inet 10.0.0.2"), "the namespace itself must not answer");
    exchange_packets(&attachments[0], 1400);
    network.detach(undos(attachments)).await.expect("detached");
    world.picture().must_be(&before, "");
}

#[tokio::test]
async fn every_queue_has_a_descriptor_and_carries_packets() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let world = World::with_veth(1500);
        let before = world.picture();
        let network = world.network();
        let attachments = attach(&network, &AttachOptions { queues: 4, model, ..options() }).await;
        let [attachment] = attachments.as_slice() else { panic!("one endpoint") };
        assert_eq!(attachment.queues.len(), 4);
        // Sent by each queue; the answers come by any, so only that the peer heard of us is looked at.
        for (number, queue) in attachment.queues.iter().enumerate() {
            let mac = Mac([2, 0, 0, 0, 1, u8::try_from(number).expect("few")]);
            let own = Ipv4Addr::new(10, 0, 0, 100 + u8::try_from(number).expect("few"));
            let mut frame = harness::frames::ethernet(Mac([0xff; 6]), mac, 0x0806);
            frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(mac.0.iter().chain(&own.octets()).chain(&[0; 6]).chain(&OTHER.octets()));
            Nic::new(queue, mac).send(&frame);
            harness::wait(|| world.outside_knows(own, mac));
        }
        network.detach(undos(attachments)).await.expect("detached");
        world.picture().must_be(&before, "");
    }
}

#[tokio::test]
async fn a_tap_of_the_namespace_is_opened_itself_and_has_its_header_as_before() {
    let world = World::new();
    world.ip("tuntap add tap0 mode tap");
    // With a reader it gets a carrier, and by that it would get an address of its own.
    world.ip("link set tap0 addrgenmode none");
    world.ip("link set tap0 address 02:00:00:00:00:09 up");
    world.ip("addr add 10.0.0.1/24 dev tap0");
    world.ip("addr add fd00::1/64 dev tap0");
    harness::wait(|| world.picture().contains("NO-CARRIER"));
    let before = world.picture();
    let network = world.network();
    let attachments = attach(&network, &options()).await;
    harness::wait(|| !world.picture().contains("NO-CARRIER"));
    let mut nic = Nic::new(&attachments[0].queues[0], Mac([2, 0, 0, 0, 0, 7]));
    // What is behind the tap is the namespace itself.
    let other = nic.arp(OWN, OTHER);
    assert_eq!(other, Mac([2, 0, 0, 0, 0, 9]));
    nic.ping(other, OWN, OTHER, 56);
    drop(nic);
    network.detach(undos(attachments)).await.expect("detached");
    harness::wait(|| world.picture().contains("NO-CARRIER"));
    world.picture().must_be(&before, "");
}

#[tokio::test]
async fn a_macvtap_of_the_namespace_is_opened_itself() {
    let world = World::with_veth(1500);
    world.ip("addr flush dev eth0");
    world.ip("link add link eth0 name tap0 address 02:00:00:00:00:05 type macvtap mode bridge");
    world.ip("link set tap0 up");
    let before = world.picture();
    let network = world.network();
    let attachments = attach(&network, &options()).await;
    assert_eq!(attachments[0].endpoint.kind, LinkKind::Macvtap);
    exchange_packets(&attachments[0], 1000);
    network.detach(undos(attachments)).await.expect("detached");
    world.picture().must_be(&before, "");
}

#[tokio::test]
async fn filters_of_others_stay_and_see_packets_first() {
    for qdisc in ["ingress", "clsact"] {
        let world = World::with_veth(1500);
        world.tc(&format!("qdisc add dev eth0 {qdisc}"));
        world.tc("filter add dev eth0 ingress pref 50000 protocol 0x88b5 u32 match u8 0 0 flowid :1");
        let before = world.picture();
        let network = world.network();
        let attachments = attach(&network, &options()).await;
        exchange_packets(&attachments[0], 56);
        let after = network.scan().await.expect("scanned");
        let priorities: Vec<u16> =
            after.named("eth0").expect("eth0").ingress.iter().map(|filter| filter.priority).collect();
        assert_eq!(priorities, [50000, 50001]);
        network.detach(undos(attachments)).await.expect("detached");
        world.picture().must_be(&before, "");
    }
}

#[tokio::test]
async fn a_filter_that_someone_adds_meanwhile_keeps_the_qdisc() {
    let world = World::with_veth(1500);
    let network = world.network();
    let attachments = attach(&network, &options()).await;
    world.tc("filter add dev eth0 ingress pref 3 protocol 0x88b5 u32 match u8 0 0 flowid :1");
    network.detach(undos(attachments)).await.expect("detached");
    let scan = network.scan().await.expect("scanned");
    let link = scan.named("eth0").expect("eth0");
    assert!(link.has_ingress_qdisc());
    assert_eq!(link.ingress.iter().map(|filter| filter.priority).collect::<Vec<_>>(), [3]);
}

#[tokio::test]
async fn an_interface_that_another_machine_has_is_refused() {
    let world = World::with_veth(1500);
    let network = world.network();
    let scan_before = network.scan().await.expect("scanned");
    let attachments = attach(&network, &options()).await;
    let scan = network.scan().await.expect("scanned");
    let endpoint = endpoints(&scan_before).expect("endpoints").remove(0);
    let taken = plan(&scan, network.id(), &endpoint, &options()).expect_err("refused");
    assert_eq!(taken, PlanError::Taken { name: "eth0".to_owned() });
    // Also when only the filter is left, of a machine whose tap died with it.
    let undo = attachments[0].undo.clone();
    drop(attachments);
    let scan = network.scan().await.expect("scanned");
    assert!(scan.links.iter().all(|link| !link.name.starts_with("stk")), "{:?}", scan.links);
    let taken = plan(&scan, network.id(), &endpoint, &options()).expect_err("refused");
    assert_eq!(taken, PlanError::Taken { name: "eth0".to_owned() });
    network.detach(vec![undo]).await.expect("detached");
    assert_eq!(network.scan().await.expect("scanned").links, scan_before.links);
}

#[tokio::test]
async fn an_undo_that_was_written_down_works_in_another_process_and_more_than_once() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let world = World::with_veth(1500);
        let before = world.picture();
        let network = world.network();
        let scan = network.scan().await.expect("scanned");
        let wanted = AttachOptions { model, ..options() };
        let all = plans(&network, &scan, &wanted);
        let written = serde_json::to_string(&all[0].undo()).expect("written");
        let undo: Undo = serde_json::from_str(&written).expect("read");
        network.detach(vec![undo.clone()]).await.expect("nothing to undo");
        world.picture().must_be(&before, "a plan that was never carried out");
        drop(network.attach(all).await.expect("attached"));
        for _ in 0..2 {
            network.detach_blocking(std::slice::from_ref(&undo)).expect("undone");
            world.picture().must_be(&before, "");
        }
        // In another namespace with a link of the same number and address it touches nothing.
        let other = World::with_veth(1500);
        let other_network = other.network();
        let kept = attach(&other_network, &wanted).await;
        let picture = other.picture();
        other_network.detach(vec![undo]).await.expect("nothing to undo");
        other.picture().must_be(&picture, "");
        drop(kept);
    }
}

#[tokio::test]
async fn a_link_that_is_gone_needs_no_undoing() {
    let world = World::with_veth(1500);
    let network = world.network();
    let attachments = attach(&network, &options()).await;
    world.ip("link del eth0");
    network.detach(undos(attachments)).await.expect("detached");
    let scan = network.scan().await.expect("scanned");
    assert_eq!(scan.links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo"]);
}

#[tokio::test]
async fn a_fault_at_any_step_leaves_nothing_and_is_named() {
    for (model, queues) in [(Model::TcFilter, 1), (Model::TcFilter, 2), (Model::Macvtap, 1)] {
        for kind in [FaultKind::Refused, FaultKind::Lost] {
            let limited = model == Model::TcFilter;
            let rates = if limited { (8_000_000, 8_000_000) } else { (0, 8_000_000) };
            let wanted = AttachOptions { model, queues, rx_rate: rates.0, tx_rate: rates.1, ..options() };
            let world = World::with_veth(1500);
            world.veth(1);
            world.ip("addr add 10.1.0.2/24 dev eth1");
            world.ip("route add 192.0.2.0/24 via 10.1.0.1");
            let before = world.picture();
            let clean = world.network();
            let scan = clean.scan().await.expect("scanned");
            let counted = world.network().with_faults(Vec::new());
            let attachments = counted.attach(plans(&counted, &scan, &wanted)).await.expect("attached");
            let steps = counted.steps();
            assert!(steps >= 14, "{steps} steps");
            counted.detach(undos(attachments)).await.expect("detached");
            world.picture().must_be(&before, "");

            let mut names = Vec::new();
            for at in 0..steps {
                let faulty = world.network().with_faults(vec![Fault { at, kind }]);
                let error = faulty.attach(plans(&faulty, &scan, &wanted)).await.expect_err("a fault");
                let NetworkError::Step { step, leftover, .. } = &error else { panic!("{error}") };
                assert!(leftover.is_empty(), "{error}");
                world.picture().must_be(&before, &format!("after a fault when it tried to {step}"));
                names.push(step.clone());
            }
            let mut distinct = names.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), names.len(), "{names:?}");
        }
    }
}

#[tokio::test]
async fn a_fault_at_any_step_of_a_detachment_is_named_and_the_rest_is_undone() {
    let world = World::with_veth(1500);
    let before = world.picture();
    let wanted = AttachOptions { tx_rate: 8_000_000, ..options() };
    let network = world.network();
    let undo = undos(attach(&network, &wanted).await).remove(0);
    let counted = network.clone().with_faults(Vec::new());
    counted.detach(vec![undo]).await.expect("detached");
    for at in 0..counted.steps() {
        let undo = undos(attach(&network, &wanted).await).remove(0);
        let faulty = network.clone().with_faults(vec![Fault { at, kind: FaultKind::Refused }]);
        let error = faulty.detach(vec![undo.clone()]).await.expect_err("a fault").to_string();
        assert!(error.starts_with("the network is not as it was; cannot "), "{error}");
        network.detach(vec![undo]).await.expect("the second time it works");
        world.picture().must_be(&before, "");
    }
}

#[tokio::test]
async fn a_step_that_does_not_end_is_given_up_named_and_undone_when_it_does() {
    let world = World::with_veth(1500);
    let before = world.picture();
    let limits = stockade_network::Limits { request: Duration::from_millis(400), ..Default::default() };
    let network = stockade_network::Network::new(harness::shared(&world.sandbox), limits).expect("a namespace");
    let scan = world.network().scan().await.expect("scanned");
    let late = Fault { at: 5, kind: FaultKind::Late(Duration::from_millis(1500)) };
    let faulty = network.with_faults(vec![late]);
    let error = faulty.attach(plans(&faulty, &scan, &options())).await.expect_err("too late");
    let NetworkError::Late { step, .. } = &error else { panic!("{error}") };
    assert!(step.starts_with("redirect \"stk"), "{step}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.network().scan().await.expect("scanned").links != scan.links {
        assert!(Instant::now() < deadline, "it was not undone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.picture().must_be(&before, "");
}

#[tokio::test]
async fn a_rate_limit_holds_in_each_direction() {
    // 60 frames of 1000 bytes at 2 Mbit/s take 0.24 s, less the burst of 3128 bytes.
    const FRAMES: usize = 60;
    const PAYLOAD: usize = 958;
    let least = Duration::from_millis(200);
    let world = World::with_veth(1500);
    world.ip_outside("neigh add 10.0.0.2 lladdr 02:00:00:00:00:00 dev peer0");
    let before = world.picture();
    let network = world.network();
    let wanted = AttachOptions { rx_rate: 2_000_000, tx_rate: 2_000_000, ..options() };
    let attachments = attach(&network, &wanted).await;
    let mut nic = Nic::new(&attachments[0].queues[0], attachments[0].endpoint.id.mac);
    let other = nic.arp(OWN, OTHER);
    let socket = world.udp_outside(OTHER, 5000);

    let begin = Instant::now();
    for _ in 0..FRAMES {
        socket.send_to(&[7; PAYLOAD], (OWN, 5000)).expect("sent");
    }
    for _ in 0..FRAMES {
        nic.receive("datagram", |frame| (frame.get(12..14)? == [0x08, 0x00] && frame.get(23)? == &17).then_some(()));
    }
    assert!(begin.elapsed() >= least, "received within {:?}", begin.elapsed());

    let begin = Instant::now();
    for _ in 0..FRAMES {
        nic.send_udp(other, OWN, OTHER, 5000, PAYLOAD);
    }
    for _ in 0..FRAMES {
        assert_eq!(harness::receive(&socket), PAYLOAD);
    }
    assert!(begin.elapsed() >= least, "sent within {:?}", begin.elapsed());

    drop(nic);
    network.detach(undos(attachments)).await.expect("detached");
    world.picture().must_be(&before, "");
}

#[tokio::test]
async fn what_cannot_be_limited_or_has_queueing_of_its_own_is_refused_before_anything_is_touched() {
    let world = World::with_veth(1500);
    world.tc("qdisc add dev eth0 root handle 5: tbf rate 1mbit burst 10k latency 10ms");
    let before = world.picture();
    let network = world.network();
    let scan = network.scan().await.expect("scanned");
    let endpoint = endpoints(&scan).expect("endpoints").remove(0);
    let refusal = |wanted| plan(&scan, network.id(), &endpoint, &wanted).expect_err("refused").to_string();
    let own = refusal(AttachOptions { tx_rate: 1_000_000, ..options() });
    assert!(own.contains("a queueing discipline of its own (tbf)"), "{own}");
    let macvtap = refusal(AttachOptions { rx_rate: 1_000_000, model: Model::Macvtap, ..options() });
    assert!(macvtap.contains("use the model tcfilter"), "{macvtap}");
    for queues in [0, 257] {
        assert!(refusal(AttachOptions { queues, ..options() }).contains("1 to 256"));
    }
    world.picture().must_be(&before, "");
}
