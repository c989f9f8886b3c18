//! Two snapshots → the addresses whose live connections must be judged again.
//!
//! A decision reads only what is compared here: the identity at both ends, the content of the policies that
//! select them, the nodes and names those match, and what is true of the node as a whole. A peer that enters
//! or leaves a selector has itself changed, so it is in the set on its own account.
//!
//! Parts that both snapshots share are equal and are not looked into, so the difference between a snapshot and
//! the next costs what the event between them changed.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::snapshot::{Identity, PodEntry, Snapshot};

/// Whose connections a change of snapshot may decide differently.
#[derive(Clone, Debug)]
pub enum Affected {
    /// Anyone's: own addresses or options changed.
    All,
    /// Those with an end among these addresses.
    Addresses(HashSet<IpAddr>),
    /// Those with an end that this says is affected. There may be as many as there are pods, so each is only
    /// looked at when it is asked about.
    Where(Box<Difference>),
}

impl Affected {
    /// True when a connection with an end at `ip` must be judged again.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Addresses(addresses) => addresses.contains(&ip),
            Self::Where(difference) => difference.contains(ip),
        }
    }

    /// Every such address, `None` for [`Affected::All`]. Looks at every pod where a policy's content has changed.
    pub fn addresses(&self) -> Option<HashSet<IpAddr>> {
        match self {
            Self::All => None,
            Self::Addresses(addresses) => Some(addresses.clone()),
            Self::Where(difference) => Some(difference.addresses()),
        }
    }
}

/// Two snapshots that decide differently about pods that are the same in both.
#[derive(Clone, Debug)]
pub struct Difference {
    new: Snapshot,
    old: Snapshot,
    /// Addresses that changed hands, and what is no pod's.
    moved: HashSet<IpAddr>,
}

impl Difference {
    /// True when a connection with an end at `ip` must be judged again.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = flow::canonical_ip(ip);
        if self.moved.contains(&ip) {
            return true;
        }
        match (self.new.view.pods.at(ip), self.old.view.pods.at(ip)) {
            (Some(new), Some(old)) => !self.new.same_identity(new.identity, &self.old, old.identity),
            _ => false,
        }
    }

    fn addresses(&self) -> HashSet<IpAddr> {
        let pods = self.new.view.pods.iter().map(|(ip, _)| ip).filter(|ip| self.contains(*ip));
        pods.chain(self.moved.iter().copied()).collect()
    }
}

impl Snapshot {
    /// The addresses of every pod that appeared, vanished, changed its identity or its uid, or is selected by
    /// a policy that is new, gone or of other content; those of nodes that did so or have other labels; and
    /// those that domain names now match or no longer do.
    pub fn affected_since(&self, older: &Self) -> Affected {
        if !self.same_surroundings(older) {
            return Affected::All;
        }
        let mut addresses = HashSet::new();
        self.affected_nodes(older, &mut addresses);
        if !Arc::ptr_eq(&self.view.domains, &older.view.domains) {
            addresses.extend(self.view.domains.differing(&older.view.domains));
        }
        let moved = self.view.pods.differing(&older.view.pods).filter(|(_, new, old)| match (new, old) {
            (Some(new), Some(old)) => !self.same_pod(new, older, old),
            _ => true,
        });
        addresses.extend(moved.map(|(ip, ..)| ip));
        if !self.identities_changed(older) {
            return Affected::Addresses(addresses);
        }
        Affected::Where(Box::new(Difference { new: self.clone(), old: older.clone(), moved: addresses }))
    }

    fn same_surroundings(&self, older: &Self) -> bool {
        let own_name = |snapshot: &Self| {
            snapshot.view.own_node.map(|node| snapshot.node_name(node).cloned().unwrap_or_default())
        };
        let (new, old) = (&self.view, &older.view);
        self.own_node_egress == older.own_node_egress
            && own_name(self) == own_name(older)
            && new.own == old.own
            && (Arc::ptr_eq(&new.own_ranges, &old.own_ranges) || new.own_ranges == old.own_ranges)
    }

