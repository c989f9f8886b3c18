//! The Admin and the Baseline tier once more, as literally as the rest of the naive evaluator.

use serde_json::Value;

use crate::clusters::Flow;
use crate::naive::{
    End, Side, in_cidr, label_pairs, list, namespace, namespace_labels, of_kind, selects, text,
};
use crate::naive::{named_port_matches, pod_labels};
use crate::tiers::NAMES;

/// What is asked of a tier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'q> {
    pub(crate) pod: &'q Value,
    pub(crate) direction: &'q str,
    pub(crate) peers_key: &'q str,
    pub(crate) peer_ip: &'q str,
    pub(crate) peer: &'q End,
    pub(crate) destination: &'q End,
    pub(crate) flow: &'q Flow,
}

/// `None`: the tier leaves it to the next.
pub(crate) fn judge(objects: &[Value], tier: &str, question: Question<'_>) -> Option<Side> {
    let mut policies = Vec::new();
    for kind in ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"] {
        for policy in of_kind(objects, kind) {
            let own_tier = match kind {
                "ClusterNetworkPolicy" => text(&policy["spec"], "tier"),
                "AdminNetworkPolicy" => "Admin",
                _ => "Baseline",
            };
            let subject = &policy["spec"]["subject"];
            if own_tier == tier && selects_pod(objects, subject, question.pod) {
                policies.push(policy);
            }
        }
    }
    // The sort is stable: of equal priority and name, a ClusterNetworkPolicy comes first.
    policies.sort_by_key(|policy| {
        let priority = policy["spec"].get("priority").and_then(Value::as_u64).unwrap_or(1001);
        (priority, text(&policy["metadata"], "name").to_owned())
    });
    for policy in policies {
        for (index, rule) in list(&policy["spec"], question.direction).into_iter().enumerate() {
            let name = format!("{}/{}#{index}", text(policy, "kind"), text(&policy["metadata"], "name"));
            let decided = |allow| {
                Some(Side {
                    allow,
                    tier: tier.to_owned(),
                    reason: "rule-matched".to_owned(),
                    policies: vec![name],
                })
            };
            let accepts = ["Accept", "Allow"].contains(&text(rule, "action"));
            if fails_closed(text(policy, "kind"), rule, accepts, question) {
                if accepts {
                    continue;
                }
                return decided(false);
            }
            let peers = list(rule, question.peers_key);
            if !peers.into_iter().any(|peer| peer_matches(objects, peer, question)) {
                continue;
            }
            let ports = [list(rule, "protocols"), list(rule, "ports")].concat();
            if !ports.is_empty() && !ports.into_iter().any(|port| port_matches(port, question)) {
                continue;
            }
            return match text(rule, "action") {
                "Accept" | "Allow" => decided(true),
                "Deny" => decided(false),
                _ => None,
            };
        }
    }
    None
}

fn fails_closed(kind: &str, rule: &Value, accepts: bool, question: Question<'_>) -> bool {
    list(rule, question.peers_key).into_iter().any(|peer| {
        let has = |key: &str| peer.get(key).is_some_and(|value| !value.is_null());
        let egress = question.direction == "egress";
        let domains = has("domainNames") && egress && kind != "BaselineAdminNetworkPolicy" && accepts;
        let known =
            has("namespaces") || has("pods") || (egress && (has("nodes") || has("networks"))) || domains;
        !known
    })
}

fn selects_pod(objects: &[Value], wanted: &Value, pod: &Value) -> bool {
    let of_namespace = namespace_labels(objects, namespace(pod));
    if let Some(namespaces) = wanted.get("namespaces").filter(|value| !value.is_null()) {
        return selects(namespaces, &of_namespace);
    }
    let Some(pods) = wanted.get("pods").filter(|value| !value.is_null()) else { return false };
    let namespace_fits = match pods.get("namespaceSelector") {
        None => true,
        Some(selector) => selects(selector, &of_namespace),
    };
    namespace_fits && selects(&pods["podSelector"], &pod_labels(pod))
}

fn peer_matches(objects: &[Value], wanted: &Value, question: Question<'_>) -> bool {
    for network in list(wanted, "networks") {
        if in_cidr(question.peer_ip, network.as_str().unwrap()) {
            return true;
        }
    }
    for pattern in list(wanted, "domainNames") {
        let pattern = pattern.as_str().unwrap().to_lowercase();
        let pattern = pattern.trim_end_matches('.');
        for (name, addresses) in NAMES {
            let fits = match pattern.strip_prefix('*') {
                Some(ending) => name.ends_with(ending),
                None => *name == pattern,
            };
            if fits && addresses.contains(&question.peer_ip) {
                return true;
            }
        }
    }
    match (question.peer, wanted.get("nodes")) {
        (End::Pod(pod), _) => selects_pod(objects, wanted, pod),
        (End::Node(name), Some(selector)) => {
            let node = of_kind(objects, "Node").find(|node| text(&node["metadata"], "name") == name);
            let labels = node.map(|node| label_pairs(&node["metadata"]["labels"])).unwrap_or_default();
            selects(selector, &labels)
        }
        _ => false,
    }
}

fn port_matches(port: &Value, question: Question<'_>) -> bool {
    let flow = question.flow;
    let number = u64::from(flow.port);
    let within = |range: &Value| {
        let (start, end) = (range["start"].as_u64().unwrap(), range["end"].as_u64().unwrap());
        start <= number && number <= end
    };
    for key in ["destinationNamedPort", "namedPort"] {
        if let Some(name) = port.get(key) {
            return named_port_matches(name.as_str().unwrap(), question.destination, flow);
        }
    }
    for key in ["portNumber", "portRange"] {
        if let Some(own) = port.get(key) {
            let protocol = own.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            let fits = if key == "portNumber" { own["port"] == number } else { within(own) };
            return protocol == flow.protocol && fits;
        }
    }
    let Some(own) = port.get(flow.protocol.to_lowercase()) else { return false };
    let own = &own["destinationPort"];
    own["number"] == number || own.get("range").is_some_and(within)
}
