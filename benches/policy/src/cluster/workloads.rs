//! Which workloads each namespace has, and the pods of each as manifests.

use std::net::{IpAddr, Ipv4Addr};

use super::random::Random;
use super::{Shape, namespace_name, node_ip, node_name, pod_ip, pod_ip6};

const ROLES: [&str; 6] = ["frontend", "api", "worker", "database", "cache", "metrics"];
/// Places for pods in a node's range; the base address and the last one are nobody's.
const PODS_PER_NODE: usize = 250;
/// One workload in so many is a StatefulSet: each of its pods carries its own name as a label.
const STATEFUL_ONE_IN: usize = 40;
/// One in so many is a Job that is done: its pods keep the address that somebody else has by now.
const DONE_ONE_IN: usize = 50;
/// Every other workload of the system's namespace is a DaemonSet in its nodes' network.
const AGENTS_ONE_IN: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Deployment,
    StatefulSet,
    /// In the nodes' network.
    DaemonSet,
    /// Done.
    Job,
}

/// A workload and where its pods run.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) role: &'static str,
    name: String,
    kind: Kind,
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
                workloads.push(workload(namespace, workloads.len(), places.collect(), &mut random));
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

fn workload(namespace: usize, index: usize, pods: Vec<(usize, usize)>, random: &mut Random) -> Workload {
    let role = ROLES[index % ROLES.len()];
    let stateful = random.below(STATEFUL_ONE_IN) == 0;
    let done = random.below(DONE_ONE_IN) == 0;
    let kind = match index {
        // Whatever a namespace has, it has somebody to talk to.
        0 if stateful => Kind::StatefulSet,
        0 => Kind::Deployment,
        _ if namespace == 0 && index.is_multiple_of(AGENTS_ONE_IN) => Kind::DaemonSet,
        _ if done => Kind::Job,
        _ if stateful => Kind::StatefulSet,
        _ => Kind::Deployment,
    };
    let hash = format!("{:010x}", random.next() >> 24);
    let port = match role {
        "database" => 5432,
        "metrics" => 9090,
        _ => 8080,
    };
    Workload { role, name: format!("{role}-{index}"), kind, hash, port, pods }
}

impl Workload {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its pods run and have addresses to themselves.
    pub(crate) fn has_identity(&self) -> bool {
        matches!(self.kind, Kind::Deployment | Kind::StatefulSet)
    }

    pub(crate) fn pod_name(&self, replica: usize) -> String {
        let suffix = replica * 0x1f3d + 0x2a7;
        match self.kind {
            Kind::StatefulSet => format!("{}-{replica}", self.name),
            Kind::Deployment => format!("{}-{}-{suffix:05x}", self.name, self.hash),
            Kind::DaemonSet | Kind::Job => format!("{}-{suffix:05x}", self.name),
        }
    }

    /// The addresses in a pod's status: the node's for one in its network, and for one that is done those of
    /// the first pod of its node.
    fn addresses(&self, (node, place): (usize, usize), dual_stack: bool) -> Vec<IpAddr> {
        let place = if self.kind == Kind::Job { 1 } else { place };
        match self.kind {
            Kind::DaemonSet => vec![node_ip(node).into()],
            _ if dual_stack => vec![pod_ip(node, place).into(), pod_ip6(node, place).into()],
            _ => vec![pod_ip(node, place).into()],
        }
    }

    /// One pod, on a line.
    pub(crate) fn pod(&self, namespace: usize, replica: usize, dual_stack: bool) -> String {
        let (node, place) = self.pods[replica];
        let name = self.pod_name(replica);
        let hash_label = format!(r#""pod-template-hash":"{}""#, self.hash);
        let (own_label, owner_kind, owner) = match self.kind {
            Kind::StatefulSet => (
                format!(r#""statefulset.kubernetes.io/pod-name":"{name}""#),
                "StatefulSet",
                self.name.clone(),
            ),
            Kind::Deployment => (hash_label, "ReplicaSet", format!("{}-{}", self.name, self.hash)),
            Kind::DaemonSet => (hash_label, "DaemonSet", self.name.clone()),
            Kind::Job => (format!(r#""job-name":"{}""#, self.name), "Job", self.name.clone()),
        };
        let ips = self.addresses((node, place), dual_stack);
        let list: Vec<String> = ips.iter().map(|ip| format!(r#"{{"ip":"{ip}"}}"#)).collect();
        let network = if self.kind == Kind::DaemonSet { r#""hostNetwork":true,"# } else { "" };
        let (phase, ready) =
            if self.kind == Kind::Job { ("Succeeded", "False") } else { ("Running", "True") };
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"namespace":"{namespace}","name":"{name}","uid":"{uid}","creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"{app}","role":"{role}",{own_label}}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"{owner_kind}","name":"{owner}","uid":"0","controller":true}}]}},"spec":{{{network}"nodeName":"{node_name}","containers":[{{"name":"main","ports":[{{"name":"serve","containerPort":{port},"protocol":"TCP"}},{{"name":"metrics","containerPort":9090}}]}}]}},"status":{{"phase":"{phase}","hostIP":"{host}","podIP":"{ip}","podIPs":[{list}],"conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#,
            namespace = namespace_name(namespace),
            uid = uid(node, place),
            app = self.name,
            role = self.role,
            node_name = node_name(node),
            port = self.port,
            host = node_ip(node),
            ip = ips[0],
            list = list.join(","),
        ) + "\n"
    }

    /// A Service before the workload's pods, and its EndpointSlices, one of each family.
    pub(crate) fn service(&self, namespace: usize, dual_stack: bool) -> String {
        let ip = Ipv4Addr::from_bits((172 << 24 | 31 << 16) + super::low_bits(namespace) + 1);
        let mut text = format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"namespace":"{}","name":"{name}"}},"spec":{{"clusterIP":"{ip}","selector":{{"app":"{name}"}},"ports":[{{"name":"serve","port":80,"targetPort":"serve"}}]}}}}"#,
            namespace_name(namespace),
            name = self.name,
        ) + "\n";
        for family in ["IPv4", "IPv6"].into_iter().take(1 + usize::from(dual_stack)) {
            text.push_str(&self.slice(namespace, family));
        }
        text
    }

    /// One endpoint in eight is not ready.
    fn slice(&self, namespace: usize, family: &str) -> String {
        let endpoints: Vec<String> = (0..)
            .zip(&self.pods)
            .map(|(replica, place)| {
                let address = self.addresses(*place, true)[usize::from(family == "IPv6")];
                let ready = (namespace + replica) % 8 != 7;
                format!(
                    r#"{{"addresses":["{address}"],"conditions":{{"ready":{ready}}},"targetRef":{{"kind":"Pod","namespace":"{}","name":"{}"}}}}"#,
                    namespace_name(namespace),
                    self.pod_name(replica),
                )
            })
            .collect();
        format!(
            r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"namespace":"{}","name":"{name}-{}","labels":{{"kubernetes.io/service-name":"{name}"}}}},"addressType":"{family}","endpoints":[{}],"ports":[{{"name":"serve","port":{},"protocol":"TCP"}}]}}"#,
            namespace_name(namespace),
            family.to_lowercase(),
            endpoints.join(","),
            self.port,
            name = self.name,
        ) + "\n"
    }
}

fn uid(node: usize, place: usize) -> String {
    format!("{node:08x}-{place:04x}-4000-8000-{:012x}", node * PODS_PER_NODE + place)
}
