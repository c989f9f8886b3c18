//! A selector, peer or port and what it is held against → whether it matches, and the reason in words.

use flow::Protocol;

use super::evaluate::{Connection, Party};
use crate::objects::{Labels, Numbers, Operator, Peer, Port, Requirement, Selector};

/// Whether something matched, and why or why not.
pub(super) type Reasoned = (bool, String);

/// The requirements that do not hold, in words; empty when the selector matches.
pub(super) fn misses(selector: &Selector, labels: &Labels) -> Vec<String> {
    selector.requirements.iter().filter_map(|requirement| miss(requirement, labels)).collect()
}

fn miss(requirement: &Requirement, labels: &Labels) -> Option<String> {
    let key = &requirement.key;
    match (&requirement.operator, labels.get(key)) {
        (Operator::In(values), Some(value)) if values.contains(value) => None,
        (Operator::In(_), None) => Some(format!("lacks {}", requirement_text(requirement))),
        (Operator::In(_), Some(value)) => {
            Some(format!("lacks {} (it has {key}={value})", requirement_text(requirement)))
        }
        (Operator::NotIn(values), Some(value)) if values.contains(value) => {
            Some(format!("has {key}={value}, which {} excludes", requirement_text(requirement)))
        }
        (Operator::Exists, None) => Some(format!("lacks the label {key}")),
        (Operator::DoesNotExist, Some(value)) => {
            Some(format!("has {key}={value}, where the label must be absent"))
        }
        (Operator::NotIn(_), _) | (Operator::Exists, Some(_)) | (Operator::DoesNotExist, None) => None,
    }
}

/// A selector as kubectl writes one.
pub(super) fn selector_text(selector: &Selector) -> String {
    if selector.is_everything() {
        return "everything".to_owned();
    }
    selector.requirements.iter().map(requirement_text).collect::<Vec<_>>().join(",")
}

fn requirement_text(requirement: &Requirement) -> String {
    let key = &requirement.key;
    let list = |values: &std::collections::BTreeSet<String>| {
        values.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    match &requirement.operator {
        Operator::In(values) if values.len() == 1 => format!("{key}={}", list(values)),
        Operator::In(values) => format!("{key} in ({})", list(values)),
        Operator::NotIn(values) => format!("{key} notin ({})", list(values)),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

/// A peer of a rule against the other end.
pub(super) fn peer(peer: &Peer, policy_namespace: &str, party: &Party) -> Reasoned {
    match peer {
        Peer::Block { cidr, except } => {
            if !cidr.contains(&party.ip) {
                return (false, format!("ipBlock {cidr} does not contain {}", party.ip));
            }
            match except.iter().find(|range| range.contains(&party.ip)) {
                Some(range) => {
                    (false, format!("ipBlock {cidr} leaves out {range}, which contains {}", party.ip))
                }
                None => (true, format!("ipBlock {cidr} contains {}", party.ip)),
            }
        }
        Peer::Pods { namespaces, pods } => {
            let Some(pod) = &party.pod else {
                return (false, format!("selectors match pods only, and {} is {}", party.ip, party.name));
            };
            let mut parts = Vec::new();
            let mut matched = true;
            let mut part = |name: &str, misses: Vec<String>| {
                matched &= misses.is_empty();
                parts.push(if misses.is_empty() {
                    format!("{name} matches")
                } else {
                    format!("{name} {}", misses.join(" and "))
                });
            };
            match namespaces {
                Some(namespaces) => part("namespaceSelector", misses(namespaces, &party.namespace_labels)),
                None if pod.namespace == policy_namespace => {}
                None => {
                    let own = format!(
                        "means the policy's own namespace {policy_namespace}, the pod is in {}",
                        pod.namespace
                    );
                    part("podSelector without a namespaceSelector", vec![own]);
                }
            }
            if let Some(pods) = pods {
                part("podSelector", misses(pods, &pod.labels));
            }
            (matched, parts.join(", "))
        }
    }
}

/// A port of a rule against the port that is dialled on the destination.
pub(super) fn port(port: &Port, connection: &Connection) -> Reasoned {
    let wanted = (connection.port, connection.protocol);
    let dialled = format!("{}/{}", wanted.0, wanted.1);
    let own = port_text(port);
    match &port.numbers {
        Numbers::Any if port.protocol == wanted.1 => (true, format!("{own} includes {dialled}")),
        Numbers::Range(low, high) if port.protocol == wanted.1 && *low <= wanted.0 && wanted.0 <= *high => {
            (true, if low == high { format!("{own} matches") } else { format!("{own} includes {dialled}") })
        }
        Numbers::Range(low, high)
            if port.protocol == wanted.1
                && connection.service_port.is_some_and(|port| *low <= port && port <= *high) =>
        {
            (false, format!("{own} is the Service's port; rules see the pod's, {dialled}"))
        }
        Numbers::Any | Numbers::Range(..) => (false, format!("{own} is not {dialled}")),
        Numbers::Named(name) => named(name, port.protocol, connection),
    }
}

fn named(name: &str, protocol: Protocol, connection: &Connection) -> Reasoned {
    let dialled = format!("{}/{}", connection.port, connection.protocol);
    let Some(pod) = &connection.destination.pod else {
        return (false, format!("named port {name} is looked up on the destination, which is no pod"));
    };
    let whole = format!("{}/{}", pod.namespace, pod.name);
    let declared: Vec<_> = pod.named_ports.iter().filter(|port| port.name == name).collect();
    let same_protocol = || declared.iter().filter(|port| port.protocol == protocol);
    if protocol == connection.protocol && same_protocol().any(|port| port.number == connection.port) {
        return (true, format!("named port {name} is {dialled} on {whole}"));
    }
    let numbers: Vec<String> =
        declared.iter().map(|port| format!("{}/{}", port.number, port.protocol)).collect();
    if numbers.is_empty() {
        return (false, format!("{whole} has no port named {name}"));
    }
    if same_protocol().next().is_none() || protocol != connection.protocol {
        let numbers = numbers.join(" and ");
        return (false, format!("named port {name}/{protocol} is {numbers} on {whole}, not {dialled}"));
    }
    (false, format!("named port {name} is {} on {whole}, not {dialled}", numbers.join(" and ")))
}

/// A port of a rule, in short.
pub(super) fn port_text(port: &Port) -> String {
    let protocol = port.protocol;
    match &port.numbers {
        Numbers::Any => format!("all of {protocol}"),
        Numbers::Range(low, high) if low == high => format!("{low}/{protocol}"),
        Numbers::Range(low, high) => format!("{low}-{high}/{protocol}"),
        Numbers::Named(name) => format!("{name}/{protocol}"),
    }
}
