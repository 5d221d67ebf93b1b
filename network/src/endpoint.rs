//! Which links of a namespace become network interfaces of the guest.

use crate::scan::{Address, Link, LinkKind, Mac, Scan};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What names a link for good: numbers are never given twice, and a link that gets another MAC address is another
/// interface to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointId {
    /// The link's number in its namespace.
    pub index: u32,
    /// Its MAC address, which the guest's interface has too.
    pub mac: Mac,
}

/// A link that becomes an interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which one.
    pub id: EndpointId,
    /// Its name, which the guest's interface gets.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// In bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It resolves no neighbours, so the guest's must not either.
    pub no_arp: bool,
    /// All its addresses.
    pub addresses: Vec<Address>,
}

impl Endpoint {
    /// A link as an endpoint, whatever [`Role`] it has; `None` when it has no MAC address.
    pub(crate) fn of(link: &Link) -> Option<Self> {
        link.mac.map(|mac| Self::with_mac(link, mac))
    }

    fn with_mac(link: &Link, mac: Mac) -> Self {
        Self {
            id: EndpointId { index: link.index, mac },
            name: link.name.clone(),
            kind: link.kind.clone(),
            mtu: link.mtu,
            up: link.up,
            no_arp: link.no_arp,
            addresses: link.addresses.clone(),
        }
    }
}

/// What a link is to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It becomes an interface of the guest.
    Endpoint(Endpoint),
    /// It is left alone.
    Ignored,
    /// It carries addresses of the sandbox and cannot be given to a guest.
    Refused(EndpointError),
}

/// Why a link cannot become an interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not Ethernet.
    #[error(
        "the tun interface {name:?} carries IP packets, and a virtual machine's network interface Ethernet frames; remove it from the sandbox's network, or use a tap"
    )]
    Tun {
        /// The link's name.
        name: String,
    },
    /// Nobody knows how.
    #[error(
        "the interface {name:?} is of kind {kind:?}, which cannot be connected to a virtual machine; supported are veth, macvlan, ipvlan, macvtap, tap, vlan and physical interfaces"
    )]
    Kind {
        /// The link's name.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// It has no MAC address that a virtual NIC can have.
    #[error("the interface {name:?} has no MAC address that a virtual machine's network interface can have")]
    Mac {
        /// The link's name.
        name: String,
    },
    /// What it would receive goes to the guest by the link below it, which was connected when this one was not there.
    #[error(
        "the interface {name:?} came on top of {lower:?}, which is connected to the virtual machine already; add it before the sandbox is created"
    )]
    OnConnected {
        /// The link's name.
        name: String,
        /// The name of the link below it.
        lower: String,
    },
    /// What it receives would no longer reach the link on it.
    #[error(
        "the interface {name:?} has addresses and the {kind} {upper:?} on it; only one of them can be connected to a virtual machine: remove the addresses of one"
    )]
    Shared {
        /// The link's name.
        name: String,
        /// The kind of the link on it.
        kind: &'static str,
        /// The name of the link on it.
        upper: String,
    },
}

/// What each link is, in the order of the scan.
///
/// As in Kata, loopback and links without an address are left alone; a tap, which may be there for a machine alone, is
/// taken without one.
pub fn roles(scan: &Scan) -> Vec<(&Link, Role)> {
    scan.links.iter().map(|link| (link, role(scan, link))).collect()
}

/// All endpoints, in the order of the scan.
///
/// # Errors
/// A link has addresses and cannot become an interface of the guest.
pub fn endpoints(scan: &Scan) -> Result<Vec<Endpoint>, EndpointError> {
    let mut endpoints = Vec::new();
    for (_, role) in roles(scan) {
        match role {
            Role::Endpoint(endpoint) => endpoints.push(endpoint),
            Role::Ignored => {}
            Role::Refused(error) => return Err(error),
        }
    }
    Ok(endpoints)
}

fn role(scan: &Scan, link: &Link) -> Role {
    let name = || link.name.clone();
    let tap = matches!(link.kind, LinkKind::Tap { .. } | LinkKind::Macvtap);
    // A port belongs to its bridge or bond.
    if link.kind == LinkKind::Loopback || link.controller.is_some() {
        return Role::Ignored;
    }
    if !tap && !link.addresses.iter().any(says_something) {
        return Role::Ignored;
    }
    match &link.kind {
        LinkKind::Tun => return Role::Refused(EndpointError::Tun { name: name() }),
        LinkKind::Other(kind) => return Role::Refused(EndpointError::Kind { name: name(), kind: kind.clone() }),
        _ => {}
    }
    let Some(mac) = link.mac.filter(|mac| usable(*mac)) else {
        return Role::Refused(EndpointError::Mac { name: name() });
    };
    if !tap && let Some((kind, upper)) = diverted(scan, link) {
        // With no more than what every link makes for itself it is only there for the other.
        if link.addresses.iter().all(|address| is_link_local_v6(address.local.address)) {
            return Role::Ignored;
        }
        return Role::Refused(EndpointError::Shared { name: name(), kind, upper: upper.name.clone() });
    }
    Role::Endpoint(Endpoint::with_mac(link, mac))
}

fn says_something(address: &Address) -> bool {
    !address.local.address.is_loopback()
}

