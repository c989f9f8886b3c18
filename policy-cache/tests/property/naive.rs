//! The semantics once more, written down as slowly and literally as possible, over the raw JSON. Shares
//! nothing with the engine: it compiles nothing, sorts nothing ahead and knows no defaults it does not spell
//! out where they apply.

use std::net::IpAddr;

use serde_json::Value;

use crate::clusters::{Flow, Surroundings};
use crate::naive_tiers::{self, Question};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) allow: bool,
    /// Empty: none.
    pub(crate) tier: String,
    pub(crate) reason: String,
    pub(crate) policies: Vec<String>,
}

/// Egress, then ingress.
pub(crate) fn decide(objects: &[Value], surroundings: &Surroundings, flow: &Flow) -> (Side, Side) {
    let source = end(objects, surroundings, &flow.source);
    let destination = end(objects, surroundings, &flow.destination);
    if source == End::UnknownLocal || destination == End::UnknownLocal {
        let side = side(false, "unknown-local-pod");
        return (side.clone(), side);
    }
    // A node only sees what a pod sends to itself when a Service led it back.
    let to_itself = matches!(source, End::Pod(_)) && source == destination;
    let direct = to_itself && surroundings.node.is_none();
    let egress = match &source {
        End::Pod(_) if direct => side(true, "own-address"),
        End::Pod(pod) => {
            let to_own_node = on_node(objects, surroundings, pod, &destination);
            let exempt = if to_itself {
                Some("own-address")
            } else if to_own_node && !surroundings.policy_for_own_node {
                Some("own-node")
            } else {
                None
            };
            let question = Question {
                pod,
                direction: "egress",
                peers_key: "to",
                peer_ip: &flow.destination,
                peer: &destination,
                destination: &destination,
                flow,
            };
            all_tiers(objects, question, exempt)
        }
        _ => side(true, "not-applicable"),
    };
    let ingress = match &destination {
        End::Pod(_) if direct => side(true, "own-address"),
        End::Pod(pod) if on_node(objects, surroundings, pod, &source) => side(true, "own-node"),
        End::Pod(pod) => {
            let question = Question {
                pod,
                direction: "ingress",
                peers_key: "from",
                peer_ip: &flow.source,
                peer: &source,
                destination: &destination,
                flow,
            };
            all_tiers(objects, question, to_itself.then_some("own-address"))
        }
        _ => side(true, "not-applicable"),
    };
    (egress, ingress)
}

fn all_tiers(objects: &[Value], question: Question<'_>, exempt: Option<&str>) -> Side {
    if let Some(decided) = naive_tiers::judge(objects, "Admin", question) {
        return decided;
    }
    let by_network_policies = judge(objects, question);
    if by_network_policies.reason != "not-isolated" {
        return match exempt {
            Some(reason) => side(true, reason),
            None => by_network_policies,
        };
    }
    if let Some(decided) = naive_tiers::judge(objects, "Baseline", question) {
        return decided;
    }
    side(true, exempt.unwrap_or("not-isolated"))
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Pod(Value),
    Node(String),
    UnknownLocal,
    External,
}

fn side(allow: bool, reason: &str) -> Side {
    let tier = if ["not-applicable", "unknown-local-pod"].contains(&reason) { "" } else { "Default" };
    Side { allow, tier: tier.to_owned(), reason: reason.to_owned(), policies: Vec::new() }
}

pub(crate) fn of_kind<'o>(objects: &'o [Value], kind: &'o str) -> impl Iterator<Item = &'o Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

pub(crate) fn list<'v>(value: &'v Value, key: &str) -> Vec<&'v Value> {
    value.get(key).and_then(Value::as_array).map(|items| items.iter().collect()).unwrap_or_default()
}

pub(crate) fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

