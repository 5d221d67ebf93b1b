//! What is different between the guest's endpoints and a later scan: pure, and nothing when nothing is.

use crate::endpoint::{Endpoint, EndpointError, EndpointId, Role, roles};
use crate::scan::{LinkKind, Mac, Scan};

/// What must be done for a guest whose endpoints are some, to have those that a scan shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// To be connected.
    pub added: Vec<Endpoint>,
    /// To be disconnected: their links are gone, or have another MAC address.
    pub removed: Vec<Endpoint>,
    /// Connected, and different from what they were; as they are now.
    pub changed: Vec<Endpoint>,
    /// Links that cannot be connected.
    pub refused: Vec<(EndpointId, EndpointError)>,
}

/// Compares what is connected with a scan that shows the namespace without what we added (see
/// [`crate::Undo::apply_to`]).
///
/// An endpoint is the same as long as its number and MAC address are, and stays one when it loses its addresses.
/// Lifetimes pass and are no change.
pub fn diff(connected: &[Endpoint], scan: &Scan) -> Change {
    let mut change = Change::default();
    let known = |id: EndpointId| connected.iter().find(|endpoint| endpoint.id == id);
    for (link, role) in roles(scan) {
        let now = Endpoint::of(link);
        if let Some((before, now)) = now.and_then(|now| Some((known(now.id)?, now))) {
            if lasting(before) != lasting(&now) {
                change.changed.push(now);
            }
            continue;
        }
        match role {
            Role::Endpoint(endpoint) => {
                let lower = connected.iter().find(|below| link.lower == Some(below.id.index));
                match lower.filter(|_| !matches!(endpoint.kind, LinkKind::Veth)) {
                    None => change.added.push(endpoint),
                    Some(lower) => {
                        let error = EndpointError::OnConnected { name: endpoint.name, lower: lower.name.clone() };
                        change.refused.push((endpoint.id, error));
                    }
                }
            }
            Role::Refused(error) => {
                let id = EndpointId { index: link.index, mac: link.mac.unwrap_or(Mac([0; 6])) };
                change.refused.push((id, error));
            }
            Role::Ignored => {}
        }
    }
    let there =
        |endpoint: &&Endpoint| scan.link(endpoint.id.index).is_some_and(|link| link.mac == Some(endpoint.id.mac));
    change.removed = connected.iter().filter(|endpoint| !there(endpoint)).cloned().collect();
    change
}

