//! What is different between two scans: pure, and nothing when nothing is.

use crate::endpoint::{Endpoint, EndpointError, Role, roles};
use crate::guest::GuestNetwork;
use crate::scan::Scan;

/// What must be done for a guest that was set up from one scan to be as another says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// To be connected.
    pub added: Vec<Endpoint>,
    /// To be disconnected.
    pub removed: Vec<Endpoint>,
    /// Connected, and to be told to the guest anew, as they are now.
    pub changed: Vec<Endpoint>,
    /// The guest's routes are to be replaced.
    pub routes: bool,
    /// The guest's neighbours are to be told anew.
    pub neighbours: bool,
    /// New links that cannot be connected.
    pub refused: Vec<EndpointError>,
    /// All that the guest is told of the later scan.
    pub guest: GuestNetwork,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.changed.is_empty()
            && self.refused.is_empty()
            && !self.routes
            && !self.neighbours
    }
}

/// Compares two scans of one namespace, both of which show it without what we added (see [`crate::Undo::apply_to`]).
///
/// An endpoint is the same as long as its number and MAC address are. Lifetimes pass and are no change.
pub fn diff(before: &Scan, after: &Scan) -> Change {
    let (old, refused_before) = sort(before);
    let (new, refused) = sort(after);
    let of = |list: &[Endpoint], endpoint: &Endpoint| list.iter().find(|other| other.id == endpoint.id).cloned();
    let known = GuestNetwork::new(before, &old);
    let guest = GuestNetwork::new(after, &new);
    Change {
        added: new.iter().filter(|endpoint| of(&old, endpoint).is_none()).cloned().collect(),
        removed: old.iter().filter(|endpoint| of(&new, endpoint).is_none()).cloned().collect(),
        changed: new
            .iter()
            .filter(|endpoint| of(&old, endpoint).is_some_and(|before| lasting(&before) != lasting(endpoint)))
            .cloned()
            .collect(),
        routes: known.routes != guest.routes,
        neighbours: known.neighbours != guest.neighbours,
        refused: refused.into_iter().filter(|error| !refused_before.contains(error)).collect(),
        guest,
    }
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

fn sort(scan: &Scan) -> (Vec<Endpoint>, Vec<EndpointError>) {
    let mut endpoints = Vec::new();
    let mut refused = Vec::new();
    for (_, role) in roles(scan) {
        match role {
            Role::Endpoint(endpoint) => endpoints.push(endpoint),
            Role::Refused(error) => refused.push(error),
            Role::Ignored => {}
        }
    }
    (endpoints, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointId;
    use crate::scan::{Address, Link, LinkKind, Mac, Prefix};
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

    proptest! {
        #[test]
        fn what_was_there_less_what_went_and_with_what_came_is_what_is_there(
            before in any_scan(), after in any_scan()
        ) {
            let change = diff(&before, &after);
            let (old, new) = (ids(&sort(&before).0), ids(&sort(&after).0));
            let (added, removed) = (ids(&change.added), ids(&change.removed));
            prop_assert!(removed.is_subset(&old) && added.is_disjoint(&old));
            let there: BTreeSet<_> = old.difference(&removed).chain(&added).copied().collect();
            prop_assert_eq!(there, new);
            prop_assert_eq!(&ids(&diff(&after, &before).added), &removed);
            let changed = ids(&change.changed);
            prop_assert!(changed.is_disjoint(&added) && changed.is_disjoint(&removed));
        }

        #[test]
        fn nothing_is_different_the_second_time(scan in any_scan()) {
            prop_assert!(diff(&scan, &scan).is_empty());
        }
    }

    #[test]
    fn a_lifetime_that_passes_is_no_change_and_another_mtu_is_one() {
        let scan = |link| Scan { links: vec![link], ..Scan::default() };
        let before = scan(link(2, 1, 1500, 2, Some(9)));
        assert!(diff(&before, &scan(link(2, 1, 1500, 2, Some(4)))).is_empty());
        let change = diff(&before, &scan(link(2, 1, 9000, 2, Some(4))));
        assert_eq!(change.changed.iter().map(|endpoint| endpoint.mtu).collect::<Vec<_>>(), [9000]);
        let other = diff(&before, &scan(link(2, 7, 1500, 2, None)));
        assert_eq!((other.added.len(), other.removed.len(), other.changed.len()), (1, 1, 0));
    }
}
