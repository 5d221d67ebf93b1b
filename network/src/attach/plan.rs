//! What is to be done for an endpoint, decided from a scan alone.

use super::{AttachOptions, Mark, Model, Undo, UndoAction};
use crate::endpoint::{Endpoint, EndpointId};
use crate::netns::NamespaceId;
use crate::scan::{Address, Link, LinkKind, Mac, RouteAction, Scan};
use crate::tc;

/// The priority of a redirection where no filter is; where some are it comes after them.
const PRIORITY: u16 = 0xc000;
/// Queue pairs of one interface, as many as the tun driver has.
const MOST_QUEUES: u16 = 256;
/// What IPv4 needs.
const LEAST_MTU: u32 = 68;

/// Why an endpoint cannot be connected; nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Somebody else's machine has it.
    #[error(
        "the interface {name:?} is connected to another virtual machine; delete that sandbox, or run `stockade gc` if it is gone"
    )]
    Taken {
        /// The interface.
        name: String,
    },
    /// The scan is of another time.
    #[error("the interface {name:?} is no longer there")]
    Gone {
        /// The interface.
        name: String,
    },
    /// A count that cannot be.
    #[error("{queues} queues were asked for the interface {name:?}; it can have 1 to {MOST_QUEUES}")]
    Queues {
        /// The interface.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// The tap was made for one queue.
    #[error(
        "the tap {name:?} was made for one queue and {queues} were asked for; make it with multi_queue, or ask for 1"
    )]
    SingleQueue {
        /// The interface.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// A size that no guest interface can have.
    #[error("the interface {name:?} has an MTU of {mtu}; a virtual machine's can have {LEAST_MTU} to 65535")]
    Mtu {
        /// The interface.
        name: String,
        /// What it has.
        mtu: u32,
    },
    /// No place for the filter.
    #[error("the interface {name:?} has a filter of the last priority, after which none can be placed")]
    Priority {
        /// The interface.
        name: String,
    },
    /// Somebody else's qdisc is where the limit would be.
    #[error("the interface {name:?} has a queueing discipline of its own ({kind}), so no rate limit can be set on it")]
    RootQdisc {
        /// The interface.
        name: String,
        /// What it has.
        kind: String,
    },
    /// There is nothing that the limit could be set on.
    #[error("what a guest {direction} by the {kind} {name:?} cannot be limited; leave {option} at 0{advice}")]
    RateModel {
        /// The interface.
        name: String,
        /// By what it is connected.
        kind: &'static str,
        /// Which way.
        direction: &'static str,
        /// The option that asks for it.
        option: &'static str,
        /// What else can be done.
        advice: &'static str,
    },
    /// What would be taken away could not be brought back.
    #[error(
        "the macvtap model cannot be used for the interface {name:?}: one of its routes has {property}, and could not be put back; use the model tcfilter"
    )]
    Route {
        /// The interface.
        name: String,
        /// What the route has.
        property: String,
    },
}

/// One of the two ends of a redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// What the machine has.
    Tap,
    /// What the namespace had.
    Link,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    MakeTap {
        queues: u16,
    },
    /// Learns the number of what was made.
    Find,
    OpenTap {
        queues: u16,
        multi_queue: bool,
    },
    OpenMacvtap {
        queues: u16,
    },
    Prepare {
        mtu: u32,
    },
    Up,
    RateLimit {
        on: End,
        bits_per_second: u64,
    },
    IngressQdisc {
        on: End,
    },
    PassVlans {
        priority: u16,
    },
    Redirect {
        from: End,
        to: End,
        priority: u16,
    },
    SetMac {
        mac: Mac,
    },
    MakeMacvtap,
    RemoveAddress(Address),
}

/// What is going to be done for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) endpoint: Endpoint,
    pub(super) mark: Mark,
    /// The tap's or macvtap's name.
    pub(super) device: String,
    /// In order, each with what undoes it.
    pub(super) operations: Vec<(Operation, Vec<UndoAction>)>,
    namespace: NamespaceId,
}

impl Plan {
    /// Which endpoint it is for.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What undoes all of it, to be written down before it is carried out. It is right at any moment: for a plan that
    /// was carried out, in part, or not at all.
    pub fn undo(&self) -> Undo {
        let actions = self.operations.iter().flat_map(|(_, undo)| undo.clone()).collect();
        self.undo_of(actions)
    }

    pub(super) fn undo_of(&self, actions: Vec<UndoAction>) -> Undo {
        Undo {
            namespace: self.namespace,
            link: self.endpoint.id,
            name: self.endpoint.name.clone(),
            cookie: self.mark.cookie(),
            actions,
        }
    }
}

