//! Pods, and which of them holds each address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flow::{Labels, Pod, Uid, Workload};
use hashbrown::HashTable;

use super::Cluster;
use super::addresses::Says;
use super::shared::fingerprint;
use super::slots::Slots;
use crate::objects::{self, Phase};
use crate::shared::key_of_ip;
use crate::snapshot::{NO_NODE, PodEntry};

/// Addresses whose holders are found at once. What that takes in memory for a while, between what stays, is then
/// little however many pods there are.
const AT_ONCE: usize = 1 << 14;
/// No identity has this number.
const NO_IDENTITY: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Pods {
    slots: Slots<PodSlot>,
    by_name: HashTable<u32>,
    /// Who says that an address is its own: a pod, and the place among its addresses.
    claims: HashTable<(u32, u16)>,
    /// Pods without a node that have hosts' addresses, which say where they run.
    unscheduled: HashSet<u32>,
    /// Addresses that may have another holder than when conclusions were last drawn.
    pub(super) changed: Vec<IpAddr>,
    /// Nodes' addresses changed hands since then.
    pub(super) nodes_changed: bool,
}

/// What is kept of a pod besides what records tell of it.
#[derive(Debug, Default)]
struct PodSlot {
    pod: Option<Arc<Pod>>,
    ips: Ips,
    /// Seconds; 0 when it is not said.
    created: u32,
    /// [`NO_IDENTITY`] for a pod that no address is its own.
    identity: u32,
    node: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    deleting: bool,
    running: bool,
    host_network: bool,
    /// It has no node, so the number is that of the node whose address it says is its host's.
    unscheduled: bool,
}

/// A pod's addresses and its host's. Most pods have one of each, of IPv4, or one more of IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Ips {
    #[default]
    None,
    One {
        own: Ipv4Addr,
        host: Ipv4Addr,
    },
    Dual(Box<Dual>),
    Others(Box<Others>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Dual {
    own: (Ipv4Addr, Ipv6Addr),
    host: Ipv4Addr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Others {
    own: Box<[IpAddr]>,
    hosts: Box<[IpAddr]>,
}

impl Ips {
    fn new<'i>(
        own: impl IntoIterator<Item = &'i IpAddr>,
        hosts: impl IntoIterator<Item = &'i IpAddr>,
    ) -> Self {
        let list = |ips: &mut dyn Iterator<Item = &'i IpAddr>| -> Box<[IpAddr]> { ips.copied().collect() };
        let (own, hosts) = (list(&mut own.into_iter()), list(&mut hosts.into_iter()));
        match (&*own, &*hosts) {
            ([], []) => Self::None,
            ([IpAddr::V4(own)], [IpAddr::V4(host)]) => Self::One { own: *own, host: *host },
            ([IpAddr::V4(v4), IpAddr::V6(v6)], [IpAddr::V4(host)]) => {
                Self::Dual(Box::new(Dual { own: (*v4, *v6), host: *host }))
            }
            _ => Self::Others(Box::new(Others { own, hosts })),
        }
    }

    fn own(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let (v4, v6, others): (_, _, &[IpAddr]) = match self {
            Self::None => (None, None, &[]),
            Self::One { own, .. } => (Some(*own), None, &[]),
            Self::Dual(ips) => (Some(ips.own.0), Some(ips.own.1), &[]),
            Self::Others(ips) => (None, None, &ips.own),
        };
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).chain(others.iter().copied())
    }

    fn hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let (one, others): (_, &[IpAddr]) = match self {
            Self::None => (None, &[]),
            Self::One { host, .. } => (Some(*host), &[]),
            Self::Dual(ips) => (Some(ips.host), &[]),
            Self::Others(ips) => (None, &ips.hosts),
        };
        one.map(IpAddr::V4).into_iter().chain(others.iter().copied())
    }

    fn nth(&self, place: u16) -> Option<IpAddr> {
        self.own().nth(usize::from(place))
    }
}

