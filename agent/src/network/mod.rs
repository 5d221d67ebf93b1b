//! The guest's network, which is that of all its containers.

mod convert;

use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use stockade_agent_protocol::types::{ARPNeighbor, Interface, Route};
use tokio::time::Instant;

use convert::{Prefix, parse_mac, parse_prefix};

/// How often an interface that is not there yet is looked for.
const POLL: Duration = Duration::from_millis(10);

/// Why the network could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("cannot {what}")]
    Netlink {
        what: String,
        #[source]
        source: rtnetlink::Error,
    },
    /// Nothing has that address or name.
    #[error("the guest has no network interface {0:?}")]
    NoInterface(String),
    /// A request that cannot be read.
    #[error("{what} {value:?} is not understood")]
    BadRequest { what: &'static str, value: String },
}

fn refused(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Netlink { what, source }
}

/// A connection to the kernel that ends with its last user.
fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Containers expect the loopback interface to work.
pub(crate) async fn bring_up_loopback() -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(1).up().build();
    connect()?.link().change(message).execute().await.map_err(refused("bring up the loopback interface"))
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    handle.link().get().execute().try_collect().await.map_err(refused("list the interfaces"))
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn mac_of(link: &LinkMessage) -> &[u8] {
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac.as_slice()),
        _ => None,
    });
    mac.unwrap_or_default()
}

/// The number of the interface with a name.
async fn index_of(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let list = links(handle).await?;
    let link = list.iter().find(|link| name_of(link) == name);
    link.map(|link| link.header.index).ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
}

