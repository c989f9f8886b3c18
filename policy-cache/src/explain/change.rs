//! An evaluated connection → the smallest change to a label or to policies that flips its verdict.
//!
//! Changes are tried on a copy of what was evaluated, and one that does not flip the verdict is not named.
//! Sizes compare as: one label, one port, one peer, one rule, one policy.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use super::Direction;
use super::evaluate::{self, Connection, Party, World, policy_name};
use super::why::misses;
use super::written::{peer_value, policy_value, port_value, rule_value, selector_value, types};
use crate::objects::{
    Labels, NetworkPolicy, Numbers, Operator, Peer, Pod, Port, Requirement, Rule, Selector,
};

/// The label every namespace carries with its own name (KEP-2161).
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Labels that controllers write, different for every revision or pod: no policy should name them.
const CONTROLLER_LABELS: &[&str] = &[
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
];

/// The smallest change that flips a verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// In words.
    text: Vec<String>,
    /// What to do, in this order.
    operations: Vec<Operation>,
}

/// One step of a change: a JSON Patch operation (RFC 6902) on an object, or a new object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// `Kind/namespace/name`.
    pub object: String,
    /// `add` and `remove` as in RFC 6902; `create` for an object that is not there yet.
    pub op: &'static str,
    /// A JSON Pointer into the object; absent for `create`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is added, or the new object; absent for `remove`.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub value: Value,
}

impl Change {
    /// What to do, in this order.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The same in words, a line each.
    pub fn lines(&self) -> &[String] {
        &self.text
    }
}

/// Finds the change; `None` when neither labels nor policies can flip the verdict.
pub(super) fn smallest(world: &World, connection: &Connection) -> Option<Change> {
    let allowed = allowed(world, connection);
    let mut candidates = if allowed { to_deny(world, connection) } else { to_allow(world, connection) };
    candidates.sort_by_key(|edits| edits.iter().map(Edit::size).sum::<usize>());
    let flips = |edits: &&Vec<Edit>| {
        let (mut world, mut connection) = (world.clone(), connection.clone());
        edits.iter().for_each(|edit| edit.apply(&mut world, &mut connection));
        self::allowed(&world, &connection) != allowed
    };
    let edits = candidates.iter().find(flips)?;
    Some(Change {
        text: edits.iter().map(ToString::to_string).collect(),
        operations: edits.iter().flat_map(|edit| edit.operations(world)).collect(),
    })
}

fn allowed(world: &World, connection: &Connection) -> bool {
    let (egress, ingress) = evaluate::both(world, connection);
    egress.verdict == "allow" && ingress.verdict == "allow"
}

/// What may be done to one object. Policies are named by their place in the world.
#[derive(Clone, Debug)]
enum Edit {
    Label { pod: Pod, key: String, value: String },
    AddPort { policy: usize, name: String, direction: Direction, rule: usize, port: Port },
    AddPeer { policy: usize, name: String, direction: Direction, rule: usize, peer: Peer },
    AddRule { policy: usize, name: String, direction: Direction, rule: Rule },
    Remove { policy: usize, name: String, direction: Direction, rule: usize, part: Part },
    AddPolicy { policy: NetworkPolicy, direction: Direction },
}

/// What of a rule is removed; places in descending order.
#[derive(Clone, Debug)]
enum Part {
    Peers(Vec<usize>),
    Ports(Vec<usize>),
    Whole,
}

/// Every set of edits that might allow a denied connection.
fn to_allow(world: &World, connection: &Connection) -> Vec<Vec<Edit>> {
    let mut combined: Vec<Vec<Edit>> = vec![Vec::new()];
    let mut denied_sides = 0;
    for direction in [Direction::Egress, Direction::Ingress] {
        let side = evaluate::side(world, connection, direction);
        if side.verdict == "allow" {
            continue;
        }
        denied_sides += 1;
        let own = openings(world, connection, direction);
        combined = combined
            .iter()
            .flat_map(|before| {
                own.iter().map(move |edit| [before.as_slice(), std::slice::from_ref(edit)].concat())
            })
            .collect();
    }
    if denied_sides == 0 { Vec::new() } else { combined }
}

