//! A compiled, immutable view of the cluster: who is behind an address, and what is local.
//!
//! It consists of parts that it shares with the snapshots before and after it, so it is made and dropped in
//! microseconds, and two of them are compared by the parts that they do not share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flow::{Endpoint, Generation, Labels, Pod, PolicyRef, Protocol, Service, Tuple};
use ipnet::IpNet;

use crate::compile::domains::Domains;
use crate::compile::ranges::AddressRanges;
use crate::compile::rules::{EGRESS, INGRESS, Isolation, Subject};
use crate::objects::{Counts, NamedPort};
use crate::options::OwnNodeEgress;
use crate::scope::Interception;
use crate::shared::{Chunks, Set, Table};

/// Everything one decision reads. Shared, never changed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) generation: Generation,
    pub(crate) own_node_egress: OwnNodeEgress,
    pub(crate) view: View,
}

/// What a snapshot and the cluster that makes the next one share.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) own_node: Option<u32>,
    /// A Node object or a pod names the own node.
    pub(crate) own_node_is_named: bool,
    /// The interfaces of the own node, ascending.
    pub(crate) own: Arc<[IpAddr]>,
    /// The pod ranges of the own node.
    pub(crate) own_ranges: Arc<AddressRanges>,
    /// The pod ranges of all nodes.
    pub(crate) cluster_ranges: Arc<AddressRanges>,
    pub(crate) pods: Table<PodEntry>,
    /// Numbers of nodes.
    pub(crate) node_addresses: Table<u32>,
    pub(crate) nodes: Chunks<Option<Arc<Node>>, 64>,
    /// By the numbers of identities.
    pub(crate) kinds: Chunks<Kind, 64>,
    pub(crate) identities: Chunks<Identity, 64>,
    /// By the numbers in [`Kind::lists`].
    pub(crate) lists: Chunks<Isolation, 64>,
    /// The policy of each rule of these lists and its index there, and after these every policy that isolates.
    pub(crate) names: Chunks<Arc<[PolicyRef]>, 64>,
    /// Identities by the numbers of selectors.
    pub(crate) sets: Chunks<Arc<Set>, 32>,
    /// Nodes by the numbers of selectors of nodes.
    pub(crate) node_sets: Chunks<Arc<Set>, 32>,
    pub(crate) subjects: Chunks<Option<Arc<Subject>>, 32>,
    pub(crate) domains: Arc<Domains>,
    /// By ClusterIP.
    pub(crate) services: Table<Arc<ServiceEntry>>,
    /// By [`node_port_key`].
    pub(crate) node_ports: Table<Arc<ServiceEntry>>,
    /// By what clients outside the cluster dial.
    pub(crate) outside: Arc<HashMap<OutsideKey, Arc<ServiceEntry>>>,
    /// The addresses of pods on the own node.
    pub(crate) local: Arc<BTreeSet<IpAddr>>,
    pub(crate) counts: Arc<Counts>,
}

/// The pod that holds an address.
#[derive(Clone, Debug)]
pub(crate) struct PodEntry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) identity: u32,
    /// [`NO_NODE`] when it is not known.
    pub(crate) node: u32,
}

/// No node has this number.
pub(crate) const NO_NODE: u32 = u32::MAX;

impl PodEntry {
    pub(crate) fn node(&self) -> Option<u32> {
        (self.node != NO_NODE).then_some(self.node)
    }
}

/// What deciding reads of an identity, which is what pods share that policies cannot tell apart: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(64))]
pub(crate) struct Kind {
    /// The selectors of its own namespace that match it, a bit each.
    pub(crate) local: u64,
    /// The number of its namespace.
    pub(crate) namespace: u32,
    /// The policies of the Admin and Baseline tier that speak about it; 0 where there are none.
    pub(crate) subject: u32,
    /// The rules of the NetworkPolicies that isolate it, for ingress and egress; 0 where none does.
    pub(crate) lists: [u32; 2],
    /// The selectors across namespaces that match it, a bit for each of the first.
    pub(crate) sets: [u64; 5],
}

impl Kind {
    /// An identity that nothing selects yet.
    pub(crate) fn of(namespace: u32) -> Self {
        Self { namespace, ..Self::default() }
    }

    /// Whether a selector across namespaces matches it, when that is noted here.
    pub(crate) fn is_in(&self, set: u32) -> Option<bool> {
        self.sets.get(set as usize / 64).map(|word| word >> (set % 64) & 1 == 1)
    }

    fn note(&mut self, set: u32, is_in: bool) {
        if let Some(word) = self.sets.get_mut(set as usize / 64) {
            *word = *word & !(1 << (set % 64)) | u64::from(is_in) << (set % 64);
        }
    }

