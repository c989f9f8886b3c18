//! A connection and the policies of the Admin or the Baseline tier → what the tier says, each step with its
//! reason. Shares no code with `decide`.

use flow::{Reason, Tier, Verdict};

use super::evaluate::{Connection, Party, World, holds};
use super::why::{self, Reasoned, misses};
use super::{Direction, PolicyStep, RuleStep, Side, Test, TierStep};
use crate::objects::{Action, Pod, PodsIn, TierPeer, TierPolicy, TierPort, TierRule};

/// The rule that decides a tier, by the places of its policy and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decider {
    pub(super) policy: usize,
    pub(super) rule: usize,
}

/// What the tier says, and the side as it decides it, unless it leaves it to the next.
pub(super) fn evaluate(
    world: &World,
    connection: &Connection,
    direction: Direction,
    tier: Tier,
) -> (TierStep, Option<Side>) {
    let mut selecting = Vec::new();
    let mut decided = None;
    let mut outcome = "no rule of it matches".to_owned();
    for (_, policy) in selected(world, connection, direction, tier) {
        let mut step = PolicyStep { policy: name(policy), selects: subject(policy), rules: Vec::new() };
        for (index, rule) in rules(policy, direction).iter().enumerate() {
            let (tested, effect) = test(world, policy, rule, index, connection, direction);
            let field = tested.field.clone();
            step.rules.push(tested);
            let Some(effect) = effect else { continue };
            let policy = name(policy);
            let rule_name = quoted_name(rule.name.as_deref());
            outcome = format!("{field}{rule_name} of {policy} {}", told(effect, rule.action));
            decided = Some((effect, format!("{policy}#{index}")));
            break;
        }
        selecting.push(step);
        if decided.is_some() {
            break;
        }
    }
    let in_tier = world.tiers.iter().filter(|policy| policy.tier == tier).count();
    let asked = selected(world, connection, direction, tier).count();
    if selecting.is_empty() {
        outcome = "no policy of it speaks about the pod".to_owned();
    }
    let side = decided.and_then(|(effect, reference)| {
        let verdict = match effect {
            Action::Accept => Verdict::Allow,
            Action::Deny => Verdict::Deny,
            Action::Pass => return None,
        };
        Some(Side {
            verdict: verdict.as_str(),
            tier: Some(tier.as_str()),
            policies: vec![reference],
            reason: Reason::RuleMatched.as_str(),
            summary: outcome.clone(),
            tiers: Vec::new(),
        })
    });
    (TierStep { tier: tier.as_str(), outcome, passed_over: in_tier - asked, selecting }, side)
}

/// The rule that ends a tier by an Accept or a Deny.
pub(super) fn decider(
    world: &World,
    connection: &Connection,
    direction: Direction,
    tier: Tier,
) -> Option<Decider> {
    for (place, policy) in selected(world, connection, direction, tier) {
        for (index, rule) in rules(policy, direction).iter().enumerate() {
            match test(world, policy, rule, index, connection, direction).1 {
                Some(Action::Pass) => return None,
                Some(_) => return Some(Decider { policy: place, rule: index }),
                None => {}
            }
        }
    }
    None
}

/// The policies of a tier whose subject the pod is, with rules in the direction.
fn selected<'w>(
    world: &'w World,
    connection: &'w Connection,
    direction: Direction,
    tier: Tier,
) -> impl Iterator<Item = (usize, &'w TierPolicy)> {
    let own = match direction {
        Direction::Egress => &connection.source,
        Direction::Ingress => &connection.destination,
    };
    world.tiers.iter().enumerate().filter_map(move |(place, policy)| {
        let speaks = policy.tier == tier
            && !rules(policy, direction).is_empty()
            && own.pod.as_ref().is_some_and(|pod| pods(&policy.subject, own, pod).0);
        speaks.then_some((place, &**policy))
    })
}

/// The rules of a direction.
pub(super) fn rules(policy: &TierPolicy, direction: Direction) -> &[TierRule] {
    match direction {
        Direction::Egress => &policy.egress,
        Direction::Ingress => &policy.ingress,
    }
}

/// A policy as decisions name it.
pub(super) fn name(policy: &TierPolicy) -> String {
    format!("{}/{}", policy.kind.as_str(), policy.name)
}

fn subject(policy: &TierPolicy) -> String {
    let PodsIn { namespaces, pods } = &policy.subject;
    let priority = policy.priority.map(|priority| format!("priority {priority}, ")).unwrap_or_default();
    let text = why::selector_text;
    format!("{priority}subject: namespaces {}, pods {}", text(namespaces), text(pods))
}

fn told(effect: Action, written: Action) -> &'static str {
    match (effect, written) {
        (Action::Deny, Action::Pass) => "denies it: a Pass with a peer that is not understood fails closed",
        (Action::Deny, _) => "denies it",
        (Action::Accept, _) => "allows it",
        (Action::Pass, _) => "passes it on to the next tier",
    }
}

/// A rule's name as it follows its place.
pub(super) fn quoted_name(name: Option<&str>) -> String {
    name.map(|name| format!(" ({name:?})")).unwrap_or_default()
}

/// An action as the policy's kind spells it.
pub(super) fn action_text(policy: &TierPolicy, action: Action) -> &'static str {
    match action {
        Action::Accept if policy.kind == flow::PolicyKind::ClusterNetworkPolicy => "Accept",
        Action::Accept => "Allow",
        Action::Deny => "Deny",
        Action::Pass => "Pass",
    }
}

