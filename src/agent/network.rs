//! The guest's network in the words of the agent contract.

use crate::network::{GuestAddress, GuestInterface, GuestNeighbour, GuestRoute};
use std::net::IpAddr;
use stockade_agent_protocol::agent::{ARPNeighbors, Routes};
use stockade_agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};

/// `IFF_NOARP` of linux/if.h.
const IFF_NOARP: u32 = 0x80;
/// `RTNH_F_ONLINK` of linux/rtnetlink.h.
const RTNH_F_ONLINK: u32 = 4;

fn family(v6: bool) -> IPFamily {
    if v6 { IPFamily::v6 } else { IPFamily::v4 }
}

fn address(address: IpAddr, length: Option<u8>) -> IPAddress {
    IPAddress {
        family: family(address.is_ipv6()).into(),
        address: address.to_string(),
        mask: length.map(|length| length.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

/// `IFA_F_NOPREFIXROUTE` of linux/if_addr.h.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

/// An interface that the guest knows by the name `known`, if it does at all.
pub(super) fn interface(interface: &GuestInterface, known: Option<&str>) -> Interface {
    let own = |own: &GuestAddress| IPAddress {
        flags: if own.without_route { IFA_F_NOPREFIXROUTE } else { 0 },
        ..address(own.prefix.address, Some(own.prefix.length))
    };
    Interface {
        device: known.unwrap_or(&interface.name).to_owned(),
        name: interface.name.clone(),
        IPAddresses: interface.addresses.iter().map(own).collect(),
        mtu: interface.mtu.into(),
        hwAddr: interface.mac.to_string(),
        raw_flags: if interface.no_arp { IFF_NOARP } else { 0 },
        ..Default::default()
    }
}

pub(super) fn routes(routes: &[GuestRoute]) -> Routes {
    Routes { Routes: routes.iter().map(route).collect(), ..Default::default() }
}

fn route(route: &GuestRoute) -> Route {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    Route {
        dest: route.destination.map(|prefix| prefix.to_string()).unwrap_or_default(),
        gateway: text(route.gateway),
        device: route.device.clone(),
        source: text(route.source),
        scope: route.scope.into(),
        family: family(route.v6).into(),
        flags: if route.on_link { RTNH_F_ONLINK } else { 0 },
        mtu: route.mtu.unwrap_or(0),
        metric: route.metric,
        ..Default::default()
    }
}

pub(super) fn neighbors(neighbours: &[GuestNeighbour]) -> ARPNeighbors {
    let neighbour = |entry: &GuestNeighbour| ARPNeighbor {
        toIPAddress: Some(address(entry.address, None)).into(),
        device: entry.device.clone(),
        lladdr: entry.mac.to_string(),
        state: entry.state.into(),
        flags: entry.flags.into(),
        ..Default::default()
    };
    ARPNeighbors { ARPNeighbors: neighbours.iter().map(neighbour).collect(), ..Default::default() }
}
