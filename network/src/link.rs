//! Messages that change links, addresses and routes.

use crate::netlink::NetlinkError;
use crate::scan::{Address, Mac, NextHop, Prefix, Route};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, MacVtapMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
};
use std::net::IpAddr;

/// The number of the link `name` of the calling thread's namespace.
pub(crate) fn index_of(name: &str) -> Result<u32, NetlinkError> {
    nix::net::if_::if_nametoindex(name).map_err(|errno| NetlinkError::System(errno.into()))
}

/// About a link.
pub(crate) fn with_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets the MTU and that no IPv6 address is made when the link comes up: it would speak to the guest.
pub(crate) fn quiet(index: u32, mtu: u32) -> LinkMessage {
    let mut message = with_index(index);
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes =
        vec![LinkAttribute::Mtu(mtu), LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])];
    message
}

/// Brings a link up.
pub(crate) fn up(index: u32) -> LinkMessage {
    let mut message = with_index(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Sets the MAC address.
pub(crate) fn with_mac(index: u32, mac: Mac) -> LinkMessage {
    let mut message = with_index(index);
    message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    message
}

/// A macvtap on a link, in Kata's mode: macvlans on the same link reach one another.
pub(crate) fn macvtap(name: &str, lower: u32, mac: Mac) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Link(lower),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Bridge)])),
        ]),
    ];
    message
}

/// An address of a link, as it was scanned.
pub(crate) fn address(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let v4 = address.local.address.is_ipv4();
    message.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.index = index;
    message.header.prefix_len = address.local.length;
    message.header.scope = address.scope.into();
    message.attributes = vec![
        AddressAttribute::Local(address.local.address),
        AddressAttribute::Address(address.peer.unwrap_or(address.local.address)),
        AddressAttribute::Flags(AddressFlags::from_bits_retain(address.flags)),
    ];
    message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
    message.attributes.extend(address.label.clone().map(AddressAttribute::Label));
    message.attributes.extend(address.metric.map(AddressAttribute::RoutePriority));
    message
        .attributes
        .extend(address.protocol.map(|protocol| AddressAttribute::Protocol(AddressProtocol::from(protocol))));
    if let Some((preferred, valid)) = address.lifetime {
        let mut info = CacheInfo::default();
        info.ifa_preferred = preferred;
        info.ifa_valid = valid;
        message.attributes.push(AddressAttribute::CacheInfo(info));
    }
    message
}

/// A route, as it was scanned; `None` when its parts are of two address families.
pub(crate) fn route(route: &Route) -> Option<RouteMessage> {
    let ip = |address: IpAddr| match address {
        IpAddr::V4(address) if !route.v6 => Some(RouteAddress::Inet(address)),
        IpAddr::V6(address) if route.v6 => Some(RouteAddress::Inet6(address)),
        _ => None,
    };
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = if route.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.table = u8::try_from(route.table).unwrap_or(0);
    header.protocol = route.protocol.into();
    header.scope = route.scope.into();
    header.tos = route.tos;
    header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Table(route.table));
    if let Some(Prefix { address, length }) = route.destination {
        message.header.destination_prefix_length = length;
        message.attributes.push(RouteAttribute::Destination(ip(address)?));
    }
    if let Some(Prefix { address, length }) = route.from {
        message.header.source_prefix_length = length;
        message.attributes.push(RouteAttribute::Source(ip(address)?));
    }
    if let Some(address) = route.preferred_source {
        message.attributes.push(RouteAttribute::PrefSource(ip(address)?));
    }
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    let gateway = |hop: &NextHop| hop.gateway.map(|address| ip(address).ok_or(())).transpose().ok();
    match route.hops.as_slice() {
        [hop] => {
            if hop.on_link {
                message.header.flags |= RouteFlags::Onlink;
            }
            message.attributes.extend(hop.link.map(RouteAttribute::Oif));
            message.attributes.extend(gateway(hop)?.map(RouteAttribute::Gateway));
        }
        hops => {
            let hops: Option<Vec<RouteNextHop>> = hops
                .iter()
                .map(|hop| {
                    let mut message = RouteNextHop::default();
                    message.interface_index = hop.link.unwrap_or(0);
                    message.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
                    message.flags = if hop.on_link { RouteNextHopFlags::Onlink } else { RouteNextHopFlags::empty() };
                    message.attributes = gateway(hop)?.map(RouteAttribute::Gateway).into_iter().collect();
                    Some(message)
                })
                .collect();
            message.attributes.push(RouteAttribute::MultiPath(hops?));
        }
    }
    Some(message)
}