/// Single edits, each of which may open one side.
fn openings(world: &World, connection: &Connection, direction: Direction) -> Vec<Edit> {
    let (own, other) = ends(connection, direction);
    let Some(pod) = &own.pod else { return Vec::new() };
    let mut edits = Vec::new();
    for (index, policy, rules) in world.selecting(pod, direction) {
        let name = policy_name(policy);
        for (number, rule) in rules.iter().enumerate() {
            let peers = evaluate::peer_tests(policy, rule, connection, direction).iter().any(|t| t.matched);
            let ports = evaluate::port_tests(rule, connection).iter().any(|t| t.matched);
            let (name, peer) = (name.clone(), peer_for(other, &policy.namespace));
            match (peers, ports) {
                (true, false) => {
                    let port = dialled(connection);
                    edits.push(Edit::AddPort { policy: index, name, direction, rule: number, port });
                }
                (false, true) => {
                    edits.extend(labels_for(policy, rule, other));
                    edits.push(Edit::AddPeer { policy: index, name, direction, rule: number, peer });
                }
                _ => {}
            }
        }
        let rule = Rule {
            peers: Some(vec![peer_for(other, &policy.namespace)]),
            ports: Some(vec![dialled(connection)]),
        };
        edits.push(Edit::AddRule { policy: index, name, direction, rule });
    }
    // Combinations of two sides are products: the best of each kind is enough.
    edits.sort_by_key(Edit::size);
    edits.truncate(16);
    edits
}

/// One label on the other end for each peer that wants exactly that one.
fn labels_for(policy: &NetworkPolicy, rule: &Rule, other: &Party) -> Vec<Edit> {
    let Some(pod) = &other.pod else { return Vec::new() };
    let wants = |peer: &Peer| {
        let Peer::Pods { namespaces, pods: Some(pods) } = peer else { return None };
        let namespace_matches = match namespaces {
            Some(namespaces) => evaluate::holds(namespaces, &other.namespace_labels),
            None => pod.namespace == policy.namespace,
        };
        let missing: Vec<&Requirement> =
            pods.requirements.iter().filter(|one| !misses(&only(one), &pod.labels).is_empty()).collect();
        let [Requirement { key, operator: Operator::In(values) }] = missing[..] else { return None };
        let value = values.first()?;
        namespace_matches.then(|| Edit::Label { pod: pod.clone(), key: key.clone(), value: value.clone() })
    };
    rule.peers.iter().flatten().filter_map(wants).collect()
}

fn only(requirement: &Requirement) -> Selector {
    Selector { requirements: vec![requirement.clone()] }
}

fn dialled(connection: &Connection) -> Port {
    Port { protocol: connection.protocol, numbers: Numbers::Range(connection.port, connection.port) }
}

/// The narrowest peer that matches an end for as long as its pod keeps its labels.
fn peer_for(party: &Party, policy_namespace: &str) -> Peer {
    let Some(pod) = &party.pod else {
        return Peer::Block { cidr: IpNet::from(party.ip), except: Vec::new() };
    };
    let other = (pod.namespace != policy_namespace)
        .then(|| selector(&[(NAMESPACE_NAME_LABEL.to_owned(), pod.namespace.clone())].into()));
    Peer::Pods { namespaces: other, pods: Some(selector(&pod.labels)) }
}

/// Every set of edits that might deny an allowed connection: either side is enough.
fn to_deny(world: &World, connection: &Connection) -> Vec<Vec<Edit>> {
    let sides = [Direction::Ingress, Direction::Egress];
    sides.into_iter().filter_map(|direction| closing(world, connection, direction)).collect()
}

/// The edits that close one side; `None` where policies have no say.
fn closing(world: &World, connection: &Connection, direction: Direction) -> Option<Vec<Edit>> {
    let (own, _) = ends(connection, direction);
    let pod = own.pod.as_ref()?;
    let mut edits = Vec::new();
    let mut isolated = false;
    for (index, policy, rules) in world.selecting(pod, direction) {
        isolated = true;
        // From the last to the first, so that places stay true while rules go.
        for (number, rule) in rules.iter().enumerate().rev() {
            let peers = places(&evaluate::peer_tests(policy, rule, connection, direction));
            let ports = places(&evaluate::port_tests(rule, connection));
            if peers.is_empty() || ports.is_empty() {
                continue;
            }
            let some_of =
                |list: Option<usize>, matched: &[usize]| list.is_some_and(|all| matched.len() < all);
            let part = if some_of(rule.peers.as_ref().map(Vec::len), &peers) {
                Part::Peers(peers)
            } else if some_of(rule.ports.as_ref().map(Vec::len), &ports) {
                Part::Ports(ports)
            } else {
                Part::Whole
            };
            let name = policy_name(policy);
            edits.push(Edit::Remove { policy: index, name, direction, rule: number, part });
        }
    }
    if !isolated {
        edits.push(Edit::AddPolicy { policy: isolating(world, pod, direction), direction });
    }
    Some(edits)
}

