//! Rules of the Admin and Baseline tiers: peers that match nobody or name pods by address, ports that nobody has.

use super::Findings;
use super::known::{Known, TierWay, tier_name, tier_ways};
use super::peers::{contradiction, pods_inside};
use super::ports::{Targets, mistaken};
use crate::objects::{Action, Numbers, PodsIn, Port, Selector, TierPeer, TierPolicy, TierPort, TierRule};

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.tiers() {
        for way in tier_ways(policy) {
            for (index, rule) in way.rules.iter().enumerate() {
                let field = format!("spec.{}[{index}]", way.key);
                for (number, one) in rule.peers.iter().enumerate() {
                    peer(known, policy, rule, one, &format!("{field}.{}[{number}]", way.peers), findings);
                }
                ports(known, policy, way, rule, &field, findings);
            }
        }
    }
}

fn peer(
    known: &Known<'_>,
    policy: &TierPolicy,
    rule: &TierRule,
    peer: &TierPeer,
    field: &str,
    findings: &mut Findings<'_>,
) {
    let mut report = |check, field: &str, message: String| {
        findings.report(check, &tier_name(policy), field, message);
    };
    match peer {
        TierPeer::Pods(selectors) => {
            let written = known.places.of(&tier_name(policy));
            let as_pods = written.is_some_and(|place| place.has(&format!("{field}.pods")));
            if let Some((part, message)) = matches_nobody(known, selectors) {
                let part = match (as_pods, part) {
                    (true, part) => format!("pods.{part}"),
                    (false, _) => "namespaces".to_owned(),
                };
                report("never-matches", &format!("{field}.{part}"), message);
            }
        }
        TierPeer::Nodes(selector) => {
            if let Some(message) = matches_no_node(known, selector) {
                report("never-matches", &format!("{field}.nodes"), message);
            }
        }
        TierPeer::Networks(networks) => {
            // A network of every address means everybody, pods included.
            for (number, network) in networks.iter().enumerate().filter(|(_, one)| one.prefix_len() > 0) {
                if let Some(whose) = pods_inside(known, network, &[]) {
                    let message =
                        format!("{network} {whose}: name pods by selectors, their addresses change");
                    report("block-over-pods", &format!("{field}.networks[{number}]"), message);
                }
            }
        }
        TierPeer::Domains(_) => {
            let effect = match rule.action {
                Action::Accept => {
                    "nobody says yet which addresses a name stands for, so this peer matches nothing"
                }
                Action::Deny | Action::Pass => "names can only be accepted, so the rule denies everything",
            };
            report("domain-names", &format!("{field}.domainNames"), effect.to_owned());
        }
        TierPeer::Unknown => {
            let effect = match rule.action {
                Action::Accept => "the rule accepts nothing",
                Action::Deny | Action::Pass => "the rule denies everything",
            };
            report("unknown-peer", field, format!("is no kind of peer that is known here, so {effect}"));
        }
    }
}

/// The selector that matches nothing, and why. That nobody is there is concluded only from a whole cluster.
fn matches_nobody(known: &Known<'_>, selectors: &PodsIn) -> Option<(&'static str, String)> {
    let PodsIn { namespaces, pods } = selectors;
    for (part, selector) in [("namespaceSelector", namespaces), ("podSelector", pods)] {
        if let Some(key) = contradiction(selector) {
            return Some((part, format!("can never match: its requirements on {key} exclude each other")));
        }
    }
    if !known.is_cluster {
        return None;
    }
    if known.namespaces(namespaces).is_empty() {
        return Some(("namespaceSelector", "matches no namespace".to_owned()));
    }
    let anybody = PodsIn { namespaces: namespaces.clone(), pods: Selector::default() };
    let misses_all = known.pods_of(&anybody).next().is_some() && known.pods_of(selectors).next().is_none();
    misses_all.then(|| ("podSelector", "matches no pod of the namespaces that are meant".to_owned()))
}

fn matches_no_node(known: &Known<'_>, selector: &Selector) -> Option<String> {
    if let Some(key) = contradiction(selector) {
        return Some(format!("can never match: its requirements on {key} exclude each other"));
    }
    let nodes = &known.objects.nodes;
    let misses_all =
        known.is_cluster && !nodes.is_empty() && !nodes.iter().any(|node| selector.matches(&node.labels));
    misses_all.then(|| "matches no node".to_owned())
}

fn ports(
    known: &Known<'_>,
    policy: &TierPolicy,
    way: TierWay<'_>,
    rule: &TierRule,
    field: &str,
    findings: &mut Findings<'_>,
) {
    let Some(ports) = &rule.ports else { return };
    let Some(targets) = targets(known, policy, way, rule) else { return };
    let name = tier_name(policy);
    // ClusterNetworkPolicies say `protocols`, the older kinds `ports`.
    let key = if known.places.of(&name).is_some_and(|place| place.has(&format!("{field}.protocols"))) {
        "protocols"
    } else {
        "ports"
    };
    let plain: Vec<Port> = ports.iter().flat_map(plain).collect();
    for (index, port) in ports.iter().enumerate() {
        let found = match port {
            TierPort::Named(named) => {
                let targets = (targets.list)();
                let mut declared = targets.iter().flat_map(|pod| &pod.named_ports);
                (!targets.is_empty() && !declared.any(|own| own.name == *named)).then(|| {
                    let message = format!("can never match: no pod it may lead to has a port named {named}");
                    ("unknown-port-name", message)
                })
            }
            TierPort::Range { protocol, low, high } if low == high => {
                let own = Port { protocol: *protocol, numbers: Numbers::Range(*low, *high) };
                mistaken(known, &targets, &plain, &own, *low).map(|message| ("service-port", message))
            }
            TierPort::Range { .. } => None,
        };
        if let Some((check, message)) = found {
            findings.report(check, &name, &format!("{field}.{key}[{index}]"), message);
        }
    }
}

/// The pods a rule leads to, when all of them can be known.
fn targets<'k>(
    known: &'k Known<'_>,
    policy: &'k TierPolicy,
    way: TierWay<'k>,
    rule: &'k TierRule,
) -> Option<Targets<'k>> {
    if !known.is_cluster {
        return None;
    }
    let selectors: Vec<&PodsIn> = if way.key == "ingress" {
        vec![&policy.subject]
    } else {
        let pods = |peer: &'k TierPeer| match peer {
            TierPeer::Pods(selectors) => Some(selectors),
            _ => None,
        };
        rule.peers.iter().map(pods).collect::<Option<_>>()?
    };
    let listed = selectors.clone();
    Some(Targets {
        includes: Box::new(move |pod| selectors.iter().any(|one| known.speaks_about(one, pod))),
        list: Box::new(move || listed.iter().flat_map(|one| known.pods_of(one)).collect()),
    })
}

/// A port as NetworkPolicies have them. A name counts for every protocol.
fn plain(port: &TierPort) -> Vec<Port> {
    use flow::Protocol::{Sctp, Tcp, Udp};
    match port {
        TierPort::Range { protocol, low, high } => {
            vec![Port { protocol: *protocol, numbers: Numbers::Range(*low, *high) }]
        }
        TierPort::Named(name) => {
            [Tcp, Udp, Sctp].map(|protocol| Port { protocol, numbers: Numbers::Named(name.clone()) }).into()
        }
    }
}
