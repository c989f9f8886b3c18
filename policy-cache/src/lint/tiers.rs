//! Policies of the Admin and Baseline tier: whom they speak about, and which NetworkPolicies they silence.

use super::Findings;
use super::known::{Known, includes, name, tier_name, tier_ways, ways};
use super::peers::contradiction;
use crate::objects::{
    Action, NetworkPolicy, Peer, Pod, PodsIn, Rule, Selector, TierPeer, TierPolicy, TierRule,
};

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.tiers() {
        selects_nobody(known, policy, findings);
        no_rules(policy, findings);
    }
    for policy in known.policies() {
        for way in ways(policy) {
            for (index, rule) in way.rules.iter().enumerate() {
                if let Some(above) = shadow(known, policy, rule, way.key) {
                    let message = format!("never decides: {above} comes first and denies all that it allows");
                    findings.report(
                        "shadowed",
                        &name(policy),
                        &format!("spec.{}[{index}]", way.key),
                        message,
                    );
                }
            }
        }
    }
}

/// That nobody is there is concluded only from what looks like a whole cluster: these policies are the cluster's.
fn selects_nobody(known: &Known<'_>, policy: &TierPolicy, findings: &mut Findings<'_>) {
    let PodsIn { namespaces, pods } = &policy.subject;
    if let Some(key) = contradiction(namespaces).or(contradiction(pods)) {
        let message = format!("can never match: its requirements on {key} exclude each other");
        findings.report("never-matches", &tier_name(policy), "spec.subject", message);
        return;
    }
    let everything = namespaces.is_everything() && pods.is_everything();
    if !known.is_cluster || everything || known.pods_of(&policy.subject).next().is_some() {
        return;
    }
    let host = |pod: &Pod| pod.host_network && known.speaks_about(&policy.subject, pod);
    let message = if known.objects.pods.iter().any(host) {
        "selects hostNetwork pods only, and policies do not apply to those"
    } else {
        "selects no pod"
    };
    findings.report("selects-no-pod", &tier_name(policy), "spec.subject", message.to_owned());
}

/// A NetworkPolicy without rules closes its pods, and these policies do not.
fn no_rules(policy: &TierPolicy, findings: &mut Findings<'_>) {
    if tier_ways(policy).iter().all(|way| way.rules.is_empty()) {
        let message =
            "has no rules, and so no effect: a policy of this kind isolates nobody by itself".to_owned();
        findings.report("no-rules", &tier_name(policy), "spec", message);
    }
}

/// The rule of the Admin tier that denies everything a NetworkPolicy's rule allows, for every pod it selects.
///
/// The first rule that has any say about these pods must be that one: what stands before it may let a part
/// through.
fn shadow(known: &Known<'_>, policy: &NetworkPolicy, rule: &Rule, key: &str) -> Option<String> {
    let selected: Vec<&Pod> = known.selected(policy).collect();
    if selected.is_empty() {
        return None;
    }
    let admin = known.objects.tiers.iter().filter(|above| above.tier == flow::Tier::Admin);
    for above in admin {
        let subjects = selected.iter().filter(|pod| known.speaks_about(&above.subject, pod)).count();
        if subjects == 0 {
            continue;
        }
        let rules = if key == "ingress" { &above.ingress } else { &above.egress };
        if let Some(one) = rules.first() {
            let denies_all = one.action == Action::Deny && one.ports.is_none() && covers(one, rule, policy);
            return (subjects == selected.len() && denies_all)
                .then(|| format!("spec.{key}[0] of {}", tier_name(above)));
        }
    }
    None
}

/// True when whatever the rule's peers match, some peer of the one above matches too, whatever pods there are.
fn covers(above: &TierRule, rule: &Rule, policy: &NetworkPolicy) -> bool {
    let Some(peers) = &rule.peers else { return false };
    peers.iter().all(|peer| above.peers.iter().any(|one| peer_covers(one, peer, policy)))
}

fn peer_covers(above: &TierPeer, peer: &Peer, policy: &NetworkPolicy) -> bool {
    match (above, peer) {
        (TierPeer::Networks(networks), Peer::Block { cidr, .. }) => {
            networks.iter().any(|network| network.contains(cidr))
        }
        (TierPeer::Pods(PodsIn { namespaces, pods }), Peer::Pods { namespaces: own, pods: own_pods }) => {
            let namespace_covered = match own {
                Some(own) => includes(namespaces, own),
                None => namespaces.is_everything() || is_namespace(namespaces, &policy.namespace),
            };
            namespace_covered && includes(pods, own_pods.as_ref().unwrap_or(&Selector::default()))
        }
        _ => false,
    }
}

/// Selects this namespace by its name and asks for nothing else.
fn is_namespace(selector: &Selector, name: &str) -> bool {
    let labels = [(super::known::NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())].into();
    selector.requirements.iter().all(|one| one.key == super::known::NAMESPACE_NAME_LABEL)
        && selector.matches(&labels)
}
