//! Random clusters as the JSON a user would write: few names and addresses, so that they often meet.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) namespaces: Vec<Value>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) policies: Vec<Value>,
    /// Policies of the Admin and Baseline tier.
    pub(crate) tiers: Vec<Value>,
}

/// What is known besides the objects.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) node: Option<String>,
    pub(crate) own_addresses: Vec<String>,
    pub(crate) policy_for_own_node: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
}

impl Cluster {
    pub(crate) fn objects(&self) -> Vec<Value> {
        let kinds = [&self.namespaces, &self.nodes, &self.pods, &self.policies, &self.tiers];
        kinds.into_iter().flatten().cloned().collect()
    }

    pub(crate) fn list(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "List", "items": self.objects()})
    }

    /// This cluster with some of its objects, or parts of its pods, taken from another.
    pub(crate) fn changed_by(&self, other: &Self, picks: &[(usize, usize)]) -> Self {
        let mut changed = self.clone();
        for (kind, index) in picks {
            let (list, from, part) = match kind {
                0 => (&mut changed.pods, &other.pods, None),
                1 => (&mut changed.pods, &other.pods, Some("/metadata/labels")),
                2 => (&mut changed.pods, &other.pods, Some("/spec")),
                3 => (&mut changed.policies, &other.policies, None),
                4 => (&mut changed.policies, &other.policies, Some("/spec")),
                5 => (&mut changed.namespaces, &other.namespaces, None),
                6 => (&mut changed.tiers, &other.tiers, None),
                _ => (&mut changed.nodes, &other.nodes, Some("/metadata/labels")),
            };
            // Labels decide something so rarely that all of a kind are changed at once.
            let relabel = matches!(kind, 1 | 5 | 7);
            let indexes = if relabel { 0..list.len() } else { *index..*index + 1 };
            for index in indexes {
                match (part, from.get(index), list.get_mut(index)) {
                    (Some(part), Some(theirs), Some(own)) => {
                        if let (Some(theirs), Some(own)) = (theirs.pointer(part), own.pointer_mut(part)) {
                            own.clone_from(theirs);
                        }
                    }
                    (None, Some(theirs), Some(own)) => own.clone_from(theirs),
                    (None, Some(theirs), None) => list.push(theirs.clone()),
                    (None, None, Some(_)) if !relabel => drop(list.remove(index)),
                    _ => {}
                }
            }
        }
        // A pod that moved to another namespace may now bear a name that is taken.
        for list in [&mut changed.pods, &mut changed.policies, &mut changed.tiers, &mut changed.namespaces] {
            let mut seen = std::collections::HashSet::new();
            list.retain(|object| {
                seen.insert((object["kind"].clone(), object["metadata"].get("name").cloned()))
            });
        }
        changed
    }
}

const V4: &[&str] = &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.1.1", "10.1.1.2", "10.1.1.0", "10.1.0.0"];
const V6: &[&str] = &["fd00:1::1", "fd00:1::2", "fd00:2::1", "fd00:2::2", "fd00:2::"];
const OTHERS_V4: &[&str] =
    &["192.168.0.1", "192.168.0.2", "8.8.8.8", "0.0.0.0", "255.255.255.255", "10.1.0.9"];
