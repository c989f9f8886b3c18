//! An identified flow → a decision. Pure, allocates nothing, compares no strings.

use std::net::IpAddr;
use std::sync::Arc;

use flow::{Decision, Policies, PolicyRef, Protocol, Reason, SideVerdict, Tier, Tuple, Verdict};

use crate::compile::rules::{Directions, EGRESS, Effect, INGRESS, Long, NO_SET, PortMatch, Ports, Rule};
use crate::options::OwnNodeEgress;
use crate::snapshot::{End, Ends, IdentifiedFlow, Identity, Kind, PortSet, Snapshot};

impl Snapshot {
    /// Decides egress at the source and ingress at the destination, both always.
    ///
    /// A flow that another snapshot identified is identified again: its numbers mean nothing here.
    pub fn decide(&self, flow: &IdentifiedFlow) -> Decision {
        if flow.generation == self.generation {
            return self.decide_ends(&flow.tuple, &flow.ends);
        }
        let again = self.ends(&flow.tuple);
        let again = if flow.ends.led_back { again.through_service() } else { again };
        self.decide_ends(&flow.tuple, &again)
    }

    /// As [`Snapshot::decide`], by what this snapshot found.
    pub(crate) fn decide_ends(&self, tuple: &Tuple, ends: &Ends) -> Decision {
        let (source, destination) = (ends.source, ends.destination);
        if source == End::UnknownLocal || destination == End::UnknownLocal {
            return Decision::refused(self.generation, Reason::UnknownLocalPod);
        }
        let (client, server) = (self.kind(source), self.kind(destination));
        let traffic = Traffic {
            protocol: tuple.protocol,
            port: tuple.destination.0.port(),
            target: match destination {
                End::Pod { identity, .. } => Some(identity),
                _ => None,
            },
        };
        let destination_peer = Peer::new(destination, tuple.destination.0.ip(), server);
        let source_peer = Peer::new(source, tuple.client.0.ip(), client);
        Decision {
            generation: self.generation,
            egress: self.egress(ends, client, &traffic, &destination_peer),
            ingress: self.ingress(ends, server, &traffic, &source_peer),
        }
    }

    fn kind(&self, end: End) -> Option<&Kind> {
        match end {
            End::Pod { identity, .. } => self.view.kinds.get(identity),
            _ => None,
        }
    }

    fn egress(&self, ends: &Ends, kind: Option<&Kind>, traffic: &Traffic, peer: &Peer<'_>) -> SideVerdict {
        let End::Pod { node, lists, .. } = ends.source else { return SideVerdict::not_applicable() };
        if ends.same_pod && !ends.led_back {
            return allowed(Reason::OwnAddress);
        }
        let to_own_node = self.own_node_egress == OwnNodeEgress::Allow && is_own_node(ends.destination, node);
        let exempt = match (ends.same_pod, to_own_node) {
            (true, _) => Some(Reason::OwnAddress),
            (false, true) => Some(Reason::OwnNode),
            (false, false) => None,
        };
        self.side(kind, (EGRESS, lists[EGRESS]), exempt, traffic, peer)
    }

    fn ingress(&self, ends: &Ends, kind: Option<&Kind>, traffic: &Traffic, peer: &Peer<'_>) -> SideVerdict {
        let End::Pod { node, lists, .. } = ends.destination else { return SideVerdict::not_applicable() };
        if ends.same_pod && !ends.led_back {
            return allowed(Reason::OwnAddress);
        }
        if is_own_node(ends.source, node) {
            return allowed(Reason::OwnNode);
        }
        let exempt = ends.same_pod.then_some(Reason::OwnAddress);
        self.side(kind, (INGRESS, lists[INGRESS]), exempt, traffic, peer)
    }

    /// Admin, NetworkPolicy, Baseline, and whatever none of them speaks about is allowed.
    ///
    /// `exempt` is why NetworkPolicy cannot deny this. One that isolates the pod still hides the Baseline.
    fn side(
        &self,
        kind: Option<&Kind>,
        (direction, list): (usize, u32),
        exempt: Option<Reason>,
        traffic: &Traffic,
        peer: &Peer<'_>,
    ) -> SideVerdict {
        let Some(kind) = kind else { return SideVerdict::refused(Reason::UnknownLocalPod) };
        let subject = self.view.subject(kind);
        let ask =
            |tier, policies: &Directions| self.tier_rules(tier, policies, direction, kind, traffic, peer);
        if let Some(verdict) = subject.and_then(|subject| ask(Tier::Admin, &subject.admin)) {
            return verdict;
        }
        match (list, exempt) {
            (0, _) => {}
            (_, Some(reason)) => return allowed(reason),
            (_, None) => return self.network_policies(list, kind, traffic, peer),
        }
        if let Some(verdict) = subject.and_then(|subject| ask(Tier::Baseline, &subject.baseline)) {
            return verdict;
        }
        allowed(exempt.unwrap_or(Reason::NotIsolated))
    }