/// A rule, and what it does when it matches.
fn test(
    world: &World,
    policy: &TierPolicy,
    rule: &TierRule,
    index: usize,
    connection: &Connection,
    direction: Direction,
) -> (RuleStep, Option<Action>) {
    let field = format!("spec.{}[{index}]", direction.as_str());
    let (name, action) = (rule.name.clone(), action_text(policy, rule.action));
    if let Some(why) = not_understood(rule) {
        let closed = rule.action != Action::Accept;
        let peers = vec![Test { field: direction.peers().to_owned(), matched: closed, why }];
        let step = RuleStep { field, name, action, matched: closed, peers, ports: Vec::new() };
        return (step, closed.then_some(Action::Deny));
    }
    let other = match direction {
        Direction::Egress => &connection.destination,
        Direction::Ingress => &connection.source,
    };
    let tests = |key: &str, reasons: Vec<Reasoned>| -> Vec<Test> {
        let test = |(index, (matched, why))| Test { field: format!("{key}[{index}]"), matched, why };
        reasons.into_iter().enumerate().map(test).collect()
    };
    let peers = tests(direction.peers(), rule.peers.iter().map(|one| peer(world, one, other)).collect());
    let key = ports_key(policy);
    let ports = match &rule.ports {
        None => vec![Test { field: key.to_owned(), matched: true, why: "any port".to_owned() }],
        Some(ports) => tests(key, ports.iter().map(|one| port(one, connection)).collect()),
    };
    let matched = peers.iter().any(|test| test.matched) && ports.iter().any(|test| test.matched);
    (RuleStep { field, name, action, matched, peers, ports }, matched.then_some(rule.action))
}

/// The field of a rule's ports.
pub(super) fn ports_key(policy: &TierPolicy) -> &'static str {
    if policy.kind == flow::PolicyKind::ClusterNetworkPolicy { "protocols" } else { "ports" }
}

/// Why a rule fails closed, when it does.
fn not_understood(rule: &TierRule) -> Option<String> {
    let effect = match rule.action {
        Action::Accept => "the rule matches nothing",
        Action::Deny | Action::Pass => "the rule denies everything",
    };
    let unknown = rule.peers.contains(&TierPeer::Unknown);
    let names = || rule.peers.iter().any(|peer| matches!(peer, TierPeer::Domains(_)));
    if unknown {
        return Some(format!("a peer of it is not understood, so {effect}"));
    }
    (rule.action != Action::Accept && names())
        .then(|| format!("domainNames can only be accepted, so {effect}"))
}

fn peer(world: &World, peer: &TierPeer, party: &Party) -> Reasoned {
    let ip = party.ip;
    match peer {
        TierPeer::Pods(selectors) => match &party.pod {
            Some(pod) => pods(selectors, party, pod),
            None => (false, format!("selectors match pods only, and {ip} is {}", party.name)),
        },
        TierPeer::Nodes(selector) => match &party.node_labels {
            None => (false, format!("nodes matches nodes' addresses only, and {ip} is {}", party.name)),
            Some(labels) => {
                let misses = misses(selector, labels);
                let told = if misses.is_empty() { "matches".to_owned() } else { misses.join(" and ") };
                (misses.is_empty(), format!("nodes {told}"))
            }
        },
        TierPeer::Networks(networks) => match networks.iter().find(|network| network.contains(&ip)) {
            Some(network) => (true, format!("networks {network} contains {ip}")),
            None => (false, format!("none of its {} networks contains {ip}", networks.len())),
        },
        TierPeer::Domains(patterns) => {
            let behind = |pattern: &&String| {
                world
                    .domains
                    .iter()
                    .any(|(name, addresses)| is_below(pattern, name) && addresses.contains(&ip))
            };
            match patterns.iter().find(behind) {
                Some(pattern) => (true, format!("domainNames {pattern} is known to be {ip}")),
                None => (false, format!("{ip} is not known to be behind any of its domainNames")),
            }
        }
        TierPeer::Unknown => (false, "not understood".to_owned()),
    }
}

/// `*.` stands for one label or more.
fn is_below(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(ending) => name.len() > ending.len() && name.ends_with(ending),
        None => pattern == name,
    }
}

fn pods(selectors: &PodsIn, party: &Party, pod: &Pod) -> Reasoned {
    let parts = [
        ("namespaceSelector", &selectors.namespaces, &party.namespace_labels),
        ("podSelector", &selectors.pods, &pod.labels),
    ];
    let matched = parts.iter().all(|(_, selector, labels)| holds(selector, labels));
    let told = parts.map(|(name, selector, labels)| match misses(selector, labels) {
        misses if misses.is_empty() => format!("{name} matches"),
        misses => format!("{name} {}", misses.join(" and ")),
    });
    (matched, told.join(", "))
}

fn port(port: &TierPort, connection: &Connection) -> Reasoned {
    let dialled = format!("{}/{}", connection.port, connection.protocol);
    match port {
        TierPort::Range { protocol, low, high } => {
            let own =
                if low == high { format!("{low}/{protocol}") } else { format!("{low}-{high}/{protocol}") };
            let matched =
                *protocol == connection.protocol && *low <= connection.port && connection.port <= *high;
            (
                matched,
                if matched { format!("{own} includes {dialled}") } else { format!("{own} is not {dialled}") },
            )
        }
        TierPort::Named(name) => {
            let Some(pod) = &connection.destination.pod else {
                return (
                    false,
                    format!("named port {name} is looked up on the destination, which is no pod"),
                );
            };
            let matched = pod.named_ports.iter().any(|own| {
                own.name == *name && own.number == connection.port && own.protocol == connection.protocol
            });
            let whole = format!("{}/{}", pod.namespace, pod.name);
            (
                matched,
                format!("named port {name} {} {dialled} on {whole}", if matched { "is" } else { "is not" }),
            )
        }
    }
}
