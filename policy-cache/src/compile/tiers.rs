//! Policies of the Admin and Baseline tier → rules that compare numbers only, and for each identity the
//! policies it is a subject of, in the order of their evaluation.
//!
//! A rule that fails closed is compiled so: an Accept matches nothing, a Deny or Pass denies everything.

use std::collections::HashMap;
use std::sync::Arc;

use flow::{PolicyRef, Tier};

use super::domains::Domains;
use super::policies::{Compiler, Others, Peers, PortMatch, Ports};
use super::selection::IdentitySet;
use crate::objects::{Action, PodsIn, TierPeer, TierPolicy, TierPort, TierRule};

/// A policy as `decide` reads it.
#[derive(Debug)]
pub(crate) struct CompiledTierPolicy {
    /// What it was compiled from.
    pub(crate) source: Arc<TierPolicy>,
    pub(crate) ingress: Box<[CompiledTierRule]>,
    pub(crate) egress: Box<[CompiledTierRule]>,
}

#[derive(Debug)]
pub(crate) struct CompiledTierRule {
    pub(crate) action: Action,
    pub(crate) peers: Peers,
    pub(crate) ports: Ports,
    /// The policy and this rule's index.
    pub(crate) attribution: Arc<[PolicyRef]>,
}

/// The policies whose subject an identity is and that have rules in a direction.
#[derive(Debug, Default)]
pub(crate) struct Subject {
    pub(crate) admin: Directions,
    pub(crate) baseline: Directions,
    /// Some rule of them denies.
    pub(crate) may_be_denied: bool,
}

/// Numbers of policies in the order of their evaluation.
#[derive(Debug, Default)]
pub(crate) struct Directions {
    pub(crate) ingress: Box<[u32]>,
    pub(crate) egress: Box<[u32]>,
}