    /// True for the selectors that are noted here.
    fn has_place(set: u32) -> bool {
        (set as usize) < 64 * Self::default().sets.len()
    }
}

/// What is further known of an identity.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) ports: Arc<PortSet>,
    pub(crate) who: Arc<Who>,
}

/// The named ports of a pod's containers.
#[derive(Debug, Default)]
pub(crate) struct PortSet {
    /// As they are written, comparable between snapshots.
    pub(crate) named: Box<[NamedPort]>,
    /// The number of the name, protocol, number.
    pub(crate) numbers: Box<[(u32, Protocol, u16)]>,
}

/// What makes an identity.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Who {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) labels: Labels,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Namespace {
    pub(crate) name: Arc<str>,
    pub(crate) labels: Labels,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) labels: Labels,
}

/// A Service as clients dial it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) cluster_ips: Box<[IpAddr]>,
    /// `externalIPs` and those of load balancers.
    pub(crate) outside_ips: Box<[IpAddr]>,
    /// Protocol, port, node port.
    pub(crate) ports: Box<[(Protocol, u16, Option<u16>)]>,
}

/// An address that leads to a Service from outside, which several may share, and a port of theirs.
pub(crate) type OutsideKey = (IpAddr, u16, Protocol);

/// What a port of every node's addresses is found by.
pub(crate) fn node_port_key(port: u16, protocol: Protocol) -> u128 {
    u128::from(port) << 8 | protocol as u128
}

/// What an address belongs to.
#[derive(Clone, Copy)]
enum Found<'v> {
    Pod(&'v PodEntry),
    Node(u32),
    UnknownLocal,
    External,
}

/// A tuple and who stands at both ends of it, as one snapshot knows them.
#[derive(Clone, Debug)]
pub struct IdentifiedFlow {
    /// The tuple that was identified.
    pub tuple: Tuple,
    /// Who the client is.
    pub source: Endpoint,
    /// Who the destination is.
    pub destination: Endpoint,
    /// The snapshot that the numbers belong to.
    pub(crate) generation: Generation,
    pub(crate) ends: Ends,
}

impl IdentifiedFlow {
    /// The same flow, known to have been dialled through a Service.
    pub(crate) fn through_service(self) -> Self {
        Self { ends: self.ends.through_service(), ..self }
    }
}

/// Both ends of a flow in the numbers of one snapshot: all that deciding reads of it beside the tuple.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: End,
    pub(crate) destination: End,
    /// Both ends are the same pod, by whichever of its addresses.
    pub(crate) same_pod: bool,
    /// They are, and a Service led back to it.
    pub(crate) led_back: bool,
}

impl Ends {
    /// The same, known to have been dialled through a Service: to itself a pod's way is always open, but not where
    /// a Service leads back.
    pub(crate) fn through_service(self) -> Self {
        Self { led_back: self.same_pod, ..self }
    }
}

/// An end of a flow in the numbers of one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Pod {
        identity: u32,
        node: Option<u32>,
        /// See [`Kind::lists`].
        lists: [u32; 2],
    },
    Node(u32),
    UnknownLocal,
    External,
}

/// The addresses of pods with identity on the own node. No address is in both sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPods {
    /// Some policy may deny the pod something, in either direction: a NetworkPolicy selects it, or it is the
    /// subject of a rule of the Admin or Baseline tier that denies, which isolates nobody and yet must hold
    /// while nobody decides. Rules that only accept or pass take nothing from the pod they speak about.
    pub isolated: BTreeSet<IpAddr>,
    /// No policy can deny the pod anything; its connections are only recorded.
    pub observed: BTreeSet<IpAddr>,
}

impl Snapshot {
    /// The number of this snapshot.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How many objects of each kind it was compiled from.
    pub fn counts(&self) -> &Counts {
        &self.view.counts
    }

    /// Looks up both ends of a tuple.
    ///
    /// Where the snapshot serves a node, a flow from a pod to itself was led back by a Service: what a pod
    /// sends to its own address never leaves it. Elsewhere the pod is taken to have dialled itself.
    pub fn identify(&self, tuple: &Tuple) -> IdentifiedFlow {
        let (source, destination) = (self.find(tuple.client.0.ip()), self.find(tuple.destination.0.ip()));
        let ends = self.ends_of(source, destination);
        IdentifiedFlow {
            tuple: *tuple,
            source: self.endpoint_of(source),
            destination: self.endpoint_of(destination),
            generation: self.generation,
            ends,
        }
    }

    /// Looks up both ends of a tuple, as [`Snapshot::identify`] does, without the names that records tell of them.
    pub(crate) fn ends(&self, tuple: &Tuple) -> Ends {
        self.ends_of(self.find(tuple.client.0.ip()), self.find(tuple.destination.0.ip()))
    }

