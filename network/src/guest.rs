//! What the guest is told, so that its containers find the network that was made for them: the agent contract's
//! interfaces, routes and neighbours as plain types.
//!
//! The contract knows one routing table, unicast routes and one gateway a route. What it cannot carry is listed and not
//! left out silently.

use crate::endpoint::{Endpoint, is_link_local_v6};
use crate::scan::{MAIN_TABLE, Mac, NextHop, PROTOCOL_KERNEL, Prefix, Route, RouteAction, Scan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `IFA_F_DADFAILED`: another host has the address.
const ADDRESS_IN_CONFLICT: u32 = 0x08;
/// `IFA_F_NOPREFIXROUTE`: the kernel makes no route to the address's network.
const ADDRESS_WITHOUT_ROUTE: u32 = 0x200;
/// `NUD_PERMANENT`: someone set it, and it stays.
const NEIGHBOUR_PERMANENT: u16 = 0x80;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress {
    /// The address and its network.
    pub prefix: Prefix,
    /// The guest's kernel must not make the route to that network by itself (`IFA_F_NOPREFIXROUTE`): the namespace has
    /// none, or another one, which is told.
    pub without_route: bool,
}

/// An interface of the guest, found by its MAC address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInterface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// In bytes.
    pub mtu: u32,
    /// In the namespace's order: the first IPv4 address of a network is the one that packets leave with.
    pub addresses: Vec<GuestAddress>,
    /// It resolves no neighbours (`IFF_NOARP`).
    pub no_arp: bool,
}

/// A route of the guest's main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRoute {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// `None`: the default route.
    pub destination: Option<Prefix>,
    /// `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface's name.
    pub device: String,
    /// The address that packets get which have none.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// The gateway is on the link although no address says so.
    pub on_link: bool,
    /// Of the way, where it is less than the link's.
    pub mtu: Option<u32>,
    /// The lower is taken.
    pub metric: u32,
}

/// An entry of the guest's neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNeighbour {
    /// Who.
    pub address: IpAddr,
    /// The interface's name.
    pub device: String,
    /// Where.
    pub mac: Mac,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}

/// What the guest does not get.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NotCarried {
    /// Another table than the main one, of which the agent contract knows nothing.
    #[error("the {count} routes of table {table}: the guest has the main table alone")]
    Table {
        /// Its number.
        table: u32,
        /// How many routes.
        count: usize,
    },
    /// Policy routing.
    #[error("the rule of priority {priority} to table {table}: the guest has no policy routing")]
    Rule {
        /// Its priority.
        priority: u32,
        /// Where it leads.
        table: u32,
    },
    /// A route that refuses or throws away, or has what the contract has no word for.
    #[error("the route to {destination}: it has {property}")]
    Route {
        /// Where to.
        destination: String,
        /// What cannot be carried.
        property: String,
    },
    /// The ways of a route become routes of their own, one after the other.
    #[error(
        "the weights of the {hops} ways to {destination}: the guest takes the heaviest, and the others when it fails"
    )]
    Balance {
        /// Where to.
        destination: String,
        /// How many ways.
        hops: usize,
    },
    /// An address that another host has.
    #[error("the address {address} of {name:?}: another host has it")]
    Conflict {
        /// The address.
        address: Prefix,
        /// The interface.
        name: String,
    },
}

/// All that the guest is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// In the scan's order.
    pub interfaces: Vec<GuestInterface>,
    /// In an order in which each can be added: gateways after what they are reached by.
    pub routes: Vec<GuestRoute>,
    /// The permanent ones.
    pub neighbours: Vec<GuestNeighbour>,
    /// What is left out, and why.
    pub not_carried: Vec<NotCarried>,
}

impl GuestNetwork {
    /// What a guest with these endpoints is told of `scan`.
    pub fn new(scan: &Scan, endpoints: &[Endpoint]) -> Self {
        let mut network = Self::default();
        for endpoint in endpoints {
            network.add_interface(scan, endpoint);
        }
        network.add_routes(scan, endpoints);
        let custom = scan.rules.iter().filter(|rule| !rule.built_in);
        network.not_carried.extend(custom.map(|rule| NotCarried::Rule { priority: rule.priority, table: rule.table }));
        let device = |index| endpoints.iter().find(|endpoint| endpoint.id.index == index);
        network.neighbours = scan
            .neighbours
            .iter()
            .filter(|neighbour| neighbour.state & NEIGHBOUR_PERMANENT != 0)
            .filter_map(|neighbour| {
                Some(GuestNeighbour {
                    address: neighbour.address,
                    device: device(neighbour.link)?.name.clone(),
                    mac: neighbour.mac?,
                    state: neighbour.state,
                    flags: neighbour.flags,
                })
            })
            .collect();
        network
    }

    fn add_interface(&mut self, scan: &Scan, endpoint: &Endpoint) {
        let mut addresses = Vec::new();
        for address in &endpoint.addresses {
            if address.flags & ADDRESS_IN_CONFLICT != 0 {
                let conflict = NotCarried::Conflict { address: address.local, name: endpoint.name.clone() };
                self.not_carried.push(conflict);
            } else if !address.local.address.is_loopback() {
                let without_route = !has_own_route(scan, endpoint, address.local);
                addresses.push(GuestAddress { prefix: address.local, without_route });
            }
        }
        self.interfaces.push(GuestInterface {
            name: endpoint.name.clone(),
            mac: endpoint.id.mac,
            mtu: endpoint.mtu,
            addresses,
            no_arp: endpoint.no_arp,
        });
    }

