//! An identified flow → a decision. Pure, allocates nothing, compares no strings.

use std::net::IpAddr;
use std::sync::Arc;

use flow::{Decision, PolicyRef, Protocol, Reason, SideVerdict, Tier, Verdict};

use crate::compile::policies::{CompiledPolicy, CompiledRule, Isolation, Peers, PortMatch, Ports};
use crate::options::OwnNodeEgress;
use crate::snapshot::{End, IdentifiedFlow, Identity, Snapshot};

impl Snapshot {
    /// Decides egress at the source and ingress at the destination, both always.
    ///
    /// A flow that another snapshot identified is identified again: its numbers mean nothing here.
    pub fn decide(&self, flow: &IdentifiedFlow) -> Decision {
        if flow.generation == self.generation {
            self.decide_own(flow)
        } else {
            self.decide_own(&self.identify(&flow.tuple))
        }
    }

    fn decide_own(&self, flow: &IdentifiedFlow) -> Decision {
        let (source, destination) = (flow.source_end, flow.destination_end);
        if source == End::UnknownLocal || destination == End::UnknownLocal {
            return Decision::refused(self.generation, Reason::UnknownLocalPod);
        }
        let same_pod = match (flow.source.pod(), flow.destination.pod()) {
            (Some(source), Some(destination)) => Arc::ptr_eq(source, destination),
            _ => false,
        };
        Decision {
            generation: self.generation,
            egress: self.egress(flow, same_pod),
            ingress: self.ingress(flow, same_pod),
        }
    }

    fn egress(&self, flow: &IdentifiedFlow, same_pod: bool) -> SideVerdict {
        let End::Pod { identity, node } = flow.source_end else { return SideVerdict::not_applicable() };
        if same_pod {
            return allowed(Reason::OwnAddress);
        }
        if self.own_node_egress == OwnNodeEgress::Allow && is_own_node(flow.destination_end, node) {
            return allowed(Reason::OwnNode);
        }
        let Some(identity) = self.identities.get(identity as usize) else {
            return SideVerdict::refused(Reason::UnknownLocalPod);
        };
        let peer = self.peer(flow.tuple.destination.0.ip(), flow.destination_end);
        self.side(identity.egress.as_deref(), |policy| &policy.egress, &peer, peer.pod, flow)
    }

    fn ingress(&self, flow: &IdentifiedFlow, same_pod: bool) -> SideVerdict {
        let End::Pod { identity, node } = flow.destination_end else { return SideVerdict::not_applicable() };
        if same_pod {
            return allowed(Reason::OwnAddress);
        }
        if is_own_node(flow.source_end, node) {
            return allowed(Reason::OwnNode);
        }
        let Some(identity) = self.identities.get(identity as usize) else {
            return SideVerdict::refused(Reason::UnknownLocalPod);
        };
        let peer = self.peer(flow.tuple.client.0.ip(), flow.source_end);
        self.side(identity.ingress.as_deref(), |policy| &policy.ingress, &peer, Some(identity), flow)
    }

    /// `target` is the destination pod, on which named ports resolve.
    fn side(
        &self,
        isolation: Option<&Isolation>,
        rules: fn(&CompiledPolicy) -> &[CompiledRule],
        peer: &Peer<'_>,
        target: Option<&Identity>,
        flow: &IdentifiedFlow,
    ) -> SideVerdict {
        let Some(isolation) = isolation else { return allowed(Reason::NotIsolated) };
        let (protocol, port) = (flow.tuple.protocol, flow.tuple.destination.0.port());
        let selecting = isolation.policies.iter().filter_map(|number| self.policies.get(*number as usize));
        let matching = selecting
            .flat_map(rules)
            .find(|rule| rule.ports.matches(protocol, port, target) && rule.peers.matches(peer));
        match matching {
            Some(rule) => by_policy(Verdict::Allow, Reason::RuleMatched, &rule.attribution),
            None => by_policy(Verdict::Deny, Reason::NoRuleMatched, &isolation.attribution),
        }
    }

    fn peer(&self, ip: IpAddr, end: End) -> Peer<'_> {
        let number = match end {
            End::Pod { identity, .. } => Some(identity),
            _ => None,
        };
        let pod = number.and_then(|number| self.identities.get(number as usize));
        Peer { ip: flow::canonical_ip(ip), identity: number, pod }
    }
}

/// The other end, as rules see it.
struct Peer<'s> {
    ip: IpAddr,
    identity: Option<u32>,
    pod: Option<&'s Identity>,
}

impl Peers {
    fn matches(&self, peer: &Peer<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Some { identities, blocks } => {
                peer.identity.is_some_and(|identity| identities.contains(identity))
                    || (!blocks.is_empty() && blocks.contains(peer.ip))
            }
        }
    }
}

impl Ports {
    fn matches(&self, protocol: Protocol, port: u16, target: Option<&Identity>) -> bool {
        let Self::Some(ports) = self else { return true };
        ports.iter().any(|candidate| match *candidate {
            PortMatch::Range { protocol: wanted, low, high } => {
                wanted == protocol && low <= port && port <= high
            }
            PortMatch::Named { protocol: wanted, name } => {
                wanted == protocol && target.is_some_and(|pod| pod.ports.contains(&(name, protocol, port)))
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

fn by_policy(verdict: Verdict, reason: Reason, policies: &Arc<[PolicyRef]>) -> SideVerdict {
    SideVerdict { verdict, tier: Some(Tier::NetworkPolicy), policies: Some(Arc::clone(policies)), reason }
}
