//! Peers of rules that match nobody, match more than meant, or name pods by address.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Findings;
use super::known::{Known, Way, is_inside, name, ways};
use crate::objects::{NetworkPolicy, Operator, Peer, Pod, Requirement, Selector};

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.policies() {
        if let Some(key) = contradiction(&policy.pod_selector) {
            let message = format!("can never match: its requirements on {key} exclude each other");
            findings.report("never-matches", &name(policy), "spec.podSelector", message);
        }
        for way in ways(policy) {
            for (index, rule) in way.rules.iter().enumerate() {
                let peers = rule.peers.as_deref().unwrap_or_default();
                let field = format!("spec.{}[{index}].{}", way.key, way.peers);
                for (number, peer) in peers.iter().enumerate() {
                    one(known, policy, peer, &format!("{field}[{number}]"), findings);
                }
                and_as_or(known, policy, peers, way, &field, findings);
            }
        }
    }
}

fn one(known: &Known<'_>, policy: &NetworkPolicy, peer: &Peer, field: &str, findings: &mut Findings<'_>) {
    match peer {
        Peer::Block { .. } => block_over_pods(known, policy, peer, field, findings),
        Peer::Pods { namespaces, pods } => {
            let parts = [("namespaceSelector", namespaces), ("podSelector", pods)];
            for (part, selector) in parts.into_iter().filter_map(|(part, one)| Some((part, one.as_ref()?))) {
                if let Some(key) = contradiction(selector) {
                    let message = format!("can never match: its requirements on {key} exclude each other");
                    findings.report("never-matches", &name(policy), &format!("{field}.{part}"), message);
                    return;
                }
            }
            matches_nobody(known, policy, peer, field, findings);
        }
    }
}

/// Concluded only from what looks like a whole cluster: the peers of one application's manifests are often
/// described elsewhere.
fn matches_nobody(
    known: &Known<'_>,
    policy: &NetworkPolicy,
    peer: &Peer,
    field: &str,
    findings: &mut Findings<'_>,
) {
    let Peer::Pods { namespaces, pods } = peer else { return };
    if !known.is_cluster {
        return;
    }
    if let Some(namespaces) = namespaces
        && known.namespaces(namespaces).is_empty()
    {
        let message = "matches no namespace".to_owned();
        findings.report("never-matches", &name(policy), &format!("{field}.namespaceSelector"), message);
        return;
    }
    let anywhere = Peer::Pods { namespaces: namespaces.clone(), pods: None };
    let has_pods = !known.matched_by(&anywhere, &policy.namespace).is_empty();
    if pods.is_some() && has_pods && known.matched_by(peer, &policy.namespace).is_empty() {
        let whose = if namespaces.is_some() {
            "the namespaces that namespaceSelector matches".to_owned()
        } else {
            format!("namespace {}, which is meant without a namespaceSelector", policy.namespace)
        };
        let message = format!("matches no pod of {whose}");
        findings.report("never-matches", &name(policy), &format!("{field}.podSelector"), message);
    }
}

/// Blocks are meant for addresses outside the cluster: pods get new addresses, and what a block sees after
/// translation differs between implementations. A block of every address means everybody, pods included.
fn block_over_pods(
    known: &Known<'_>,
    policy: &NetworkPolicy,
    peer: &Peer,
    field: &str,
    findings: &mut Findings<'_>,
) {
    let Peer::Block { cidr, except } = peer else { return };
    if cidr.prefix_len() == 0 {
        return;
    }
    let Some(whose) = pods_inside(known, cidr, except) else { return };
    let message = format!("{cidr} {whose}: name pods by selectors, their addresses change");
    findings.report("block-over-pods", &name(policy), &format!("{field}.ipBlock"), message);
}

/// Whose pods' addresses are inside a range.
pub(super) fn pods_inside(known: &Known<'_>, cidr: &IpNet, except: &[IpNet]) -> Option<String> {
    let inside = |pod: &&Pod| is_inside(pod, cidr, except);
    if let Some(Pod { namespace, name, .. }) = known.pods.iter().find(inside) {
        return Some(format!("contains pod {namespace}/{name}"));
    }
    let mut ranges = known.objects.nodes.iter().flat_map(|node| &node.pod_cidrs);
    let overlaps = |range: &&IpNet| {
        (cidr.contains(*range) || range.contains(cidr)) && !except.iter().any(|one| one.contains(*range))
    };
    ranges.find(overlaps).map(|range| format!("overlaps the pod range {range}"))
}

/// Two items of which one has only a namespaceSelector and the next only a podSelector: either is enough.
/// The same without the second dash would ask for both.
fn and_as_or(
    known: &Known<'_>,
    policy: &NetworkPolicy,
    peers: &[Peer],
    way: Way<'_>,
    field: &str,
    findings: &mut Findings<'_>,
) {
    for (index, pair) in peers.windows(2).enumerate() {
        let (namespaces, pods) = match pair {
            [
                Peer::Pods { namespaces: Some(namespaces), pods: None },
                Peer::Pods { namespaces: None, pods: Some(pods) },
            ]
            | [
                Peer::Pods { namespaces: None, pods: Some(pods) },
                Peer::Pods { namespaces: Some(namespaces), pods: None },
            ] => (namespaces, pods),
            _ => continue,
        };
        // Every pod of the own namespace is a peer of its own right.
        if pods.is_everything() {
            continue;
        }
        let both = Peer::Pods { namespaces: Some(namespaces.clone()), pods: Some(pods.clone()) };
        let own = Peer::Pods { namespaces: None, pods: Some(pods.clone()) };
        let found = |peer: &Peer| !known.matched_by(peer, &policy.namespace).is_empty();
        // Pods of the own namespace that match, and none elsewhere that would: it is as it should be.
        if found(&own) && !found(&both) {
            continue;
        }
        let message = format!(
            "means either: every pod of those namespaces, and pods of {} that the podSelector matches; for both at once, put the two selectors into one item of `{}`",
            policy.namespace, way.peers
        );
        findings.report("and-as-or", &name(policy), &format!("{field}[{}]", index + 1), message);
    }
}

/// The key whose requirements no label can meet all at once.
pub(super) fn contradiction(selector: &Selector) -> Option<&str> {
    let mut by_key: BTreeMap<&str, Vec<&Requirement>> = BTreeMap::new();
    for one in &selector.requirements {
        by_key.entry(&one.key).or_default().push(one);
    }
    let excludes_all = |own: &[&Requirement]| {
        let holds = |value: Option<&String>| {
            own.iter().all(|one| match (&one.operator, value) {
                (Operator::In(values), value) => value.is_some_and(|value| values.contains(value)),
                (Operator::NotIn(values), value) => value.is_none_or(|value| !values.contains(value)),
                (Operator::Exists, value) => value.is_some(),
                (Operator::DoesNotExist, value) => value.is_none(),
            })
        };
        let wanted: BTreeSet<&String> = own
            .iter()
            .filter_map(|one| match &one.operator {
                Operator::In(values) => Some(values),
                _ => None,
            })
            .flatten()
            .collect();
        let other = "\0".to_owned();
        !holds(None) && !holds(Some(&other)) && !wanted.iter().any(|value| holds(Some(value)))
    };
    by_key.into_iter().find(|(_, own)| excludes_all(own)).map(|(key, _)| key)
}
