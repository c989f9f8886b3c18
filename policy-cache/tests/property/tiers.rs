//! Random policies of the Admin and Baseline tier, in every form their CRDs take.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::clusters::{CIDRS, PORT_NAMES, PORTS, PROTOCOLS, selector};

/// What DNS says.
pub(crate) const NAMES: &[(&str, &[&str])] = &[
    ("www.example.com", &["8.8.8.8", "2001:db8::1"]),
    ("a.b.example.com", &["10.1.0.9"]),
    ("example.com", &["192.168.0.2", "10.1.1.1"]),
];
const PATTERNS: &[&str] = &["*.example.com", "example.com.", "WWW.example.com", "nobody.example.org"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Cluster,
    Admin,
    Baseline,
}

/// A few policies, no two of one kind with one name.
pub(crate) fn policies() -> impl Strategy<Value = Vec<Value>> {
    let kind = prop_oneof![4 => Just(Kind::Cluster), 2 => Just(Kind::Admin), 1 => Just(Kind::Baseline)];
    vec(kind.prop_flat_map(policy), 0..6).prop_map(|mut policies| {
        let mut seen = std::collections::HashSet::new();
        policies.retain(|policy| seen.insert((policy["kind"].clone(), policy["metadata"]["name"].clone())));
        policies
    })
}

fn policy(kind: Kind) -> impl Strategy<Value = Value> {
    // Names and priorities are few, so that they often are equal.
    let place = (select(vec!["a", "b", "c"]), select(vec![0, 5, 5, 1000]), select(vec!["Admin", "Baseline"]));
    (place, subject(kind), rules(kind, false), rules(kind, true)).prop_map(
        move |((name, priority, tier), subject, ingress, egress)| {
            let mut spec = json!({"subject": subject});
            for (key, rules) in [("ingress", ingress), ("egress", egress)] {
                if let Some(rules) = rules {
                    spec[key] = rules;
                }
            }
            let (version, kind_name, name) = match kind {
                Kind::Cluster => {
                    spec["tier"] = json!(tier);
                    ("v1alpha2", "ClusterNetworkPolicy", name)
                }
                Kind::Admin => ("v1alpha1", "AdminNetworkPolicy", name),
                Kind::Baseline => ("v1alpha1", "BaselineAdminNetworkPolicy", "default"),
            };
            if kind != Kind::Baseline {
                spec["priority"] = json!(priority);
            }
            let version = format!("policy.networking.k8s.io/{version}");
            json!({"apiVersion": version, "kind": kind_name, "metadata": {"name": name}, "spec": spec})
        },
    )
}

fn subject(kind: Kind) -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => Just(json!({"namespaces": {}})),
        2 => selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        3 => pods(kind).prop_map(|pods| json!({"pods": pods})),
    ]
}

fn pods(kind: Kind) -> impl Strategy<Value = Value> {
    // Only a ClusterNetworkPolicy may leave it out.
    let weight = u32::from(kind == Kind::Cluster);
    let namespaces = prop_oneof![2 => selector().prop_map(Some), weight => Just(None)];
    (namespaces, selector()).prop_map(|(namespaces, pods)| {
        let mut both = json!({"podSelector": pods});
        if let Some(namespaces) = namespaces {
            both["namespaceSelector"] = namespaces;
        }
        both
    })
}

/// Absent, null, empty, or a few rules.
fn rules(kind: Kind, egress: bool) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(json!(null))),
        8 => vec(rule(kind, egress), 0..4).prop_map(|rules| Some(json!(rules))),
    ]
}

