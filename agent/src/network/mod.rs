//! The guest's network, which is that of all its containers.

mod convert;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use stockade_agent_protocol::types::{ARPNeighbor, Interface, Route};
use tokio::time::Instant;

use convert::{Prefix, parse_mac, parse_prefix};

use crate::slots::Looks;

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
    /// A device's driver stays with it.
    #[error("cannot take interface {name:?} from its driver")]
    Driver {
        name: String,
        #[source]
        source: std::io::Error,
    },
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

/// The interface that a request means: one with its MAC address, which may still be about to come.
async fn wait_for(handle: &Handle, wanted: &Interface, limit: Duration) -> Result<LinkMessage, NetworkError> {
    let mac = parse_mac(&wanted.hwAddr)?;
    let deadline = Instant::now() + limit;
    let mut looks = Looks::new();
    loop {
        let candidates: Vec<_> = links(handle).await?.into_iter().filter(|link| mac_of(link) == mac).collect();
        if let Some(link) = choose(&candidates, wanted) {
            return Ok(link.clone());
        }
        if Instant::now() >= deadline {
            // Of another name and up: a supervisor that does not say what it was called before means that one.
            return candidates.into_iter().next().ok_or_else(|| NetworkError::NoInterface(wanted.hwAddr.clone()));
        }
        // What was found in a slot that is used again is there at once, and may be it.
        if !looks.look().await {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Which of the interfaces with one MAC address is meant (those of ipvlans on one link have the same): the one that was
/// given the name before; else the first that is still down, and so was given none yet.
fn choose<'a>(candidates: &'a [LinkMessage], wanted: &Interface) -> Option<&'a LinkMessage> {
    let known = if wanted.device.is_empty() { &wanted.name } else { &wanted.device };
    let given = candidates.iter().find(|link| is_up(link) && name_of(link) == *known);
    given.or_else(|| candidates.iter().find(|link| !is_up(link)))
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// Gives the interface with the request's MAC address its name, MTU and addresses, and brings it up. One that is up
/// already keeps working meanwhile, unless it gets another name.
pub(crate) async fn update_interface(wanted: Interface, limit: Duration) -> Result<Interface, NetworkError> {
    let addresses: Vec<(Prefix, u32)> = wanted
        .IPAddresses
        .iter()
        .map(|address| Ok((parse_prefix(&format!("{}/{}", address.address, address.mask))?, address.flags)))
        .collect::<Result<_, NetworkError>>()?;
    let handle = connect()?;
    let link = wait_for(&handle, &wanted, limit).await?;
    let index = link.header.index;
    let of = |what: &str| format!("{what} of interface {:?}", wanted.name);

    if !wanted.name.is_empty() && name_of(&link) != wanted.name {
        free_name(&handle, &wanted.name).await?;
        rename(&handle, &link, &wanted.name).await?;
    }
    let mut change = LinkUnspec::new_with_index(index);
    if let Some(mtu) = u32::try_from(wanted.mtu).ok().filter(|&mtu| mtu > 0) {
        change = change.mtu(mtu);
    }
    change = change.arp(wanted.raw_flags & u32::from(IFF_NOARP) == 0);
    handle.link().change(change.build()).execute().await.map_err(refused(of("set the MTU")))?;
    set_addresses(&handle, index, &addresses, &of).await?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().change(up).execute().await.map_err(refused(of("bring up")))?;
    Ok(wanted)
}

/// Has the driver of an interface let go of it where the device is a virtio-mmio one: Linux keeps those, whatever ACPI says,
/// and with them the interface. Other devices are taken away by their bus, and an interface that is not there is released.
pub(crate) async fn release_interface(name: &str, mac: &str) -> Result<(), NetworkError> {
    let mac = parse_mac(mac)?;
    let list = links(&connect()?).await?;
    if !list.iter().any(|link| name_of(link) == name && mac_of(link) == mac) {
        return Ok(());
    }
    let unbind = {
        let device = Path::new("/sys/class/net").join(name).join("device");
        // .../LNRO0005:03/virtio2, and above it the device on the bus.
        move || {
            let device = fs::canonicalize(device)?;
            let Some(slot) = device.parent() else { return Ok(()) };
            let driver = fs::canonicalize(slot.join("driver"))?;
            match slot.file_name() {
                Some(slot) if driver.ends_with("virtio-mmio") => fs::write(driver.join("unbind"), slot.as_bytes()),
                _ => Ok(()),
            }
        }
    };
    let unbound = tokio::task::spawn_blocking(unbind).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    match unbound {
        // It has no device, or that was quicker.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        unbound => unbound.map_err(|source| NetworkError::Driver { name: name.to_owned(), source }),
    }
}

/// Takes `name` from an interface that has it: the kernel numbers them in the order of the devices, and that may be the
/// name of another one. Whoever is to have another name is given it by a request of its own.
async fn free_name(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let list = links(handle).await?;
    let Some(holder) = list.iter().find(|link| name_of(link) == name) else { return Ok(()) };
    let spare = (0..=list.len()).map(|number| format!("spare{number}"));
    let taken = |spare: &String| list.iter().any(|link| name_of(link) == *spare);
    let Some(spare) = spare.into_iter().find(|spare| !taken(spare)) else { return Ok(()) };
    rename(handle, holder, &spare).await
}

/// Gives an interface another name, for which it must be down.
async fn rename(handle: &Handle, link: &LinkMessage, name: &str) -> Result<(), NetworkError> {
    let index = link.header.index;
    let what = format!("rename interface {:?} to {name:?}", name_of(link));
    if is_up(link) {
        let down = LinkUnspec::new_with_index(index).down().build();
        handle.link().change(down).execute().await.map_err(refused(what.clone()))?;
    }
    let change = LinkUnspec::new_with_index(index).name(name.to_owned()).build();
    handle.link().change(change).execute().await.map_err(refused(what))
}

/// An address, and `IFA_F_NOPREFIXROUTE` where it has it.
type Wanted = (Prefix, u32);

fn present(message: &AddressMessage) -> Option<Wanted> {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(flags.bits()),
        _ => None,
    });
    Some((convert::prefix(message)?, flags.unwrap_or_default() & IFA_F_NOPREFIXROUTE))
}

