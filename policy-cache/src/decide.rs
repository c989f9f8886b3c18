//! An identified flow → a decision. Pure, allocates nothing, compares no strings.

use std::net::IpAddr;

use flow::{Decision, Protocol, Reason, SideVerdict, Tier, Verdict};

use crate::compile::rules::{Directions, Effect, Isolation, NO_SET, PortMatch, Ports, Rule};
use crate::options::OwnNodeEgress;
use crate::snapshot::{End, IdentifiedFlow, Identity, Kind, PortSet, Snapshot};

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
        let (client, server) = (self.kind(source), self.kind(destination));
        let traffic = Traffic {
            protocol: flow.tuple.protocol,
            port: flow.tuple.destination.0.port(),
            target: match destination {
                End::Pod { identity, .. } => Some(identity),
                _ => None,
            },
        };
        let peer = |end, ip, kind| Peer::new(end, ip, kind);
        let destination_peer = peer(destination, flow.tuple.destination.0.ip(), server);
        let source_peer = peer(source, flow.tuple.client.0.ip(), client);
        Decision {
            generation: self.generation,
            egress: self.egress(flow, to_itself, client, &traffic, &destination_peer),
            ingress: self.ingress(flow, to_itself, server, &traffic, &source_peer),
        }
    }

    fn kind(&self, end: End) -> Option<Kind> {
        match end {
            End::Pod { identity, .. } => self.view.kinds.get(identity).copied(),
            _ => None,
        }
    }

    fn egress(
        &self,
        flow: &IdentifiedFlow,
        to_itself: bool,
        kind: Option<Kind>,
        traffic: &Traffic,
        peer: &Peer,
    ) -> SideVerdict {
        let End::Pod { identity, node } = flow.source_end else { return SideVerdict::not_applicable() };
        if to_itself && !flow.led_back {
            return allowed(Reason::OwnAddress);
        }
        let to_own_node =
            self.own_node_egress == OwnNodeEgress::Allow && is_own_node(flow.destination_end, node);
        let exempt = match (to_itself, to_own_node) {
            (true, _) => Some(Reason::OwnAddress),
            (false, true) => Some(Reason::OwnNode),
            (false, false) => None,
        };
        self.side((identity, kind), &EGRESS, exempt, traffic, peer)
    }

    fn ingress(
        &self,
        flow: &IdentifiedFlow,
        to_itself: bool,
        kind: Option<Kind>,
        traffic: &Traffic,
        peer: &Peer,
    ) -> SideVerdict {
        let End::Pod { identity, node } = flow.destination_end else { return SideVerdict::not_applicable() };
        if to_itself && !flow.led_back {
            return allowed(Reason::OwnAddress);
        }
        if is_own_node(flow.source_end, node) {
            return allowed(Reason::OwnNode);
        }
        let exempt = to_itself.then_some(Reason::OwnAddress);
        self.side((identity, kind), &INGRESS, exempt, traffic, peer)
    }

    /// Admin, NetworkPolicy, Baseline, and whatever none of them speaks about is allowed.
    ///
    /// `exempt` is why NetworkPolicy cannot deny this. One that isolates the pod still hides the Baseline.
    fn side(
        &self,
        (identity, kind): (u32, Option<Kind>),
        direction: &Direction,
        exempt: Option<Reason>,
        traffic: &Traffic,
        peer: &Peer,
    ) -> SideVerdict {
        let (Some(pod), Some(kind)) = (self.view.identities.get(identity), kind) else {
            return SideVerdict::refused(Reason::UnknownLocalPod);
        };
        let subject = self.view.subject(kind);
        let ask = |tier, policies: &Directions| {
            let mut rules = (direction.tier_rules)(policies).iter().flat_map(|rules| rules.iter());
            let rule = rules.find(|rule| self.matches(rule, kind, traffic, peer))?;
            let verdict = match rule.effect {
                Effect::Accept => Verdict::Allow,
                Effect::Pass => return None,
                Effect::Deny | Effect::Refuse | Effect::Continue => Verdict::Deny,
            };
            Some(by_policy(verdict, tier, Reason::RuleMatched, rule))
        };
        if let Some(verdict) = subject.and_then(|subject| ask(Tier::Admin, &subject.admin)) {
            return verdict;
        }
        match ((direction.isolation)(pod), exempt) {
            (Some(_), Some(reason)) => return allowed(reason),
            (Some(isolation), None) => return self.network_policies(isolation, kind, traffic, peer),
            (None, _) => {}
        }
        if let Some(verdict) = subject.and_then(|subject| ask(Tier::Baseline, &subject.baseline)) {
            return verdict;
        }
        allowed(exempt.unwrap_or(Reason::NotIsolated))
    }

    fn network_policies(
        &self,
        isolation: &Isolation,
        own: Kind,
        traffic: &Traffic,
        peer: &Peer,
    ) -> SideVerdict {
        let tier = Tier::NetworkPolicy;
        match self.first(&isolation.rules, own, traffic, peer) {
            Some(rule) if rule.effect == Effect::Accept => {
                by_policy(Verdict::Allow, tier, Reason::RuleMatched, rule)
            }
            Some(rule) => by_policy(Verdict::Deny, tier, Reason::NoRuleMatched, rule),
            // A list without an end would be a mistake of ours, and no reason to let anything through.
            None => SideVerdict { tier: Some(tier), ..SideVerdict::refused(Reason::NoRuleMatched) },
        }
    }

    /// The first rule that matches, in the rules that others lead to as well.
    fn first<'r>(&self, rules: &'r [Rule], own: Kind, traffic: &Traffic, peer: &Peer) -> Option<&'r Rule> {
        for rule in rules {
            match (rule.effect, &rule.more) {
                (Effect::Continue, Some(more)) => {
                    let rules = more.rules.as_deref().unwrap_or_default();
                    if let Some(found) = rules.iter().find(|rule| self.matches(rule, own, traffic, peer)) {
                        return Some(found);
                    }
                }
                _ if self.matches(rule, own, traffic, peer) => return Some(rule),
                _ => {}
            }
        }
        None
    }

    /// `own` is the pod that the rule speaks about.
    fn matches(&self, rule: &Rule, own: Kind, traffic: &Traffic, peer: &Peer) -> bool {
        self.ports_match(&rule.ports, traffic) && self.peer_matches(rule, own, peer)
    }

    fn peer_matches(&self, rule: &Rule, own: Kind, peer: &Peer) -> bool {
        if rule.any_peer {
            return true;
        }
        if let Some((identity, kind)) = peer.pod {
            let selected = |set: &u32| *set != NO_SET && self.is_in_set(*set, identity);
            if (rule.local & kind.local != 0 && kind.namespace == own.namespace)
                || rule.sets.iter().any(selected)
            {
                return true;
            }
        }
        if rule.blocks.as_ref().is_some_and(|blocks| blocks.contains(peer.ip)) {
            return true;
        }
        rule.more.as_deref().is_some_and(|more| {
            let in_node_set =
                |set: &u32, node| self.view.node_sets.get(*set).is_some_and(|nodes| nodes.contains(node));
            peer.pod.is_some_and(|(identity, _)| more.sets.iter().any(|set| self.is_in_set(*set, identity)))
                || peer.node.is_some_and(|node| more.nodes.iter().any(|set| in_node_set(set, node)))
                || self.view.domains.any(&more.domains, peer.ip)
        })
    }

    fn is_in_set(&self, set: u32, identity: u32) -> bool {
        self.view.sets.get(set).is_some_and(|set| set.contains(identity))
    }

    fn ports_match(&self, ports: &Ports, traffic: &Traffic) -> bool {
        match ports {
            Ports::Any => true,
            Ports::One(port) => self.port_matches(*port, traffic),
            Ports::Many(ports) => ports.iter().any(|port| self.port_matches(*port, traffic)),
        }
    }

    fn port_matches(&self, candidate: PortMatch, traffic: &Traffic) -> bool {
        let Traffic { protocol, port, target } = *traffic;
        match candidate {
            PortMatch::Range { protocol: wanted, low, high } => {
                wanted == protocol && low <= port && port <= high
            }
            PortMatch::Named { protocol: wanted, name } => {
                let ports = |identity| self.view.identities.get(identity).map(|pod: &Identity| &*pod.ports);
                let declares = |ports: &PortSet| ports.numbers.contains(&(name, protocol, port));
                wanted.is_none_or(|wanted| wanted == protocol) && target.and_then(ports).is_some_and(declares)
            }
        }
    }
}