const OTHERS_V6: &[&str] = &["2001:db8::1", "fd00:f::1", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
pub(crate) const CIDRS: &[(&str, &[&str])] = &[
    ("0.0.0.0/0", &["10.1.0.0/16", "8.0.0.0/5", "10.1.0.2/32", "128.0.0.0/1"]),
    ("::/0", &["fd00::/8", "fd00:1::1/128", "8000::/1"]),
    ("10.1.0.0/16", &["10.1.0.0/24", "10.1.1.0/24", "10.1.0.0/31", "10.1.1.1/32"]),
    ("10.1.0.3/30", &["10.1.0.2/31", "10.1.0.3/32"]),
    ("10.1.1.1/32", &[]),
    ("192.168.0.0/30", &["192.168.0.2/32"]),
    ("fd00:1::/64", &["fd00:1::1/128", "fd00:1::/127"]),
    ("FD00:2:0::/48", &["fd00:2::2/128"]),
    ("fd00:2::1/128", &[]),
    ("fd00:f::/32", &[]),
];
pub(crate) const PORT_NAMES: &[&str] = &["http", "web-2"];
pub(crate) const PORTS: &[u16] = &[80, 81, 65535];
/// TCP twice, so that the ends of a flow agree more often.
pub(crate) const PROTOCOLS: &[&str] = &["TCP", "TCP", "UDP", "SCTP"];

/// A cluster without policies of the Admin and Baseline tier.
pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    (namespaces(), nodes(), vec(pod(), 0..8), vec(policy(), 0..5)).prop_map(
        |(namespaces, nodes, mut pods, mut policies)| {
            for (index, pod) in pods.iter_mut().enumerate() {
                pod["metadata"]["name"] = json!(format!("pod-{index}"));
            }
            // Names run against the order of the list.
            for (index, policy) in policies.iter_mut().enumerate() {
                policy["metadata"]["name"] = json!(format!("policy-{}", 9 - index));
            }
            Cluster { namespaces, nodes, pods, policies, tiers: Vec::new() }
        },
    )
}

pub(crate) fn surroundings() -> impl Strategy<Value = Surroundings> {
    let own = subsequence(vec!["10.1.0.9", "10.1.0.1", "fd00:f::1", "8.8.8.8"], 0..2);
    (option::of(select(vec!["n1", "n2"])), own, any::<bool>()).prop_map(|(node, own, policy_for_own_node)| {
        Surroundings {
            own_addresses: if node.is_some() {
                own.into_iter().map(str::to_owned).collect()
            } else {
                Vec::new()
            },
            node: node.map(str::to_owned),
            policy_for_own_node,
        }
    })
}

pub(crate) fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let address = |pods: &'static [&'static str], others: &'static [&'static str]| {
        prop_oneof![4 => select(pods), 1 => select(others)].prop_map(str::to_owned)
    };
    let v4 = (address(V4, OTHERS_V4), address(V4, OTHERS_V4));
    let v6 = (address(V6, OTHERS_V6), address(V6, OTHERS_V6));
    let flow = (prop_oneof![3 => v4, 2 => v6], select(PORTS), select(PROTOCOLS))
        .prop_map(|((source, destination), port, protocol)| Flow { source, destination, port, protocol });
    vec(flow, 24)
}

/// A flow between any two addresses of a family, on every port.
pub(crate) fn every_flow() -> Vec<Flow> {
    let mut flows = Vec::new();
    for (pods, others) in [(V4, OTHERS_V4), (V6, OTHERS_V6)] {
        let all: Vec<&str> = pods.iter().chain(others).copied().collect();
        for (source, destination) in all.iter().flat_map(|source| all.iter().map(move |to| (*source, *to))) {
            flows.extend(PORTS.iter().map(|port| Flow {
                source: source.to_owned(),
                destination: destination.to_owned(),
                port: *port,
                protocol: "TCP",
            }));
        }
    }
    flows
}

fn namespaces() -> impl Strategy<Value = Vec<Value>> {
    let namespace = |name: &'static str| {
        (Just(name), option::weighted(0.8, labels())).prop_map(|(name, labels)| {
            let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            if let Some(labels) = labels {
                object["metadata"]["labels"] = labels;
            }
            object
        })
    };
    let all = (namespace("a"), namespace("b"), namespace("default"));
    (all, 0_usize..=3)
        .prop_map(|((a, b, default), count)| vec![a, b, default].into_iter().take(count).collect())
}