async fn wait_for_mac(handle: &Handle, text: &str, limit: Duration) -> Result<LinkMessage, NetworkError> {
    let mac = parse_mac(text)?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(link) = links(handle).await?.into_iter().find(|link| mac_of(link) == mac) {
            return Ok(link);
        }
        if Instant::now() >= deadline {
            return Err(NetworkError::NoInterface(text.to_owned()));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Gives the interface with the request's MAC address its name, MTU and addresses, and brings it up.
pub(crate) async fn update_interface(wanted: Interface, limit: Duration) -> Result<Interface, NetworkError> {
    let addresses: Vec<Prefix> = wanted
        .IPAddresses
        .iter()
        .map(|address| parse_prefix(&format!("{}/{}", address.address, address.mask)))
        .collect::<Result<_, _>>()?;
    let handle = connect()?;
    let link = wait_for_mac(&handle, &wanted.hwAddr, limit).await?;
    let index = link.header.index;
    let of = |what: &str| format!("{what} of interface {:?}", wanted.name);

    let mut change = LinkUnspec::new_with_index(index).down();
    if !wanted.name.is_empty() && name_of(&link) != wanted.name {
        change = change.name(wanted.name.clone());
    }
    if let Some(mtu) = u32::try_from(wanted.mtu).ok().filter(|&mtu| mtu > 0) {
        change = change.mtu(mtu);
    }
    if wanted.raw_flags & u32::from(IFF_NOARP) != 0 {
        change = change.arp(false);
    }
    handle.link().change(change.build()).execute().await.map_err(refused(of("set name and MTU")))?;

    let current: Vec<_> = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .map_err(refused(of("list the addresses")))?;
    for message in current {
        // A link-local address is the kernel's own.
        if message.header.scope == LINK_SCOPE.into() && message.header.family == AddressFamily::Inet6 {
            continue;
        }
        handle.address().del(message).execute().await.map_err(refused(of("remove an address")))?;
    }
    for Prefix { address, length } in addresses {
        let request = handle.address().add(index, address, length).replace();
        request.execute().await.map_err(refused(of(&format!("add address {address}/{length}"))))?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().change(up).execute().await.map_err(refused(of("bring up")))?;
    Ok(wanted)
}

/// IFF_NOARP.
const IFF_NOARP: u16 = 0x80;
/// RT_SCOPE_LINK.
const LINK_SCOPE: u8 = 253;

/// All interfaces with their addresses.
pub(crate) async fn list_interfaces() -> Result<Vec<Interface>, NetworkError> {
    let handle = connect()?;
    let addresses: Vec<_> =
        handle.address().get().execute().try_collect().await.map_err(refused("list the addresses"))?;
    let list = links(&handle).await?;
    Ok(list.iter().map(|link| convert::interface(link, &addresses)).collect())
}

async fn routes_of(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let mut all = Vec::new();
    let queries = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for query in queries {
        let list: Vec<RouteMessage> =
            handle.route().get(query).execute().try_collect().await.map_err(refused("list the routes"))?;
        // The kernel's own tables and entries (local, broadcast, link-local) are not the supervisor's.
        all.extend(list.into_iter().filter(|route| {
            route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast
        }));
    }
    Ok(all)
}

/// The routes of the main table.
pub(crate) async fn list_routes() -> Result<Vec<Route>, NetworkError> {
    let handle = connect()?;
    let list = links(&handle).await?;
    let names: Vec<(u32, String)> = list.iter().map(|link| (link.header.index, name_of(link))).collect();
    Ok(routes_of(&handle).await?.iter().map(|route| convert::route(route, &names)).collect())
}

/// Replaces all routes by these; those without a gateway come first, since gateways are reached by them.
pub(crate) async fn update_routes(mut wanted: Vec<Route>) -> Result<Vec<Route>, NetworkError> {
    let handle = connect()?;
    wanted.sort_by_key(|route| !route.gateway.is_empty());
    let mut messages = Vec::with_capacity(wanted.len());
    for route in &wanted {
        messages.push((build_route(&handle, route).await?, route));
    }
    for route in routes_of(&handle).await? {
        // What the kernel made for an address goes with the address.
        if route.header.protocol == RouteProtocol::Kernel {
            continue;
        }
        handle.route().del(route).execute().await.map_err(refused("remove a route"))?;
    }
    for (message, route) in messages {
        let what = format!("add the route to {:?} by {:?} on {:?}", route.dest, route.gateway, route.device);
        handle.route().add(message).replace().execute().await.map_err(refused(what))?;
    }
    list_routes().await
}

async fn build_route(handle: &Handle, route: &Route) -> Result<RouteMessage, NetworkError> {
    let family_is_v6 = convert::is_v6(route)?;
    let index = index_of(handle, &route.device).await?;
    let default = if family_is_v6 { "::/0" } else { "0.0.0.0/0" };
    let dest = if route.dest.is_empty() { default } else { &route.dest };
    let Prefix { address, length } = parse_prefix(dest)?;
    let optional = |what, text: &str| -> Result<Option<IpAddr>, NetworkError> {
        if text.is_empty() {
            return Ok(None);
        }
        // A source may come with a prefix length.
        let plain = text.split('/').next().unwrap_or(text);
        let bad = || NetworkError::BadRequest { what, value: text.to_owned() };
        plain.parse().map(Some).map_err(|_| bad())
    };
    let gateway = optional("gateway", &route.gateway)?;
    let source = optional("source address", &route.source)?;
    let mixed = |_| NetworkError::BadRequest { what: "route of two address families to", value: dest.to_owned() };
    let mut builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    builder = builder.destination_prefix(address, length).map_err(mixed)?;
    if let Some(gateway) = gateway {
        builder = builder.gateway(gateway).map_err(mixed)?;
    }
    if let Some(source) = source {
        builder = builder.pref_source(source).map_err(mixed)?;
    }
    // The scope is a byte; what does not fit is the widest.
    builder = builder.scope(RouteScope::from(u8::try_from(route.scope).unwrap_or_default()));
    if route.flags & RTNH_F_ONLINK != 0 {
        builder = builder.onlink();
    }
    let mut message = builder.build();
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    if route.mtu > 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    Ok(message)
}

/// RTNH_F_ONLINK.
const RTNH_F_ONLINK: u32 = 4;

/// Adds entries to the neighbour table.
pub(crate) async fn add_neighbors(list: Vec<ARPNeighbor>) -> Result<(), NetworkError> {
    let handle = connect()?;
    for neighbor in list {
        let text = neighbor.toIPAddress.address.as_str();
        let bad = |what, value: &str| NetworkError::BadRequest { what, value: value.to_owned() };
        let address: IpAddr = text.parse().map_err(|_| bad("neighbour address", text))?;
        let index = index_of(&handle, &neighbor.device).await?;
        let state = match u16::try_from(neighbor.state) {
            Ok(0) | Err(_) => NeighbourState::Permanent,
            Ok(state) => NeighbourState::from(state),
        };
        let flags = NeighbourFlags::from_bits_truncate(u8::try_from(neighbor.flags).unwrap_or_default());
        let mut request = handle.neighbours().add(index, address).state(state).flags(flags).replace();
        if !neighbor.lladdr.is_empty() {
            request = request.link_layer_address(&parse_mac(&neighbor.lladdr)?);
        }
        request.execute().await.map_err(refused(format!("add neighbour {address}")))?;
    }
    Ok(())
}
