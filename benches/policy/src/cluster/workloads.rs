//! Which workloads each namespace has, and the pods of each as manifests.

use super::random::Random;
use super::{Shape, namespace_name, node_ip, node_name, pod_ip, pod_ip6};

const ROLES: [&str; 6] = ["frontend", "api", "worker", "database", "cache", "metrics"];
/// Places for pods in a node's range; the base address and the last one are nobody's.
const PODS_PER_NODE: usize = 250;
/// One workload in so many is a StatefulSet: each of its pods carries its own name as a label.
const STATEFUL_ONE_IN: usize = 40;

/// A Deployment or StatefulSet and where its pods run.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) role: &'static str,
    name: String,
    stateful: bool,
    /// What a Deployment's ReplicaSet appends to names.
    hash: String,
    port: u16,
    /// The node of each pod, and its place in the node's range.
    pub(crate) pods: Vec<(usize, usize)>,
}

/// Spreads the pods over namespaces and nodes.
pub(crate) fn plan(shape: Shape, seed: u64) -> Vec<Vec<Workload>> {
    let mut placed = 0;
    (0..shape.namespaces)
        .map(|namespace| {
            let mut random = Random::of(seed, namespace as u64);
            let last = (namespace + 1) * shape.pods / shape.namespaces;
            let mut workloads = Vec::new();
            while placed < last {
                let replicas = (1 + random.below(14)).min(last - placed);
                let places = (placed..placed + replicas).map(|pod| place(pod, shape.nodes));
                workloads.push(workload(workloads.len(), places.collect(), &mut random));
                placed += replicas;
            }
            workloads
        })
        .collect()
}

/// Round the nodes and back to the first; place 0 is the range's base address.
fn place(pod: usize, nodes: usize) -> (usize, usize) {
    let place = 1 + pod / nodes;
    assert!(place <= PODS_PER_NODE, "more pods than the nodes have addresses for");
    (pod % nodes, place)
}

fn workload(index: usize, pods: Vec<(usize, usize)>, random: &mut Random) -> Workload {
    let role = ROLES[index % ROLES.len()];
    let stateful = random.below(STATEFUL_ONE_IN) == 0;
    let hash = format!("{:010x}", random.next() >> 24);
    let port = match role {
        "database" => 5432,
        "metrics" => 9090,
        _ => 8080,
    };
    Workload { role, name: format!("{role}-{index}"), stateful, hash, port, pods }
}

impl Workload {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pod_name(&self, replica: usize) -> String {
        if self.stateful {
            format!("{}-{replica}", self.name)
        } else {
            format!("{}-{}-{:05x}", self.name, self.hash, replica * 0x1f3d + 0x2a7)
        }
    }

    /// One pod, on a line.
    pub(crate) fn pod(&self, namespace: usize, replica: usize, dual_stack: bool) -> String {
        let (node, place) = self.pods[replica];
        let (ip, host) = (pod_ip(node, place), node_ip(node));
        let name = self.pod_name(replica);
        let (own_label, owner) = if self.stateful {
            (
                format!(r#""statefulset.kubernetes.io/pod-name":"{name}""#),
                format!(r#""kind":"StatefulSet","name":"{}""#, self.name),
            )
        } else {
            (
                format!(r#""pod-template-hash":"{}""#, self.hash),
                format!(r#""kind":"ReplicaSet","name":"{}-{}""#, self.name, self.hash),
            )
        };
        let second =
            if dual_stack { format!(r#",{{"ip":"{}"}}"#, pod_ip6(node, place)) } else { String::new() };
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"namespace":"{namespace}","name":"{name}","uid":"{uid}","creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"{app}","role":"{role}",{own_label}}},"ownerReferences":[{{"apiVersion":"apps/v1",{owner},"uid":"0","controller":true}}]}},"spec":{{"nodeName":"{node}","containers":[{{"name":"main","ports":[{{"name":"serve","containerPort":{port},"protocol":"TCP"}},{{"name":"metrics","containerPort":9090}}]}}]}},"status":{{"phase":"Running","hostIP":"{host}","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}{second}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#,
            namespace = namespace_name(namespace),
            uid = uid(node, place),
            app = self.name,
            role = self.role,
            node = node_name(node),
            port = self.port,
        ) + "\n"
    }

    /// A Service before the workload's pods.
    pub(crate) fn service(&self, namespace: usize) -> String {
        let ip = std::net::Ipv4Addr::from_bits((172 << 24 | 31 << 16) + super::low_bits(namespace) + 1);
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"namespace":"{}","name":"{name}"}},"spec":{{"clusterIP":"{ip}","selector":{{"app":"{name}"}},"ports":[{{"port":80,"targetPort":"serve"}}]}}}}"#,
            namespace_name(namespace),
            name = self.name,
        ) + "\n"
    }
}

fn uid(node: usize, place: usize) -> String {
    format!("{node:08x}-{place:04x}-4000-8000-{:012x}", node * PODS_PER_NODE + place)
}
