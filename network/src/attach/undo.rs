//! What was added is taken away, and nothing else: each thing is looked for first, and known by more than its place.

use super::perform::tolerate;
use super::tap::TapQueues;
use crate::endpoint::EndpointId;
use crate::link;
use crate::netlink::NetlinkError;
use crate::netns::NamespaceId;
use crate::scan::{self, Address, IngressFilter, Link, LinkKind, Mac, Route, Scan};
use crate::session::{NetworkError, Session, StepError};
use crate::tc;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use serde::{Deserialize, Serialize};
use std::io;

/// Undoes one connection. It can be written down and used by another process, as often as wanted; what is no longer
/// there needs no undoing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The namespace that it is about; in another one nothing is touched.
    pub namespace: NamespaceId,
    /// The link that was connected.
    pub link: EndpointId,
    /// Its name then, for messages.
    pub name: String,
    /// The mark on our filters.
    pub cookie: [u8; 16],
    /// In the order in which things were done; undone from the last to the first.
    pub actions: Vec<UndoAction>,
}

/// One thing to undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UndoAction {
    /// Remove this tap.
    Tap {
        /// Its name.
        name: String,
    },
    /// Remove this macvtap.
    Macvtap {
        /// Its name.
        name: String,
    },
    /// A tap that someone else made had no virtio-net header.
    TapHeader {
        /// Its name.
        name: String,
        /// It has several queues.
        multi_queue: bool,
    },
    /// Remove the rate limit of the link.
    RateLimit,
    /// Remove the link's `ingress` qdisc, unless someone else has put a filter there.
    IngressQdisc,
    /// Remove our filter from the link.
    Filter {
        /// Its priority.
        priority: u16,
        /// Its EtherType.
        protocol: u16,
    },
    /// Give the link its MAC address again.
    Mac {
        /// What it had.
        was: Mac,
        /// What we gave it.
        substitute: Mac,
    },
    /// Give the link an address again.
    Address(Address),
    /// Put a route back.
    Route(Route),
}

impl Undo {
    /// What a scan would find if this had been undone; so that two scans can be compared, one of before and one of
    /// after.
    pub fn apply_to(&self, scan: &mut Scan) {
        for action in self.actions.iter().rev() {
            match action {
                UndoAction::Tap { name } | UndoAction::Macvtap { name } => {
                    scan.links.retain(|link| link.name != *name);
                }
                UndoAction::Route(route) if !scan.routes.contains(route) => scan.routes.push(route.clone()),
                UndoAction::Route(_) | UndoAction::TapHeader { .. } => {}
                UndoAction::RateLimit
                | UndoAction::IngressQdisc
                | UndoAction::Filter { .. }
                | UndoAction::Mac { .. }
                | UndoAction::Address(_) => {
                    if let Some(link) = scan.links.iter_mut().find(|link| self.is_of(link)) {
                        self.apply_to_link(action, link);
                    }
                }
            }
        }
    }

    fn apply_to_link(&self, action: &UndoAction, link: &mut Link) {
        match action {
            UndoAction::RateLimit => link.qdiscs.retain(|qdisc| qdisc.handle != tc::RATE_HANDLE),
            UndoAction::IngressQdisc if link.ingress.is_empty() => {
                link.qdiscs.retain(|qdisc| qdisc.kind != "ingress");
            }
            UndoAction::Filter { priority, protocol } => {
                link.ingress.retain(|filter| !self.is_ours(filter, *priority, *protocol));
            }
            UndoAction::Mac { was, substitute } if link.mac == Some(*substitute) => link.mac = Some(*was),
            UndoAction::Address(address) if !has(link, address) => link.addresses.push(address.clone()),
            _ => {}
        }
    }

    /// Whether it is the link that was connected: with its own MAC address or the one that we gave it, or, where somebody
    /// gave it yet another, with its name.
    fn is_of(&self, link: &Link) -> bool {
        let given = self.actions.iter().any(|action| match action {
            UndoAction::Mac { substitute, .. } => link.mac == Some(*substitute),
            _ => false,
        });
        link.index == self.link.index && (link.mac == Some(self.link.mac) || given || link.name == self.name)
    }