/// An endpoint without what passes by itself.
fn lasting(endpoint: &Endpoint) -> Endpoint {
    /// `IFA_F_TENTATIVE`, `IFA_F_OPTIMISTIC` and `IFA_F_DEPRECATED`: stages of an address's life.
    const STAGES: u32 = 0x40 | 0x04 | 0x20;
    let mut endpoint = endpoint.clone();
    for address in &mut endpoint.addresses {
        address.lifetime = None;
        address.flags &= !STAGES;
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::endpoints;
    use crate::scan::{Address, Link, Prefix};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn link(index: u32, mac: u8, mtu: u32, host: u8, lifetime: Option<u32>) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            kind: LinkKind::Veth,
            mac: Some(Mac([2, 0, 0, 0, 0, mac])),
            mtu,
            queues: (1, 1),
            up: true,
            no_arp: false,
            lower: None,
            controller: None,
            addresses: vec![Address {
                local: Prefix { address: [10, 0, 0, host].into(), length: 24 },
                peer: None,
                broadcast: None,
                label: None,
                scope: 0,
                flags: 0x80,
                lifetime: lifetime.map(|seconds| (seconds, seconds)),
                metric: None,
                protocol: None,
            }],
            qdiscs: Vec::new(),
            ingress: Vec::new(),
        }
    }

    fn any_scan() -> impl Strategy<Value = Scan> {
        let one = (0..3u8, prop::sample::select(vec![1500, 9000]), 1..3u8, prop::option::of(1..9u32));
        prop::collection::btree_map(2..6u32, one, 0..4).prop_map(|links| Scan {
            links: links
                .into_iter()
                .map(|(index, (mac, mtu, host, lifetime))| link(index, mac, mtu, host, lifetime))
                .collect(),
            ..Scan::default()
        })
    }

    fn ids(list: &[Endpoint]) -> BTreeSet<EndpointId> {
        list.iter().map(|endpoint| endpoint.id).collect()
    }

    fn all(scan: &Scan) -> Vec<Endpoint> {
        endpoints(scan).expect("no link that cannot be connected")
    }

    proptest! {
        #[test]
        fn what_was_there_less_what_went_and_with_what_came_is_what_is_there(
            before in any_scan(), after in any_scan()
        ) {
            let change = diff(&all(&before), &after);
            let (old, new) = (ids(&all(&before)), ids(&all(&after)));
            let (added, removed) = (ids(&change.added), ids(&change.removed));
            prop_assert!(removed.is_subset(&old) && added.is_disjoint(&old));
            let there: BTreeSet<_> = old.difference(&removed).chain(&added).copied().collect();
            prop_assert_eq!(there, new);
            prop_assert_eq!(&ids(&diff(&all(&after), &before).added), &removed);
            let changed = ids(&change.changed);
            prop_assert!(changed.is_disjoint(&added) && changed.is_disjoint(&removed));
        }

        #[test]
        fn nothing_is_different_the_second_time(scan in any_scan()) {
            prop_assert_eq!(diff(&all(&scan), &scan), Change::default());
        }
    }

    fn scan(links: Vec<Link>) -> Scan {
        Scan { links, ..Scan::default() }
    }

    #[test]
    fn a_lifetime_that_passes_is_no_change_and_another_mtu_is_one() {
        let before = all(&scan(vec![link(2, 1, 1500, 2, Some(9))]));
        assert_eq!(diff(&before, &scan(vec![link(2, 1, 1500, 2, Some(4))])), Change::default());
        let change = diff(&before, &scan(vec![link(2, 1, 9000, 2, Some(4))]));
        assert_eq!(change.changed.iter().map(|endpoint| endpoint.mtu).collect::<Vec<_>>(), [9000]);
        let other = diff(&before, &scan(vec![link(2, 7, 1500, 2, None)]));
        assert_eq!((other.added.len(), other.removed.len(), other.changed.len()), (1, 1, 0));
    }

    #[test]
    fn a_connected_link_that_loses_its_addresses_stays_and_a_new_one_without_any_is_left_alone() {
        let before = all(&scan(vec![link(2, 1, 1500, 2, None)]));
        let mut bare = link(2, 1, 1500, 2, None);
        bare.addresses.clear();
        let new = Link { addresses: Vec::new(), ..link(3, 3, 1500, 3, None) };
        let change = diff(&before, &scan(vec![bare, new]));
        assert_eq!((change.added.len(), change.removed.len()), (0, 0));
        assert!(change.changed.iter().all(|endpoint| endpoint.addresses.is_empty()));
        assert_eq!(change.changed.len(), 1);
    }

    #[test]
    fn what_comes_on_top_of_a_connected_link_is_refused_since_its_packets_go_to_the_guest() {
        let before = all(&scan(vec![link(2, 1, 1500, 2, None)]));
        let vlan = Link { kind: LinkKind::Vlan { id: 5 }, lower: Some(2), ..link(3, 1, 1500, 3, None) };
        let change = diff(&before, &scan(vec![link(2, 1, 1500, 2, None), vlan]));
        assert!(change.added.is_empty() && change.removed.is_empty());
        let [(id, error)] = change.refused.as_slice() else { panic!("one is refused") };
        assert_eq!(id.index, 3);
        assert!(error.to_string().contains("\"eth3\" came on top of \"eth2\""), "{error}");
    }
}
