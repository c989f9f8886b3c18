//! Turns a cluster into the Kubernetes objects an API server would show for it, as YAML. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::services::ServicePlan;
use crate::shape::Family;
use crate::topology::{NodePlan, Plan, PodPlan};

/// Every object as one multi-document YAML text. `labels` replaces the labels of the pods that it names by
/// `namespace/name`.
pub(crate) fn render(plan: &Plan, labels: &BTreeMap<String, BTreeMap<String, String>>) -> String {
    let namespaces = plan.namespaces.iter().map(|(name, labels)| namespace(name, labels));
    let nodes = plan.nodes.iter().map(node);
    let pods = plan.pods.iter().map(|pod| {
        let labels = labels.get(&pod.spec.full_name()).unwrap_or(&pod.spec.labels);
        pod_object(pod, &plan.nodes[pod.node], labels)
    });
    let services = plan.services.iter().flat_map(|service| {
        let slices = plan.families.each().iter().flat_map(|family| {
            (0..service.spec.ports.len()).map(|port| endpoint_slice(plan, service, port, *family))
        });
        std::iter::once(service_object(service)).chain(slices.collect::<Vec<_>>())
    });
    let documents: Vec<String> =
        namespaces.chain(nodes).chain(pods).chain(services).map(|object| yaml(&object)).collect();
    documents.join("---\n")
}

/// A stable uid for an object: the same names always give the same one.
pub(crate) fn uid(kind: &str, full_name: &str) -> String {
    // FNV-1a, 128 bit (draft-eastlake-fnv); only its looks matter here.
    let hash = kind
        .bytes()
        .chain([0])
        .chain(full_name.bytes())
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
        });
    let hex = format!("{hash:032x}");
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

fn yaml(object: &Value) -> String {
    // A JSON value always has a YAML form; JSON itself is one, should the printer ever refuse.
    serde_saphyr::to_string(object).unwrap_or_else(|_| format!("{object}\n"))
}

fn namespace(name: &str, labels: &BTreeMap<String, String>) -> Value {
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "uid": uid("Namespace", name), "labels": labels },
    })
}

fn node(node: &NodePlan) -> Value {
    let families = [Family::V4, Family::V6];
    let ranges: Vec<&str> = families.iter().filter_map(|family| node.pods(*family)).collect();
    let addresses = families.iter().filter_map(|family| node.ip(*family));
    let mut addresses: Vec<Value> =
        addresses.map(|address| json!({ "type": "InternalIP", "address": address })).collect();
    addresses.extend(node.more.iter().map(|more| json!({ "type": more.kind, "address": more.ip })));
    addresses.push(json!({ "type": "Hostname", "address": node.name }));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "uid": uid("Node", &node.name),
            "labels": { "kubernetes.io/hostname": node.name },
        },
        "spec": { "podCIDR": ranges.first(), "podCIDRs": ranges },
        "status": { "addresses": addresses },
    })
}

fn pod_object(pod: &PodPlan, node: &NodePlan, labels: &BTreeMap<String, String>) -> Value {
    let spec = &pod.spec;
    let mut metadata = Map::new();
    metadata.insert("name".into(), json!(spec.name));
    metadata.insert("namespace".into(), json!(spec.namespace));
    metadata.insert("uid".into(), json!(uid("Pod", &spec.full_name())));
    let mut labels = labels.clone();
    if let Some(deployment) = &spec.deployment {
        let owner = format!("{}/{deployment}", spec.namespace);
        let hash = uid("ReplicaSet", &owner)[..8].to_owned();
        labels.insert("pod-template-hash".to_owned(), hash.clone());
        metadata.insert(
            "ownerReferences".into(),
            json!([{
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": format!("{deployment}-{hash}"),
                "uid": uid("ReplicaSet", &owner),
                "controller": true,
                "blockOwnerDeletion": true,
            }]),
        );
    }
    metadata.insert("labels".into(), json!(labels));
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let protocol = port.transport.kubernetes();
            json!({ "name": port.name, "containerPort": port.number, "protocol": protocol })
        })
        .collect();
    let families = [Family::V4, Family::V6];
    let addresses: Vec<_> = families.iter().filter_map(|family| pod.ip(*family)).collect();
    let host = families.iter().find_map(|family| node.ip(*family));
    let mut pod_spec = Map::new();
    pod_spec.insert("nodeName".into(), json!(node.name));
    if spec.host_network {
        pod_spec.insert("hostNetwork".into(), json!(true));
    }
    pod_spec.insert(
        "containers".into(),
        json!([{ "name": spec.name, "image": "example.invalid/lab", "ports": ports }]),
    );
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": pod_spec,
        "status": {
            "phase": "Running",
            "hostIP": host,
            "podIP": addresses.first(),
            "podIPs": addresses.iter().map(|address| json!({ "ip": address })).collect::<Vec<_>>(),
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn service_object(service: &ServicePlan) -> Value {
    let spec = &service.spec;
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let target = match &port.target {
                crate::TargetPort::Number(number) => json!(number),
                crate::TargetPort::Name(name) => json!(name),
            };
            let protocol = port.transport.kubernetes();
            let mut object =
                json!({ "name": port.name, "port": port.port, "protocol": protocol, "targetPort": target });
            if let Some(node_port) = port.node_port {
                object["nodePort"] = json!(node_port);
            }
            object
        })
        .collect();
    let cluster_ips: Vec<_> =
        [Family::V4, Family::V6].iter().filter_map(|family| service.ip(*family)).collect();
    let kind = if spec.ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "uid": uid("Service", &spec.full_name()),
        },
        "spec": {
            "type": kind,
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "selector": spec.selector,
            "ports": ports,
        },
    });
    if spec.keeps_clients {
        object["spec"]["externalTrafficPolicy"] = json!("Local");
    }
    object
}