fn rule(kind: Kind, egress: bool) -> impl Strategy<Value = Value> {
    let accept = if kind == Kind::Cluster { "Accept" } else { "Allow" };
    let actions = if kind == Kind::Baseline { vec![accept, "Deny"] } else { vec![accept, "Deny", "Pass"] };
    let ports = option::weighted(0.6, vec(port(kind), 1..3));
    (select(actions), vec(peer(kind, egress), 1..3), ports, any::<bool>()).prop_map(
        move |(action, peers, ports, named)| {
            let mut rule = Map::new();
            rule.insert("action".to_owned(), json!(action));
            if named {
                rule.insert("name".to_owned(), json!("a rule"));
            }
            if let Some(mut ports) = ports {
                let is_pods = |peer: &Value| peer.get("pods").is_some() || peer.get("namespaces").is_some();
                if egress && !peers.iter().all(is_pods) {
                    // The CRD refuses named ports beside these.
                    ports.iter_mut().for_each(|port| unname(kind, port));
                }
                let key = if kind == Kind::Cluster { "protocols" } else { "ports" };
                rule.insert(key.to_owned(), json!(ports));
            }
            rule.insert(if egress { "to" } else { "from" }.to_owned(), json!(peers));
            Value::Object(rule)
        },
    )
}

fn unname(kind: Kind, port: &mut Value) {
    if port.get("destinationNamedPort").is_some() || port.get("namedPort").is_some() {
        *port = match kind {
            Kind::Cluster => json!({"tcp": {"destinationPort": {"number": 80}}}),
            _ => json!({"portNumber": {"port": 80}}),
        };
    }
}

fn peer(kind: Kind, egress: bool) -> BoxedStrategy<Value> {
    let pods = prop_oneof![
        1 => Just(json!({"namespaces": {}})),
        4 => selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        6 => pods(kind).prop_map(|pods| json!({"pods": pods})),
    ];
    let unknown = select(vec![json!({}), json!({"widgets": {}}), json!({"pods": null})]);
    if !egress {
        let not_here = Just(json!({"networks": ["0.0.0.0/0"]}));
        return prop_oneof![30 => pods, 1 => unknown, 1 => not_here].boxed();
    }
    let cidrs: Vec<&str> = CIDRS.iter().map(|(cidr, _)| *cidr).collect();
    let networks = subsequence(cidrs, 1..4).prop_map(|networks| json!({"networks": networks}));
    let nodes = selector().prop_map(|nodes| json!({"nodes": nodes}));
    // A baseline policy does not know them, and fails closed.
    let domains = subsequence(PATTERNS, 1..3).prop_map(|patterns| json!({"domainNames": patterns}));
    let names = if kind == Kind::Baseline { 1 } else { 3 };
    prop_oneof![12 => pods, 10 => networks, 8 => nodes, names => domains, 1 => unknown].boxed()
}

fn port(kind: Kind) -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        4 => select(PORTS).prop_map(|port| (port, None)),
        2 => (select(PORTS), 1_u16..9000)
            .prop_map(|(port, more)| (port, port.checked_add(more))),
    ];
    let name = prop_oneof![5 => select(PORT_NAMES), 1 => Just("unknown"), 1 => Just("No_Such Name")];
    (number, option::weighted(0.3, name), option::weighted(0.8, select(PROTOCOLS))).prop_map(
        move |((low, high), name, protocol)| match (kind, name, high) {
            (Kind::Cluster, Some(name), _) => json!({"destinationNamedPort": name}),
            (Kind::Cluster, None, None) => {
                json!({protocol.unwrap_or("TCP").to_lowercase(): {"destinationPort": {"number": low}}})
            }
            (Kind::Cluster, None, Some(high)) => {
                let range = json!({"start": low, "end": high});
                json!({protocol.unwrap_or("TCP").to_lowercase(): {"destinationPort": {"range": range}}})
            }
            (_, Some(name), _) => json!({"namedPort": name}),
            (_, None, None) => with_protocol("portNumber", json!({"port": low}), protocol),
            (_, None, Some(high)) => with_protocol("portRange", json!({"start": low, "end": high}), protocol),
        },
    )
}

fn with_protocol(key: &str, mut port: Value, protocol: Option<&str>) -> Value {
    if let Some(protocol) = protocol {
        port["protocol"] = json!(protocol);
    }
    json!({key: port})
}
