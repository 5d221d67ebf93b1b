//! The kernel's messages to and from the contract's.

use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric};
use stockade_agent_protocol::types::{IPAddress, IPFamily, Interface, Route};

use super::NetworkError;

/// An address and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) address: IpAddr,
    pub(super) length: u8,
}

/// Reads `address/length`; without a length the address stands for itself.
pub(super) fn parse_prefix(text: &str) -> Result<Prefix, NetworkError> {
    let bad = || NetworkError::BadRequest { what: "address", value: text.to_owned() };
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = if length.is_empty() { most } else { length.parse().map_err(|_| bad())? };
    if length > most {
        return Err(bad());
    }
    Ok(Prefix { address, length })
}

/// Reads six bytes in hexadecimal with colons.
pub(super) fn parse_mac(text: &str) -> Result<Vec<u8>, NetworkError> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    match bytes {
        Ok(bytes) if bytes.len() == 6 => Ok(bytes),
        _ => Err(NetworkError::BadRequest { what: "MAC address", value: text.to_owned() }),
    }
}

fn format_mac(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

fn family(address: &IpAddr) -> IPFamily {
    if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

/// Whether a route is one of IPv6: by its addresses, or where it has none, by what it says.
pub(super) fn is_v6(route: &Route) -> Result<bool, NetworkError> {
    for text in [&route.dest, &route.gateway, &route.source] {
        if !text.is_empty() {
            return Ok(parse_prefix(text)?.address.is_ipv6());
        }
    }
    Ok(route.family.enum_value_or_default() == IPFamily::v6)
}

/// An interface with those of the addresses that are its own.
pub(super) fn interface(link: &LinkMessage, addresses: &[AddressMessage]) -> Interface {
    let mut interface = Interface { raw_flags: link.header.flags.bits(), ..Default::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => {
                interface.name.clone_from(name);
                interface.device.clone_from(name);
            }
            LinkAttribute::Address(mac) => interface.hwAddr = format_mac(mac),
            LinkAttribute::Mtu(mtu) => interface.mtu = (*mtu).into(),
            _ => {}
        }
    }
    let own = addresses.iter().filter(|address| address.header.index == link.header.index);
    interface.IPAddresses = own.filter_map(address).collect();
    interface
}

/// An interface's own address, with its length.
pub(super) fn prefix(message: &AddressMessage) -> Option<Prefix> {
    // On a point-to-point link "address" is the other end's.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(Prefix { address, length: message.header.prefix_len })
}

fn address(message: &AddressMessage) -> Option<IPAddress> {
    let Prefix { address, length } = prefix(message)?;
    Some(IPAddress {
        family: family(&address).into(),
        address: address.to_string(),
        mask: length.to_string(),
        ..Default::default()
    })
}

/// A route, with its interface's name from `names`.
pub(super) fn route(message: &RouteMessage, names: &[(u32, String)]) -> Route {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let mut route = Route { scope: u8::from(message.header.scope).into(), ..Default::default() };
    if message.header.address_family == rtnetlink::packet_route::AddressFamily::Inet6 {
        route.family = IPFamily::v6.into();
    }
    let text = |address: &RouteAddress| ip(address).map(|address| address.to_string()).unwrap_or_default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.dest = format!("{}/{}", text(address), message.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => route.gateway = text(address),
            RouteAttribute::PrefSource(address) => route.source = text(address),
            RouteAttribute::Oif(index) => {
                let name = names.iter().find(|(known, _)| known == index);
                route.device = name.map(|(_, name)| name.clone()).unwrap_or_default();
            }
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        route.mtu = *mtu;
                    }
                }
            }
            _ => {}
        }
    }
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_length() {
        let prefix = parse_prefix("10.0.0.1/24").expect("read");
        assert_eq!((prefix.address.to_string().as_str(), prefix.length), ("10.0.0.1", 24));
        assert_eq!(parse_prefix("fd00::1").expect("read").length, 128);
        for bad in ["", "10.0.0.1/33", "10.0.0/8", "x", "::1/129"] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_addresses_have_six_bytes() {
        assert_eq!(parse_mac("02:42:AC:11:00:02").expect("read"), [2, 0x42, 0xac, 0x11, 0, 2]);
        for bad in ["", "02:42", "02:42:ac:11:00:zz", "02:42:ac:11:00:02:03"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        assert_eq!(format_mac(&[2, 0x42, 0xac, 0x11, 0, 2]), "02:42:ac:11:00:02");
    }

    #[test]
    fn a_default_route_without_addresses_goes_by_its_family() {
        let mut route = Route::new();
        assert!(!is_v6(&route).expect("read"));
        route.family = IPFamily::v6.into();
        assert!(is_v6(&route).expect("read"));
        route.gateway = "10.0.0.1".to_owned();
        assert!(!is_v6(&route).expect("read"));
    }
}
