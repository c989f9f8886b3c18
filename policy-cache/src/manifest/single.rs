//! The JSON of one object → the object, and what is wrong with it.
//!
//! An object with problems never widens access: a policy comes out quarantined (its reader says how), any
//! other kind does not come out at all, so that whoever follows the cluster keeps its last good version.

use std::path::PathBuf;

use flow::{PolicyKind, Tier};

use super::fields::Name;
use super::problem::{Problem, Problems};
use super::prune;
use super::reader::{Cursor, Findings};
use super::tree::{Node, Value};
use super::{Read, TypeMeta, read_known, read_single, tiers};
use crate::objects::{
    Action, Entity, Kind, NetworkPolicy, Object, ObjectKey, PodsIn, Selector, TierPeer, TierPolicy, TierRule,
};

/// What one object's JSON says.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Who it is; `None` when even that cannot be told.
    pub key: Option<ObjectKey>,
    /// The object. With problems: a policy, quarantined so that it allows no more than was meant; any other
    /// kind not at all. Also `None` for kinds that decide nothing.
    pub object: Option<Object>,
    /// Everything wrong with it; empty when it is good.
    pub problems: Vec<Problem>,
}

/// Reads one object from its JSON. `kind`: what it is where it does not say so itself, as in the API's lists.
pub fn read_object(json: &[u8], kind: Option<Kind>) -> Reading {
    match prune::object(json, kind) {
        Ok(node) => read_node(&node, kind),
        Err(error) => {
            let identity = prune::identity(json, false);
            unreadable(kind, identity, &error.to_string())
        }
    }
}

/// Reads one object from its tree.
pub(crate) fn read_node(node: &Node, kind: Option<Kind>) -> Reading {
    let object = Cursor::root(node);
    let mut findings = Findings {
        problems: Problems::default(),
        file: PathBuf::new(),
        document: 0,
        lines_before: 0,
        object: String::new(),
        strict: false,
    };
    let found = match kind {
        None => read_single(&object, &mut findings),
        Some(kind) => {
            let meta = TypeMeta { api_version: api_version(kind).to_owned(), kind: kind.as_str().to_owned() };
            read_known(&object, &meta, &mut findings)
        }
    };
    let problems = findings.problems.into_list();
    match found {
        Some((Read::Object(object), ..)) => {
            let key = Some(object.key());
            let kept =
                problems.is_empty() || matches!(object.0, Entity::NetworkPolicy(_) | Entity::TierPolicy(_));
            Reading { key, object: kept.then_some(object), problems }
        }
        Some((Read::Skipped(_), ..)) => Reading { key: None, object: None, problems },
        // A name that cannot be one is still what the object is found by.
        None => match (kind, written_name(&object)) {
            (Some(kind), Some((namespace, name))) => {
                let key = key(kind, namespace, name);
                Reading { object: quarantined(&key), key: Some(key), problems }
            }
            _ => Reading { key: None, object: None, problems },
        },
    }
}

/// What is known of an object whose JSON cannot be read to its end.
pub(crate) fn unreadable(kind: Option<Kind>, identity: Option<(String, String)>, message: &str) -> Reading {
    let identity = identity.filter(|(namespace, name)| !name.is_empty() && !namespace.contains('/'));
    let key = kind.zip(identity).map(|(kind, (namespace, name))| key(kind, namespace, name));
    let problem = Problem {
        file: PathBuf::new(),
        document: 0,
        line: None,
        object: key.as_ref().map(ToString::to_string).unwrap_or_default(),
        field: String::new(),
        value: String::new(),
        message: message.to_owned(),
    };
    Reading { object: key.as_ref().and_then(quarantined), key, problems: vec![problem] }
}

/// The API group and version in which a kind is read.
pub(crate) fn api_version(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace | Kind::Pod | Kind::Node | Kind::Service => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::Policy(PolicyKind::NetworkPolicy) => "networking.k8s.io/v1",
        Kind::Policy(kind) => tiers::version(kind.as_str()).unwrap_or_default(),
    }
}

/// A text of `metadata`; empty when it is not there or is no text.
pub(crate) fn metadata<'n>(node: &'n Node, field: &str) -> &'n str {
    match metadata_value(node, field) {
        Some(Value::String(text)) => text,
        _ => "",
    }
}

/// The value of a field of `metadata`.
pub(crate) fn metadata_value<'n>(node: &'n Node, field: &str) -> Option<&'n Value> {
    child(child(&node.value, "metadata")?, field)
}

/// The value of a field of a mapping.
pub(crate) fn child<'n>(value: &'n Value, field: &str) -> Option<&'n Value> {
    let Value::Map(entries) = value else { return None };
    entries.iter().find(|(key, _)| key == field).map(|(_, node)| &node.value)
}

fn key(kind: Kind, namespace: String, name: String) -> ObjectKey {
    let namespaced = matches!(
        kind,
        Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::Policy(PolicyKind::NetworkPolicy)
    );
    ObjectKey { kind, namespace: if namespaced { namespace } else { String::new() }, name }
}

fn written_name(object: &Cursor) -> Option<(String, String)> {
    let name = metadata(object.node(), "name");
    let namespace = metadata(object.node(), "namespace");
    // A namespace with a slash would be another's, together with a name.
    (!name.is_empty() && !namespace.contains('/')).then(|| (namespace.to_owned(), name.to_owned()))
}

/// A policy of which nothing is known but its name: it isolates, or denies, whatever it could have.
pub(super) fn quarantined(key: &ObjectKey) -> Option<Object> {
    let Kind::Policy(kind) = key.kind else { return None };
    let Name { namespace, name } = Name { namespace: key.namespace.clone(), name: key.name.clone() };
    Some(Object(match kind {
        PolicyKind::NetworkPolicy => Entity::NetworkPolicy(NetworkPolicy {
            namespace,
            name,
            pod_selector: Selector::default(),
            ingress: Some(Vec::new()),
            egress: Some(Vec::new()),
        }),
        PolicyKind::ClusterNetworkPolicy
        | PolicyKind::AdminNetworkPolicy
        | PolicyKind::BaselineAdminNetworkPolicy => {
            let baseline = kind == PolicyKind::BaselineAdminNetworkPolicy;
            let rule =
                TierRule { name: None, action: Action::Deny, peers: vec![TierPeer::Unknown], ports: None };
            Entity::TierPolicy(TierPolicy {
                kind,
                name,
                tier: if baseline { Tier::Baseline } else { Tier::Admin },
                priority: (!baseline).then_some(0),
                subject: PodsIn { namespaces: Selector::default(), pods: Selector::default() },
                ingress: vec![rule.clone()],
                egress: vec![rule],
            })
        }
    }))
}

#[cfg(test)]
#[path = "single_tests.rs"]
mod tests;