/// Plans the connection of an endpoint of `scan`, which is of the namespace `namespace`.
///
/// # Errors
/// The endpoint is not in the scan, is taken, or what is asked for is not possible with it.
pub fn plan(
    scan: &Scan,
    namespace: NamespaceId,
    endpoint: &Endpoint,
    options: &AttachOptions,
) -> Result<Plan, PlanError> {
    let name = || endpoint.name.clone();
    let link = scan.link(endpoint.id.index).filter(|link| link.mac == Some(endpoint.id.mac));
    let link = link.ok_or_else(|| PlanError::Gone { name: name() })?;
    let device = device_name(endpoint.id);
    let taken = |cookie: &Option<Vec<u8>>| cookie.as_ref().is_some_and(|cookie| cookie.starts_with(Mark::OURS));
    if scan.named(&device).is_some() || link.ingress.iter().any(|filter| taken(&filter.cookie)) {
        return Err(PlanError::Taken { name: name() });
    }
    if options.queues == 0 || options.queues > MOST_QUEUES {
        return Err(PlanError::Queues { name: name(), queues: options.queues });
    }
    if link.mtu < LEAST_MTU || link.mtu > u16::MAX.into() {
        return Err(PlanError::Mtu { name: name(), mtu: link.mtu });
    }
    let macvtap_fits = matches!(link.kind, LinkKind::Veth | LinkKind::Physical);
    let (device, operations) = match &link.kind {
        LinkKind::Tap { multi_queue, vnet_hdr } => {
            (link.name.clone(), open_tap(link, options, *multi_queue, *vnet_hdr)?)
        }
        LinkKind::Macvtap => (link.name.clone(), open_macvtap(link, options)?),
        _ if options.model == Model::Macvtap && macvtap_fits => (device, macvtap(scan, link, endpoint, options)?),
        _ => (device.clone(), redirect(scan, link, options, &device)?),
    };
    Ok(Plan { endpoint: endpoint.clone(), mark: options.mark, device, operations, namespace })
}

/// At most 13 bytes, of the 15 that a name may have.
fn device_name(id: EndpointId) -> String {
    format!("stk{}", id.index)
}

type Operations = Vec<(Operation, Vec<UndoAction>)>;

fn redirect(scan: &Scan, link: &Link, options: &AttachOptions, device: &str) -> Result<Operations, PlanError> {
    let name = || link.name.clone();
    let last = link.ingress.iter().map(|filter| filter.priority).max();
    let mut priority = last.map_or(PRIORITY, |last| last.saturating_add(1).max(PRIORITY));
    // Two may be needed, and the last one is no longer told from its successor.
    if priority >= u16::MAX - 1 {
        return Err(PlanError::Priority { name: name() });
    }
    let mut operations: Operations = vec![
        (Operation::MakeTap { queues: options.queues }, vec![UndoAction::Tap { name: device.to_owned() }]),
        (Operation::Find, Vec::new()),
        (Operation::Prepare { mtu: link.mtu }, Vec::new()),
    ];
    // All of the tap goes with the tap.
    if options.rx_rate > 0 {
        operations.push((Operation::RateLimit { on: End::Tap, bits_per_second: options.rx_rate }, Vec::new()));
    }
    operations.extend([
        (Operation::Up, Vec::new()),
        (Operation::IngressQdisc { on: End::Tap }, Vec::new()),
        (Operation::Redirect { from: End::Tap, to: End::Link, priority: PRIORITY }, Vec::new()),
    ]);
    if options.tx_rate > 0 {
        limit_of_link(link, options.tx_rate, &mut operations)?;
    }
    if !link.has_ingress_qdisc() {
        operations.push((Operation::IngressQdisc { on: End::Link }, vec![UndoAction::IngressQdisc]));
    }
    let vlan = |upper: &&Link| upper.lower == Some(link.index) && matches!(upper.kind, LinkKind::Vlan { .. });
    if scan.links.iter().any(|upper| vlan(&upper)) {
        let undo = UndoAction::Filter { priority, protocol: tc::VLAN_PROTOCOL };
        operations.push((Operation::PassVlans { priority }, vec![undo]));
        priority += 1;
    }
    let undo = UndoAction::Filter { priority, protocol: tc::EVERY_PROTOCOL };
    // The last step: from here on the namespace itself no longer receives.
    operations.push((Operation::Redirect { from: End::Link, to: End::Tap, priority }, vec![undo]));
    Ok(operations)
}

fn limit_of_link(link: &Link, bits_per_second: u64, operations: &mut Operations) -> Result<(), PlanError> {
    const ROOT: u32 = u32::MAX;
    let own = link.qdiscs.iter().find(|qdisc| qdisc.parent == ROOT && qdisc.handle != 0);
    if let Some(qdisc) = own {
        return Err(PlanError::RootQdisc { name: link.name.clone(), kind: qdisc.kind.clone() });
    }
    operations.push((Operation::RateLimit { on: End::Link, bits_per_second }, vec![UndoAction::RateLimit]));
    Ok(())
}