    fn same_pod(&self, new: &PodEntry, older: &Self, old: &PodEntry) -> bool {
        let name = |snapshot: &Self, entry: &PodEntry| {
            entry.node().and_then(|node| snapshot.node_name(node).cloned())
        };
        let same = |new: &flow::Pod, old: &flow::Pod| {
            new.uid == old.uid && new.name == old.name && new.namespace == old.namespace
        };
        self.same_identity(new.identity, older, old.identity)
            && (Arc::ptr_eq(&new.pod, &old.pod) || same(&new.pod, &old.pod))
            && name(self, new) == name(older, old)
    }

    /// True when what is said of an identity that both snapshots have is no longer the same: pods that have not
    /// changed may then be affected.
    fn identities_changed(&self, older: &Self) -> bool {
        let (new, old) = (&self.view, &older.view);
        let both = |number: &u32| self.has_identity(*number) && older.has_identity(*number);
        let mut numbers = new.identities.differing(&old.identities).chain(new.kinds.differing(&old.kinds));
        if numbers.any(|number| both(&number) && !self.same_identity(number, older, number)) {
            return true;
        }
        let list =
            |snapshot: &Self, number| Some(snapshot.view.lists.get(number)?.content).filter(|own| *own != 0);
        let subject = |snapshot: &Self, number| Some(snapshot.view.subjects.get(number)?.as_ref()?.content);
        // A number that was or is nobody's is new or gone for those who have it, who are found above.
        let differ = |new: Option<u64>, old: Option<u64>| new.zip(old).is_some_and(|(new, old)| new != old);
        new.lists.differing(&old.lists).any(|number| differ(list(self, number), list(older, number)))
            || new
                .subjects
                .differing(&old.subjects)
                .any(|number| differ(subject(self, number), subject(older, number)))
    }

    fn has_identity(&self, number: u32) -> bool {
        self.view.identities.get(number).is_some_and(|own| !own.who.namespace.name.is_empty())
    }

    fn same_identity(&self, new: u32, older: &Self, old: u32) -> bool {
        let contents = |snapshot: &Self, number: u32| {
            let view = &snapshot.view;
            let kind = view.kinds.get(number).copied().unwrap_or_default();
            let list = |number| (number != 0).then(|| view.lists.get(number).map(|list| list.content));
            (view.subject(&kind).map(|subject| subject.content), kind.lists.map(list))
        };
        let same = match (self.view.identities.get(new), older.view.identities.get(old)) {
            (Some(new), Some(old)) => same_members(new, old),
            (new, old) => new.is_none() && old.is_none(),
        };
        same && contents(self, new) == contents(older, old)
    }

    /// Nodes' addresses that changed hands, and all addresses of nodes with other labels.
    fn affected_nodes(&self, older: &Self, addresses: &mut HashSet<IpAddr>) {
        let (new, old) = (&self.view, &older.view);
        for (ip, here, there) in new.node_addresses.differing(&old.node_addresses) {
            let name = |snapshot: &Self, number: Option<&u32>| {
                number.and_then(|number| snapshot.node_name(*number).cloned())
            };
            if name(self, here) != name(older, there) {
                addresses.insert(ip);
            }
        }
        if new.nodes.is_same(&old.nodes) {
            return;
        }
        // The same node may have another number in a snapshot of another making.
        let labels = |snapshot: &Self, number: u32| {
            snapshot.view.nodes.get(number).cloned().flatten().map(|node| node.labels.clone())
        };
        for (ip, number) in new.node_addresses.iter() {
            let other = old.node_addresses.at(ip);
            let same_node = (other == Some(number)).then(|| (new.nodes.get(*number), old.nodes.get(*number)));
            if let Some((Some(Some(here)), Some(Some(there)))) = same_node
                && Arc::ptr_eq(here, there)
            {
                continue;
            }
            if other.is_some_and(|other| labels(self, *number) != labels(older, *other)) {
                addresses.insert(ip);
            }
        }
    }
}

fn same_members(new: &Identity, old: &Identity) -> bool {
    (Arc::ptr_eq(&new.who, &old.who) || new.who == old.who)
        && (Arc::ptr_eq(&new.ports, &old.ports) || new.ports.named == old.ports.named)
}
