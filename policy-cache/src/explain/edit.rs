//! One edit of a label, a rule or a policy: its size, what it does to what was evaluated, and how a user would
//! write it.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Direction;
use super::change::Operation;
use super::evaluate::{self, Connection, World, policy_name};
use super::tiers;
use super::written::{
    peer_value, policy_value, port_value, rule_value, selector_value, tier_rule_value, types,
};
use crate::objects::{NetworkPolicy, Peer, Pod, Port, Rule, TierRule};

/// What may be done to one object. Policies are named by their place in the world.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Label {
        pod: Pod,
        key: String,
        value: String,
    },
    AddPort {
        policy: usize,
        name: String,
        direction: Direction,
        rule: usize,
        port: Port,
    },
    AddPeer {
        policy: usize,
        name: String,
        direction: Direction,
        rule: usize,
        peer: Peer,
    },
    AddRule {
        policy: usize,
        name: String,
        direction: Direction,
        rule: Rule,
    },
    Remove {
        policy: usize,
        name: String,
        direction: Direction,
        rule: usize,
        part: Part,
    },
    /// A rule of the other action before the one that decides.
    Insert {
        policy: usize,
        direction: Direction,
        rule: usize,
        inserted: TierRule,
    },
    AddPolicy {
        policy: NetworkPolicy,
        direction: Direction,
    },
    /// A rule of the Admin or Baseline tier that decides.
    Drop {
        policy: usize,
        direction: Direction,
        rule: usize,
    },
}

/// What of a rule is removed; places in descending order.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Peers(Vec<usize>),
    Ports(Vec<usize>),
    Whole,
}

impl Edit {
    /// See the head of the module.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Label { .. } => 1,
            Self::AddPort { .. } => 2,
            Self::AddPeer { .. } => 3,
            Self::AddRule { .. } | Self::Remove { .. } | Self::Insert { .. } => 5,
            Self::Drop { .. } => 6,
            Self::AddPolicy { .. } => 8,
        }
    }

    pub(super) fn apply(&self, world: &mut World, connection: &mut Connection) {
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
        if let Self::Insert { policy, direction, .. } | Self::Drop { policy, direction, .. } = self {
            let policy = Arc::make_mut(&mut world.tiers[*policy]);
            let rules = match direction {
                Direction::Egress => &mut policy.egress,
                Direction::Ingress => &mut policy.ingress,
            };
            match self {
                Self::Insert { rule, inserted, .. } => rules.insert(*rule, inserted.clone()),
                Self::Drop { rule, .. } => drop(rules.remove(*rule)),
                _ => {}
            }
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
            _ => None,
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
            _ => {}
        }
    }

    /// As patches of the objects as they were written.
    pub(super) fn operations(&self, world: &World) -> Vec<Operation> {
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
            Self::Insert { policy, direction, rule, inserted } => {
                let source = &world.tiers[*policy];
                let path = format!("/spec/{}/{rule}", direction.as_str());
                add(&tiers::name(source), path, tier_rule_value(source, inserted, *direction))
            }
            Self::Drop { policy, direction, rule } => {
                let object = tiers::name(&world.tiers[*policy]);
                let path = format!("/spec/{}/{rule}", direction.as_str());
                vec![Operation { object, op: "remove", path, value: Value::Null }]
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

impl Edit {
    /// In words.
    pub(super) fn told(&self, world: &World) -> String {
        match self {
            Self::Insert { policy, direction, rule, inserted } => {
                let source = &world.tiers[*policy];
                let (name, way) = (tiers::name(source), direction.as_str());
                let value = tier_rule_value(source, inserted, *direction);
                format!("in {name} insert before spec.{way}[{rule}]: {value}")
            }
            Self::Drop { policy, direction, rule } => {
                let name = tiers::name(&world.tiers[*policy]);
                format!("in {name} remove spec.{}[{rule}]", direction.as_str())
            }
            _ => self.to_string(),
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
            // Their policies are told by the world.
            Self::Insert { .. } | Self::Drop { .. } => Ok(()),
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