fn end(objects: &[Value], surroundings: &Surroundings, ip: &str) -> End {
    if surroundings.own_addresses.iter().any(|own| own == ip) {
        return End::Node(surroundings.node.clone().unwrap());
    }
    // The best claim wins; among equal ones the pod that is last by namespace and name.
    let mut best: Option<(&Value, (bool, bool, String))> = None;
    for pod in of_kind(objects, "Pod") {
        let finished = ["Succeeded", "Failed"].contains(&text(&pod["status"], "phase"));
        let has_it = list(&pod["status"], "podIPs").iter().any(|entry| text(entry, "ip") == ip);
        if finished || !has_it || pod["spec"]["hostNetwork"] == true {
            continue;
        }
        let claim = (
            pod["metadata"].get("deletionTimestamp").is_none(),
            text(&pod["status"], "phase") == "Running",
            format!("{}/{}", namespace(pod), text(&pod["metadata"], "name")),
        );
        if best.as_ref().is_none_or(|(_, other)| claim > *other) {
            best = Some((pod, claim));
        }
    }
    if let Some((pod, _)) = best {
        return End::Pod(pod.clone());
    }
    for node in of_kind(objects, "Node") {
        let has_it = |entry: &&Value| text(entry, "type") == "InternalIP" && text(entry, "address") == ip;
        if list(&node["status"], "addresses").iter().any(has_it) {
            return End::Node(text(&node["metadata"], "name").to_owned());
        }
    }
    // Of several nodes that pods say it is of, the first by name.
    let mut host_pods: Vec<&Value> = of_kind(objects, "Pod").collect();
    host_pods.sort_by_key(|pod| text(&pod["spec"], "nodeName").to_owned());
    for pod in host_pods {
        let finished = ["Succeeded", "Failed"].contains(&text(&pod["status"], "phase"));
        let has_it = list(&pod["status"], "podIPs").iter().any(|entry| text(entry, "ip") == ip);
        if pod["spec"]["hostNetwork"] == true && !finished && has_it {
            return End::Node(text(&pod["spec"], "nodeName").to_owned());
        }
    }
    for node in of_kind(objects, "Node") {
        let name = text(&node["metadata"], "name");
        for cidr in list(&node["spec"], "podCIDRs").into_iter().filter_map(Value::as_str) {
            let base = cidr.split('/').next().unwrap();
            if surroundings.node.as_deref() != Some(name) && base == ip {
                return End::Node(name.to_owned());
            }
        }
    }
    for node in of_kind(objects, "Node") {
        let own = surroundings.node.as_deref() == Some(text(&node["metadata"], "name"));
        let cidrs = list(&node["spec"], "podCIDRs");
        if own && cidrs.into_iter().filter_map(Value::as_str).any(|cidr| in_cidr(ip, cidr)) {
            return End::UnknownLocal;
        }
    }
    End::External
}

/// A pod that was given no node runs on none that could be named.
fn on_node(_: &[Value], _: &Surroundings, pod: &Value, end: &End) -> bool {
    match (end, pod["spec"].get("nodeName").and_then(Value::as_str)) {
        (End::Node(name), Some(node)) => name == node,
        _ => false,
    }
}

pub(crate) fn namespace(object: &Value) -> &str {
    object["metadata"].get("namespace").and_then(Value::as_str).unwrap_or("default")
}

fn judge(objects: &[Value], question: Question<'_>) -> Side {
    let Question { pod, direction, peers_key, peer_ip, peer, destination, flow } = question;
    let mut isolating = Vec::new();
    for policy in of_kind(objects, "NetworkPolicy") {
        let selected = namespace(policy) == namespace(pod)
            && match policy["spec"].get("podSelector") {
                None | Some(Value::Null) => true,
                Some(selector) => selects(selector, &pod_labels(pod)),
            };
        if selected && applies(policy, direction) {
            isolating.push(policy);
        }
    }
    if isolating.is_empty() {
        return side(true, "not-isolated");
    }
    isolating.sort_by_key(|policy| text(&policy["metadata"], "name").to_owned());
    let name =
        |policy: &Value| format!("NetworkPolicy/{}/{}", namespace(policy), text(&policy["metadata"], "name"));
    for policy in &isolating {
        for (index, rule) in list(&policy["spec"], direction).into_iter().enumerate() {
            let peers = list(rule, peers_key);
            let ports = list(rule, "ports");
            let peer_fits = peers.is_empty()
                || peers.iter().any(|wanted| peer_matches(objects, policy, wanted, peer_ip, peer));
            let port_fits =
                ports.is_empty() || ports.iter().any(|port| port_matches(port, destination, flow));
            if peer_fits && port_fits {
                let policies = vec![format!("{}#{index}", name(policy))];
                let tier = "NetworkPolicy".to_owned();
                return Side { allow: true, tier, reason: "rule-matched".to_owned(), policies };
            }
        }
    }
    let policies = isolating.into_iter().map(name).collect();
    let tier = "NetworkPolicy".to_owned();
    Side { allow: false, tier, reason: "no-rule-matched".to_owned(), policies }
}