    /// Who stands behind an address.
    pub fn endpoint(&self, ip: IpAddr) -> Endpoint {
        self.endpoint_of(self.find(ip))
    }

    /// Reads what is to be decided about early: the processor then fetches it for both ends at once.
    fn ends_of(&self, source: Found<'_>, destination: Found<'_>) -> Ends {
        let end = |found: Found<'_>| match found {
            Found::Pod(entry) => {
                let lists = self.view.kinds.get(entry.identity).map_or([0, 0], |kind| kind.lists);
                End::Pod { identity: entry.identity, node: entry.node(), lists }
            }
            Found::Node(number) => End::Node(number),
            Found::UnknownLocal => End::UnknownLocal,
            Found::External => End::External,
        };
        let same_pod = match (source, destination) {
            (Found::Pod(source), Found::Pod(destination)) => Arc::ptr_eq(&source.pod, &destination.pod),
            _ => false,
        };
        let led_back = same_pod && self.view.own_node.is_some();
        Ends { source: end(source), destination: end(destination), same_pod, led_back }
    }

    /// The same in numbers.
    pub(crate) fn end(&self, ip: IpAddr) -> End {
        let found = self.find(ip);
        self.ends_of(found, found).source
    }

    fn endpoint_of(&self, found: Found<'_>) -> Endpoint {
        match found {
            Found::Pod(entry) => Endpoint::Pod(Arc::clone(&entry.pod)),
            Found::Node(number) => {
                let name = self.node_name(number).cloned().unwrap_or_default();
                Endpoint::Node { name, own: Some(number) == self.view.own_node }
            }
            Found::UnknownLocal => Endpoint::UnknownLocal,
            Found::External => Endpoint::External,
        }
    }

    fn find(&self, ip: IpAddr) -> Found<'_> {
        let (ip, view) = (flow::canonical_ip(ip), &self.view);
        if let Some(entry) = view.pods.at(ip) {
            Found::Pod(entry)
        } else if let Some(number) = view.node_addresses.at(ip) {
            Found::Node(*number)
        } else if view.own_ranges.contains(ip) {
            Found::UnknownLocal
        } else {
            Found::External
        }
    }

    pub(crate) fn node_name(&self, number: u32) -> Option<&Arc<str>> {
        Some(&self.view.nodes.get(number)?.as_ref()?.name)
    }

    /// The pod that holds an address, when it is this one.
    pub(crate) fn holds(&self, ip: IpAddr, namespace: &str, name: &str) -> bool {
        self.view
            .pods
            .at(ip)
            .is_some_and(|entry| *entry.pod.name == *name && *entry.pod.namespace == *namespace)
    }

    /// Every node that has an address, by its name, with its addresses in ascending order.
    pub fn nodes(&self) -> BTreeMap<Arc<str>, Vec<IpAddr>> {
        let mut nodes: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
        for (ip, number) in self.view.node_addresses.iter() {
            if let Some(name) = self.node_name(*number) {
                nodes.entry(Arc::clone(name)).or_default().push(ip);
            }
        }
        nodes.values_mut().for_each(|addresses| addresses.sort_unstable());
        nodes
    }

    /// Whether anything names the node that this process serves: its Node object, or a pod's spec.nodeName. Without,
    /// there is no pod here to enforce anything for. True where no node was named.
    pub fn knows_own_node(&self) -> bool {
        self.view.own_node.is_none() || self.view.own_node_is_named
    }

    /// The Service a client dialled: by ClusterIP, by one of its `externalIPs` or a load balancer's address, each with
    /// its port, or by node port on a node's address.
    pub fn service_at(&self, dialed: SocketAddr, protocol: Protocol) -> Option<Service> {
        let ip = flow::canonical_ip(dialed.ip());
        let has = |service: &&Arc<ServiceEntry>| {
            service.ports.iter().any(|(own, port, _)| *own == protocol && *port == dialed.port())
        };
        let at_node = || {
            self.view.node_addresses.at(ip)?;
            self.view.node_ports.get(node_port_key(dialed.port(), protocol))
        };
        let service = match self.cluster_ip(ip) {
            Some(service) => Some(service).filter(has),
            // An external address may be a node's.
            None => self.view.outside.get(&(ip, dialed.port(), protocol)).or_else(at_node),
        }?;
        Some(Service {
            namespace: Arc::clone(&service.namespace),
            name: Arc::clone(&service.name),
            address: SocketAddr::new(ip, dialed.port()),
        })
    }

    /// The Service behind a port of a node, and the node's number.
    pub(crate) fn node_port(&self, dialed: SocketAddr, protocol: Protocol) -> Option<(&ServiceEntry, u32)> {
        let service = self.view.node_ports.get(node_port_key(dialed.port(), protocol))?;
        Some((service, *self.view.node_addresses.at(flow::canonical_ip(dialed.ip()))?))
    }

    /// The Service whose ClusterIP this is, whatever the port.
    pub(crate) fn cluster_ip(&self, ip: IpAddr) -> Option<&Arc<ServiceEntry>> {
        self.view.services.at(flow::canonical_ip(ip))
    }

    /// The addresses of pods with identity on the own node. Looks at those only.
    pub fn local_pods(&self) -> LocalPods {
        let mut local = LocalPods::default();
        for ip in self.view.local.iter() {
            let isolated = self.view.pods.at(*ip).is_none_or(|entry| self.view.may_be_denied(entry.identity));
            let set = if isolated { &mut local.isolated } else { &mut local.observed };
            set.insert(*ip);
        }
        local
    }

    /// Of the own node's observed pods, those whose connections are not to be intercepted for their own sake.
    pub fn out_of_scope(&self, interception: &Interception) -> BTreeSet<IpAddr> {
        if *interception == Interception::All {
            return BTreeSet::new();
        }
        let in_scope = interception.test();
        let passed = self.view.local.iter().filter(|ip| {
            let entry = self.view.pods.at(**ip);
            entry.is_some_and(|entry| {
                // What is not known of a pod never takes it out of scope.
                let who = self.view.identities.get(entry.identity);
                !self.view.may_be_denied(entry.identity)
                    && who.is_some_and(|own| !in_scope(&own.who.namespace.labels))
            })
        });
        passed.copied().collect()
    }

    /// The ranges the own node gives its pods addresses from; none overlaps another.
    pub fn own_pod_ranges(&self) -> Vec<IpNet> {
        self.view.own_ranges.blocks()
    }

    /// True for a known pod's address and any address inside a node's pod ranges.
    pub fn in_cluster(&self, ip: IpAddr) -> bool {
        let ip = flow::canonical_ip(ip);
        self.view.pods.at(ip).is_some() || self.view.cluster_ranges.contains(ip)
    }
}