/// The places of what matched, in descending order.
fn places(tests: &[super::Test]) -> Vec<usize> {
    (0..tests.len()).rev().filter(|index| tests[*index].matched).collect()
}

/// A policy that closes a direction of pods like this one, under a name that is free.
fn isolating(world: &World, pod: &Pod, direction: Direction) -> NetworkPolicy {
    let base = format!("deny-{}", direction.as_str());
    let taken = |name: &str| {
        world.policies.iter().any(|policy| policy.namespace == pod.namespace && policy.name == name)
    };
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let name =
        std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(base.clone());
    let rules = |wanted| (wanted == direction).then(Vec::new);
    NetworkPolicy {
        namespace: pod.namespace.clone(),
        name,
        pod_selector: selector(&pod.labels),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
    }
}

/// Selects what carries these labels, those that a controller wrote left out.
fn selector(labels: &Labels) -> Selector {
    let lasting = labels.iter().filter(|(key, _)| !CONTROLLER_LABELS.contains(&key.as_str()));
    let requirement = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::In([value.clone()].into()),
    };
    Selector { requirements: lasting.map(requirement).collect() }
}

/// The end whose policies are meant, and the other.
fn ends(connection: &Connection, direction: Direction) -> (&Party, &Party) {
    match direction {
        Direction::Egress => (&connection.source, &connection.destination),
        Direction::Ingress => (&connection.destination, &connection.source),
    }
}

impl Edit {
    /// See the head of the module.
    fn size(&self) -> usize {
        match self {
            Self::Label { .. } => 1,
            Self::AddPort { .. } => 2,
            Self::AddPeer { .. } => 3,
            Self::AddRule { .. } | Self::Remove { .. } => 5,
            Self::AddPolicy { .. } => 8,
        }
    }

    fn apply(&self, world: &mut World, connection: &mut Connection) {
        if let Self::Label { pod, key, value } = self {
            for end in [&mut connection.source, &mut connection.destination] {
                if let Some(own) = &mut end.pod
                    && own.namespace == pod.namespace
                    && own.name == pod.name
                {
                    own.labels.insert(key.clone(), value.clone());
                }
            }
            return;
        }
        if let Self::AddPolicy { policy, .. } = self {
            world.policies.push(Arc::new(policy.clone()));
            return;
        }
        let Some((policy, direction)) = self.place() else { return };
        let policy = Arc::make_mut(&mut world.policies[policy]);
        let rules = match direction {
            Direction::Egress => &mut policy.egress,
            Direction::Ingress => &mut policy.ingress,
        };
        if let Some(rules) = rules {
            self.apply_to(rules);
        }
    }

    /// The policy and direction of an edit to a rule.
    fn place(&self) -> Option<(usize, Direction)> {
        match self {
            Self::AddPort { policy, direction, .. }
            | Self::AddPeer { policy, direction, .. }
            | Self::AddRule { policy, direction, .. }
            | Self::Remove { policy, direction, .. } => Some((*policy, *direction)),
            Self::Label { .. } | Self::AddPolicy { .. } => None,
        }
    }

    fn apply_to(&self, rules: &mut Vec<Rule>) {
        match self {
            Self::AddPort { rule, port, .. } => rules[*rule].ports.get_or_insert_default().push(port.clone()),
            Self::AddPeer { rule, peer, .. } => rules[*rule].peers.get_or_insert_default().push(peer.clone()),
            Self::AddRule { rule, .. } => rules.push(rule.clone()),
            Self::Remove { rule, part, .. } => {
                let one = &mut rules[*rule];
                match part {
                    Part::Peers(places) => places.iter().for_each(|place| {
                        one.peers.get_or_insert_default().remove(*place);
                    }),
                    Part::Ports(places) => places.iter().for_each(|place| {
                        one.ports.get_or_insert_default().remove(*place);
                    }),
                    Part::Whole => {
                        rules.remove(*rule);
                    }
                }
            }
            Self::Label { .. } | Self::AddPolicy { .. } => {}
        }
    }

