//! Two snapshots → the addresses whose live connections must be judged again.
//!
//! A decision reads only what is compared here: the identity at both ends, the content of the policies that
//! select them, the nodes and names those match, and what is true of the node as a whole. A peer that enters or leaves a selector has itself
//! changed, so it is in the set on its own account.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::policies::{Isolation, Peers};
use crate::compile::tiers::{CompiledTierRule, Subject};
use crate::snapshot::{PodEntry, Snapshot};

/// Whose connections a change of snapshot may decide differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affected {
    /// Anyone's: nodes, own addresses or options changed.
    All,
    /// Those with an end among these addresses.
    Addresses(HashSet<IpAddr>),
}

impl Affected {
    /// True when a connection with an end at `ip` must be judged again.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Addresses(addresses) => addresses.contains(&ip),
        }
    }
}

/// Pairs of policies, numbered in the newer and the older snapshot, and whether they are the same.
type Compared = HashMap<(u32, u32), bool>;

impl Snapshot {
    /// The addresses of every pod that appeared, vanished, changed its identity or its uid, or is selected by
    /// a policy that is new, gone, of other content or of other nodes; and those that domain names now match
    /// or no longer do.
    pub fn affected_since(&self, older: &Self) -> Affected {
        if !self.same_surroundings(older) {
            return Affected::All;
        }
        // Thousands of pods share an identity, and identities policies: each pair is compared once.
        let mut compared = HashMap::new();
        let mut tiers = HashMap::new();
        let mut same = |new: &PodEntry, old: &PodEntry| {
            new.pod.uid == old.pod.uid
                && new.pod.name == old.pod.name
                && self.node_name(new) == older.node_name(old)
                && *compared
                    .entry((new.identity, old.identity))
                    .or_insert_with(|| self.same_identity(new.identity, older, old.identity, &mut tiers))
        };
        let mut addresses: HashSet<IpAddr> =
            older.pods.keys().filter(|ip| !self.pods.contains_key(*ip)).copied().collect();
        for (ip, new) in &self.pods {
            if !older.pods.get(ip).is_some_and(|old| same(new, old)) {
                addresses.insert(*ip);
            }
        }
        addresses.extend(self.domains.differing(&older.domains));
        Affected::Addresses(addresses)
    }

    fn same_surroundings(&self, older: &Self) -> bool {
        let (new, old) = (&self.addresses, &older.addresses);
        let own_name = |snapshot: &Self| {
            snapshot.addresses.own_node.map(|node| Arc::clone(snapshot.addresses.node_name(node)))
        };
        self.own_node_egress == older.own_node_egress
            && own_name(self) == own_name(older)
            && new.own == old.own
            && new.own_ranges == old.own_ranges
            && new.cluster_ranges == old.cluster_ranges
            && new.nodes.len() == old.nodes.len()
            && new.nodes.iter().all(|(ip, number)| {
                old.nodes.get(ip).is_some_and(|other| new.node_name(*number) == old.node_name(*other))
            })
    }

    fn node_name(&self, entry: &PodEntry) -> Option<&Arc<str>> {
        entry.node.map(|node| self.addresses.node_name(node))
    }

    fn same_identity(&self, new: u32, older: &Self, old: u32, tiers: &mut Compared) -> bool {
        let (new, old) = (&self.identities[new as usize], &older.identities[old as usize]);
        new.namespace == old.namespace
            && new.labels == old.labels
            && new.named_ports == old.named_ports
            && self.same_policies(new.ingress.as_deref(), older, old.ingress.as_deref())
            && self.same_policies(new.egress.as_deref(), older, old.egress.as_deref())
            && self.same_subject(new.subject.as_deref(), older, old.subject.as_deref(), tiers)
    }

    fn same_subject<'s>(
        &self,
        new: Option<&'s Subject>,
        older: &Self,
        old: Option<&'s Subject>,
        tiers: &mut Compared,
    ) -> bool {
        let lists = |subject: Option<&'s Subject>| -> [&'s [u32]; 4] {
            subject.map_or([&[]; 4], |Subject { admin, baseline, .. }| {
                [&admin.ingress, &admin.egress, &baseline.ingress, &baseline.egress]
            })
        };
        lists(new).iter().zip(lists(old)).all(|(new, old)| {
            new.len() == old.len()
                && new.iter().zip(old).all(|(new, old)| {
                    *tiers.entry((*new, *old)).or_insert_with(|| self.same_tier_policy(*new, older, *old))
                })
        })
    }

    /// The same rules, which match the same nodes: whose labels are no part of a policy.
    fn same_tier_policy(&self, new: u32, older: &Self, old: u32) -> bool {
        let (new, old) = (&self.tiers[new as usize], &older.tiers[old as usize]);
        let same_nodes = |(new, old): (&CompiledTierRule, &CompiledTierRule)| match (&new.peers, &old.peers) {
            (Peers::Some { others: Some(new), .. }, Peers::Some { others: Some(old), .. }) => {
                (0..).zip(&self.addresses.node_names).all(|(number, name)| {
                    let there = older.addresses.node_number(name);
                    new.nodes.contains(number) == there.is_some_and(|number| old.nodes.contains(number))
                })
            }
            (Peers::Some { others: None, .. }, Peers::Some { others: Some(_), .. })
            | (Peers::Some { others: Some(_), .. }, Peers::Some { others: None, .. }) => false,
            _ => true,
        };
        (Arc::ptr_eq(&new.source, &old.source) || new.source == old.source)
            && new.ingress.iter().zip(&old.ingress).all(same_nodes)
            && new.egress.iter().zip(&old.egress).all(same_nodes)
    }

    fn same_policies(&self, new: Option<&Isolation>, older: &Self, old: Option<&Isolation>) -> bool {
        let (Some(new), Some(old)) = (new, old) else { return new.is_none() && old.is_none() };
        new.policies.len() == old.policies.len()
            && new.policies.iter().zip(&old.policies).all(|(new, old)| {
                let new = &self.policies[*new as usize].source;
                let old = &older.policies[*old as usize].source;
                Arc::ptr_eq(new, old) || new == old
            })
    }
}