impl PodSlot {
    fn names(&self) -> (&str, &str) {
        self.pod.as_ref().map_or(("", ""), |pod| (&pod.namespace, &pod.name))
    }

    fn has_identity(&self) -> bool {
        self.identity != NO_IDENTITY
    }

    /// The node of an unscheduled pod follows from its hosts and is no part of what was said of it.
    fn says_the_same(&self, other: &Self) -> bool {
        let pods = (self.pod.as_ref(), other.pod.as_ref());
        let (Some(own), Some(pod)) = pods else { return false };
        let node = |slot: &Self| if slot.state.unscheduled { NO_NODE } else { slot.node };
        own.uid == pod.uid
            && Arc::ptr_eq(&own.workload, &pod.workload)
            && (&self.ips, self.created) == (&other.ips, other.created)
            && (self.identity, node(self), self.state) == (other.identity, node(other), other.state)
    }

    /// The addresses that this says are a node's.
    fn node_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let scheduled = !self.state.unscheduled && self.node != NO_NODE;
        let hosts = self.ips.hosts().filter(move |_| scheduled && self.has_host());
        let own = self.ips.own().filter(|_| self.state.host_network);
        hosts.chain(own)
    }

    /// A hostNetwork pod may have no node and yet the number of a nameless one.
    fn has_host(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.node.is_some())
    }
}

impl Cluster {
    pub(super) fn put_pod(&mut self, new: &objects::Pod) -> bool {
        let slot = self.describe(new);
        match self.find_pod(&new.namespace, &new.name) {
            Some(number) if self.pods.slots[number].says_the_same(&slot) => {
                self.release_pod(&slot);
                false
            }
            Some(number) => {
                self.detach_pod(number);
                let old = std::mem::replace(&mut self.pods.slots[number], slot);
                self.release_pod(&old);
                self.attach_pod(number);
                true
            }
            None => {
                let number = self.pods.slots.insert(slot);
                let slots = &self.pods.slots;
                let hash = fingerprint(&slots[number].names());
                self.pods.by_name.insert_unique(hash, number, |own| fingerprint(&slots[*own].names()));
                self.attach_pod(number);
                self.counts.pods += 1;
                true
            }
        }
    }

    pub(super) fn delete_pod(&mut self, namespace: &str, name: &str) -> bool {
        let Some(number) = self.find_pod(namespace, name) else { return false };
        self.detach_pod(number);
        let hash = fingerprint(&(namespace, name));
        if let Ok(entry) = self.pods.by_name.find_entry(hash, |own| *own == number) {
            entry.remove();
        }
        let slot = self.pods.slots.remove(number);
        self.release_pod(&slot);
        self.counts.pods -= 1;
        true
    }

    fn find_pod(&self, namespace: &str, name: &str) -> Option<u32> {
        let wanted = (namespace, name);
        let slots = &self.pods.slots;
        self.pods.by_name.find(fingerprint(&wanted), |own| slots[*own].names() == wanted).copied()
    }

