//! Ports of rules that no destination has: names nobody declares, and Services' ports.

use std::collections::BTreeSet;

use super::Findings;
use super::known::{Known, name, ways};
use crate::objects::{NetworkPolicy, Numbers, Pod, Port, Rule, Service, TargetPort};

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.policies() {
        for way in ways(policy) {
            for (index, rule) in way.rules.iter().enumerate() {
                let targets = match way.key {
                    "ingress" => known.selected(policy).collect(),
                    _ => egress_targets(known, policy, rule),
                };
                let ports = rule.ports.as_deref().unwrap_or_default();
                for (number, port) in ports.iter().enumerate() {
                    let field = format!("spec.{}[{index}].ports[{number}]", way.key);
                    if let Some((check, message)) = unserved(known, &targets, ports, port) {
                        findings.report(check, &name(policy), &field, message);
                    }
                }
            }
        }
    }
}

/// The pods a rule leads to, when all of them can be known.
fn egress_targets<'k>(known: &'k Known<'_>, policy: &'k NetworkPolicy, rule: &'k Rule) -> Vec<&'k Pod> {
    if !known.is_cluster {
        return Vec::new();
    }
    match &rule.peers {
        None => known.pods.iter().collect(),
        Some(peers) => peers.iter().flat_map(|peer| known.matched_by(peer, &policy.namespace)).collect(),
    }
}

fn unserved(
    known: &Known<'_>,
    targets: &[&Pod],
    ports: &[Port],
    port: &Port,
) -> Option<(&'static str, String)> {
    if targets.is_empty() {
        return None;
    }
    match &port.numbers {
        Numbers::Named(named) => {
            let declared =
                || targets.iter().flat_map(|pod| &pod.named_ports).filter(|own| own.name == *named);
            if declared().any(|own| own.protocol == port.protocol) {
                return None;
            }
            let message = match declared().next() {
                Some(own) => format!(
                    "can never match: {named} is {}/{} there, not {}",
                    own.number, own.protocol, port.protocol
                ),
                None => format!("can never match: no pod it may lead to has a port named {named}"),
            };
            Some(("unknown-port-name", message))
        }
        Numbers::Range(low, high) if low == high => {
            let (service, target) = service_port(known, targets, ports, port, *low)?;
            let whole = format!("{}/{}", service.namespace, service.name);
            let message = format!("{low} is a port of service {whole}; rules see the pods' port, {target}");
            Some(("service-port", message))
        }
        _ => None,
    }
}

/// The Service that has this port in front of these pods while none of them is seen to serve it, and what it
/// leads to. A rule that also names that is none.
fn service_port<'k>(
    known: &'k Known<'_>,
    targets: &[&Pod],
    ports: &[Port],
    port: &Port,
    number: u16,
) -> Option<(&'k Service, u16)> {
    let mut misled = None;
    let own =
        |pod: &Pod| pod.named_ports.iter().any(|own| own.number == number && own.protocol == port.protocol);
    if targets.iter().any(|pod| own(pod)) {
        return None;
    }
    for service in known.objects.services.iter().filter(|service| !service.selector.is_empty()) {
        let behind: Vec<&&Pod> = targets.iter().filter(|pod| is_behind(service, pod)).collect();
        for one in service.ports.iter().filter(|one| one.protocol == port.protocol) {
            let numbers: BTreeSet<u16> =
                behind.iter().filter_map(|pod| target(one.protocol, &one.target, pod)).collect();
            if numbers.contains(&number) {
                return None;
            }
            if one.port == number
                && let Some(target) =
                    numbers.into_iter().find(|target| !ports.iter().any(|own| covers(own, port, *target)))
            {
                misled = Some((service, target));
            }
        }
    }
    misled
}

fn is_behind(service: &Service, pod: &Pod) -> bool {
    pod.namespace == service.namespace
        && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn target(protocol: flow::Protocol, target: &TargetPort, pod: &Pod) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named(name) => {
            let own = |port: &&crate::objects::NamedPort| port.name == *name && port.protocol == protocol;
            pod.named_ports.iter().find(own).map(|port| port.number)
        }
    }
}

/// A port of the rule that lets the target through. A name may.
fn covers(own: &Port, port: &Port, target: u16) -> bool {
    own.protocol == port.protocol
        && match &own.numbers {
            Numbers::Any | Numbers::Named(_) => true,
            Numbers::Range(low, high) => *low <= target && target <= *high,
        }
}
