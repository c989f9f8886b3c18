//! The fields around what a kind says, held to what the API server's strict field validation takes: those of an object
//! itself, of its `metadata`, and of a list.
//!
//! A misspelt `spec` or `namespace` that is passed over opens what it was meant to close, and so does a field of the
//! spec that is indented too little. Objects that come from an API server have been through this there, and may have
//! fields that are newer than this list.

use super::fields::Scope;
use super::near;
use super::reader::{Cursor, Findings, MAX_MEANT};
use super::tree::Value;

/// Source: apimachinery's `ObjectMeta`; `clusterName` is in dumps of older clusters.
const METADATA: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "clusterName",
];
const LIST: &[&str] = &["apiVersion", "kind", "metadata", "items"];
/// What most kinds have at the top. A NetworkPolicy had a `status` from Kubernetes 1.24 to 1.27.
const TOP: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
const SLICE: &[&str] = &["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"];

/// What the fields that are not known may have been meant as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// The namespace: there is none where it belongs, and somewhere else stands a text.
    pub(crate) namespace: bool,
    /// The spec, or a field of it.
    pub(crate) spec: bool,
}

/// Looks for fields that are not known, without reporting them.
pub(crate) fn doubt(object: &Cursor, kind: &str, scope: Scope) -> Doubt {
    let mut doubt = Doubt::default();
    let metadata = object.get("metadata");
    let namespace = metadata.as_ref().and_then(|metadata| metadata.get("namespace"));
    let has_spec = object.get("spec").is_some();
    let unknown = |cursor: &Cursor, known: &[&str], doubt: &mut Doubt, at_top: bool| {
        let entries = cursor.entries().filter(|(key, _)| !known.contains(key));
        for (index, (key, field)) in entries.enumerate() {
            doubt.namespace |= scope == Scope::Namespaced
                && namespace.is_none()
                && matches!(field.node().value, Value::String(_));
            // A misspelt annotation says nothing about the spec.
            doubt.spec = doubt.spec
                || at_top
                || !has_spec
                || index >= MAX_MEANT
                || TOP.contains(&key)
                || is_like(key, fields_of_spec(kind));
        }
    };
    unknown(object, top(kind), &mut doubt, true);
    if let Some(metadata) = &metadata {
        unknown(metadata, METADATA, &mut doubt, false);
    }
    doubt
}

/// Reports every field of an object and of its metadata that is not known.
pub(crate) fn report(object: &Cursor, kind: &str, findings: &mut Findings) {
    let spec = fields_of_spec(kind);
    object.report_unknown(top(kind), &[("metadata.", METADATA), ("spec.", spec)], findings);
    if let Some(metadata) = object.get("metadata") {
        metadata.report_unknown(METADATA, &[("", TOP), ("spec.", spec)], findings);
    }
}

/// Reports every field of a list that is not known.
pub(crate) fn report_list(list: &Cursor, findings: &mut Findings) {
    list.report_unknown(LIST, &[], findings);
}

fn top(kind: &str) -> &'static [&'static str] {
    if kind == "EndpointSlice" { SLICE } else { TOP }
}

/// Those that are read, where a kind has a spec.
fn fields_of_spec(kind: &str) -> &'static [&'static str] {
    match kind {
        "NetworkPolicy" => &["podSelector", "policyTypes", "ingress", "egress"],
        "ClusterNetworkPolicy" => &["tier", "priority", "subject", "ingress", "egress"],
        "AdminNetworkPolicy" => &["priority", "subject", "ingress", "egress"],
        "BaselineAdminNetworkPolicy" => &["subject", "ingress", "egress"],
        "Pod" => &["hostNetwork", "nodeName", "containers", "initContainers"],
        "Node" => &["podCIDR", "podCIDRs"],
        "Service" => {
            &["clusterIP", "clusterIPs", "externalIPs", "externalTrafficPolicy", "ports", "selector"]
        }
        _ => &[],
    }
}

fn is_like(key: &str, words: &[&str]) -> bool {
    words.contains(&key) || near::meant(key, words.iter().copied()).is_some()
}
