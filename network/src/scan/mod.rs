//! What a network namespace holds, as plain types.

mod decode;
mod read;

pub(crate) use read::{ingress_filters, links, scan};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// The table that the kernel looks at for every packet (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| format!("{text:?} is no MAC address of six bytes"))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// An address and how many of its leading bits name the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prefix {
    /// The address; bits beyond `length` may be set.
    pub address: IpAddr,
    /// 0 to 32, or 0 to 128.
    pub length: u8,
}

impl Prefix {
    /// The same with all bits beyond `length` cleared.
    #[must_use]
    pub fn network(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length.min(32))).unwrap_or(0);
                IpAddr::V4((address.to_bits() & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length.min(128))).unwrap_or(0);
                IpAddr::V6((address.to_bits() & mask).into())
            }
        };
        Self { address, length: self.length }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// How an ipvlan finds the interface that a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpvlanMode {
    /// Like a switch.
    L2,
    /// Like a router.
    L3,
    /// Like a router, with the namespace's netfilter.
    L3S,
}

/// What kind of link it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// No kind and Ethernet: a device of the machine.
    Physical,
    /// One end of a pair.
    Veth,
    /// An address of its own on another link.
    Macvlan,
    /// The other link's MAC address, an IP address of its own.
    Ipvlan(IpvlanMode),
    /// A macvlan that is read and written by a descriptor.
    Macvtap,
    /// Ethernet frames by a descriptor.
    Tap {
        /// Made for several descriptors.
        multi_queue: bool,
        /// Frames have a virtio-net header.
        vnet_hdr: bool,
    },
    /// IP packets by a descriptor.
    Tun,
    /// The frames of another link that have this tag.
    Vlan {
        /// The tag, 0 to 4095.
        id: u16,
    },
    /// Any other.
    Other(String),
}

/// One queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qdisc {
    /// For example `ingress`.
    pub kind: String,
    /// Its handle; 0 for the ones that the kernel puts in place by itself.
    pub handle: u32,
    /// What it hangs on (`TC_H_*`).
    pub parent: u32,
}

/// One filter on what a link receives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressFilter {
    /// Lower ones see a packet first.
    pub priority: u16,
    /// The EtherType that it looks at.
    pub protocol: u16,
    /// For example `u32`.
    pub kind: String,
    /// The mark on its first action that has one.
    pub cookie: Option<Vec<u8>>,
}

/// One address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The link's own address and the length of the prefix.
    pub local: Prefix,
    /// The other end's, on a point-to-point link.
    pub peer: Option<IpAddr>,
    /// IPv4 only.
    pub broadcast: Option<Ipv4Addr>,
    /// IPv4 only: the name that old programs show.
    pub label: Option<String>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
    /// Preferred and valid lifetime in seconds; `None`: for ever.
    pub lifetime: Option<(u32, u32)>,
    /// Of the route to its network.
    pub metric: Option<u32>,
    /// Who made it (`IFAPROT_*`).
    pub protocol: Option<u8>,
}

/// One link with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number in the namespace, never given twice.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// `None` when it has none of six bytes.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// Transmit and receive queues.
    pub queues: (u32, u32),
    /// Administratively up.
    pub up: bool,
    /// Does not resolve neighbours (`IFF_NOARP`).
    pub no_arp: bool,
    /// The link below it or its pair's other end, when that is in the same namespace.
    pub lower: Option<u32>,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// In the kernel's order.
    pub addresses: Vec<Address>,
    /// In the kernel's order.
    pub qdiscs: Vec<Qdisc>,
    /// What is done with received packets, where an `ingress` or `clsact` qdisc is.
    pub ingress: Vec<IngressFilter>,
}

impl Link {
    /// Whether it has an `ingress` or `clsact` qdisc.
    pub fn has_ingress_qdisc(&self) -> bool {
        self.qdiscs.iter().any(|qdisc| qdisc.kind == "ingress" || qdisc.kind == "clsact")
    }
}

/// One way out of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link's number.
    pub link: Option<u32>,
    /// How often it is taken, from 1; relative to the others'.
    pub weight: u16,
    /// The gateway is on the link although no address says so.
    pub on_link: bool,
}

/// What becomes of a packet that a route matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteAction {
    /// It is sent on.
    Unicast,
    /// It is for this machine.
    Local,
    /// Anything else (`RTN_*`): thrown away, refused, sent to many.
    Other(u8),
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// Which table it is in.
    pub table: u32,
    /// What becomes of the packet.
    pub action: RouteAction,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Type of service, 0: any.
    pub tos: u8,
    /// `None`: the default route.
    pub destination: Option<Prefix>,
    /// Only packets from there; IPv6.
    pub from: Option<Prefix>,
    /// The address that packets get which have none.
    pub preferred_source: Option<IpAddr>,
    /// The lower is taken.
    pub metric: u32,
    /// Of the way, where it is less than the link's.
    pub mtu: Option<u32>,
    /// At least one for a unicast route; several for a multipath one.
    pub hops: Vec<NextHop>,
    /// Properties that are not told here (encapsulation, gateways of the other family, congestion control and the
    /// like), by name.
    pub others: Vec<String>,
}

/// `RTPROT_KERNEL`: what the kernel makes by itself for an address.
pub const PROTOCOL_KERNEL: u8 = 2;

/// One entry of a neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The link's number.
    pub link: u32,
    /// Who.
    pub address: IpAddr,
    /// Where.
    pub mac: Option<Mac>,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}

/// One policy routing rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// The lower is looked at first.
    pub priority: u32,
    /// The table that it sends to.
    pub table: u32,
    /// It is one of the kernel's own: every packet, to table local, main or default.
    pub built_in: bool,
}

/// The namespace at one time. All parts are in the kernel's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// All links.
    pub links: Vec<Link>,
    /// All routes of all tables, but for the local table's.
    pub routes: Vec<Route>,
    /// All entries.
    pub neighbours: Vec<Neighbour>,
    /// All rules.
    pub rules: Vec<Rule>,
}

impl Scan {
    /// The link with a number.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The link with a name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_a_network_at_every_length() {
        let network = |text: &str, length| Prefix { address: text.parse().expect("address"), length }.network();
        assert_eq!(network("10.1.2.3", 24).to_string(), "10.1.2.0/24");
        assert_eq!(network("10.1.2.3", 0).to_string(), "0.0.0.0/0");
        assert_eq!(network("10.1.2.3", 32).to_string(), "10.1.2.3/32");
        assert_eq!(network("fd00::1:2", 112).to_string(), "fd00::1:0/112");
        assert_eq!(network("fd00::1", 0).to_string(), "::/0");
        assert_eq!(network("fd00::1", 128).to_string(), "fd00::1/128");
    }

    #[test]
    fn a_mac_address_is_read_as_it_is_written() {
        let mac: Mac = "02:00:5e:00:53:0a".parse().expect("read");
        assert_eq!(mac.to_string(), "02:00:5e:00:53:0a");
        assert_eq!(serde_json::to_string(&mac).expect("written"), "\"02:00:5e:00:53:0a\"");
        for bad in ["", "02:00", "02:00:5e:00:53:zz", "02:00:5e:00:53:0a:0b"] {
            bad.parse::<Mac>().expect_err(bad);
        }
    }
}
