//! A connection and the policies of its ends → both sides, each step with its reason.
//!
//! Reads objects, in the words of the API, and shares no code with `decide`: the two are held against each
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use flow::{Protocol, Reason, Tier, Verdict};

use super::why::{self, misses};
use super::{Direction, PolicyStep, RuleStep, Side, Test, TierStep, tiers};
use crate::objects::{Labels, NetworkPolicy, Objects, Pod, Rule, TierPolicy};

/// The label every namespace carries with its own name (KEP-2161).
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A connection with all that rules look at.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) source: Party,
    pub(super) destination: Party,
    /// The port at the destination.
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// The port of the Service that was dialled.
    pub(super) service_port: Option<u16>,
    pub(super) same_pod: bool,
    /// Both ends are one pod, and a Service led back to it.
    pub(super) led_back: bool,
    /// One end is in this node's pod ranges and no known pod.
    pub(super) unknown_local: bool,
    /// The destination is the source's own node, and NetworkPolicy has no say in that.
    pub(super) to_own_node: bool,
    pub(super) from_own_node: bool,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Party {
    pub(super) ip: IpAddr,
    pub(super) name: String,
    /// `None` unless it is a pod that selectors can match.
    pub(super) pod: Option<Pod>,
    pub(super) namespace_labels: Labels,
    /// `None` unless it is a node's address.
    pub(super) node_labels: Option<Labels>,
}

/// The policies that may concern a connection, in the order of their names.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) policies: Vec<Arc<NetworkPolicy>>,
    /// Those of the Admin and the Baseline tier, in the order of their evaluation.
    pub(super) tiers: Vec<Arc<TierPolicy>>,
    /// The addresses behind DNS names.
    pub(super) domains: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl World {
    pub(super) fn new(objects: &Objects, connection: &Connection) -> Self {
        let namespaces: Vec<&str> = [&connection.source, &connection.destination]
            .into_iter()
            .filter_map(|party| party.pod.as_ref())
            .map(|pod| pod.namespace.as_str())
            .collect();
        let concerns = |policy: &&Arc<NetworkPolicy>| namespaces.contains(&policy.namespace.as_str());
        Self {
            policies: objects.policies.iter().filter(concerns).cloned().collect(),
            tiers: objects.tiers.clone(),
            domains: objects.domains.clone(),
        }
    }

    /// The policies that isolate `pod` in a direction, by their place, with their rules.
    pub(super) fn selecting<'w>(
        &'w self,
        pod: &Pod,
        direction: Direction,
    ) -> impl Iterator<Item = (usize, &'w NetworkPolicy, &'w [Rule])> {
        self.policies.iter().enumerate().filter_map(move |(index, policy)| {
            let rules = rules(policy, direction)?;
            let selects = policy.namespace == pod.namespace && holds(&policy.pod_selector, &pod.labels);
            selects.then_some((index, &**policy, rules))
        })
    }
}

/// The rules of a direction in which the policy isolates.
pub(super) fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Egress => policy.egress.as_deref(),
        Direction::Ingress => policy.ingress.as_deref(),
    }
}

/// The pod behind an endpoint of a snapshot of the same objects.
pub(super) fn pod(objects: &Objects, pod: &flow::Pod) -> Option<Pod> {
    objects
        .pods
        .iter()
        .find(|candidate| candidate.namespace == *pod.namespace && candidate.name == *pod.name)
        .cloned()
}

/// The labels of a namespace with the one that is always there.
pub(super) fn namespace_labels(objects: &Objects, name: &str) -> Labels {
    let declared = objects.namespaces.iter().find(|namespace| namespace.name == name);
    let mut labels = declared.map(|namespace| namespace.labels.clone()).unwrap_or_default();
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
    labels
}

/// The labels of a node; one that only pods name has none.
pub(super) fn node_labels(objects: &Objects, name: &str) -> Labels {
    let node = objects.nodes.iter().find(|node| node.name == name);
    node.map(|node| node.labels.clone()).unwrap_or_default()
}

