//! A compiled, immutable view of the cluster: who is behind an address, and what is local.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flow::{Endpoint, Generation, Pod, Protocol, Service, Tuple};
use ipnet::IpNet;

use crate::compile::addresses::Addresses;
use crate::compile::domains::Domains;
use crate::compile::policies::{CompiledPolicy, Isolation};
use crate::compile::services::{CompiledService, Services};
use crate::compile::tiers::{CompiledTierPolicy, Subject};
use crate::objects::{Counts, Labels, NamedPort};
use crate::options::OwnNodeEgress;

/// Everything one decision reads. Shared, never changed.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) generation: Generation,
    pub(crate) own_node_egress: OwnNodeEgress,
    pub(crate) addresses: Addresses,
    pub(crate) pods: HashMap<IpAddr, Arc<PodEntry>>,
    pub(crate) identities: Vec<Identity>,
    pub(crate) policies: Vec<CompiledPolicy>,
    /// In the order of their evaluation.
    pub(crate) tiers: Vec<CompiledTierPolicy>,
    pub(crate) domains: Domains,
    pub(crate) services: Services,
    pub(crate) counts: Counts,
}

#[derive(Debug)]
pub(crate) struct PodEntry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) identity: u32,
    pub(crate) node: Option<u32>,
}

/// What pods that policies cannot tell apart share, and which policies isolate them.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) labels: Arc<Labels>,
    /// The named container ports, comparable between snapshots.
    pub(crate) named_ports: Box<[NamedPort]>,
    /// The same as numbers: interned name, protocol, number.
    pub(crate) ports: Box<[(u32, Protocol, u16)]>,
    pub(crate) ingress: Option<Arc<Isolation>>,
    pub(crate) egress: Option<Arc<Isolation>>,
    /// The policies of the Admin and Baseline tier that speak about it.
    pub(crate) subject: Option<Arc<Subject>>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Namespace {
    pub(crate) name: Arc<str>,
    pub(crate) labels: Arc<Labels>,
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
    /// The snapshot that the numbers below belong to.
    pub(crate) generation: Generation,
    pub(crate) source_end: End,
    pub(crate) destination_end: End,
    /// Both ends are one pod, and a Service led back to it.
    pub(crate) led_back: bool,
}

impl IdentifiedFlow {
    /// The same flow, known to have been dialled through a Service: to itself a pod's way is always open,
    /// but not where a Service leads back.
    pub(crate) fn through_service(mut self) -> Self {
        self.led_back = self.is_to_itself();
        self
    }

    /// Both ends are the same pod, by whichever of its addresses.
    pub(crate) fn is_to_itself(&self) -> bool {
        match (self.source.pod(), self.destination.pod()) {
            (Some(source), Some(destination)) => Arc::ptr_eq(source, destination),
            _ => false,
        }
    }
}

/// An end of a flow in the numbers of one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Pod { identity: u32, node: Option<u32> },
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
        &self.counts
    }

    /// Looks up both ends of a tuple.
    ///
    /// Where the snapshot serves a node, a flow from a pod to itself was led back by a Service: what a pod
    /// sends to its own address never leaves it. Elsewhere the pod is taken to have dialled itself.
    pub fn identify(&self, tuple: &Tuple) -> IdentifiedFlow {
        let (source, source_end) = self.look_up(tuple.client.0.ip());
        let (destination, destination_end) = self.look_up(tuple.destination.0.ip());
        let generation = self.generation;
        let led_back = false;
        let flow = IdentifiedFlow {
            tuple: *tuple,
            source,
            destination,
            generation,
            source_end,
            destination_end,
            led_back,
        };
        if self.addresses.own_node.is_some() { flow.through_service() } else { flow }
    }

    /// Who stands behind an address.
    pub fn endpoint(&self, ip: IpAddr) -> Endpoint {
        self.look_up(ip).0
    }

    fn look_up(&self, ip: IpAddr) -> (Endpoint, End) {
        let ip = flow::canonical_ip(ip);
        if let Some(entry) = self.pods.get(&ip) {
            let end = End::Pod { identity: entry.identity, node: entry.node };
            return (Endpoint::Pod(Arc::clone(&entry.pod)), end);
        }
        if let Some(number) = self.addresses.nodes.get(&ip) {
            let name = Arc::clone(self.addresses.node_name(*number));
            return (
                Endpoint::Node { name, own: Some(*number) == self.addresses.own_node },
                End::Node(*number),
            );
        }
        if self.addresses.own_ranges.contains(ip) {
            return (Endpoint::UnknownLocal, End::UnknownLocal);
        }
        (Endpoint::External, End::External)
    }

    /// The Service a client dialled: by ClusterIP and port, or by node port on a node's address.
    pub fn service_at(&self, dialed: SocketAddr, protocol: Protocol) -> Option<Service> {
        let ip = flow::canonical_ip(dialed.ip());
        let service = match self.services.at_cluster_ip(ip) {
            Some(service) => service.port(dialed.port(), protocol).map(|_| service),
            None if self.addresses.nodes.contains_key(&ip) => {
                self.services.at_node_port(dialed.port(), protocol)
            }
            None => None,
        }?;
        Some(Service {
            namespace: Arc::clone(&service.namespace),
            name: Arc::clone(&service.name),
            address: SocketAddr::new(ip, dialed.port()),
        })
    }

    /// The Service whose ClusterIP this is, whatever the port.
    pub(crate) fn cluster_ip(&self, ip: IpAddr) -> Option<&CompiledService> {
        self.services.at_cluster_ip(flow::canonical_ip(ip))
    }

    /// The addresses of pods with identity on the own node.
    pub fn local_pods(&self) -> LocalPods {
        let mut local = LocalPods::default();
        for (ip, entry) in self.pods.iter().filter(|(_, entry)| entry.pod.local) {
            let identity = &self.identities[entry.identity as usize];
            let isolated = identity.ingress.is_some()
                || identity.egress.is_some()
                || identity.subject.as_ref().is_some_and(|subject| subject.may_be_denied);
            let set = if isolated { &mut local.isolated } else { &mut local.observed };
            set.insert(*ip);
        }
        local
    }

    /// The ranges the own node gives its pods addresses from; none overlaps another.
    pub fn own_pod_ranges(&self) -> Vec<IpNet> {
        self.addresses.own_ranges.blocks()
    }

    /// True for a known pod's address and any address inside a node's pod ranges.
    pub fn in_cluster(&self, ip: IpAddr) -> bool {
        let ip = flow::canonical_ip(ip);
        self.pods.contains_key(&ip) || self.addresses.cluster_ranges.contains(ip)
    }
}
