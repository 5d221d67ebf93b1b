//! The kernel's messages to plain types.

use super::{Address, IpvlanMode, Link, LinkKind, Mac, Neighbour, NextHop, Prefix, Qdisc, Route, RouteAction, Rule};
use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoTun, InfoVlan, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RoutePreference, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use std::net::{IpAddr, Ipv4Addr};

/// A link without addresses, qdiscs and filters.
pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 0,
        queues: (1, 1),
        up: flags.contains(LinkFlags::Up),
        no_arp: flags.contains(LinkFlags::Noarp),
        lower: None,
        controller: None,
        addresses: Vec::new(),
        qdiscs: Vec::new(),
        ingress: Vec::new(),
    };
    let mut info: &[LinkInfo] = &[];
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = <[u8; 6]>::try_from(mac.as_slice()).ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::NumTxQueues(count) => link.queues.0 = *count,
            LinkAttribute::NumRxQueues(count) => link.queues.1 = *count,
            LinkAttribute::Link(index) => link.lower = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(list) => info = list,
            _ => {}
        }
    }
    // The number is one of the other namespace.
    if elsewhere {
        link.lower = None;
    }
    link.kind = kind(message.header.link_layer_type, info);
    link
}

fn kind(layer: LinkLayerType, info: &[LinkInfo]) -> LinkKind {
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    let kind = info.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match (kind, data) {
        (None, _) if layer == LinkLayerType::Loopback => LinkKind::Loopback,
        (None, _) if layer == LinkLayerType::Ether => LinkKind::Physical,
        (None, _) => LinkKind::Other(format!("{layer:?}").to_lowercase()),
        (Some(InfoKind::Veth), _) => LinkKind::Veth,
        (Some(InfoKind::MacVlan), _) => LinkKind::Macvlan,
        (Some(InfoKind::MacVtap), _) => LinkKind::Macvtap,
        (Some(InfoKind::IpVlan), Some(InfoData::IpVlan(data))) => LinkKind::Ipvlan(ipvlan_mode(data)),
        (Some(InfoKind::Vlan), Some(InfoData::Vlan(data))) => LinkKind::Vlan {
            id: data.iter().find_map(|info| if let InfoVlan::Id(id) = info { Some(*id) } else { None }).unwrap_or(0),
        },
        (Some(InfoKind::Tun), Some(InfoData::Tun(data))) => tun(data),
        (Some(kind), _) => LinkKind::Other(kind.to_string()),
    }
}

fn ipvlan_mode(data: &[InfoIpVlan]) -> IpvlanMode {
    let mode = data.iter().find_map(|info| if let InfoIpVlan::Mode(mode) = info { Some(mode) } else { None });
    match mode {
        Some(IpVlanMode::L3) => IpvlanMode::L3,
        Some(IpVlanMode::L3S) => IpvlanMode::L3S,
        _ => IpvlanMode::L2,
    }
}

/// `IFLA_TUN_*` of linux/if_link.h.
fn tun(data: &[InfoTun]) -> LinkKind {
    const TYPE: u16 = 3;
    const VNET_HDR: u16 = 5;
    const MULTI_QUEUE: u16 = 7;
    const TYPE_TAP: u8 = 2;
    let byte = |wanted| {
        data.iter().find_map(|info| match info {
            InfoTun::Other(attribute) if attribute.kind() == wanted => first_byte(attribute),
            _ => None,
        })
    };
    if byte(TYPE) == Some(TYPE_TAP) {
        LinkKind::Tap { multi_queue: byte(MULTI_QUEUE).unwrap_or(0) != 0, vnet_hdr: byte(VNET_HDR).unwrap_or(0) != 0 }
    } else {
        LinkKind::Tun
    }
}

fn first_byte(attribute: &DefaultNla) -> Option<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value.first().copied()
}