    /// Namespaces and names of all pods.
    pub(super) fn pod_names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pods.by_name.iter().map(|number| self.pods.slots[*number].names())
    }

    /// What is kept of a pod. Numbers in it have one user more.
    fn describe(&mut self, new: &objects::Pod) -> PodSlot {
        let finished = new.phase == Phase::Finished;
        let with_identity = !finished && !new.host_network && !new.ips.is_empty();
        let (identity, workload) = if with_identity {
            let identity = self.acquire_identity(new);
            (identity, self.workload(identity, new))
        } else {
            let namespace = self.texts.text(&new.namespace);
            let workload = Workload { namespace, labels: Labels::default(), owner: None };
            (NO_IDENTITY, self.identities.workloads.get(&workload, || Arc::new(workload.clone())))
        };
        let node = match &new.node {
            Some(node) if !finished => self.acquire_node(node),
            None if new.host_network && !finished => self.acquire_node(""),
            _ => NO_NODE,
        };
        let name = new.node.as_ref().filter(|_| !finished).map(|_| Arc::clone(&self.nodes.slots[node].name));
        let pod = Pod {
            workload,
            name: new.name.as_str().into(),
            uid: if with_identity { Uid::new(&new.uid) } else { Uid::default() },
            local: name.is_some() && name.as_deref() == self.options.node.as_deref(),
            node: name,
        };
        let state = State {
            deleting: with_identity && new.deleting,
            running: with_identity && new.phase == Phase::Running,
            host_network: !finished && new.host_network,
            unscheduled: node == NO_NODE,
        };
        PodSlot {
            pod: Some(Arc::new(pod)),
            ips: if finished { Ips::None } else { Ips::new(&new.ips, &new.host_ips) },
            created: if with_identity { seconds(&new.created) } else { 0 },
            identity,
            node,
            state,
        }
    }

    /// Gives back what a description acquired.
    fn release_pod(&mut self, slot: &PodSlot) {
        if slot.has_identity() {
            self.release_identity(slot.identity);
        }
        if !slot.state.unscheduled && slot.node != NO_NODE {
            self.release_node(slot.node);
        }
    }

    fn attach_pod(&mut self, number: u32) {
        let slot = &self.pods.slots[number];
        for ip in slot.node_addresses() {
            self.nodes.claims.add(ip, Says::Pod, slot.node);
        }
        if !slot.has_identity() {
            return;
        }
        if slot.state.unscheduled && slot.ips.hosts().next().is_some() {
            self.pods.unscheduled.insert(number);
            self.pods.nodes_changed = true;
        }
        let slots = &self.pods.slots;
        let hash = |claim: &(u32, u16)| slots[claim.0].ips.nth(claim.1).map_or(0, |ip| fingerprint(&ip));
        for (place, ip) in (0..).zip(slot.ips.own()) {
            self.pods.claims.insert_unique(fingerprint(&ip), (number, place), hash);
            self.pods.changed.push(ip);
        }
    }

    fn detach_pod(&mut self, number: u32) {
        let slot = &self.pods.slots[number];
        for ip in slot.node_addresses() {
            self.nodes.claims.remove(ip, Says::Pod, slot.node);
        }
        if !slot.has_identity() {
            return;
        }
        self.pods.unscheduled.remove(&number);
        for (place, ip) in (0..).zip(slot.ips.own()) {
            if let Ok(entry) = self.pods.claims.find_entry(fingerprint(&ip), |own| *own == (number, place)) {
                entry.remove();
            }
            self.pods.changed.push(ip);
        }
    }

    /// Follows a change of the own node's name.
    pub(super) fn relocate_pods(&mut self, before: Option<&str>) {
        let now = self.options.node.clone();
        for number in self.pods.by_name.iter().copied().collect::<Vec<_>>() {
            let slot = &mut self.pods.slots[number];
            let Some(pod) = &mut slot.pod else { continue };
            let node = pod.node.as_deref();
            if node.is_some() && (node == before || node == now.as_deref()) {
                let local = node == now.as_deref();
                Arc::make_mut(pod).local = local;
                self.pods.changed.extend(slot.ips.own());
            }
        }
    }

    /// Draws the conclusions for pods' addresses.
    pub(super) fn settle_pods(&mut self) {
        if std::mem::take(&mut self.pods.nodes_changed) {
            self.place_unscheduled();
        }
        let mut changed = std::mem::take(&mut self.pods.changed);
        changed.sort_unstable();
        changed.dedup();
        changed.chunks(AT_ONCE).for_each(|some| self.settle_addresses(some));
    }

    fn settle_addresses(&mut self, changed: &[IpAddr]) {
        let mut changes = Vec::with_capacity(changed.len());
        for ip in changed.iter().copied() {
            let new = self.holder(ip);
            let local = new.as_ref().is_some_and(|new| new.pod.local);
            if local != self.view.local.contains(&ip) {
                let all = Arc::make_mut(&mut self.view.local);
                if local {
                    all.insert(ip);
                } else {
                    all.remove(&ip);
                }
            }
            let same = |new: &PodEntry, old: &PodEntry| {
                Arc::ptr_eq(&new.pod, &old.pod) && (new.identity, new.node) == (old.identity, old.node)
            };
            match (self.view.pods.at(ip), &new) {
                (None, None) => {}
                (Some(old), Some(new)) if same(new, old) => {}
                _ => changes.push((key_of_ip(ip), new)),
            }
        }
        self.view.pods.update(changes);
    }

    /// The pod that holds an address. Of several that claim it, the one that is not being deleted, then the
    /// running one, then the youngest, then the last by namespace and name.
    fn holder(&self, ip: IpAddr) -> Option<PodEntry> {
        if self.view.own.binary_search(&ip).is_ok() {
            return None;
        }
        let claims = self.pods.claims.iter_hash(fingerprint(&ip));
        let slots = claims.map(|(number, place)| (&self.pods.slots[*number], *place));
        let claiming = slots.filter(|(slot, place)| slot.ips.nth(*place) == Some(ip)).map(|(slot, _)| slot);
        let rank = |slot: &&PodSlot| (!slot.state.deleting, slot.state.running, slot.created);
        let best = claiming.max_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.names().cmp(&b.names())))?;
        let pod = Arc::clone(best.pod.as_ref()?);
        Some(PodEntry { pod, identity: best.identity, node: best.node })
    }

    /// Finds the nodes of pods that name none, by the addresses of their hosts.
    fn place_unscheduled(&mut self) {
        for number in self.pods.unscheduled.iter().copied().collect::<Vec<_>>() {
            let slot = &mut self.pods.slots[number];
            let node = slot.ips.hosts().find_map(|ip| self.view.node_addresses.at(ip)).copied();
            let name = node.map(|node| Arc::clone(&self.nodes.slots[node].name));
            let Some(pod) = &mut slot.pod else { continue };
            if (slot.node, &pod.node) == (node.unwrap_or(NO_NODE), &name) {
                continue;
            }
            slot.node = node.unwrap_or(NO_NODE);
            let local = name.is_some() && name.as_deref() == self.options.node.as_deref();
            let pod = Arc::make_mut(pod);
            (pod.node, pod.local) = (name, local);
            self.pods.changed.extend(slot.ips.own());
        }
    }
}

