//! An identified flow → a decision. Pure, allocates nothing, compares no strings.

use std::net::IpAddr;
use std::sync::Arc;

use flow::{Decision, PolicyRef, Protocol, Reason, SideVerdict, Tier, Verdict};

use crate::compile::domains::Domains;
use crate::compile::policies::{CompiledPolicy, CompiledRule, Isolation, Others, Peers, PortMatch, Ports};
use crate::compile::tiers::{CompiledTierPolicy, CompiledTierRule, Directions};
use crate::objects::Action;
use crate::options::OwnNodeEgress;
use crate::snapshot::{End, IdentifiedFlow, Identity, Snapshot};

impl Snapshot {
    /// Decides egress at the source and ingress at the destination, both always.
    ///
    /// A flow that another snapshot identified is identified again: its numbers mean nothing here.
    pub fn decide(&self, flow: &IdentifiedFlow) -> Decision {
        if flow.generation == self.generation {
            return self.decide_own(flow);
        }
        let again = self.identify(&flow.tuple);
        self.decide_own(&if flow.led_back { again.through_service() } else { again })
    }

    fn decide_own(&self, flow: &IdentifiedFlow) -> Decision {
        let (source, destination) = (flow.source_end, flow.destination_end);
        if source == End::UnknownLocal || destination == End::UnknownLocal {
            return Decision::refused(self.generation, Reason::UnknownLocalPod);
        }
        let to_itself = flow.is_to_itself();
        Decision {
            generation: self.generation,
            egress: self.egress(flow, to_itself),
            ingress: self.ingress(flow, to_itself),
        }
    }

    fn egress(&self, flow: &IdentifiedFlow, to_itself: bool) -> SideVerdict {
        let End::Pod { identity, node } = flow.source_end else { return SideVerdict::not_applicable() };
        if to_itself && !flow.led_back {
            return allowed(Reason::OwnAddress);
        }
        let Some(identity) = self.identities.get(identity as usize) else {
            return SideVerdict::refused(Reason::UnknownLocalPod);
        };
        let to_own_node =
            self.own_node_egress == OwnNodeEgress::Allow && is_own_node(flow.destination_end, node);
        let exempt = match (to_itself, to_own_node) {
            (true, _) => Some(Reason::OwnAddress),
            (false, true) => Some(Reason::OwnNode),
            (false, false) => None,
        };
        let peer = self.peer(flow.tuple.destination.0.ip(), flow.destination_end);
        self.side(identity, &EGRESS, exempt, &Traffic::new(flow, &peer, peer.pod))
    }

    fn ingress(&self, flow: &IdentifiedFlow, to_itself: bool) -> SideVerdict {
        let End::Pod { identity, node } = flow.destination_end else { return SideVerdict::not_applicable() };
        if to_itself && !flow.led_back {
            return allowed(Reason::OwnAddress);
        }
        if is_own_node(flow.source_end, node) {
            return allowed(Reason::OwnNode);
        }
        let Some(identity) = self.identities.get(identity as usize) else {
            return SideVerdict::refused(Reason::UnknownLocalPod);
        };
        let exempt = to_itself.then_some(Reason::OwnAddress);
        let peer = self.peer(flow.tuple.client.0.ip(), flow.source_end);
        self.side(identity, &INGRESS, exempt, &Traffic::new(flow, &peer, Some(identity)))
    }

    /// Admin, NetworkPolicy, Baseline, and whatever none of them speaks about is allowed.
    ///
    /// `exempt` is why NetworkPolicy cannot deny this. One that isolates the pod still hides the Baseline.
    fn side(
        &self,
        pod: &Identity,
        direction: &Direction,
        exempt: Option<Reason>,
        traffic: &Traffic<'_>,
    ) -> SideVerdict {
        if let Some(subject) = &pod.subject
            && let Some(verdict) = self.tier(Tier::Admin, &subject.admin, direction, traffic)
        {
            return verdict;
        }
        match ((direction.isolation)(pod), exempt) {
            (Some(_), Some(reason)) => return allowed(reason),
            (Some(isolation), None) => return self.network_policies(isolation, direction, traffic),
            (None, _) => {}
        }
        if let Some(subject) = &pod.subject
            && let Some(verdict) = self.tier(Tier::Baseline, &subject.baseline, direction, traffic)
        {
            return verdict;
        }
        allowed(exempt.unwrap_or(Reason::NotIsolated))
    }

    /// The first rule that matches decides; a Pass, or none that matches, leaves it to the next tier.
    fn tier(
        &self,
        tier: Tier,
        policies: &Directions,
        direction: &Direction,
        traffic: &Traffic<'_>,
    ) -> Option<SideVerdict> {
        let numbers = (direction.ordered)(policies).iter();
        let rule = numbers
            .filter_map(|number| self.tiers.get(*number as usize))
            .flat_map(direction.tier_rules)
            .find(|rule| self.matches(&rule.peers, &rule.ports, traffic))?;
        let verdict = match rule.action {
            Action::Accept => Verdict::Allow,
            Action::Deny => Verdict::Deny,
            Action::Pass => return None,
        };
        Some(by_policy(verdict, tier, Reason::RuleMatched, &rule.attribution))
    }

