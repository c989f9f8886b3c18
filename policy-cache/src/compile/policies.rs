//! NetworkPolicies → rules that compare numbers only, and the policies that isolate each identity.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use flow::{PolicyKind, PolicyRef, Protocol};
use ipnet::IpNet;

use super::ranges::AddressRanges;
use super::selection::{IdentitySet, LabelIndex};
use crate::objects::{self, NetworkPolicy, Numbers, Peer, Port, Selector};

/// A policy as `decide` reads it.
#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    /// What it was compiled from.
    pub(crate) source: Arc<NetworkPolicy>,
    pub(crate) ingress: Box<[CompiledRule]>,
    pub(crate) egress: Box<[CompiledRule]>,
}

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) peers: Peers,
    pub(crate) ports: Ports,
    /// The policy and this rule's index: what an allow is attributed to.
    pub(crate) attribution: Arc<[PolicyRef]>,
}

#[derive(Debug)]
pub(crate) enum Peers {
    Any,
    Some {
        identities: Arc<IdentitySet>,
        blocks: Arc<AddressRanges>,
        /// What only policies of the Admin and Baseline tier can name.
        others: Option<Box<Others>>,
    },
}

/// Peers by what is neither a pod nor an address.
#[derive(Debug)]
pub(crate) struct Others {
    /// Numbers of nodes.
    pub(crate) nodes: IdentitySet,
    /// Numbers of domain name patterns, ascending.
    pub(crate) domains: Box<[u32]>,
}

#[derive(Debug)]
pub(crate) enum Ports {
    Any,
    Some(Box<[PortMatch]>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum PortMatch {
    /// Inclusive.
    Range { protocol: Protocol, low: u16, high: u16 },
    /// Resolved on the destination pod; the number of an interned name. `None`: in any protocol.
    Named { protocol: Option<Protocol>, name: u32 },
}

/// The policies that isolate an identity in one direction.
#[derive(Debug)]
pub(crate) struct Isolation {
    /// In the order of their names.
    pub(crate) policies: Box<[u32]>,
    /// The same, none with a rule: what a refusal is attributed to.
    pub(crate) attribution: Arc<[PolicyRef]>,
}

/// Identities and namespaces as selectors see them.
#[derive(Debug)]
pub(crate) struct Universe<'o> {
    /// By name; the number of a namespace is its place in `namespace_labels`.
    pub(crate) namespaces: HashMap<&'o str, u32>,
    pub(crate) namespace_labels: LabelIndex<'o>,
    /// The identities of each namespace stand together.
    pub(crate) identities_of: Vec<Range<u32>>,
    pub(crate) identity_labels: LabelIndex<'o>,
    /// Interned names of ports that some pod declares.
    pub(crate) port_names: HashMap<&'o str, u32>,
    /// By the numbers of nodes.
    pub(crate) node_labels: LabelIndex<'o>,
}

impl Universe<'_> {
    pub(crate) fn identities(&self) -> Range<u32> {
        0..self.identities_of.last().map_or(0, |range| range.end)
    }

    /// How many nodes have a number.
    pub(crate) fn nodes(&self) -> u32 {
        u32::try_from(self.node_labels.len()).unwrap_or(u32::MAX)
    }

    /// The identities of one namespace, none when it has no pods.
    pub(crate) fn identities_in(&self, namespace: &str) -> Range<u32> {
        self.namespaces.get(namespace).map_or(0..0, |number| self.identities_of[*number as usize].clone())
    }
}

/// Compiles policies and shares equal sets between their rules.
#[derive(Debug)]
pub(crate) struct Compiler<'o> {
    pub(super) universe: &'o Universe<'o>,
    /// Namespaces that a selector matches.
    namespaces: HashMap<&'o Selector, Vec<u32>>,
    /// Identities that a peer matches; the first part is the namespace of a lone podSelector.
    selected: HashMap<PeerKey<'o>, Vec<u32>>,
    sets: HashMap<Vec<u32>, Arc<IdentitySet>>,
    blocks: HashMap<AddressRanges, Arc<AddressRanges>>,
}

type PeerKey<'o> = (Option<&'o str>, Option<&'o Selector>, Option<&'o Selector>);

impl<'o> Compiler<'o> {
    pub(crate) fn new(universe: &'o Universe<'o>) -> Self {
        Self {
            universe,
            namespaces: HashMap::new(),
            selected: HashMap::new(),
            sets: HashMap::new(),
            blocks: HashMap::new(),
        }
    }

