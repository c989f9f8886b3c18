//! Parts of policies → the JSON a user would write.

use serde_json::{Map, Value, json};

use super::{Direction, evaluate};
use crate::objects::{NetworkPolicy, Numbers, Operator, Peer, Port, Rule, Selector};

pub(super) fn types(policy: &NetworkPolicy) -> Vec<&'static str> {
    [Direction::Ingress, Direction::Egress]
        .into_iter()
        .filter(|direction| evaluate::rules(policy, *direction).is_some())
        .map(Direction::policy_type)
        .collect()
}

pub(super) fn port_value(port: &Port) -> Value {
    let protocol = port.protocol;
    match &port.numbers {
        Numbers::Range(low, high) if low == high => json!({"port": low, "protocol": protocol.as_str()}),
        Numbers::Range(low, high) => json!({"port": low, "endPort": high, "protocol": protocol.as_str()}),
        Numbers::Named(name) => json!({"port": name, "protocol": protocol.as_str()}),
        Numbers::Any => json!({"protocol": protocol.as_str()}),
    }
}

pub(super) fn peer_value(peer: &Peer) -> Value {
    match peer {
        Peer::Block { cidr, .. } => json!({"ipBlock": {"cidr": cidr.to_string()}}),
        Peer::Pods { namespaces, pods } => {
            let parts = [("namespaceSelector", namespaces), ("podSelector", pods)];
            let present = parts.into_iter().filter_map(|(key, part)| Some((key, part.as_ref()?)));
            Value::Object(present.map(|(key, part)| (key.to_owned(), selector_value(part))).collect())
        }
    }
}

/// A selector of this module's making: labels only.
pub(super) fn selector_value(selector: &Selector) -> Value {
    let labels: Map<String, Value> = selector
        .requirements
        .iter()
        .filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((requirement.key.clone(), json!(values.first()?))),
            _ => None,
        })
        .collect();
    if labels.is_empty() { json!({}) } else { json!({ "matchLabels": labels }) }
}

pub(super) fn rule_value(rule: &Rule, direction: Direction) -> Value {
    let list = |peers: &[Peer]| peers.iter().map(peer_value).collect::<Vec<_>>();
    let peers = list(rule.peers.as_deref().unwrap_or_default());
    let ports: Vec<Value> = rule.ports.iter().flatten().map(port_value).collect();
    json!({ direction.peers(): peers, "ports": ports })
}

pub(super) fn policy_value(policy: &NetworkPolicy) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": policy.namespace, "name": policy.name},
        "spec": {"podSelector": selector_value(&policy.pod_selector), "policyTypes": types(policy)},
    })
}