    /// Whether a filter is the one that we put there. The one that lets VLANs pass has no action to carry the mark.
    fn is_ours(&self, filter: &IngressFilter, priority: u16, protocol: u16) -> bool {
        let marked = match &filter.cookie {
            Some(cookie) => *cookie == self.cookie,
            None => protocol == tc::VLAN_PROTOCOL,
        };
        filter.priority == priority && filter.protocol == protocol && filter.kind == "u32" && marked
    }
}

fn has(link: &Link, address: &Address) -> bool {
    link.addresses.iter().any(|have| have.local == address.local && have.peer == address.peer)
}

/// Undoes each; fails when anything remains, after it has tried all.
pub(crate) fn detach_all(session: &mut Session, undos: &[Undo]) -> Result<(), NetworkError> {
    detach_each(session, undos).map_err(NetworkError::NotUndone)
}

/// The last one first.
pub(super) fn detach_each(session: &mut Session, undos: &[Undo]) -> Result<(), Vec<StepError>> {
    let failures: Vec<_> = undos.iter().rev().filter_map(|undo| detach(session, undo).err()).flatten().collect();
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// Undoes one, as far as it can be.
pub(super) fn detach(session: &mut Session, undo: &Undo) -> Result<(), Vec<StepError>> {
    if undo.actions.is_empty() {
        return Ok(());
    }
    match session
        .step("look which network namespace this is", |_| NamespaceId::of_thread().map_err(NetlinkError::System))
    {
        Ok(here) if here == undo.namespace => {}
        // Ours is gone, and all that was in it.
        Ok(_) => return Ok(()),
        Err(error) => return Err(vec![error]),
    }
    let links = session.step("list the links", scan::links).map_err(|error| vec![error])?;
    let mut failures = Vec::new();
    for action in undo.actions.iter().rev() {
        failures.extend(undo_one(session, undo, &links, action).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

fn undo_one(session: &mut Session, undo: &Undo, links: &[Link], action: &UndoAction) -> Result<(), StepError> {
    let found = links.iter().find(|link| undo.is_of(link));
    let link = found.map(|link| link.index);
    let name = undo.name.as_str();
    match (action, link) {
        (UndoAction::Tap { name }, _) => {
            let tap = links.iter().find(|link| link.name == *name && matches!(link.kind, LinkKind::Tap { .. }));
            remove_link(session, name, tap)
        }
        (UndoAction::Macvtap { name }, _) => {
            let macvtap = links.iter().find(|link| link.name == *name && link.kind == LinkKind::Macvtap);
            remove_link(session, name, macvtap)
        }
        (UndoAction::TapHeader { name, multi_queue }, _) if links.iter().any(|link| link.name == *name) => {
            let plain = TapQueues { name, queues: 1, multi_queue: *multi_queue, vnet_hdr: false, new: false };
            session.step(format!("take the virtio-net header from the tap {name:?}"), |_| plain.open().map(drop))
        }
        // The link is gone, and what was on it.
        (_, None) | (UndoAction::TapHeader { .. }, _) => Ok(()),
        (UndoAction::RateLimit, Some(index)) => session.step(format!("remove the rate limit of {name:?}"), |netlink| {
            let message = RouteNetlinkMessage::DelQueueDiscipline(tc::rate_qdisc(index)?);
            // Another handle there (EINVAL) is another's.
            tolerate(tolerate(netlink.change(message, 0), libc::ENOENT), libc::EINVAL)
        }),
        (UndoAction::IngressQdisc, Some(index)) => {
            session.step(format!("remove the ingress qdisc of {name:?}"), |netlink| {
                if !scan::ingress_filters(netlink, index)?.is_empty() {
                    return Ok(());
                }
                let message = RouteNetlinkMessage::DelQueueDiscipline(tc::ingress_qdisc(index)?);
                tolerate(tolerate(netlink.change(message, 0), libc::ENOENT), libc::EINVAL)
            })
        }
        (UndoAction::Filter { priority, protocol }, Some(index)) => {
            session.step(format!("remove the filter from {name:?}"), |netlink| {
                let filters = scan::ingress_filters(netlink, index)?;
                if !filters.iter().any(|filter| undo.is_ours(filter, *priority, *protocol)) {
                    return Ok(());
                }
                let message = tc::filters_of(index, *priority, *protocol)?;
                tolerate(netlink.change(RouteNetlinkMessage::DelTrafficFilter(message), 0), libc::ENOENT)
            })
        }
        // Somebody has given it another one since.
        (UndoAction::Mac { substitute, .. }, _) if found.is_some_and(|link| link.mac != Some(*substitute)) => Ok(()),
        (UndoAction::Mac { was, .. }, Some(index)) => session
            .step(format!("give {name:?} its MAC address again"), |netlink| {
                netlink.change(RouteNetlinkMessage::SetLink(link::with_mac(index, *was)), 0)
            }),
        (UndoAction::Address(address), Some(index)) => {
            session.step(format!("give {name:?} its address {} again", address.local), |netlink| {
                let message = RouteNetlinkMessage::NewAddress(link::address(index, address));
                tolerate(netlink.change(message, NLM_F_CREATE | NLM_F_EXCL), libc::EEXIST)
            })
        }
        (UndoAction::Route(route), Some(_)) => put_back(session, route),
    }
}

fn remove_link(session: &mut Session, name: &str, link: Option<&Link>) -> Result<(), StepError> {
    let Some(link) = link else { return Ok(()) };
    session.step(format!("remove {name:?}"), |netlink| {
        // It may have gone meanwhile, with its last descriptor.
        tolerate(netlink.change(RouteNetlinkMessage::DelLink(link::with_index(link.index)), 0), libc::ENODEV)
    })
}

/// A route of several ways may still be there with some of them, and is replaced; any other is there or not.
fn put_back(session: &mut Session, route: &Route) -> Result<(), StepError> {
    let destination = route.destination.map_or_else(|| "default".to_owned(), |prefix| prefix.to_string());
    session.step(format!("put back the route to {destination}"), |netlink| {
        let flags = if route.hops.len() > 1 { NLM_F_REPLACE } else { NLM_F_EXCL };
        let message = link::route(route).ok_or_else(|| NetlinkError::System(io::ErrorKind::InvalidInput.into()))?;
        tolerate(netlink.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | flags), libc::EEXIST)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another process, perhaps of another release, reads it.
    #[test]
    fn the_written_form_stays_as_it_is() {
        let undo = Undo {
            namespace: NamespaceId { device: 4, inode: 4_026_532_000 },
            link: EndpointId { index: 2, mac: Mac([2, 0, 0, 0, 0, 1]) },
            name: "eth0".to_owned(),
            cookie: *b"stockade\x01\x02\x03\x04\x05\x06\x07\x08",
            actions: vec![
                UndoAction::Tap { name: "stk2".to_owned() },
                UndoAction::TapHeader { name: "tap0".to_owned(), multi_queue: false },
                UndoAction::RateLimit,
                UndoAction::IngressQdisc,
                UndoAction::Filter { priority: 0xc000, protocol: 3 },
                UndoAction::Mac { was: Mac([2, 0, 0, 0, 0, 1]), substitute: Mac([0x42, 0x5a, 0, 0, 0, 1]) },
            ],
        };
        let written = concat!(
            r#"{"namespace":{"device":4,"inode":4026532000},"link":{"index":2,"mac":"02:00:00:00:00:01"},"#,
            r#""name":"eth0","cookie":[115,116,111,99,107,97,100,101,1,2,3,4,5,6,7,8],"actions":["#,
            r#"{"tap":{"name":"stk2"}},{"tap-header":{"name":"tap0","multi_queue":false}},"rate-limit","#,
            r#""ingress-qdisc",{"filter":{"priority":49152,"protocol":3}},"#,
            r#"{"mac":{"was":"02:00:00:00:00:01","substitute":"42:5a:00:00:00:01"}}]}"#,
        );
        assert_eq!(serde_json::to_string(&undo).expect("written"), written);
        assert_eq!(serde_json::from_str::<Undo>(written).expect("read"), undo);
    }
}