/// `2026-01-02T03:04:05Z` as a number that grows with it, 0 when it is written in another way. API servers
/// write no other. Months count as 31 days: only the order matters.
fn seconds(text: &str) -> u32 {
    let parts: Option<Vec<u32>> = text
        .strip_suffix('Z')
        .map(|text| text.split(['-', 'T', ':']).map_while(|part| part.parse().ok()).collect());
    match parts.as_deref() {
        Some([year, month @ 1..=12, day @ 1..=31, hour @ 0..24, minute @ 0..60, second @ 0..=60]) => {
            let days = year.saturating_sub(2000).min(100) * 372 + (month - 1) * 31 + day;
            days.saturating_mul(86_400).saturating_add(hour * 3600 + minute * 60 + second)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_takes_few_bytes() {
        assert!(size_of::<PodSlot>() <= 40, "{}", size_of::<PodSlot>());
        assert!(size_of::<Pod>() <= 88, "{}", size_of::<Pod>());
    }

    #[test]
    fn later_is_more() {
        let texts = [
            "nonsense",
            "2014-06-06T00:00:00Z",
            "2026-01-31T23:59:59Z",
            "2026-02-01T00:00:00Z",
            "2026-02-01T00:00:01Z",
            "2099-12-31T23:59:59Z",
        ];
        assert!(texts.windows(2).all(|pair| seconds(pair[0]) < seconds(pair[1])));
        assert_eq!(seconds("2026-02-01T00:00:00.5Z"), 0);
    }
}