/// Neither zero nor a group's.
fn usable(mac: Mac) -> bool {
    mac.0 != [0; 6] && mac.0[0] & 1 == 0
}

/// A link on this one that shares what it receives by IP or MAC address. VLANs are told by the tag before that.
fn diverted<'a>(scan: &'a Scan, link: &Link) -> Option<(&'static str, &'a Link)> {
    scan.links.iter().filter(|upper| upper.lower == Some(link.index)).find_map(|upper| match upper.kind {
        LinkKind::Macvlan => Some(("macvlan", upper)),
        LinkKind::Macvtap => Some(("macvtap", upper)),
        LinkKind::Ipvlan(_) => Some(("ipvlan", upper)),
        _ => None,
    })
}

/// Whether it is an IPv6 address that every link makes for itself.
pub(crate) fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{IpvlanMode, Prefix};

    fn address(text: &str) -> Address {
        Address {
            local: Prefix { address: text.parse().expect("address"), length: 24 },
            peer: None,
            broadcast: None,
            label: None,
            scope: 0,
            flags: 0,
            lifetime: None,
            metric: None,
            protocol: None,
        }
    }

    fn link(index: u32, kind: LinkKind, addresses: &[&str]) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            kind,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
            queues: (1, 1),
            up: true,
            no_arp: false,
            lower: None,
            controller: None,
            addresses: addresses.iter().map(|text| address(text)).collect(),
            qdiscs: Vec::new(),
            ingress: Vec::new(),
        }
    }

    fn one(link: Link) -> Result<Vec<String>, String> {
        let scan = Scan { links: vec![link], ..Scan::default() };
        let names = |list: Vec<Endpoint>| list.into_iter().map(|endpoint| endpoint.name).collect();
        endpoints(&scan).map(names).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_that_carries_ethernet_and_has_an_address_is_an_endpoint() {
        let tap = LinkKind::Tap { multi_queue: false, vnet_hdr: false };
        let kinds = [
            LinkKind::Veth,
            LinkKind::Physical,
            LinkKind::Macvlan,
            LinkKind::Macvtap,
            LinkKind::Ipvlan(IpvlanMode::L2),
            LinkKind::Ipvlan(IpvlanMode::L3),
            LinkKind::Vlan { id: 5 },
            tap.clone(),
        ];
        for kind in kinds {
            assert_eq!(one(link(2, kind.clone(), &["10.0.0.2"])), Ok(vec!["eth2".to_owned()]), "{kind:?}");
        }
        assert_eq!(one(link(2, tap, &[])), Ok(vec!["eth2".to_owned()]), "a tap needs no address");
    }

    #[test]
    fn what_has_no_address_or_belongs_to_a_bridge_is_left_alone() {
        assert_eq!(one(link(1, LinkKind::Loopback, &["127.0.0.1"])), Ok(vec![]));
        for kind in [LinkKind::Veth, LinkKind::Tun, LinkKind::Other("sit".to_owned())] {
            assert_eq!(one(link(2, kind, &[])), Ok(vec![]));
        }
        let port = Link { controller: Some(9), ..link(2, LinkKind::Veth, &["10.0.0.2"]) };
        assert_eq!(one(port), Ok(vec![]));
    }

    #[test]
    fn what_has_an_address_and_cannot_be_connected_is_refused_with_the_reason() {
        let tun = one(link(2, LinkKind::Tun, &["10.0.0.2"])).expect_err("refused");
        assert!(tun.contains("\"eth2\" carries IP packets"), "{tun}");
        let other = one(link(2, LinkKind::Other("wireguard".to_owned()), &["10.0.0.2"])).expect_err("refused");
        assert!(other.contains("of kind \"wireguard\""), "{other}");
        for mac in [None, Some(Mac([0; 6])), Some(Mac([1, 0, 0, 0, 0, 1]))] {
            let error = one(Link { mac, ..link(2, LinkKind::Veth, &["10.0.0.2"]) }).expect_err("refused");
            assert!(error.contains("no MAC address"), "{error}");
        }
    }

    #[test]
    fn a_link_that_others_share_by_address_is_refused_only_when_it_is_an_endpoint_itself() {
        let upper = Link { lower: Some(2), ..link(3, LinkKind::Macvlan, &["10.0.0.3"]) };
        let scan = |lower: Link, upper: &Link| Scan { links: vec![lower, upper.clone()], ..Scan::default() };
        let bare = scan(link(2, LinkKind::Veth, &[]), &upper);
        assert_eq!(endpoints(&bare).expect("endpoints").len(), 1);
        let shared = scan(link(2, LinkKind::Veth, &["10.0.0.2"]), &upper);
        let error = endpoints(&shared).expect_err("refused").to_string();
        assert!(error.contains("\"eth2\" has addresses and the macvlan \"eth3\" on it"), "{error}");
        let quiet = endpoints(&scan(link(2, LinkKind::Veth, &["fe80::1"]), &upper)).expect("endpoints");
        assert_eq!(quiet.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>(), ["eth3"]);
        let vlan = Link { lower: Some(2), ..link(3, LinkKind::Vlan { id: 5 }, &["10.0.0.3"]) };
        assert_eq!(endpoints(&scan(link(2, LinkKind::Veth, &["10.0.0.2"]), &vlan)).expect("endpoints").len(), 2);
    }
}