fn nodes() -> impl Strategy<Value = Vec<Value>> {
    let node = |name: &'static str, ip: &'static str, v4: &'static str, v6: &'static str| {
        (any::<bool>(), any::<bool>(), labels()).prop_map(move |(with_cidrs, with_address, labels)| {
            let metadata = json!({"name": name, "labels": labels});
            let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
            if with_cidrs {
                node["spec"] = json!({"podCIDR": v4, "podCIDRs": [v4, v6]});
            }
            if with_address {
                let addresses =
                    json!([{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]);
                node["status"] = json!({"addresses": addresses});
            }
            node
        })
    };
    (
        node("n1", "192.168.0.1", "10.1.0.0/24", "fd00:1::/64"),
        node("n2", "192.168.0.2", "10.1.1.0/24", "fd00:2::/64"),
    )
        .prop_map(|(one, two)| vec![one, two])
}

fn labels() -> impl Strategy<Value = Value> {
    let label = prop_oneof![select(vec![
        ("app", "x"),
        ("app", "y"),
        ("tier", "1"),
        ("tier", ""),
        ("kubernetes.io/metadata.name", "a")
    ])];
    vec(label, 0..3).prop_map(|pairs| {
        Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect())
    })
}

fn namespace_of() -> impl Strategy<Value = Option<&'static str>> {
    option::weighted(0.8, select(vec!["a", "b", "undeclared"]))
}

fn metadata() -> impl Strategy<Value = Value> {
    (namespace_of(), option::weighted(0.8, labels())).prop_map(|(namespace, labels)| {
        let mut metadata = Map::new();
        if let Some(namespace) = namespace {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        if let Some(labels) = labels {
            metadata.insert("labels".to_owned(), labels);
        }
        Value::Object(metadata)
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let port = (option::weighted(0.8, select(PORT_NAMES)), select(PORTS), option::of(select(PROTOCOLS)));
    let phase = select(vec!["Running", "Running", "Running", "Pending", "Succeeded", "Failed", ""]);
    let node = option::weighted(0.8, select(vec!["n1", "n2"]));
    let flags = (prop::bool::weighted(0.15), prop::bool::weighted(0.15), any::<bool>());
    let ips = (option::weighted(0.9, select(V4)), option::weighted(0.6, select(V6)));
    (metadata(), vec(port, 0..3), phase, node, flags, ips).prop_map(
        |(mut metadata, ports, phase, node, (host_network, deleting, in_sidecar), (v4, v6))| {
            if deleting {
                metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(name, number, protocol)| {
                    let mut port = json!({"containerPort": number});
                    if let Some(name) = name {
                        port["name"] = json!(name);
                    }
                    if let Some(protocol) = protocol {
                        port["protocol"] = json!(protocol);
                    }
                    port
                })
                .collect();
            let mut spec = json!({"containers": [{"name": "c"}]});
            if in_sidecar {
                spec["initContainers"] = json!([
                    {"name": "s", "restartPolicy": "Always", "ports": ports},
                    {"name": "o", "ports": [{"containerPort": 81, "name": "http"}]},
                ]);
            } else {
                spec["containers"][0]["ports"] = json!(ports);
            }
            if let Some(node) = node {
                spec["nodeName"] = json!(node);
            }
            if host_network {
                spec["hostNetwork"] = json!(true);
            }
            let mut status = Map::new();
            if !phase.is_empty() {
                status.insert("phase".to_owned(), json!(phase));
            }
            let list: Vec<Value> = [v4, v6].into_iter().flatten().map(|ip| json!({"ip": ip})).collect();
            if let Some(first) = list.first() {
                status.insert("podIP".to_owned(), first["ip"].clone());
            }
            status.insert("podIPs".to_owned(), json!(list));
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
        },
    )
}

fn policy() -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just(None),
        Just(Some(json!(null))),
        Just(Some(json!([]))),
        Just(Some(json!(["Ingress"]))),
        Just(Some(json!(["Egress"]))),
        Just(Some(json!(["Egress", "Ingress"]))),
    ];
    let parts = (option::weighted(0.9, selector()), types, rules("from"), rules("to"));
    (metadata(), parts).prop_map(|(metadata, (pods, types, ingress, egress))| {
        let mut spec = Map::new();
        for (key, value) in
            [("podSelector", pods), ("policyTypes", types), ("ingress", ingress), ("egress", egress)]
        {
            if let Some(value) = value {
                spec.insert(key.to_owned(), value);
            }
        }
        let version = "networking.k8s.io/v1";
        json!({"apiVersion": version, "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    })
}

/// Absent, null, empty, or a few rules.
fn rules(peers_key: &'static str) -> impl Strategy<Value = Option<Value>> {
    let rule = (few(peer()), few(port())).prop_map(move |(peers, ports)| {
        let mut rule = Map::new();
        for (key, value) in [(peers_key, peers), ("ports", ports)] {
            if let Some(value) = value {
                rule.insert(key.to_owned(), value);
            }
        }
        Value::Object(rule)
    });
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(json!(null))),
        4 => vec(rule, 0..3).prop_map(|rules| Some(json!(rules))),
    ]
}

fn few(item: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(json!(null))),
        6 => vec(item, 0..3).prop_map(|items| Some(json!(items))),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let block = (select(CIDRS), any::<u8>()).prop_map(|((cidr, excepts), bits)| {
        let chosen = excepts.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1);
        let except: Vec<&str> = chosen.map(|(_, except)| *except).collect();
        match (except.is_empty(), bits >> 7 & 1 == 1) {
            (true, true) => json!({"ipBlock": {"cidr": cidr}}),
            _ => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        }
    });
    prop_oneof![
        2 => block,
        2 => selector().prop_map(|pods| json!({"podSelector": pods})),
        1 => selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces, "podSelector": null})),
        2 => (selector(), selector())
            .prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        1 => Just((None, None)),
        4 => select(PORTS).prop_map(|port| (Some(json!(port)), None)),
        2 => (select(PORTS), 0_u16..9000)
            .prop_map(|(port, more)| (Some(json!(port)), Some(json!(port.saturating_add(more))))),
        3 => select(PORT_NAMES).prop_map(|name| (Some(json!(name)), None)),
        1 => Just((Some(json!("unknown")), None)),
    ];
    (number, option::of(select(PROTOCOLS))).prop_map(|((port, end), protocol)| {
        let mut object = Map::new();
        for (key, value) in [("port", port), ("endPort", end), ("protocol", protocol.map(|p| json!(p)))] {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        }
        Value::Object(object)
    })
}