    fn network_policies(
        &self,
        isolation: &Isolation,
        direction: &Direction,
        traffic: &Traffic<'_>,
    ) -> SideVerdict {
        let selecting = isolation.policies.iter().filter_map(|number| self.policies.get(*number as usize));
        let matching =
            selecting.flat_map(direction.rules).find(|rule| self.matches(&rule.peers, &rule.ports, traffic));
        let tier = Tier::NetworkPolicy;
        match matching {
            Some(rule) => by_policy(Verdict::Allow, tier, Reason::RuleMatched, &rule.attribution),
            None => by_policy(Verdict::Deny, tier, Reason::NoRuleMatched, &isolation.attribution),
        }
    }

    fn matches(&self, peers: &Peers, ports: &Ports, traffic: &Traffic<'_>) -> bool {
        ports.matches(traffic) && peers.matches(traffic.peer, &self.domains)
    }

    fn peer(&self, ip: IpAddr, end: End) -> Peer<'_> {
        let (identity, node) = match end {
            End::Pod { identity, .. } => (Some(identity), None),
            End::Node(node) => (None, Some(node)),
            End::UnknownLocal | End::External => (None, None),
        };
        let pod = identity.and_then(|number| self.identities.get(number as usize));
        Peer { ip: flow::canonical_ip(ip), identity, node, pod }
    }
}

/// Where the parts of one direction are found.
struct Direction {
    isolation: fn(&Identity) -> Option<&Isolation>,
    rules: fn(&CompiledPolicy) -> &[CompiledRule],
    ordered: fn(&Directions) -> &[u32],
    tier_rules: fn(&CompiledTierPolicy) -> &[CompiledTierRule],
}

const INGRESS: Direction = Direction {
    isolation: |pod| pod.ingress.as_deref(),
    rules: |policy| &policy.ingress,
    ordered: |policies| &policies.ingress,
    tier_rules: |policy| &policy.ingress,
};

const EGRESS: Direction = Direction {
    isolation: |pod| pod.egress.as_deref(),
    rules: |policy| &policy.egress,
    ordered: |policies| &policies.egress,
    tier_rules: |policy| &policy.egress,
};

/// What rules are asked about.
struct Traffic<'s> {
    protocol: Protocol,
    port: u16,
    peer: &'s Peer<'s>,
    /// The destination pod, on which named ports resolve.
    target: Option<&'s Identity>,
}

impl<'s> Traffic<'s> {
    fn new(flow: &IdentifiedFlow, peer: &'s Peer<'s>, target: Option<&'s Identity>) -> Self {
        Self { protocol: flow.tuple.protocol, port: flow.tuple.destination.0.port(), peer, target }
    }
}

/// The other end, as rules see it.
struct Peer<'s> {
    ip: IpAddr,
    identity: Option<u32>,
    node: Option<u32>,
    pod: Option<&'s Identity>,
}

impl Peers {
    fn matches(&self, peer: &Peer<'_>, table: &Domains) -> bool {
        let Self::Some { identities, blocks, others } = self else { return true };
        peer.identity.is_some_and(|identity| identities.contains(identity))
            || (!blocks.is_empty() && blocks.contains(peer.ip))
            || others.as_deref().is_some_and(|Others { nodes, domains }| {
                peer.node.is_some_and(|node| nodes.contains(node)) || table.any(domains, peer.ip)
            })
    }
}

impl Ports {
    fn matches(&self, traffic: &Traffic<'_>) -> bool {
        let Self::Some(ports) = self else { return true };
        let Traffic { protocol, port, target, .. } = *traffic;
        ports.iter().any(|candidate| match *candidate {
            PortMatch::Range { protocol: wanted, low, high } => {
                wanted == protocol && low <= port && port <= high
            }
            PortMatch::Named { protocol: wanted, name } => {
                wanted.is_none_or(|wanted| wanted == protocol)
                    && target.is_some_and(|pod| pod.ports.contains(&(name, protocol, port)))
            }
        })
    }
}

fn is_own_node(end: End, node: Option<u32>) -> bool {
    matches!((end, node), (End::Node(number), Some(own)) if number == own)
}

fn allowed(reason: Reason) -> SideVerdict {
    SideVerdict { verdict: Verdict::Allow, tier: Some(Tier::Default), policies: None, reason }
}

fn by_policy(verdict: Verdict, tier: Tier, reason: Reason, policies: &Arc<[PolicyRef]>) -> SideVerdict {
    SideVerdict { verdict, tier: Some(tier), policies: Some(Arc::clone(policies)), reason }
}
