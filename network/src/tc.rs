//! Traffic control: what is redirected from one link to another, and how fast a link may send.
//!
//! A redirection is what Kata's `tcfilter` model does: an `ingress` qdisc, on it a u32 filter that matches every
//! packet, whose `mirred` action steals the packet and sends it out of the other link. The action carries a mark
//! ("cookie"), by which the filter is found again, whoever looks.

use crate::netlink::NetlinkError;
use crate::scan::IngressFilter;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use std::io;

/// Every EtherType (`ETH_P_ALL`).
pub(crate) const EVERY_PROTOCOL: u16 = 0x0003;
/// Tagged frames (`ETH_P_8021Q`).
pub(crate) const VLAN_PROTOCOL: u16 = 0x8100;

/// Where filters on received packets hang, on an `ingress` and on a `clsact` qdisc alike.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

/// The handle of a rate limit's qdisc, to tell it from others'.
pub(crate) const RATE_HANDLE: u32 = 0x5d0c_0000;

fn on_link(index: u32) -> Result<TcMessage, NetlinkError> {
    i32::try_from(index)
        .map(TcMessage::with_index)
        .map_err(|_| NetlinkError::System(io::ErrorKind::InvalidInput.into()))
}

/// About the filters on what a link receives.
pub(crate) fn ingress_message(index: u32) -> Result<TcMessage, NetlinkError> {
    let mut message = on_link(index)?;
    message.header.parent = INGRESS;
    Ok(message)
}

/// An `ingress` qdisc of a link.
pub(crate) fn ingress_qdisc(index: u32) -> Result<TcMessage, NetlinkError> {
    let mut message = on_link(index)?;
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    Ok(message)
}

/// All filters of one priority on what a link receives. The kernel wants priority and EtherType in one number.
pub(crate) fn filters_of(index: u32, priority: u16, protocol: u16) -> Result<TcMessage, NetlinkError> {
    let mut message = ingress_message(index)?;
    message.header.info = u32::from(TcHandle { major: priority, minor: protocol.to_be() });
    Ok(message)
}

fn every_packet(
    index: u32,
    priority: u16,
    protocol: u16,
    option: TcFilterU32Option,
) -> Result<TcMessage, NetlinkError> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut message = filters_of(index, priority, protocol)?;
    message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    let options = [TcFilterU32Option::Selector(selector), option];
    message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()));
    Ok(message)
}

/// Sends all that link `from` receives out of link `to`.
pub(crate) fn redirect(from: u32, to: u32, priority: u16, cookie: &[u8]) -> Result<TcMessage, NetlinkError> {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
        TcActionAttribute::Cookie(cookie.to_vec()),
    ];
    every_packet(from, priority, EVERY_PROTOCOL, TcFilterU32Option::Action(vec![action]))
}

/// Lets tagged frames that a link receives pass to the VLAN links on it. The filter classifies and has no action, which
/// ends the looking.
pub(crate) fn pass_vlans(index: u32, priority: u16) -> Result<TcMessage, NetlinkError> {
    let class = TcHandle { major: 0, minor: 1 };
    every_packet(index, priority, VLAN_PROTOCOL, TcFilterU32Option::ClassId(class))
}

/// What a filter's message tells; `None` for the parts of a filter that are no rule.
pub(crate) fn decode_filter(message: &TcMessage) -> Option<IngressFilter> {
    let mut kind = String::new();
    let mut cookie = None;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind.clone_from(name),
            TcAttribute::Options(options) => cookie = options.iter().find_map(cookie_of),
            _ => {}
        }
    }
    // Without a handle it is the filter's head, without a node in the lower bits a hash table of u32.
    let handle = u32::from(message.header.handle);
    if handle == 0 || (kind == TcFilterU32::KIND && handle & 0xfff == 0) {
        return None;
    }
    let info = TcHandle::from(message.header.info);
    Some(IngressFilter { priority: info.major, protocol: u16::from_be(info.minor), kind, cookie })
}

fn cookie_of(option: &TcOption) -> Option<Vec<u8>> {
    let TcOption::U32(TcFilterU32Option::Action(actions)) = option else { return None };
    actions.iter().flat_map(|action| &action.attributes).find_map(|attribute| match attribute {
        TcActionAttribute::Cookie(cookie) => Some(cookie.clone()),
        _ => None,
    })
}

/// The limit of what a link sends, by a token bucket filter at its root.
pub(crate) fn rate_limit(index: u32, bits_per_second: u64, mtu: u32) -> Result<TcMessage, NetlinkError> {
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    /// Without a link layer the kernel wants a table of transmission times.
    const LINK_LAYER_ETHERNET: u8 = 1;
    let rate = (bits_per_second / 8).max(1);
    // Ten milliseconds' worth, so that the kernel's timer does not bound the rate, and always two whole frames.
    let burst = u32::try_from(rate / 100).unwrap_or(u32::MAX / 4).clamp(2 * (mtu + 64), u32::MAX / 4);
    // What waits: a twentieth of a second more.
    let limit = u32::try_from(rate / 20).unwrap_or(u32::MAX / 4).clamp(64 * 1024, u32::MAX / 4).saturating_add(burst);
    let mut parameters = Vec::with_capacity(36);
    // struct tc_tbf_qopt: the rate, the peak rate, and three numbers.
    parameters.extend([0, LINK_LAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
    parameters.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(limit.to_ne_bytes());
    parameters.extend([0; 8]);
    let mut message = rate_qdisc(index)?;
    message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
    let mut options = vec![DefaultNla::new(TCA_TBF_PARMS, parameters)];
    if rate > u64::from(u32::MAX) {
        options.push(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()));
    }
    options.push(DefaultNla::new(TCA_TBF_BURST, burst.to_ne_bytes().to_vec()));
    message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()));
    Ok(message)
}

/// The qdisc of a rate limit.
pub(crate) fn rate_qdisc(index: u32) -> Result<TcMessage, NetlinkError> {
    let mut message = on_link(index)?;
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle::from(RATE_HANDLE);
    Ok(message)
}
