//! The dumps that a scan is made of.

use super::{IngressFilter, Link, RouteAction, Scan, decode};
use crate::netlink::{Netlink, NetlinkError};
use crate::session::{Session, StepError};
use crate::tc;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::tc::TcMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// The table of what is local to the machine, which the kernel keeps (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;

/// Reads all that a scan tells. Each dump is of one moment, all of them together are not: a change in between is one
/// that the next scan finds.
pub(crate) fn scan(session: &mut Session) -> Result<Scan, StepError> {
    let mut scan = Scan { links: session.step("list the links", links)?, ..Scan::default() };
    let addresses = session.step("list the addresses", |netlink| {
        dump(netlink, RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| match message {
            RouteNetlinkMessage::NewAddress(message) => decode::address(message),
            _ => None,
        })
    })?;
    for (index, address) in addresses {
        if let Some(link) = scan.links.iter_mut().find(|link| link.index == index) {
            link.addresses.push(address);
        }
    }
    for (family, name) in [(AddressFamily::Inet, "IPv4"), (AddressFamily::Inet6, "IPv6")] {
        let routes = session.step(format!("list the routes of {name}"), |netlink| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            dump(netlink, RouteNetlinkMessage::GetRoute(message), |message| match message {
                RouteNetlinkMessage::NewRoute(message) => decode::route(message),
                _ => None,
            })
        })?;
        scan.routes.extend(
            routes.into_iter().filter(|route| route.table != LOCAL_TABLE && route.action != RouteAction::Local),
        );
        let rules = session.step(format!("list the rules of {name}"), |netlink| {
            let mut message = RuleMessage::default();
            message.header.family = family;
            dump(netlink, RouteNetlinkMessage::GetRule(message), |message| match message {
                RouteNetlinkMessage::NewRule(message) => Some(decode::rule(message)),
                _ => None,
            })
        })?;
        scan.rules.extend(rules);
    }
    scan.neighbours = session.step("list the neighbours", |netlink| {
        dump(netlink, RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour(message),
            _ => None,
        })
    })?;
    let qdiscs = session.step("list the queueing disciplines", |netlink| {
        dump(netlink, RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), |message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) => decode::qdisc(message),
            _ => None,
        })
    })?;
    for (index, qdisc) in qdiscs {
        if let Some(link) = scan.links.iter_mut().find(|link| link.index == index) {
            link.qdiscs.push(qdisc);
        }
    }
    for link in scan.links.iter_mut().filter(|link| link.has_ingress_qdisc()) {
        let (index, name) = (link.index, &link.name);
        link.ingress =
            session.step(format!("list the filters of {name}"), |netlink| ingress_filters(netlink, index))?;
    }
    Ok(scan)
}

pub(crate) fn links(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    dump(netlink, RouteNetlinkMessage::GetLink(message), |message| match message {
        RouteNetlinkMessage::NewLink(message) => Some(decode::link(message)),
        _ => None,
    })
}

/// What a link does with received packets.
pub(crate) fn ingress_filters(netlink: &mut Netlink, index: u32) -> Result<Vec<IngressFilter>, NetlinkError> {
    let message = RouteNetlinkMessage::GetTrafficFilter(tc::ingress_message(index)?);
    dump(netlink, message, |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(message) => tc::decode_filter(message),
        _ => None,
    })
}

fn dump<T>(
    netlink: &mut Netlink,
    message: RouteNetlinkMessage,
    decode: impl FnMut(&RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    Ok(netlink.dump(&message)?.iter().filter_map(decode).collect())
}
