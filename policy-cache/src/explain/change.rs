//! An evaluated connection → the smallest change to a label or to policies that flips its verdict.
//!
//! Changes are tried on a copy of what was evaluated, and one that does not flip the verdict is not named.
//! Sizes compare as: one label, one port, one peer, one rule, one policy.

use flow::Tier;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::Direction;
use super::edit::{Edit, Part};
use super::evaluate::{self, Connection, Party, World, policy_name};
use super::tiers::{self, Decider};
use super::why::misses;
use crate::objects::{
    Action, Labels, NetworkPolicy, Numbers, Operator, Peer, Pod, PodsIn, Port, Requirement, Rule, Selector,
    TierPeer, TierPort, TierRule,
};

/// The label every namespace carries with its own name (KEP-2161).
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The most rules that a ClusterNetworkPolicy may have in a direction.
const MAX_RULES: usize = 25;
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
        text: edits.iter().map(|edit| edit.told(world)).collect(),
        operations: edits.iter().flat_map(|edit| edit.operations(world)).collect(),
    })
}

fn allowed(world: &World, connection: &Connection) -> bool {
    let (egress, ingress) = evaluate::both(world, connection);
    egress.verdict == "allow" && ingress.verdict == "allow"
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
        let own: Vec<Vec<Edit>> = match overruling(world, connection, direction) {
            Some(edits) => edits,
            None => openings(world, connection, direction).into_iter().map(|edit| vec![edit]).collect(),
        };
        combined = combined
            .iter()
            .flat_map(|before| own.iter().map(move |edits| [before.as_slice(), edits].concat()))
            .collect();
    }
    if denied_sides == 0 { Vec::new() } else { combined }
}

/// What overrules the rule of the Admin or Baseline tier that decides a side; `None` when none does.
fn overruling(world: &World, connection: &Connection, direction: Direction) -> Option<Vec<Vec<Edit>>> {
    let decided = evaluate::side(world, connection, direction).tier;
    let tier = [Tier::Admin, Tier::Baseline].into_iter().find(|tier| decided == Some(tier.as_str()))?;
    let Decider { policy, rule } = tiers::decider(world, connection, direction, tier)?;
    let mut found = Vec::new();
    let source = &world.tiers[policy];
    let rules = tiers::rules(source, direction);
    let allowed = evaluate::side(world, connection, direction).verdict == "allow";
    let action = if allowed { Action::Deny } else { Action::Accept };
    let (_, other) = ends(connection, direction);
    if rules.len() < MAX_RULES
        && let Some(peer) = tier_peer_for(other, direction)
    {
        let (protocol, port) = (connection.protocol, connection.port);
        let ports = Some(vec![TierPort::Range { protocol, low: port, high: port }]);
        let inserted = TierRule { name: None, action, peers: vec![peer], ports };
        found.push(vec![Edit::Insert { policy, direction, rule, inserted }]);
    }
    if !allowed {
        found.extend(dropping(world, connection, direction));
    }
    Some(found)
}

/// One denying rule after the other goes, until something else decides, and then that is opened.
fn dropping(world: &World, connection: &Connection, direction: Direction) -> Vec<Vec<Edit>> {
    let (mut world, mut edits) = (world.clone(), Vec::new());
    loop {
        let side = evaluate::side(&world, connection, direction);
        if side.verdict == "allow" {
            return vec![edits];
        }
        let decided = |tier: &Tier| side.tier == Some(tier.as_str());
        let Some(tier) = [Tier::Admin, Tier::Baseline].into_iter().find(decided) else {
            let opened = openings(&world, connection, direction).into_iter();
            return opened.map(|edit| [edits.as_slice(), &[edit]].concat()).collect();
        };
        let Some(Decider { policy, rule }) = tiers::decider(&world, connection, direction, tier) else {
            return Vec::new();
        };
        let edit = Edit::Drop { policy, direction, rule };
        edit.apply(&mut world, &mut connection.clone());
        edits.push(edit);
    }
}

/// The narrowest peer of a cluster-wide rule. Ingress rules can name pods only.
fn tier_peer_for(party: &Party, direction: Direction) -> Option<TierPeer> {
    match (&party.pod, direction) {
        (Some(pod), _) => Some(TierPeer::Pods(PodsIn {
            namespaces: selector(&[(NAMESPACE_NAME_LABEL.to_owned(), pod.namespace.clone())].into()),
            pods: selector(&pod.labels),
        })),
        (None, Direction::Egress) => Some(TierPeer::Networks(vec![IpNet::from(party.ip)])),
        (None, Direction::Ingress) => None,
    }
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
    let closings = sides.into_iter().filter_map(|direction| closing(world, connection, direction));
    let overruled = sides.into_iter().filter_map(|direction| overruling(world, connection, direction));
    closings.chain(overruled.flatten()).filter(|edits| !edits.is_empty()).collect()
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