impl View {
    /// The policies of the Admin and Baseline tier that speak about an identity of this kind.
    pub(crate) fn subject(&self, kind: &Kind) -> Option<&Subject> {
        // Most clusters have none, and then nothing is looked up.
        if kind.subject == 0 { None } else { self.subjects.get(kind.subject)?.as_deref() }
    }

    /// Puts an identity among those that a selector across namespaces matches.
    pub(crate) fn enter_set(&mut self, set: u32, identity: u32) {
        Arc::make_mut(self.sets.get_mut(set)).insert(identity);
        if Kind::has_place(set) {
            self.kinds.get_mut(identity).note(set, true);
        }
    }

    /// Takes an identity out of them.
    pub(crate) fn leave_set(&mut self, set: u32, identity: u32) {
        Arc::make_mut(self.sets.get_mut(set)).remove(identity);
        if Kind::has_place(set) {
            self.kinds.get_mut(identity).note(set, false);
        }
    }

    /// Makes these the identities that a selector across namespaces matches.
    pub(crate) fn set_members(&mut self, set: u32, members: Set) {
        if Kind::has_place(set) {
            let before = self.sets.get(set).cloned().unwrap_or_default();
            for identity in before.iter().filter(|identity| !members.contains(*identity)) {
                self.kinds.get_mut(identity).note(set, false);
            }
            for identity in members.iter().filter(|identity| !before.contains(*identity)) {
                self.kinds.get_mut(identity).note(set, true);
            }
        }
        self.sets.set(set, Arc::new(members));
    }

    fn may_be_denied(&self, identity: u32) -> bool {
        self.kinds.get(identity).is_none_or(|kind| {
            kind.lists[INGRESS] != 0
                || kind.lists[EGRESS] != 0
                || self.subject(kind).is_some_and(|subject| subject.may_be_denied)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deciding_reads_of_an_identity_is_one_cache_line() {
        assert_eq!((size_of::<Kind>(), align_of::<Kind>()), (64, 64));
    }

    #[test]
    fn selectors_without_a_place_are_looked_up() {
        let mut kind = Kind::of(1);
        for set in [0, 63, 64, 319, 320, u32::MAX] {
            kind.note(set, true);
        }
        let noted = [0, 1, 63, 64, 319, 320, u32::MAX].map(|set| kind.is_in(set));
        assert_eq!(noted, [Some(true), Some(false), Some(true), Some(true), Some(true), None, None]);
        assert!(Kind::has_place(319) && !Kind::has_place(320));
        kind.note(64, false);
        assert_eq!((kind.is_in(64), kind.is_in(63)), (Some(false), Some(true)));
    }
}