/// One slice per port: endpoints of a named target port may differ in number from pod to pod, and a slice
/// has one number for all.
fn endpoint_slice(plan: &Plan, service: &ServicePlan, port: usize, family: Family) -> Value {
    let spec = &service.spec;
    let suffix = if family == Family::V4 { "" } else { "-6" };
    let name = format!("{}-{port}{suffix}", spec.name);
    let endpoints: Vec<Value> = service.endpoints[port]
        .iter()
        .filter_map(|(index, _)| {
            let pod = &plan.pods[*index];
            Some(json!({
                "addresses": [pod.ip(family)?],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": plan.nodes[pod.node].name,
                "targetRef": { "kind": "Pod", "namespace": pod.spec.namespace, "name": pod.spec.name },
            }))
        })
        .collect();
    let number = service.endpoints[port].first().map(|(_, number)| number);
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": spec.namespace,
            "uid": uid("EndpointSlice", &format!("{}/{name}", spec.namespace)),
            "labels": { "kubernetes.io/service-name": spec.name },
        },
        "addressType": family.address_type(),
        "ports": number.map(|number| json!({
            "name": spec.ports[port].name, "port": number, "protocol": spec.ports[port].transport.kubernetes(),
        })).into_iter().collect::<Vec<_>>(),
        "endpoints": endpoints,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cluster, PodSpec, ServiceSpec};

    #[test]
    fn objects_read_back_from_yaml_as_they_were_meant() {
        let builder = Cluster::builder()
            .nodes(2)
            .namespace("shop", &[("tier", "true")])
            .pod(PodSpec::new("shop/web").on("node2").label("app", "on").port("http", 8080).deployment("web"))
            .pod(PodSpec::new("shop/agent").on("node1").host_network())
            .service(
                ServiceSpec::new("shop/web").selector("app", "on").port("http", 80, "http").node_port(30080),
            );
        let plan = crate::topology::plan(&builder).unwrap();
        let text = render(&plan, &BTreeMap::new());
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let find = |kind: &str, name: &str| {
            objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).unwrap().clone()
        };
        assert_eq!(find("Namespace", "shop")["metadata"]["labels"]["tier"], "true");
        assert_eq!(find("Node", "node2")["spec"]["podCIDRs"], json!(["10.244.2.0/24"]));
        let pod = find("Pod", "web");
        assert_eq!(pod["metadata"]["labels"]["app"], "on");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
        assert_eq!(pod["spec"]["nodeName"], "node2");
        assert_eq!(pod["status"]["podIPs"], json!([{ "ip": "10.244.2.2" }]));
        assert_eq!(pod["status"]["hostIP"], "172.18.0.12");
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["containerPort"], 8080);
        let agent = find("Pod", "agent");
        assert_eq!(agent["spec"]["hostNetwork"], true);
        assert_eq!(agent["status"]["podIP"], "172.18.0.11");
        assert_eq!(find("Service", "web")["spec"]["ports"][0]["nodePort"], 30080);
        let slice = find("EndpointSlice", "web-0");
        assert_eq!(slice["ports"][0]["port"], 8080);
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.244.2.2"]));
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    }

    #[test]
    fn uids_are_stable_and_differ_by_kind_and_name() {
        assert_eq!(uid("Pod", "a/b"), uid("Pod", "a/b"));
        assert_ne!(uid("Pod", "a/b"), uid("Pod", "a/c"));
        assert_ne!(uid("Pod", "a/b"), uid("Service", "a/b"));
        assert_eq!(uid("Pod", "a/b").len(), 36);
    }
}