/// Where the parts of one direction are found.
struct Direction {
    isolation: fn(&Identity) -> Option<&Isolation>,
    tier_rules: fn(&Directions) -> &[std::sync::Arc<[Rule]>],
}

const INGRESS: Direction =
    Direction { isolation: |pod| pod.ingress.as_ref(), tier_rules: |policies| &policies.ingress };

const EGRESS: Direction =
    Direction { isolation: |pod| pod.egress.as_ref(), tier_rules: |policies| &policies.egress };

/// What rules are asked about.
struct Traffic {
    protocol: Protocol,
    port: u16,
    /// The identity of the destination pod, on which named ports resolve.
    target: Option<u32>,
}

/// The other end, as rules see it.
struct Peer {
    ip: IpAddr,
    pod: Option<(u32, Kind)>,
    node: Option<u32>,
}

impl Peer {
    fn new(end: End, ip: IpAddr, kind: Option<Kind>) -> Self {
        let (pod, node) = match end {
            End::Pod { identity, .. } => (kind.map(|kind| (identity, kind)), None),
            End::Node(node) => (None, Some(node)),
            End::UnknownLocal | End::External => (None, None),
        };
        Self { ip: flow::canonical_ip(ip), pod, node }
    }
}

fn is_own_node(end: End, node: Option<u32>) -> bool {
    matches!((end, node), (End::Node(number), Some(own)) if number == own)
}

fn allowed(reason: Reason) -> SideVerdict {
    SideVerdict { verdict: Verdict::Allow, tier: Some(Tier::Default), policies: None, reason }
}

fn by_policy(verdict: Verdict, tier: Tier, reason: Reason, rule: &Rule) -> SideVerdict {
    SideVerdict {
        verdict,
        tier: Some(tier),
        policies: Some(std::sync::Arc::clone(&rule.attribution)),
        reason,
    }
}