    fn add_routes(&mut self, scan: &Scan, endpoints: &[Endpoint]) {
        let mut tables: Vec<(u32, usize)> = Vec::new();
        let mut taken: BTreeSet<(bool, Option<Prefix>, u32)> =
            scan.routes.iter().map(|route| (route.v6, route.destination, route.metric)).collect();
        for route in &scan.routes {
            if route.table != MAIN_TABLE {
                match tables.iter_mut().find(|(table, _)| *table == route.table) {
                    Some((_, count)) => *count += 1,
                    None => tables.push((route.table, 1)),
                }
                continue;
            }
            if made_by_the_guest(route, endpoints) {
                continue;
            }
            if let Some(property) = not_carried(route) {
                self.not_carried.push(NotCarried::Route { destination: destination(route), property });
                continue;
            }
            let mut hops: Vec<(&NextHop, &Endpoint)> =
                route.hops.iter().filter_map(|hop| Some((hop, endpoint_of(hop, endpoints)?))).collect();
            if hops.is_empty() {
                let property = "its interface is not one of the guest's".to_owned();
                self.not_carried.push(NotCarried::Route { destination: destination(route), property });
                continue;
            }
            if route.hops.len() > 1 {
                let balance = NotCarried::Balance { destination: destination(route), hops: route.hops.len() };
                self.not_carried.push(balance);
                hops.sort_by_key(|(hop, _)| std::cmp::Reverse(hop.weight));
            }
            let mut metric = route.metric;
            for (number, (hop, endpoint)) in hops.into_iter().enumerate() {
                // Two routes to one destination differ in their metric.
                while number > 0 && !taken.insert((route.v6, route.destination, metric)) {
                    metric = metric.saturating_add(1);
                    if metric == u32::MAX {
                        break;
                    }
                }
                self.routes.push(guest_route(route, hop, endpoint, metric));
            }
        }
        self.not_carried.extend(tables.into_iter().map(|(table, count)| NotCarried::Table { table, count }));
        self.routes.sort_by_key(|route| route.gateway.is_some());
    }
}

/// Whether the namespace has the route that a kernel makes by itself for an address, just so.
fn has_own_route(scan: &Scan, endpoint: &Endpoint, address: Prefix) -> bool {
    let one = std::slice::from_ref(endpoint);
    // For an address that stands alone IPv4 needs none.
    let alone = address.address.is_ipv4() && address.length == 32;
    let own = |route: &Route| route.destination == Some(address.network()) && made_by_the_guest(route, one);
    // A link that is down has none, and the guest's is up.
    alone || !endpoint.up || scan.routes.iter().any(|route| route.table == MAIN_TABLE && own(route))
}

fn guest_route(route: &Route, hop: &NextHop, endpoint: &Endpoint, metric: u32) -> GuestRoute {
    GuestRoute {
        v6: route.v6,
        destination: route.destination,
        gateway: hop.gateway,
        device: endpoint.name.clone(),
        source: route.preferred_source,
        scope: route.scope,
        on_link: hop.on_link,
        mtu: route.mtu,
        metric,
    }
}

fn endpoint_of<'a>(hop: &NextHop, endpoints: &'a [Endpoint]) -> Option<&'a Endpoint> {
    endpoints.iter().find(|endpoint| Some(endpoint.id.index) == hop.link)
}

fn destination(route: &Route) -> String {
    match route.destination {
        Some(prefix) => prefix.to_string(),
        None => "anywhere".to_owned(),
    }
}

/// What a route has that the contract has no word for.
fn not_carried(route: &Route) -> Option<String> {
    if route.action != RouteAction::Unicast {
        return Some("no way: it refuses or throws packets away".to_owned());
    }
    if route.from.is_some() {
        return Some("a condition on where packets come from".to_owned());
    }
    if route.tos != 0 {
        return Some("a type of service".to_owned());
    }
    // A router preference and a lifetime are the router's to tell, and the guest hears it.
    let essential = |other: &&String| !matches!(other.as_str(), "a router preference" | "a lifetime" | "TCP metrics");
    route.others.iter().find(essential).cloned()
}

/// What the guest's kernel makes by itself when it gets its addresses.
fn made_by_the_guest(route: &Route, endpoints: &[Endpoint]) -> bool {
    if route.protocol != PROTOCOL_KERNEL {
        return false;
    }
    let (Some(destination), [hop]) = (route.destination, route.hops.as_slice()) else {
        return route.action != RouteAction::Unicast;
    };
    if is_link_local_v6(destination.address) && hop.gateway.is_none() {
        return true;
    }
    let Some(endpoint) = endpoint_of(hop, endpoints) else { return false };
    endpoint.addresses.iter().any(|address| {
        address.flags & ADDRESS_WITHOUT_ROUTE == 0
            && address.peer.is_none()
            && address.metric.unwrap_or(0) == 0
            && address.local.network() == destination
            && hop.gateway.is_none()
    })
}
