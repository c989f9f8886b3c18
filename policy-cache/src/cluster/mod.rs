//! Events, one at a time → snapshots. Holds what the cluster is like now, on the side of whoever follows it.
//!
//! An event changes what is kept of its object, and notes what follows from that; [`Cluster::snapshot`] draws
//! the conclusions for everything that was noted since the last one. Both cost what the event touches, not
//! what the cluster holds: a snapshot shares with the one before it all that did not change.
//!
//! Nothing here reads a clock, performs I/O or waits.

mod addresses;
mod identities;
mod isolation;
mod namespaces;
mod nodes;
mod pods;
mod policies;
mod selectors;
mod services;
mod shared;
mod slots;
mod tiers;
mod whole;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use flow::{Generation, PolicyKind};

use crate::compile::domains::Domains;
use crate::compile::ranges::AddressRanges;
use crate::objects::{Counts, Entity, Event, Kind, ObjectKey};
use crate::options::Options;
use crate::shared::{Chunks, Table};
use crate::snapshot::{Snapshot, View};

/// The objects of a cluster as they are now, and what is compiled from them.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    generation: Generation,
    texts: shared::Shared<str>,
    namespaces: namespaces::Namespaces,
    selectors: selectors::Selectors,
    identities: identities::Identities,
    pods: pods::Pods,
    nodes: nodes::Nodes,
    policies: policies::Policies,
    lists: isolation::Lists,
    tiers: tiers::Tiers,
    services: services::Services,
    /// Namespace and name: an agent is not asked who is behind a Service.
    slices: HashSet<(Arc<str>, Box<str>)>,
    counts: Counts,
    /// What the next snapshot shows, as far as conclusions have been drawn.
    view: View,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Cluster {
    /// A cluster in which nothing is known yet.
    pub fn new(options: Options) -> Self {
        let none = Arc::new(AddressRanges::default());
        let view = View {
            own_node: None,
            own_node_is_named: false,
            own: Arc::new([]),
            own_ranges: Arc::clone(&none),
            cluster_ranges: none,
            pods: Table::default(),
            node_addresses: Table::default(),
            nodes: Chunks::default(),
            kinds: Chunks::default(),
            identities: Chunks::default(),
            lists: Chunks::default(),
            names: Chunks::default(),
            sets: Chunks::default(),
            node_sets: Chunks::default(),
            subjects: Chunks::default(),
            domains: Arc::new(Domains::default()),
            services: Table::default(),
            node_ports: Table::default(),
            outside: Arc::default(),
            local: Arc::new(BTreeSet::new()),
            counts: Arc::new(Counts::default()),
        };
        let mut cluster = Self {
            options,
            generation: Generation(0),
            texts: shared::Shared::default(),
            namespaces: namespaces::Namespaces::default(),
            selectors: selectors::Selectors::default(),
            identities: identities::Identities::default(),
            pods: pods::Pods::default(),
            nodes: nodes::Nodes::default(),
            policies: policies::Policies::default(),
            lists: isolation::Lists::default(),
            tiers: tiers::Tiers::default(),
            services: services::Services::default(),
            slices: HashSet::new(),
            counts: Counts::default(),
            view,
        };
        cluster.take_place();
        cluster
    }

    /// Applies one event. False when it changed nothing that decides.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Put(object) => match object.0 {
                Entity::Namespace(new) => self.put_namespace(&new),
                Entity::Pod(new) => self.put_pod(&new),
                Entity::NetworkPolicy(new) => self.put_policy(&new),
                Entity::TierPolicy(new) => self.put_tier_policy(&new),
                Entity::Node(new) => self.put_node(&new),
                Entity::Service(new) => self.put_service(&new),
                Entity::EndpointSlice(new) => self.put_slice(&new.namespace, &new.name),
            },
            Event::Delete(key) => self.delete(&key),
        }
    }

    fn delete(&mut self, key: &ObjectKey) -> bool {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        match key.kind {
            Kind::Namespace => self.delete_namespace(name),
            Kind::Pod => self.delete_pod(namespace, name),
            Kind::Node => self.delete_node(name),
            Kind::Service => self.delete_service(namespace, name),
            Kind::EndpointSlice => self.delete_slice(namespace, name),
            Kind::Policy(PolicyKind::NetworkPolicy) => self.delete_policy(namespace, name),
            Kind::Policy(kind) => self.delete_tier_policy(kind, name),
        }
    }

    /// Says how this is used from now on. False when it changed nothing.
    pub fn set_options(&mut self, options: Options) -> bool {
        if self.options == options {
            return false;
        }
        self.replace_options(options);
        true
    }

    /// What decisions read from now on, numbered one higher than the one before.
    pub fn snapshot(&mut self) -> Snapshot {
        self.generation.0 += 1;
        self.settle();
        Snapshot {
            generation: self.generation,
            own_node_egress: self.options.own_node_egress,
            view: self.view.clone(),
        }
    }

    /// Numbers the next snapshot.
    pub(crate) fn number_next(&mut self, generation: Generation) {
        self.generation = Generation(generation.0.saturating_sub(1));
    }

    /// Draws the conclusions from all that was noted. Identities first, for everything else names them.
    fn settle(&mut self) {
        self.settle_identities();
        self.settle_isolation();
        self.settle_nodes();
        self.settle_pods();
        self.settle_domains();
        let own = self.view.own_node.filter(|_| self.options.node.is_some());
        self.view.own_node_is_named = own.is_none_or(|node| self.nodes.is_named(node, Some(node)));
        if *self.view.counts != self.counts {
            self.view.counts = Arc::new(self.counts.clone());
        }
        self.sweep();
    }

    /// Forgets what was shared and is used by nobody any more.
    fn sweep(&mut self) {
        self.identities.sweep();
        self.policies.sweep();
        self.selectors.sweep();
        self.texts.sweep();
    }

    /// The addresses of the own node's interfaces, ascending.
    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.options.own_addresses.iter().map(|ip| flow::canonical_ip(*ip)).collect()
    }
}