fn open_tap(link: &Link, options: &AttachOptions, multi_queue: bool, vnet_hdr: bool) -> Result<Operations, PlanError> {
    if options.queues > 1 && !multi_queue {
        return Err(PlanError::SingleQueue { name: link.name.clone(), queues: options.queues });
    }
    // What the guest sends, the namespace receives from the tap: there is no queue to limit it.
    if options.tx_rate > 0 {
        return Err(PlanError::RateModel {
            name: link.name.clone(),
            kind: "tap",
            direction: "sends",
            option: "tx_rate_limiter_max_rate",
            advice: "",
        });
    }
    let mut operations: Operations = vec![(
        Operation::OpenTap { queues: options.queues, multi_queue },
        if vnet_hdr { Vec::new() } else { vec![UndoAction::TapHeader { name: link.name.clone(), multi_queue }] },
    )];
    if options.rx_rate > 0 {
        limit_of_link(link, options.rx_rate, &mut operations)?;
    }
    Ok(operations)
}

fn open_macvtap(link: &Link, options: &AttachOptions) -> Result<Operations, PlanError> {
    if options.rx_rate > 0 {
        return Err(no_rx_limit(link, ""));
    }
    let mut operations: Operations = vec![(Operation::OpenMacvtap { queues: options.queues }, Vec::new())];
    if options.tx_rate > 0 {
        limit_of_link(link, options.tx_rate, &mut operations)?;
    }
    Ok(operations)
}

/// A macvtap hands what arrives to its reader without a queue of the kernel's between.
fn no_rx_limit(link: &Link, advice: &'static str) -> PlanError {
    let (kind, direction, option) = ("macvtap", "receives", "rx_rate_limiter_max_rate");
    PlanError::RateModel { name: link.name.clone(), kind, direction, option, advice }
}

fn macvtap(scan: &Scan, link: &Link, endpoint: &Endpoint, options: &AttachOptions) -> Result<Operations, PlanError> {
    if options.rx_rate > 0 {
        return Err(no_rx_limit(link, ", or use the model tcfilter"));
    }
    let device = device_name(endpoint.id);
    let substitute = substitute(endpoint.id.mac);
    let mut operations: Operations = Vec::new();
    // With its addresses a link loses its routes. They are put back last, so their undo is the first.
    let over_link = |route: &&crate::scan::Route| route.hops.iter().any(|hop| hop.link == Some(link.index));
    let mut undo_of_routes = Vec::new();
    for route in scan.routes.iter().filter(over_link) {
        let ours = route.action == RouteAction::Unicast;
        if let Some(property) = route.others.first().filter(|_| ours) {
            return Err(PlanError::Route { name: link.name.clone(), property: property.clone() });
        }
        if ours {
            undo_of_routes.push(UndoAction::Route(route.clone()));
        }
    }
    undo_of_routes.sort_by_key(|undo| match undo {
        // What gateways are reached by comes last here, and so is put back first.
        UndoAction::Route(route) => route.hops.iter().all(|hop| hop.gateway.is_none()),
        _ => false,
    });
    let mut undo = undo_of_routes;
    undo.push(UndoAction::Mac { was: endpoint.id.mac, substitute });
    operations.push((Operation::SetMac { mac: substitute }, undo));
    // From the last to the first, so that they come back in their order: the first one is the one that is used.
    for address in link.addresses.iter().rev() {
        let undo = vec![UndoAction::Address(address.clone())];
        operations.push((Operation::RemoveAddress(address.clone()), undo));
    }
    operations.extend([
        (Operation::MakeMacvtap, vec![UndoAction::Macvtap { name: device }]),
        (Operation::Find, Vec::new()),
        (Operation::Prepare { mtu: link.mtu }, Vec::new()),
    ]);
    if options.tx_rate > 0 {
        operations.push((Operation::RateLimit { on: End::Tap, bits_per_second: options.tx_rate }, Vec::new()));
    }
    operations.extend([(Operation::Up, Vec::new()), (Operation::OpenMacvtap { queues: options.queues }, Vec::new())]);
    Ok(operations)
}

/// The MAC address of a link whose own the guest has: locally administered, and as unlike as the own one is from
/// others'.
fn substitute(mac: Mac) -> Mac {
    let [a, b, c, d, e, f] = mac.0;
    // Any two-bit change in the first byte keeps it a unicast address and another one.
    Mac([(a ^ 0x40) | 0x02, b ^ 0x5a, c, d, e, f])
}
