//! A plan is carried out, wholly or not at all.

use super::plan::{End, Operation};
use super::tap::TapQueues;
use super::undo::{self, UndoAction};
use super::{Attachment, Plan, macvtap};
use crate::link;
use crate::netlink::NetlinkError;
use crate::session::{NetworkError, Session, StepError};
use crate::tc;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use std::os::fd::OwnedFd;

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Carries out all plans; when one fails, nothing of any of them remains.
pub(crate) fn attach_all(session: &mut Session, plans: &[Plan]) -> Result<Vec<Attachment>, NetworkError> {
    let mut attached: Vec<Attachment> = Vec::with_capacity(plans.len());
    for plan in plans {
        match attach(session, plan) {
            Ok(attachment) => attached.push(attachment),
            Err(mut error) => {
                let undos: Vec<_> = attached.drain(..).rev().map(|attachment| attachment.undo).collect();
                if let (Err(more), NetworkError::Step { leftover, .. }) =
                    (undo::detach_each(session, &undos), &mut error)
                {
                    leftover.extend(more);
                }
                return Err(error);
            }
        }
    }
    Ok(attached)
}

/// What exists so far.
#[derive(Debug, Default)]
struct Made {
    queues: Vec<OwnedFd>,
    /// The number of the tap or macvtap.
    device: u32,
}

fn attach(session: &mut Session, plan: &Plan) -> Result<Attachment, NetworkError> {
    let mut made = Made::default();
    let mut done: Vec<UndoAction> = Vec::new();
    for (operation, undo) in &plan.operations {
        let result = perform(session, plan, operation, &mut made);
        let failed = result.err();
        if failed.as_ref().is_none_or(|error| error.source.may_have_acted()) {
            done.extend(undo.iter().cloned());
        }
        if let Some(error) = failed {
            // A tap of ours goes with its descriptors.
            drop(made);
            let leftover = undo::detach(session, &plan.undo_of(done)).err().unwrap_or_default();
            return Err(NetworkError::Step { step: error.step, source: error.source, leftover });
        }
    }
    Ok(Attachment { endpoint: plan.endpoint.clone(), queues: made.queues, undo: plan.undo() })
}

fn perform(session: &mut Session, plan: &Plan, operation: &Operation, made: &mut Made) -> Result<(), StepError> {
    let link = plan.endpoint.id.index;
    let name = plan.endpoint.name.as_str();
    let device = plan.device.as_str();
    let index = |end: End, made: &Made| if end == End::Tap { made.device } else { link };
    let named = |end: End| if end == End::Tap { device } else { name };
    match operation {
        Operation::MakeTap { queues } => {
            let wanted =
                TapQueues { name: device, queues: *queues, multi_queue: *queues > 1, vnet_hdr: true, new: true };
            made.queues = session.step(format!("make the tap {device:?} for {name:?}"), |_| wanted.open())?;
        }
        Operation::Find => {
            made.device = session.step(format!("find {device:?}"), |_| link::index_of(device))?;
        }
        Operation::OpenTap { queues, multi_queue } => {
            let wanted = TapQueues { name, queues: *queues, multi_queue: *multi_queue, vnet_hdr: true, new: false };
            made.queues = session.step(format!("open the tap {name:?}"), |_| wanted.open())?;
        }
        Operation::OpenMacvtap { queues } => {
            made.queues = session.step(format!("open the macvtap {device:?}"), |_| macvtap::open(device, *queues))?;
        }
        Operation::MakeMacvtap => {
            let mac = plan.endpoint.id.mac;
            session.step(format!("make the macvtap {device:?} on {name:?}"), |netlink| {
                netlink.change(RouteNetlinkMessage::NewLink(link::macvtap(device, link, mac)), NEW)
            })?;
        }
        Operation::Prepare { mtu } => {
            session.step(format!("set the MTU of {device:?}"), |netlink| {
                netlink.change(RouteNetlinkMessage::SetLink(link::quiet(made.device, *mtu)), 0)
            })?;
        }
        Operation::Up => {
            session.step(format!("bring up {device:?}"), |netlink| {
                netlink.change(RouteNetlinkMessage::SetLink(link::up(made.device)), 0)
            })?;
        }
        Operation::RateLimit { on, bits_per_second } => {
            let (on_index, mtu) = (index(*on, made), plan.endpoint.mtu);
            session.step(format!("limit the rate of {:?}", named(*on)), |netlink| {
                let message = tc::rate_limit(on_index, *bits_per_second, mtu)?;
                netlink.change(RouteNetlinkMessage::NewQueueDiscipline(message), NEW)
            })?;
        }
        Operation::IngressQdisc { on } => {
            let on_index = index(*on, made);
            session.step(format!("add an ingress qdisc to {:?}", named(*on)), |netlink| {
                netlink.change(RouteNetlinkMessage::NewQueueDiscipline(tc::ingress_qdisc(on_index)?), NEW)
            })?;
        }
        Operation::PassVlans { priority } => {
            session.step(format!("keep the VLANs of {name:?}"), |netlink| {
                netlink.change(RouteNetlinkMessage::NewTrafficFilter(tc::pass_vlans(link, *priority)?), NEW)
            })?;
        }
        Operation::Redirect { from, to, priority } => {
            let (from_index, to_index) = (index(*from, made), index(*to, made));
            session.step(format!("redirect {:?} to {:?}", named(*from), named(*to)), |netlink| {
                let message = tc::redirect(from_index, to_index, *priority, &plan.mark.cookie())?;
                netlink.change(RouteNetlinkMessage::NewTrafficFilter(message), NEW)
            })?;
        }
        Operation::SetMac { mac } => {
            session.step(format!("give {name:?} another MAC address"), |netlink| {
                netlink.change(RouteNetlinkMessage::SetLink(link::with_mac(link, *mac)), 0)
            })?;
        }
        Operation::RemoveAddress(address) => {
            session.step(format!("take the address {} from {name:?}", address.local), |netlink| {
                tolerate(
                    netlink.change(RouteNetlinkMessage::DelAddress(link::address(link, address)), 0),
                    // A secondary address goes with its primary one.
                    libc::EADDRNOTAVAIL,
                )
            })?;
        }
    }
    Ok(())
}

/// Success too when the kernel refuses with `errno`.
pub(super) fn tolerate(result: Result<(), NetlinkError>, errno: i32) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Some(errno) => Ok(()),
        other => other,
    }
}