    pub(crate) fn policy(&mut self, source: &'o Arc<NetworkPolicy>, reference: &PolicyRef) -> CompiledPolicy {
        let mut rules = |rules: &'o Option<Vec<objects::Rule>>| {
            let rules = rules.as_deref().unwrap_or_default();
            (0_u32..).zip(rules).map(|(index, rule)| self.rule(source, reference, index, rule)).collect()
        };
        CompiledPolicy {
            source: Arc::clone(source),
            ingress: rules(&source.ingress),
            egress: rules(&source.egress),
        }
    }

    fn rule(
        &mut self,
        policy: &'o NetworkPolicy,
        reference: &PolicyRef,
        index: u32,
        rule: &'o objects::Rule,
    ) -> CompiledRule {
        let peers = match &rule.peers {
            None => Peers::Any,
            Some(peers) => self.some_peers(policy, peers),
        };
        let ports = match &rule.ports {
            None => Ports::Any,
            Some(ports) => Ports::Some(ports.iter().filter_map(|port| self.port(port)).collect()),
        };
        CompiledRule {
            peers,
            ports,
            attribution: [PolicyRef { rule: Some(index), ..reference.clone() }].into(),
        }
    }

    fn some_peers(&mut self, policy: &'o NetworkPolicy, peers: &'o [Peer]) -> Peers {
        let mut members = Vec::new();
        let mut blocks = Vec::new();
        for peer in peers {
            match peer {
                Peer::Block { cidr, except } => blocks.push((cidr, except.as_slice())),
                Peer::Pods { namespaces, pods } => {
                    members.extend_from_slice(self.pods(
                        &policy.namespace,
                        namespaces.as_ref(),
                        pods.as_ref(),
                    ));
                }
            }
        }
        self.peers(members, blocks, None)
    }

    /// Equal sets are shared.
    pub(super) fn peers(
        &mut self,
        mut members: Vec<u32>,
        blocks: Vec<(&IpNet, &[IpNet])>,
        others: Option<Box<Others>>,
    ) -> Peers {
        members.sort_unstable();
        members.dedup();
        let total = self.universe.identities().len();
        let identities = match self.sets.get(&members) {
            Some(set) => Arc::clone(set),
            None => {
                let set = Arc::new(IdentitySet::new(members.clone(), total));
                self.sets.insert(members, Arc::clone(&set));
                set
            }
        };
        let blocks = AddressRanges::new(blocks);
        let blocks = match self.blocks.get(&blocks) {
            Some(shared) => Arc::clone(shared),
            None => {
                let shared = Arc::new(blocks.clone());
                self.blocks.insert(blocks, Arc::clone(&shared));
                shared
            }
        };
        Peers::Some { identities, blocks, others }
    }

    /// The identities that both selectors match; without the first, in `own_namespace`.
    pub(super) fn pods(
        &mut self,
        own_namespace: &'o str,
        namespaces: Option<&'o Selector>,
        pods: Option<&'o Selector>,
    ) -> &[u32] {
        let universe = self.universe;
        let own = namespaces.is_none().then_some(own_namespace);
        let selected_namespaces = &mut self.namespaces;
        self.selected.entry((own, namespaces, pods)).or_insert_with(|| {
            let everything = Selector::default();
            let pods = pods.unwrap_or(&everything);
            let Some(namespaces) = namespaces else {
                return universe.identity_labels.select(pods, universe.identities_in(own_namespace));
            };
            if namespaces.is_everything() {
                return universe.identity_labels.select(pods, universe.identities());
            }
            let all = 0..u32::try_from(universe.identities_of.len()).unwrap_or(u32::MAX);
            let namespaces = selected_namespaces
                .entry(namespaces)
                .or_insert_with(|| universe.namespace_labels.select(namespaces, all));
            let ranges = namespaces.iter().map(|number| universe.identities_of[*number as usize].clone());
            ranges.flat_map(|range| universe.identity_labels.select(pods, range)).collect()
        })
    }

    /// A name that no pod declares matches nothing.
    fn port(&self, port: &Port) -> Option<PortMatch> {
        let protocol = port.protocol;
        Some(match &port.numbers {
            Numbers::Any => PortMatch::Range { protocol, low: 0, high: u16::MAX },
            Numbers::Range(low, high) => PortMatch::Range { protocol, low: *low, high: *high },
            Numbers::Named(name) => PortMatch::Named {
                protocol: Some(protocol),
                name: *self.universe.port_names.get(name.as_str())?,
            },
        })
    }
}

/// How a policy is named in decisions, no rule of it meant.
pub(crate) fn reference(policy: &NetworkPolicy) -> PolicyRef {
    PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some(policy.namespace.as_str().into()),
        name: policy.name.as_str().into(),
        rule: None,
    }
}

/// The policies of one direction for every identity, equal lists shared.
pub(crate) fn isolations(
    universe: &Universe<'_>,
    policies: &[Arc<NetworkPolicy>],
    references: &[PolicyRef],
    direction: fn(&NetworkPolicy) -> bool,
) -> Vec<Option<Arc<Isolation>>> {
    let mut selecting: Vec<Vec<u32>> = vec![Vec::new(); universe.identities().len()];
    for (number, policy) in (0_u32..).zip(policies) {
        if direction(policy) {
            let within = universe.identities_in(&policy.namespace);
            for identity in universe.identity_labels.select(&policy.pod_selector, within) {
                selecting[identity as usize].push(number);
            }
        }
    }
    let mut shared: HashMap<Vec<u32>, Arc<Isolation>> = HashMap::new();
    selecting
        .into_iter()
        .map(|mut list| {
            if list.is_empty() {
                return None;
            }
            list.dedup();
            let isolation = shared.entry(list).or_insert_with_key(|list| {
                let attribution = list.iter().map(|number| references[*number as usize].clone()).collect();
                Arc::new(Isolation { policies: list.as_slice().into(), attribution })
            });
            Some(Arc::clone(isolation))
        })
        .collect()
}
