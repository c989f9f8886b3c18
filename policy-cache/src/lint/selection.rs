//! Whom a policy selects, and what isolating them cuts.

use flow::Protocol;

use super::Findings;
use super::known::{Known, name};
use crate::objects::{NetworkPolicy, Numbers, Phase, Pod, Rule, Selector};

/// The port of DNS, which every cluster serves over UDP.
const DNS_PORT: u16 = 53;

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.policies() {
        selects_nobody(known, policy, findings);
        dead_rules(known, policy, findings);
        cuts_dns(known, policy, findings);
    }
}

/// A policy for every pod of a namespace waits for pods; one for certain pods misses them.
fn selects_nobody(known: &Known<'_>, policy: &NetworkPolicy, findings: &mut Findings<'_>) {
    if known.pods.is_empty() || policy.pod_selector.is_everything() || known.selected(policy).next().is_some()
    {
        return;
    }
    let in_namespace = known.pods.iter().any(|pod| pod.namespace == policy.namespace);
    if !in_namespace && !known.is_cluster {
        return;
    }
    let namespace = &policy.namespace;
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

/// Who is closed on purpose has no egress rule at all. Who may go somewhere will ask for its address.
fn cuts_dns(known: &Known<'_>, policy: &NetworkPolicy, findings: &mut Findings<'_>) {
    let Some(rules) = policy.egress.as_deref() else { return };
    if rules.is_empty() || allows_dns(policy) {
        return;
    }
    let others = || known.policies().filter(|other| other.namespace == policy.namespace && allows_dns(other));
    let pods: Vec<&Pod> = known.selected(policy).collect();
    let victim = pods.iter().find(|pod| !others().any(|other| other.pod_selector.matches(&pod.labels)));
    let message = match victim {
        Some(pod) => {
            format!("cuts DNS: no policy allows {}/{} to send to port 53/UDP", pod.namespace, pod.name)
        }
        None if pods.is_empty()
            && !others().any(|other| may_cover(&other.pod_selector, &policy.pod_selector)) =>
        {
            "cuts DNS: no policy allows the pods it selects to send to port 53/UDP".to_owned()
        }
        None => return,
    };
    findings.report("cuts-dns", &name(policy), "spec.egress", message);
}

fn allows_dns(policy: &NetworkPolicy) -> bool {
    policy.egress.iter().flatten().any(rule_allows_dns)
}

/// A named port may be that of DNS.
fn rule_allows_dns(rule: &Rule) -> bool {
    rule.ports.as_ref().is_none_or(|ports| {
        ports.iter().filter(|port| port.protocol == Protocol::Udp).any(|port| match &port.numbers {
            Numbers::Any | Numbers::Named(_) => true,
            Numbers::Range(low, high) => *low <= DNS_PORT && DNS_PORT <= *high,
        })
    })
}

/// True when whatever `narrow` selects, `wide` selects too.
fn may_cover(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements.iter().all(|requirement| narrow.requirements.contains(requirement))
}
