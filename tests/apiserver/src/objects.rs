//! Objects of a small cluster, as tests put them into a server.

use serde_json::{Value, json};

/// A namespace whose label `team` is its name.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "team": name } } })
}

/// A running pod of `node1` whose label `app` is its name.
pub fn pod(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "labels": { "app": name },
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
        },
        "spec": { "nodeName": "node1", "containers": [{ "name": "c", "image": "example.invalid", "env": [] }] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    })
}

/// Isolates the pods of `shop` that it selects, and lets nobody in.
pub fn deny(name: &str, app: &str) -> Value {
    policy(name, json!({ "podSelector": { "matchLabels": { "app": app } } }))
}

/// A NetworkPolicy of `shop`.
pub fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
    })
}

/// Denies all that comes in to pods with this label, in the Admin tier.
pub fn admin_deny(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": name, "generation": 1 },
        "spec": {
            "tier": "Admin", "priority": 10,
            "subject": { "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": app } } } },
            "ingress": [{ "action": "Deny", "from": [{ "namespaces": {} }] }],
        },
    })
}