fn applies(policy: &Value, direction: &str) -> bool {
    let types = list(&policy["spec"], "policyTypes");
    match (types.is_empty(), direction) {
        (true, "ingress") => true,
        (true, _) => !list(&policy["spec"], "egress").is_empty(),
        (false, "ingress") => types.iter().any(|kind| *kind == "Ingress"),
        (false, _) => types.iter().any(|kind| *kind == "Egress"),
    }
}

fn peer_matches(objects: &[Value], policy: &Value, wanted: &Value, ip: &str, peer: &End) -> bool {
    if let Some(block) = wanted.get("ipBlock") {
        let excepted =
            list(block, "except").into_iter().filter_map(Value::as_str).any(|cidr| in_cidr(ip, cidr));
        return in_cidr(ip, text(block, "cidr")) && !excepted;
    }
    let End::Pod(pod) = peer else { return false };
    let namespace_fits = match wanted.get("namespaceSelector") {
        None | Some(Value::Null) => namespace(policy) == namespace(pod),
        Some(selector) => selects(selector, &namespace_labels(objects, namespace(pod))),
    };
    let pod_fits = match wanted.get("podSelector") {
        None | Some(Value::Null) => true,
        Some(selector) => selects(selector, &pod_labels(pod)),
    };
    namespace_fits && pod_fits
}

fn port_matches(port: &Value, destination: &End, flow: &Flow) -> bool {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
    if protocol != flow.protocol {
        return false;
    }
    match port.get("port") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => named_port_matches(name, destination, flow),
        Some(number) => {
            let first = number.as_u64().unwrap();
            let last = port.get("endPort").and_then(Value::as_u64).unwrap_or(first);
            (first..=last).contains(&u64::from(flow.port))
        }
    }
}

/// A declared port of that name, and of the flow's protocol and number.
pub(crate) fn named_port_matches(name: &str, destination: &End, flow: &Flow) -> bool {
    let End::Pod(pod) = destination else { return false };
    let mut containers = list(&pod["spec"], "containers");
    let sidecars = list(&pod["spec"], "initContainers");
    containers.extend(sidecars.into_iter().filter(|container| text(container, "restartPolicy") == "Always"));
    containers.into_iter().flat_map(|container| list(container, "ports")).any(|declared| {
        let declared_protocol = declared.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        text(declared, "name") == name
            && declared_protocol == flow.protocol
            && declared["containerPort"] == flow.port
    })
}

pub(crate) fn pod_labels(pod: &Value) -> Vec<(String, String)> {
    label_pairs(&pod["metadata"]["labels"])
}

pub(crate) fn namespace_labels(objects: &[Value], name: &str) -> Vec<(String, String)> {
    let mut labels = of_kind(objects, "Namespace")
        .find(|namespace| text(&namespace["metadata"], "name") == name)
        .map(|namespace| label_pairs(&namespace["metadata"]["labels"]))
        .unwrap_or_default();
    labels.retain(|(key, _)| key != "kubernetes.io/metadata.name");
    labels.push(("kubernetes.io/metadata.name".to_owned(), name.to_owned()));
    labels
}

pub(crate) fn label_pairs(labels: &Value) -> Vec<(String, String)> {
    let pairs = labels.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

pub(crate) fn selects(selector: &Value, labels: &[(String, String)]) -> bool {
    let value_of = |key: &str| labels.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str());
    for (key, wanted) in label_pairs(&selector["matchLabels"]) {
        if value_of(&key) != Some(&wanted) {
            return false;
        }
    }
    for expression in list(selector, "matchExpressions") {
        let value = value_of(text(expression, "key"));
        let listed = list(expression, "values").iter().any(|one| value.is_some_and(|value| **one == value));
        let holds = match text(expression, "operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("{other}"),
        };
        if !holds {
            return false;
        }
    }
    true
}

/// Bit by bit.
pub(crate) fn in_cidr(ip: &str, cidr: &str) -> bool {
    let (base, length) = cidr.split_once('/').unwrap();
    let (ip, base) = (bits(ip), bits(base));
    let length: usize = length.parse().unwrap();
    ip.len() == base.len() && ip[..length] == base[..length]
}

fn bits(ip: &str) -> Vec<bool> {
    let bytes = match ip.parse::<IpAddr>().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.into_iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
}