impl<'o> Compiler<'o> {
    pub(crate) fn tier_policy(
        &mut self,
        source: &'o Arc<TierPolicy>,
        domains: &Domains,
    ) -> CompiledTierPolicy {
        let reference = reference(source);
        let mut rules = |rules: &'o [TierRule]| {
            (0_u32..)
                .zip(rules)
                .map(|(index, rule)| self.tier_rule(&reference, index, rule, domains))
                .collect()
        };
        CompiledTierPolicy {
            source: Arc::clone(source),
            ingress: rules(&source.ingress),
            egress: rules(&source.egress),
        }
    }

    fn tier_rule(
        &mut self,
        reference: &PolicyRef,
        index: u32,
        rule: &'o TierRule,
        domains: &Domains,
    ) -> CompiledTierRule {
        let attribution = [PolicyRef { rule: Some(index), ..reference.clone() }].into();
        match (fails_closed(rule), rule.action) {
            (false, action) => {
                let peers = self.tier_peers(&rule.peers, domains);
                let ports = match &rule.ports {
                    None => Ports::Any,
                    Some(ports) => {
                        Ports::Some(ports.iter().filter_map(|port| self.tier_port(port)).collect())
                    }
                };
                CompiledTierRule { action, peers, ports, attribution }
            }
            (true, Action::Accept) => {
                let peers = self.peers(Vec::new(), Vec::new(), None);
                CompiledTierRule { action: Action::Accept, peers, ports: Ports::Any, attribution }
            }
            (true, Action::Deny | Action::Pass) => {
                CompiledTierRule { action: Action::Deny, peers: Peers::Any, ports: Ports::Any, attribution }
            }
        }
    }

    fn tier_peers(&mut self, peers: &'o [TierPeer], domains: &Domains) -> Peers {
        let mut members = Vec::new();
        let mut blocks = Vec::new();
        let (mut nodes, mut names) = (Vec::new(), Vec::new());
        for peer in peers {
            match peer {
                TierPeer::Pods(PodsIn { namespaces, pods }) => {
                    members.extend_from_slice(self.pods("", Some(namespaces), Some(pods)));
                }
                TierPeer::Nodes(selector) => {
                    let all = 0..self.universe.nodes();
                    nodes.extend(self.universe.node_labels.select(selector, all));
                }
                TierPeer::Networks(networks) => {
                    blocks.extend(networks.iter().map(|network| (network, [].as_slice())));
                }
                TierPeer::Domains(patterns) => {
                    names.extend(patterns.iter().filter_map(|pattern| domains.number(pattern)));
                }
                TierPeer::Unknown => {}
            }
        }
        names.sort_unstable();
        names.dedup();
        let others = (!nodes.is_empty() || !names.is_empty()).then(|| {
            let nodes = IdentitySet::new(nodes, self.universe.nodes() as usize);
            Box::new(Others { nodes, domains: names.into() })
        });
        self.peers(members, blocks, others)
    }

    /// A name that no pod declares matches nothing.
    fn tier_port(&self, port: &TierPort) -> Option<PortMatch> {
        Some(match port {
            TierPort::Range { protocol, low, high } => {
                PortMatch::Range { protocol: *protocol, low: *low, high: *high }
            }
            TierPort::Named(name) => {
                PortMatch::Named { protocol: None, name: *self.universe.port_names.get(name.as_str())? }
            }
        })
    }

    /// The policies every identity is a subject of, equal ones shared; `None` where there are none.
    pub(crate) fn subjects(
        &mut self,
        policies: &'o [Arc<TierPolicy>],
        compiled: &[CompiledTierPolicy],
    ) -> Vec<Option<Arc<Subject>>> {
        let mut selecting: Vec<Vec<u32>> = vec![Vec::new(); self.universe.identities().len()];
        for (number, policy) in (0_u32..).zip(policies) {
            let PodsIn { namespaces, pods } = &policy.subject;
            for identity in self.pods("", Some(namespaces), Some(pods)) {
                selecting[*identity as usize].push(number);
            }
        }
        let mut shared: HashMap<Vec<u32>, Arc<Subject>> = HashMap::new();
        let mut share = |mut list: Vec<u32>| {
            list.dedup();
            Arc::clone(shared.entry(list).or_insert_with_key(|list| Arc::new(subject(list, compiled))))
        };
        selecting.into_iter().map(|list| (!list.is_empty()).then(|| share(list))).collect()
    }
}

/// A peer of an unknown kind, or domain names in a rule that is no Accept, which the API does not support.
pub(crate) fn fails_closed(rule: &TierRule) -> bool {
    rule.peers.iter().any(|peer| match peer {
        TierPeer::Unknown => true,
        TierPeer::Domains(_) => rule.action != Action::Accept,
        _ => false,
    })
}

fn subject(policies: &[u32], compiled: &[CompiledTierPolicy]) -> Subject {
    let with_rules = |tier: Tier, rules: fn(&CompiledTierPolicy) -> &[CompiledTierRule]| -> Box<[u32]> {
        let has_rules = |number: &u32| {
            let policy = &compiled[*number as usize];
            policy.source.tier == tier && !rules(policy).is_empty()
        };
        policies.iter().copied().filter(has_rules).collect()
    };
    let directions = |tier| Directions {
        ingress: with_rules(tier, |policy| &policy.ingress),
        egress: with_rules(tier, |policy| &policy.egress),
    };
    let mut rules = policies.iter().flat_map(|number| {
        let policy = &compiled[*number as usize];
        policy.ingress.iter().chain(&policy.egress)
    });
    Subject {
        admin: directions(Tier::Admin),
        baseline: directions(Tier::Baseline),
        may_be_denied: rules.any(|rule| rule.action == Action::Deny),
    }
}

/// How a policy is named in decisions, no rule of it meant.
pub(crate) fn reference(policy: &TierPolicy) -> PolicyRef {
    PolicyRef { kind: policy.kind, namespace: None, name: policy.name.as_str().into(), rule: None }
}