pub(crate) fn selector() -> impl Strategy<Value = Value> {
    // Each key with values it may really have: selectors that match nothing decide nothing.
    let domain = || {
        prop_oneof![
            3 => Just(("app", vec!["x", "y", "z"])),
            2 => Just(("tier", vec!["1", "", "z"])),
            1 => Just(("kubernetes.io/metadata.name", vec!["a", "b", "default", "undeclared"])),
        ]
    };
    let label = domain().prop_flat_map(|(key, values)| (Just(key), select(values)));
    let labels = vec(label, 0..2).prop_map(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>());
    let values = domain().prop_flat_map(|(key, values)| {
        let count = 1..values.len();
        (Just(key), subsequence(values, count))
    });
    let expression = (values, 0..4).prop_map(|((key, values), operator)| match operator {
        0 => json!({"key": key, "operator": "In", "values": values}),
        1 => json!({"key": key, "operator": "NotIn", "values": values}),
        2 => json!({"key": key, "operator": "Exists"}),
        _ => json!({"key": key, "operator": "DoesNotExist", "values": null}),
    });
    (labels, vec(expression, 0..2), 0..3).prop_map(|(labels, expressions, form)| match form {
        0 => json!({"matchLabels": labels}),
        1 => json!({"matchExpressions": expressions}),
        _ => json!({"matchLabels": labels, "matchExpressions": expressions}),
    })
}