    /// As patches of the objects as they were written.
    fn operations(&self, world: &World) -> Vec<Operation> {
        let add = |object: &str, path: String, value: Value| {
            vec![Operation { object: object.to_owned(), op: "add", path, value }]
        };
        match self {
            Self::Label { pod, key, value } => {
                let object = format!("Pod/{}/{}", pod.namespace, pod.name);
                if pod.labels.is_empty() {
                    return add(&object, "/metadata/labels".to_owned(), json!({ key: value }));
                }
                // RFC 6901: "~" and "/" inside a name.
                let key = key.replace('~', "~0").replace('/', "~1");
                add(&object, format!("/metadata/labels/{key}"), json!(value))
            }
            Self::AddPort { name, direction, rule, port, .. } => {
                add(name, format!("/spec/{}/{rule}/ports/-", direction.as_str()), port_value(port))
            }
            Self::AddPeer { name, direction, rule, peer, .. } => {
                let (way, peers) = (direction.as_str(), direction.peers());
                add(name, format!("/spec/{way}/{rule}/{peers}/-"), peer_value(peer))
            }
            Self::AddRule { policy, name, direction, rule } => {
                let rules = evaluate::rules(&world.policies[*policy], *direction).unwrap_or_default();
                let value = rule_value(rule, *direction);
                let way = direction.as_str();
                // A list that is not there cannot be added to.
                if rules.is_empty() {
                    add(name, format!("/spec/{way}"), json!([value]))
                } else {
                    add(name, format!("/spec/{way}/-"), value)
                }
            }
            Self::Remove { policy, name, direction, rule, part } => {
                removals(&world.policies[*policy], name, *direction, *rule, part)
            }
            Self::AddPolicy { policy, .. } => {
                let object = policy_name(policy);
                vec![Operation { object, op: "create", path: String::new(), value: policy_value(policy) }]
            }
        }
    }
}

fn removals(
    policy: &NetworkPolicy,
    name: &str,
    direction: Direction,
    rule: usize,
    part: &Part,
) -> Vec<Operation> {
    let (way, peers) = (direction.as_str(), direction.peers());
    let remove = |path: String| Operation { object: name.to_owned(), op: "remove", path, value: Value::Null };
    let items = |key: &str, places: &[usize]| {
        places.iter().map(|place| remove(format!("/spec/{way}/{rule}/{key}/{place}"))).collect()
    };
    match part {
        Part::Peers(places) => items(peers, places),
        Part::Ports(places) => items("ports", places),
        Part::Whole => {
            // Without rules and without policyTypes it would not isolate egress any more.
            let types = json!(types(policy));
            let keep = Operation {
                object: name.to_owned(),
                op: "add",
                path: "/spec/policyTypes".to_owned(),
                value: types,
            };
            let needed = direction == Direction::Egress && rule == 0;
            needed.then_some(keep).into_iter().chain([remove(format!("/spec/{way}/{rule}"))]).collect()
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label { pod, key, value } => {
                write!(f, "label pod {}/{} with {key}={value}", pod.namespace, pod.name)
            }
            Self::AddPort { name, direction, rule, port, .. } => {
                let way = direction.as_str();
                write!(f, "in {name} add to spec.{way}[{rule}].ports: {}", port_value(port))
            }
            Self::AddPeer { name, direction, rule, peer, .. } => {
                let (way, peers) = (direction.as_str(), direction.peers());
                write!(f, "in {name} add to spec.{way}[{rule}].{peers}: {}", peer_value(peer))
            }
            Self::AddRule { name, direction, rule, .. } => {
                let way = direction.as_str();
                write!(f, "in {name} add to spec.{way}: {}", rule_value(rule, *direction))
            }
            Self::Remove { name, direction, rule, part, .. } => {
                let (way, peers) = (direction.as_str(), direction.peers());
                match part {
                    Part::Whole => write!(f, "in {name} remove spec.{way}[{rule}]"),
                    Part::Peers(places) => {
                        write!(f, "in {name} remove from spec.{way}[{rule}].{peers}: {}", list(places))
                    }
                    Part::Ports(places) => {
                        write!(f, "in {name} remove from spec.{way}[{rule}].ports: {}", list(places))
                    }
                }
            }
            Self::AddPolicy { policy, direction } => {
                let way = direction.as_str();
                let name = policy_name(policy);
                let selector = selector_value(&policy.pod_selector);
                write!(f, "add {name}, podSelector {selector}, which closes all {way} of those pods")
            }
        }
    }
}

/// Places as items of a list.
fn list(places: &[usize]) -> String {
    places.iter().map(|place| format!("item {place}")).collect::<Vec<_>>().join(", ")
}
