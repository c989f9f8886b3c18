//! Whom a policy selects, and rules that it does not follow.

use super::Findings;
use super::known::{Known, name};
use crate::objects::{NetworkPolicy, Phase, Pod};

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.policies() {
        selects_nobody(known, policy, findings);
        dead_rules(known, policy, findings);
    }
}

/// Namespaces that every cluster has and nobody declares.
const OWN_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// One for certain pods misses them, and so does one for every pod of a namespace that has none, or that is not
/// there at all.
fn selects_nobody(known: &Known<'_>, policy: &NetworkPolicy, findings: &mut Findings<'_>) {
    if known.selected(policy).next().is_some() {
        return;
    }
    let namespace = &policy.namespace;
    let in_namespace = known.pods.iter().any(|pod| pod.namespace == *namespace);
    let declared = &known.objects.namespaces;
    if !in_namespace
        && !declared.is_empty()
        && !declared.iter().any(|one| one.name == *namespace)
        && !OWN_NAMESPACES.contains(&namespace.as_str())
    {
        let message =
            format!("selects no pod: the manifests declare namespaces, and {namespace} is none of them");
        findings.report("selects-no-pod", &name(policy), "metadata.namespace", message);
        return;
    }
    if known.pods.is_empty() || !(in_namespace || known.is_cluster) {
        return;
    }
    let of_host = |pod: &Pod| {
        pod.host_network
            && pod.phase != Phase::Finished
            && pod.namespace == *namespace
            && policy.pod_selector.matches(&pod.labels)
    };
    let message = if known.objects.pods.iter().any(of_host) {
        "selects hostNetwork pods only, and policies do not apply to those".to_owned()
    } else if in_namespace {
        format!("selects no pod of namespace {namespace}")
    } else {
        format!("selects no pod: namespace {namespace} has none")
    };
    findings.report("selects-no-pod", &name(policy), "spec.podSelector", message);
}

/// Rules of a direction that `policyTypes` leaves out do nothing.
fn dead_rules(known: &Known<'_>, policy: &NetworkPolicy, findings: &mut Findings<'_>) {
    let Some(place) = known.places.of(&name(policy)) else { return };
    for (key, kind, isolates) in
        [("ingress", "Ingress", policy.ingress.is_some()), ("egress", "Egress", policy.egress.is_some())]
    {
        if !isolates && place.rules(key) > 0 {
            let message = format!("has no effect: policyTypes does not list {kind}");
            findings.report("dead-rules", &name(policy), &format!("spec.{key}"), message);
        }
    }
}