/// An address and the number of its link.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, Address)> {
    let mut local = None;
    let mut other = None;
    let mut address = Address {
        local: Prefix { address: Ipv4Addr::UNSPECIFIED.into(), length: message.header.prefix_len },
        peer: None,
        broadcast: None,
        label: None,
        scope: message.header.scope.into(),
        flags: message.header.flags.bits().into(),
        lifetime: None,
        metric: None,
        protocol: None,
    };
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Broadcast(broadcast) => address.broadcast = Some(*broadcast),
            AddressAttribute::Label(label) => address.label = Some(label.clone()),
            AddressAttribute::Flags(flags) => address.flags = flags.bits(),
            AddressAttribute::RoutePriority(metric) => address.metric = Some(*metric),
            AddressAttribute::Protocol(protocol) => address.protocol = Some(u8::from(*protocol)),
            AddressAttribute::CacheInfo(info) if info.ifa_valid != u32::MAX || info.ifa_preferred != u32::MAX => {
                address.lifetime = Some((info.ifa_preferred, info.ifa_valid));
            }
            _ => {}
        }
    }
    address.local.address = local.or(other)?;
    address.peer = other.filter(|other| *other != address.local.address);
    Some((message.header.index, address))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// A route; `None` for what the kernel has in its cache only.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let v6 = header.address_family == AddressFamily::Inet6;
    let mut route = Route {
        v6,
        table: header.table.into(),
        action: match header.kind {
            RouteType::Unicast => RouteAction::Unicast,
            RouteType::Local => RouteAction::Local,
            other => RouteAction::Other(other.into()),
        },
        protocol: header.protocol.into(),
        scope: header.scope.into(),
        tos: header.tos,
        destination: None,
        from: None,
        preferred_source: None,
        metric: 0,
        mtu: None,
        hops: Vec::new(),
        others: Vec::new(),
    };
    let mut hop = NextHop { gateway: None, link: None, weight: 1, on_link: header.flags.contains(RouteFlags::Onlink) };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let length = header.destination_prefix_length;
                route.destination = ip(address).map(|address| Prefix { address, length });
            }
            RouteAttribute::Source(address) => {
                let length = header.source_prefix_length;
                route.from = ip(address).map(|address| Prefix { address, length });
            }
            RouteAttribute::PrefSource(address) => route.preferred_source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::MultiPath(hops) => {
                route.hops = hops.iter().map(|hop| next_hop(hop, &mut route.others)).collect();
            }
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        _ => route.others.push("TCP metrics".to_owned()),
                    }
                }
            }
            RouteAttribute::Preference(RoutePreference::Medium) => {}
            other => hop_attribute(other, &mut hop, &mut route.others),
        }
    }
    // The kernel writes ::/0 and 0.0.0.0/0 for the default routes of some tables.
    route.destination = route.destination.filter(|prefix| prefix.length > 0);
    if route.hops.is_empty() && (hop.gateway.is_some() || hop.link.is_some()) {
        route.hops.push(hop);
    }
    route.others.dedup();
    Some(route)
}

fn next_hop(message: &RouteNextHop, others: &mut Vec<String>) -> NextHop {
    let mut hop = NextHop {
        gateway: None,
        link: Some(message.interface_index),
        weight: u16::from(message.hops) + 1,
        on_link: message.flags.contains(RouteNextHopFlags::Onlink),
    };
    for attribute in &message.attributes {
        hop_attribute(attribute, &mut hop, others);
    }
    hop
}

fn hop_attribute(attribute: &RouteAttribute, hop: &mut NextHop, others: &mut Vec<String>) {
    match attribute {
        RouteAttribute::Gateway(address) => hop.gateway = ip(address),
        RouteAttribute::Oif(index) => hop.link = Some(*index),
        // About how it is kept, not about what it is. The number of a next hop object comes with what it stands for.
        RouteAttribute::CacheInfo(_) | RouteAttribute::NhId(_) => {}
        RouteAttribute::Via(_) => others.push("a gateway of the other address family".to_owned()),
        RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => others.push("encapsulation".to_owned()),
        RouteAttribute::Preference(_) => others.push("a router preference".to_owned()),
        RouteAttribute::Realm(_) => others.push("a realm".to_owned()),
        RouteAttribute::Expires(_) => others.push("a lifetime".to_owned()),
        _ => others.push("properties unknown here".to_owned()),
    }
}

/// A neighbour table entry of IP.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            _ => {}
        }
    }
    let header = &message.header;
    Some(Neighbour {
        link: header.ifindex,
        address: address?,
        mac,
        state: header.state.into(),
        flags: header.flags.bits(),
    })
}

/// A policy routing rule.
pub(super) fn rule(message: &RuleMessage) -> Rule {
    let header = &message.header;
    let mut rule = Rule {
        v6: header.family == AddressFamily::Inet6,
        priority: 0,
        table: header.table.into(),
        built_in: header.action == RuleAction::ToTable && header.dst_len == 0 && header.src_len == 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            // Neither says anything about packets: 0xffffffff is "not set".
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => rule.built_in = false,
        }
    }
    rule.built_in &= matches!((rule.priority, rule.table), (0, 255) | (32766, 254) | (32767, 253));
    rule
}

/// A qdisc and the number of its link.
pub(super) fn qdisc(message: &TcMessage) -> Option<(u32, Qdisc)> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })?;
    let header = &message.header;
    let qdisc = Qdisc { kind, handle: header.handle.into(), parent: header.parent.into() };
    Some((u32::try_from(header.index).ok()?, qdisc))
}
