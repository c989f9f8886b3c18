//! Parts of policies → the JSON a user would write.

use flow::PolicyKind;
use serde_json::{Map, Value, json};

use super::{Direction, evaluate, tiers};
use crate::objects::{
    NetworkPolicy, Numbers, Operator, Peer, PodsIn, Port, Rule, Selector, TierPeer, TierPolicy, TierPort,
    TierRule,
};

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

/// A rule of this module's making, in the words of its policy's kind.
pub(super) fn tier_rule_value(policy: &TierPolicy, rule: &TierRule, direction: Direction) -> Value {
    let is_cluster = policy.kind == PolicyKind::ClusterNetworkPolicy;
    let action = tiers::action_text(policy, rule.action);
    let peers = rule.peers.iter().filter_map(|peer| match peer {
        TierPeer::Pods(PodsIn { namespaces, pods }) => Some(json!({"pods": {
            "namespaceSelector": selector_value(namespaces),
            "podSelector": selector_value(pods),
        }})),
        TierPeer::Networks(networks) => {
            Some(json!({"networks": networks.iter().map(ToString::to_string).collect::<Vec<_>>()}))
        }
        _ => None,
    });
    let ports = rule.ports.iter().flatten().filter_map(|port| match port {
        TierPort::Range { protocol, low, .. } if is_cluster => {
            Some(json!({protocol.as_lower_str(): {"destinationPort": {"number": low}}}))
        }
        TierPort::Range { protocol, low, .. } => {
            Some(json!({"portNumber": {"port": low, "protocol": protocol.as_str()}}))
        }
        TierPort::Named(_) => None,
    });
    json!({
        "action": action,
        direction.peers(): peers.collect::<Vec<_>>(),
        tiers::ports_key(policy): ports.collect::<Vec<_>>(),
    })
}