/// Egress and ingress, always both.
pub(super) fn both(world: &World, connection: &Connection) -> (Side, Side) {
    (side(world, connection, Direction::Egress), side(world, connection, Direction::Ingress))
}

/// One side.
pub(super) fn side(world: &World, connection: &Connection, direction: Direction) -> Side {
    if connection.unknown_local {
        let summary = "an end is an address of this node's pod range without a known pod: refused";
        return Side { verdict: "deny", ..exempt(None, Reason::UnknownLocalPod, summary.to_owned()) };
    }
    let (own, to_node) = match direction {
        Direction::Egress => (&connection.source, connection.to_own_node),
        Direction::Ingress => (&connection.destination, connection.from_own_node),
    };
    let Some(pod) = &own.pod else {
        let summary = format!("no policy applies: {} is {}", own.ip, own.name);
        return exempt(None, Reason::NotApplicable, summary);
    };
    if connection.same_pod && !connection.led_back {
        let summary = "a pod always reaches itself".to_owned();
        return exempt(Some(Tier::Default), Reason::OwnAddress, summary);
    }
    if to_node && direction == Direction::Ingress {
        let summary = "a pod's own node always reaches it".to_owned();
        return exempt(Some(Tier::Default), Reason::OwnNode, summary);
    }
    let reason = match (connection.same_pod, to_node) {
        (true, _) => Some((Reason::OwnAddress, "NetworkPolicy never closes a pod's way back to itself")),
        (false, true) => Some((Reason::OwnNode, "NetworkPolicy never closes a pod's way to its own node")),
        (false, false) => None,
    };
    tier_by_tier(world, connection, direction, pod, reason)
}

fn exempt(tier: Option<Tier>, reason: Reason, summary: String) -> Side {
    Side {
        verdict: Verdict::Allow.as_str(),
        tier: tier.map(Tier::as_str),
        policies: Vec::new(),
        reason: reason.as_str(),
        summary,
        tiers: Vec::new(),
    }
}