    /// What the first matching rule says, unless it passes.
    fn tier_rules(
        &self,
        tier: Tier,
        policies: &Directions,
        direction: usize,
        own: &Kind,
        traffic: &Traffic,
        peer: &Peer<'_>,
    ) -> Option<SideVerdict> {
        for policy in &policies[direction] {
            let Some(place) = policy.rules.iter().position(|rule| self.matches(rule, own, traffic, peer))
            else {
                continue;
            };
            let verdict = match policy.rules[place].effect {
                Effect::Accept => Verdict::Allow,
                Effect::Pass => return None,
                Effect::Deny | Effect::Continue => Verdict::Deny,
            };
            let named = Policies::of(Arc::clone(&policy.names), 0, place..place + 1);
            return Some(by_policies(verdict, tier, Reason::RuleMatched, named));
        }
        None
    }

    fn network_policies(&self, list: u32, own: &Kind, traffic: &Traffic, peer: &Peer<'_>) -> SideVerdict {
        let tier = Tier::NetworkPolicy;
        let (Some(isolation), Some((names, number))) =
            (self.view.lists.get(list), self.view.names.part(list))
        else {
            // A list that is missing would be a mistake of ours, and no reason to let anything through.
            return SideVerdict { tier: Some(tier), ..SideVerdict::refused(Reason::NoRuleMatched) };
        };
        let named = |places| {
            let lists: Arc<[Arc<[PolicyRef]>]> = Arc::<[_; _]>::clone(names);
            Policies::of(lists, number, places)
        };
        let accepted = |policies| by_policies(Verdict::Allow, tier, Reason::RuleMatched, policies);
        for (place, rule) in isolation.rules.iter().enumerate() {
            match (rule.effect, &rule.more) {
                (Effect::Continue, Some(more)) => {
                    let Some(Long(long)) = &more.rules else { continue };
                    let found = long.rules.iter().position(|rule| self.matches(rule, own, traffic, peer));
                    if let Some(place) = found {
                        return accepted(Policies::of(Arc::clone(&long.names), 0, place..place + 1));
                    }
                }
                (Effect::Accept, _) if self.matches(rule, own, traffic, peer) => {
                    return accepted(named(place..place + 1));
                }
                _ => {}
            }
        }
        let isolating = isolation.rules.len()..usize::MAX;
        by_policies(Verdict::Deny, tier, Reason::NoRuleMatched, named(isolating))
    }

    /// `own` is the pod that the rule speaks about. The ports come last: those with names are looked up.
    fn matches(&self, rule: &Rule, own: &Kind, traffic: &Traffic, peer: &Peer<'_>) -> bool {
        self.peer_matches(rule, own, peer) && self.ports_match(&rule.ports, traffic)
    }

    fn peer_matches(&self, rule: &Rule, own: &Kind, peer: &Peer<'_>) -> bool {
        if rule.any_peer {
            return true;
        }
        if let Some((identity, kind)) = peer.pod {
            let selected = |set: u32| set != NO_SET && self.is_in_set(set, identity, kind);
            if (rule.local & kind.local != 0 && kind.namespace == own.namespace)
                || selected(rule.sets[0])
                || selected(rule.sets[1])
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
            let selected =
                |(identity, kind)| more.sets.iter().any(|set| self.is_in_set(*set, identity, kind));
            peer.pod.is_some_and(selected)
                || peer.node.is_some_and(|node| more.nodes.iter().any(|set| in_node_set(set, node)))
                || self.view.domains.any(&more.domains, peer.ip)
        })
    }

    fn is_in_set(&self, set: u32, identity: u32, kind: &Kind) -> bool {
        let noted = kind.is_in(set);
        noted.unwrap_or_else(|| self.view.sets.get(set).is_some_and(|set| set.contains(identity)))
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

/// What rules are asked about.
struct Traffic {
    protocol: Protocol,
    port: u16,
    /// The identity of the destination pod, on which named ports resolve.
    target: Option<u32>,
}

/// The other end, as rules see it.
struct Peer<'v> {
    ip: IpAddr,
    pod: Option<(u32, &'v Kind)>,
    node: Option<u32>,
}

impl<'v> Peer<'v> {
    fn new(end: End, ip: IpAddr, kind: Option<&'v Kind>) -> Self {
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

fn by_policies(verdict: Verdict, tier: Tier, reason: Reason, policies: Policies) -> SideVerdict {
    SideVerdict { verdict, tier: Some(tier), policies: Some(policies), reason }
}
