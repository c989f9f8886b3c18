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

use crate::compile::rules::{Isolation, Subject};
use crate::shared::Chunks;
use crate::snapshot::{Identity, PodEntry, Snapshot};

type Subjects = Chunks<Option<Arc<Subject>>, 32>;

/// Whose connections a change of snapshot may decide differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affected {
    /// Anyone's: own addresses or options changed.
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

impl Snapshot {
    /// The addresses of every pod that appeared, vanished, changed its identity or its uid, or is selected by
    /// a policy that is new, gone or of other content; those of nodes that did so or have other labels; and
    /// those that domain names now match or no longer do.
    pub fn affected_since(&self, older: &Self) -> Affected {
        if !self.same_surroundings(older) {
            return Affected::All;
        }
        let mut addresses = HashSet::new();
        self.affected_pods(older, &mut addresses);
        self.affected_nodes(older, &mut addresses);
        if !Arc::ptr_eq(&self.view.domains, &older.view.domains) {
            addresses.extend(self.view.domains.differing(&older.view.domains));
        }
        Affected::Addresses(addresses)
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

    fn affected_pods(&self, older: &Self, addresses: &mut HashSet<IpAddr>) {
        let changed = self.changed_identities(older);
        for (ip, new, old) in self.view.pods.differing(&older.view.pods) {
            let same = match (new, old) {
                (Some(new), Some(old)) => self.same_pod(new, older, old, &changed),
                _ => false,
            };
            if !same {
                addresses.insert(ip);
            }
        }
        if changed.in_both {
            let shared = self.view.pods.shared(&older.view.pods);
            let touched = shared.filter(|(_, entry)| changed.contains(entry.identity));
            addresses.extend(touched.map(|(ip, _)| ip));
        }
    }

    fn same_pod(&self, new: &PodEntry, older: &Self, old: &PodEntry, changed: &Changed) -> bool {
        let same_identity = if new.identity == old.identity {
            !changed.contains(new.identity)
        } else {
            self.same_identity(new.identity, older, old.identity)
        };
        let name = |snapshot: &Self, entry: &PodEntry| {
            entry.node().and_then(|node| snapshot.node_name(node).cloned())
        };
        let same = |new: &flow::Pod, old: &flow::Pod| {
            new.uid == old.uid && new.name == old.name && new.namespace == old.namespace
        };
        same_identity
            && (Arc::ptr_eq(&new.pod, &old.pod) || same(&new.pod, &old.pod))
            && name(self, new) == name(older, old)
    }

    /// The identities that are not what the same number was in the older snapshot.
    fn changed_identities(&self, older: &Self) -> Changed {
        let mut changed = Changed::default();
        let mut look = |number: u32| {
            if !self.same_identity(number, older, number) {
                changed.insert(number);
                changed.in_both |= self.has_identity(number) && older.has_identity(number);
            }
        };
        self.view.identities.differing(&older.view.identities).for_each(&mut look);
        self.view.kinds.differing(&older.view.kinds).for_each(&mut look);
        let (new, old) = (&self.view.subjects, &older.view.subjects);
        let content = |subjects: &Subjects, number| Some(subjects.get(number)?.as_ref()?.content);
        let mut subjects = Changed::default();
        let differ = |number: &u32| content(new, *number) != content(old, *number);
        new.differing(old).filter(differ).for_each(|number| subjects.insert(number));
        if !subjects.is_empty() {
            let kinds =
                (0..self.view.kinds.len()).filter_map(|number| Some((number, self.view.kinds.get(number)?)));
            kinds.filter(|(_, kind)| subjects.contains(kind.subject)).for_each(|(number, _)| look(number));
        }
        changed
    }

    fn has_identity(&self, number: u32) -> bool {
        self.view.identities.get(number).is_some_and(|own| !own.who.namespace.name.is_empty())
    }

    fn same_identity(&self, new: u32, older: &Self, old: u32) -> bool {
        let subject = |snapshot: &Self, number: u32| {
            let kind = snapshot.view.kinds.get(number).copied().unwrap_or_default();
            snapshot.view.subject(kind).map(|subject| subject.content)
        };
        let same = match (self.view.identities.get(new), older.view.identities.get(old)) {
            (Some(new), Some(old)) => same_rules(new, old),
            (new, old) => new.is_none() && old.is_none(),
        };
        same && subject(self, new) == subject(older, old)
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

fn same_rules(new: &Identity, old: &Identity) -> bool {
    let content = |isolation: &Option<Isolation>| isolation.as_ref().map(|isolation| isolation.content);
    (Arc::ptr_eq(&new.who, &old.who) || new.who == old.who)
        && (Arc::ptr_eq(&new.ports, &old.ports) || new.ports.named == old.ports.named)
        && content(&new.ingress) == content(&old.ingress)
        && content(&new.egress) == content(&old.egress)
}

/// A set of identities.
#[derive(Debug, Default)]
struct Changed {
    words: Vec<u64>,
    /// One of them is an identity in both snapshots, so it may be that of pods which have not changed.
    in_both: bool,
}

impl Changed {
    fn insert(&mut self, number: u32) {
        let word = number as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (number % 64);
    }

    fn contains(&self, number: u32) -> bool {
        self.words.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Kind;

    #[test]
    fn a_kind_is_a_quarter_of_a_cache_line() {
        assert_eq!((size_of::<Kind>(), size_of::<Identity>()), (16, 64));
    }
}