/// Admin, NetworkPolicy, Baseline: the first that speaks decides. `spared` is why NetworkPolicy cannot deny
/// this; one that isolates the pod hides the Baseline all the same.
fn tier_by_tier(
    world: &World,
    connection: &Connection,
    direction: Direction,
    pod: &Pod,
    spared: Option<(Reason, &'static str)>,
) -> Side {
    let (admin, decided) = tiers::evaluate(world, connection, direction, Tier::Admin);
    if let Some(side) = decided {
        return Side { tiers: vec![admin], ..side };
    }
    let (policies, decided) = by_policies(world, connection, direction, pod);
    let isolated = decided.is_some();
    let decided = decided.map(|side| match spared {
        Some((reason, summary)) => exempt(Some(Tier::Default), reason, summary.to_owned()),
        None => side,
    });
    if let Some(side) = decided.filter(|_| isolated) {
        return Side { tiers: vec![admin, policies], ..side };
    }
    let (baseline, decided) = tiers::evaluate(world, connection, direction, Tier::Baseline);
    let asked = vec![admin, policies, baseline];
    if let Some(side) = decided {
        return Side { tiers: asked, ..side };
    }
    let nobody = format!("no NetworkPolicy isolates the pod for {}", direction.as_str());
    let (reason, summary) =
        spared.map_or((Reason::NotIsolated, nobody), |(reason, why)| (reason, why.to_owned()));
    Side { tiers: asked, ..exempt(Some(Tier::Default), reason, summary) }
}

/// The NetworkPolicy tier, and what it decides when some policy isolates the pod.
fn by_policies(
    world: &World,
    connection: &Connection,
    direction: Direction,
    pod: &Pod,
) -> (TierStep, Option<Side>) {
    let steps: Vec<PolicyStep> = world
        .selecting(pod, direction)
        .map(|(_, policy, rules)| PolicyStep {
            policy: policy_name(policy),
            selects: format!("podSelector: {}", why::selector_text(&policy.pod_selector)),
            rules: rules
                .iter()
                .enumerate()
                .map(|(index, rule)| rule_step(policy, rule, index, connection, direction))
                .collect(),
        })
        .collect();
    let in_namespace = world.policies.iter().filter(|policy| policy.namespace == pod.namespace).count();
    let passed_over = in_namespace - steps.len();
    let way = direction.as_str();
    let tier = Tier::NetworkPolicy.as_str();
    if steps.is_empty() {
        let outcome = "does not isolate the pod".to_owned();
        return (TierStep { tier, outcome, passed_over, selecting: steps }, None);
    }
    let hit = steps.iter().find_map(|step| {
        let index = step.rules.iter().position(|rule| rule.matched)?;
        Some((format!("{}#{index}", step.policy), step.rules[index].field.clone(), step.policy.clone()))
    });
    let (verdict, reason, policies, summary) = match hit {
        Some((reference, field, policy)) => {
            let summary = format!("{field} of {policy} allows it");
            (Verdict::Allow, Reason::RuleMatched, vec![reference], summary)
        }
        None => {
            let policies: Vec<String> = steps.iter().map(|step| step.policy.clone()).collect();
            let summary = format!("isolated for {way}, and no rule allows it");
            (Verdict::Deny, Reason::NoRuleMatched, policies, summary)
        }
    };
    let side = Side {
        verdict: verdict.as_str(),
        tier: Some(tier),
        policies,
        reason: reason.as_str(),
        summary: summary.clone(),
        tiers: Vec::new(),
    };
    (TierStep { tier, outcome: summary, passed_over, selecting: steps }, Some(side))
}

/// A policy as decisions name it.
pub(super) fn policy_name(policy: &NetworkPolicy) -> String {
    format!("NetworkPolicy/{}/{}", policy.namespace, policy.name)
}

fn rule_step(
    policy: &NetworkPolicy,
    rule: &Rule,
    index: usize,
    connection: &Connection,
    direction: Direction,
) -> RuleStep {
    let peers = peer_tests(policy, rule, connection, direction);
    let ports = port_tests(rule, connection);
    RuleStep {
        name: None,
        field: format!("spec.{}[{index}]", direction.as_str()),
        action: "Allow",
        matched: any(&peers) && any(&ports),
        peers,
        ports,
    }
}

fn any(tests: &[Test]) -> bool {
    tests.iter().any(|test| test.matched)
}

/// One test for each peer; one that matches when the rule has no peers.
pub(super) fn peer_tests(
    policy: &NetworkPolicy,
    rule: &Rule,
    connection: &Connection,
    direction: Direction,
) -> Vec<Test> {
    let key = direction.peers();
    let party = match direction {
        Direction::Egress => &connection.destination,
        Direction::Ingress => &connection.source,
    };
    let Some(peers) = &rule.peers else {
        return vec![Test { field: key.to_owned(), matched: true, why: "any peer".to_owned() }];
    };
    let test = |(index, peer)| {
        let (matched, why) = why::peer(peer, &policy.namespace, party);
        Test { field: format!("{key}[{index}]"), matched, why }
    };
    peers.iter().enumerate().map(test).collect()
}

/// One test for each port; one that matches when the rule has no ports.
pub(super) fn port_tests(rule: &Rule, connection: &Connection) -> Vec<Test> {
    let Some(ports) = &rule.ports else {
        return vec![Test { field: "ports".to_owned(), matched: true, why: "any port".to_owned() }];
    };
    let test = |(index, port)| {
        let (matched, why) = why::port(port, connection);
        Test { field: format!("ports[{index}]"), matched, why }
    };
    ports.iter().enumerate().map(test).collect()
}

/// True when every requirement holds.
pub(super) fn holds(selector: &crate::objects::Selector, labels: &Labels) -> bool {
    misses(selector, labels).is_empty()
}