/// Brings the addresses to what is wanted, in the wanted order: the first IPv4 address of a network is the one that
/// packets leave with. What is as wanted is not touched.
async fn set_addresses(
    handle: &Handle,
    index: u32,
    wanted: &[Wanted],
    of: &impl Fn(&str) -> String,
) -> Result<(), NetworkError> {
    let query = handle.address().get().set_link_index_filter(index).execute();
    let current: Vec<_> = query.try_collect().await.map_err(refused(of("list the addresses")))?;
    // A link-local address is the kernel's own.
    let own = |message: &&AddressMessage| {
        message.header.scope == LINK_SCOPE.into() && message.header.family == AddressFamily::Inet6
    };
    let current: Vec<_> = current.iter().filter(|message| !own(message)).collect();
    let have: Vec<Wanted> = current.iter().filter_map(|message| present(message)).collect();
    let wanted: Vec<Wanted> = wanted.iter().map(|(prefix, flags)| (*prefix, flags & IFA_F_NOPREFIXROUTE)).collect();
    let v4 = |(prefix, _): &&Wanted| prefix.address.is_ipv4();
    // Of IPv4 from the first difference on all are set anew. IPv6 has its own rules for which address is used.
    let same = have.iter().filter(v4).zip(wanted.iter().filter(v4)).take_while(|(have, wanted)| have == wanted);
    let mut kept: Vec<Wanted> = same.map(|(have, _)| *have).collect();
    kept.extend(have.iter().filter(|one| !v4(one) && wanted.contains(one)));
    for message in current {
        if present(message).is_some_and(|have| kept.contains(&have)) {
            continue;
        }
        match handle.address().del(message.clone()).execute().await {
            // A secondary address goes with its primary one.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EADDRNOTAVAIL => {}
            other => other.map_err(refused(of("remove an address")))?,
        }
    }
    for (Prefix { address, length }, flags) in wanted.iter().filter(|wanted| !kept.contains(wanted)) {
        let mut request = handle.address().add(index, *address, *length).replace();
        // Whether another host has it was found out in the namespace that it comes from.
        let no_search = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        let flags = AddressFlags::from_bits_retain(flags | no_search);
        request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        request.execute().await.map_err(refused(of(&format!("add address {address}/{length}"))))?;
    }
    Ok(())
}

/// IFA_F_NOPREFIXROUTE.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
/// IFA_F_NODAD.
const IFA_F_NODAD: u32 = 0x02;
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
