//! Turns a description into addresses, interfaces and routes. Pure: scripts come out, nothing is run.
//!
//! Pods hang on routed veth pairs as with the ptp and Calico plugins: a /32 of their own, a link-local
//! gateway for which the node answers ARP by proxy, a host route on the node. Nodes share a bridge in a
//! namespace of their own, the fabric, which also routes to the external network. The fabric knows no pod
//! address: what leaves the cluster unmasqueraded never comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::error::LabError;
use crate::services::{ServicePlan, plan_services};
use crate::spec::{ClusterBuilder, PodSpec};

/// Every pod of the cluster.
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16";
/// Every node.
pub(crate) const NODE_CIDR: &str = "172.18.0.0/24";
/// Every pod of a dual-stack cluster.
pub(crate) const CLUSTER_CIDR_6: &str = "fd00:10:244::/48";
/// Every node of a dual-stack cluster.
pub(crate) const NODE_CIDR_6: &str = "fd00:172:18::/64";
/// The external host (RFC 5737, TEST-NET-3).
pub(crate) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The external host of a dual-stack cluster (RFC 3849).
pub(crate) const EXTERNAL_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);

const EXTERNAL_GATEWAY_6: &str = "2001:db8:113::1";
const NODE_GATEWAY_6: &str = "fd00:172:18::1";
/// The gateway of pods: every veth of a node has it.
const POD_GATEWAY_6: &str = "fe80::1";
const EXTERNAL_GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const NODE_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const MAX_NODES: u8 = 9;
const MAX_PODS_PER_NODE: u8 = 250;

/// A node with its addresses.
#[derive(Clone, Debug)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) address: Ipv4Addr,
    pub(crate) pod_cidr: String,
    pub(crate) address_6: Option<Ipv6Addr>,
    pub(crate) pod_cidr_6: Option<String>,
}

/// A pod with its node and address. `veth` is its interface on the node; pods on the host network have none.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    pub(crate) spec: PodSpec,
    pub(crate) node: usize,
    pub(crate) address: Ipv4Addr,
    pub(crate) address_6: Option<Ipv6Addr>,
    pub(crate) veth: Option<String>,
}

/// Everything that is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) pods: Vec<PodPlan>,
    pub(crate) services: Vec<ServicePlan>,
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) rp_filter: u8,
    pub(crate) dual_stack: bool,
}

/// Gives every node, pod and Service its address. Refuses what contradicts itself.
pub(crate) fn plan(builder: &ClusterBuilder) -> Result<Plan, LabError> {
    if builder.nodes == 0 || builder.nodes > MAX_NODES {
        return Err(describe("cluster", format!("{} nodes; 1 to {MAX_NODES} are possible", builder.nodes)));
    }
    let dual_stack = builder.dual_stack;
    if dual_stack && !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(describe("cluster", "dual stack, and this kernel has no IPv6".to_owned()));
    }
    let nodes: Vec<NodePlan> = (1..=builder.nodes)
        .map(|number| NodePlan {
            name: format!("node{number}"),
            number,
            address: Ipv4Addr::new(172, 18, 0, 10 + number),
            pod_cidr: format!("10.244.{number}.0/24"),
            address_6: dual_stack
                .then(|| Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x10 + u16::from(number))),
            pod_cidr_6: dual_stack.then(|| format!("fd00:10:244:{number}::/64")),
        })
        .collect();
    let pods = plan_pods(&builder.pods, &nodes)?;
    let services = plan_services(&builder.services, &pods, dual_stack)?;
    let mut namespaces = builder.namespaces.clone();
    let used = pods.iter().map(|pod| &pod.spec.namespace);
    for name in used.chain(services.iter().map(|service| &service.spec.namespace)) {
        namespaces.entry(name.clone()).or_default();
    }
    namespaces.retain(|name, _| !builder.declared_elsewhere.contains(name));
    Ok(Plan { nodes, pods, services, namespaces, rp_filter: builder.rp_filter, dual_stack })
}

fn plan_pods(specs: &[PodSpec], nodes: &[NodePlan]) -> Result<Vec<PodPlan>, LabError> {
    let mut taken = vec![0_u8; nodes.len()];
    let mut names = BTreeSet::new();
    let mut pods = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let full_name = spec.full_name();
        if !names.insert(full_name.clone()) {
            return Err(describe(&full_name, "described twice".to_owned()));
        }
        let node = match &spec.node {
            None => index % nodes.len(),
            Some(wanted) => nodes
                .iter()
                .position(|node| node.name == *wanted)
                .ok_or_else(|| describe(&full_name, format!("no node {wanted}")))?,
        };
        if spec.host_network {
            pods.push(PodPlan {
                spec: spec.clone(),
                node,
                address: nodes[node].address,
                address_6: nodes[node].address_6,
                veth: None,
            });
            continue;
        }
        taken[node] += 1;
        if taken[node] > MAX_PODS_PER_NODE {
            return Err(describe(&full_name, format!("more than {MAX_PODS_PER_NODE} pods on one node")));
        }
        let number = nodes[node].number;
        pods.push(PodPlan {
            spec: spec.clone(),
            node,
            address: Ipv4Addr::new(10, 244, number, 1 + taken[node]),
            address_6: nodes[node].address_6.map(|_| {
                let host = 1 + u16::from(taken[node]);
                Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, host)
            }),
            veth: Some(format!("veth{}", taken[node])),
        });
    }
    Ok(pods)
}

/// The veth pairs, made straight into their namespaces: the caller's namespace never sees them.
/// `names` gives the namespace of a node, by index, and of a pod, by index.
pub(crate) fn links(plan: &Plan, names: &Names) -> String {
    let mut script = String::new();
    let mut pair = |left: &str, left_in: &str, right: &str, right_in: &str| {
        let _ = writeln!(
            script,
            "link add name {left} netns {left_in} type veth peer name {right} netns {right_in}"
        );
    };
    for (node, name) in plan.nodes.iter().zip(&names.nodes) {
        pair(&format!("port{}", node.number), &names.fabric, "eth0", name);
    }
    for (pod, name) in plan.pods.iter().zip(&names.pods) {
        if let (Some(veth), Some(name)) = (&pod.veth, name) {
            pair(veth, &names.nodes[pod.node], "eth0", name);
        }
    }
    pair("ext0", &names.fabric, "eth0", &names.external);
    script
}

/// The names of the namespaces, in the plan's order; a pod on the host network has none of its own.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) fabric: String,
    pub(crate) external: String,
    pub(crate) nodes: Vec<String>,
    pub(crate) pods: Vec<Option<String>>,
}

impl Names {
    /// `name_of` turns a role into a namespace's name.
    pub(crate) fn new(plan: &Plan, name_of: impl Fn(&str) -> String) -> Self {
        Self {
            fabric: name_of("fabric"),
            external: name_of("external"),
            nodes: plan.nodes.iter().map(|node| name_of(&node.name)).collect(),
            pods: plan
                .pods
                .iter()
                .map(|pod| {
                    let role = format!("{}-{}", pod.spec.namespace, pod.spec.name);
                    pod.veth.as_ref().map(|_| name_of(&role))
                })
                .collect(),
        }
    }

    /// Every name.
    pub(crate) fn all(&self) -> Vec<String> {
        let fixed = [self.fabric.clone(), self.external.clone()];
        fixed
            .into_iter()
            .chain(self.nodes.iter().cloned())
            .chain(self.pods.iter().flatten().cloned())
            .collect()
    }
}

/// The bridge between the nodes, and the way out.
pub(crate) fn fabric_script(plan: &Plan) -> String {
    let mut script = format!(
        "link set lo up\n\
         link add name br0 type bridge forward_delay 0 stp_state 0\n\
         link set br0 up\n\
         address add {NODE_GATEWAY}/24 dev br0\n\
         link set ext0 up\n\
         address add {EXTERNAL_GATEWAY}/24 dev ext0\n"
    );
    if plan.dual_stack {
        let _ = writeln!(
            script,
            "address add {NODE_GATEWAY_6}/64 dev br0 nodad\naddress add {EXTERNAL_GATEWAY_6}/64 dev ext0 nodad"
        );
    }
    for node in &plan.nodes {
        let _ = writeln!(script, "link set port{0} master br0\nlink set port{0} up", node.number);
    }
    script
}

/// The external host: it reaches the nodes and, without a route to them, no pod.
pub(crate) fn external_script(plan: &Plan) -> String {
    let mut script = format!(
        "link set lo up\n\
         address add {EXTERNAL}/24 dev eth0\n\
         link set eth0 up\n\
         route add {NODE_CIDR} via {EXTERNAL_GATEWAY}\n"
    );
    if plan.dual_stack {
        let _ = writeln!(
            script,
            "address add {EXTERNAL_6}/64 dev eth0 nodad\nroute add {NODE_CIDR_6} via {EXTERNAL_GATEWAY_6}"
        );
    }
    script
}

/// A pod: its own /32 and a gateway that is nowhere but in the node's proxy ARP.
pub(crate) fn pod_script(pod: &PodPlan) -> String {
    let mut script = format!(
        "link set lo up\n\
         address add {}/32 dev eth0\n\
         link set eth0 up\n\
         route add {POD_GATEWAY} dev eth0 scope link\n\
         route add default via {POD_GATEWAY} dev eth0\n",
        pod.address
    );
    if let Some(address) = pod.address_6 {
        let _ = writeln!(
            script,
            "address add {address}/128 dev eth0 nodad\nroute add default via {POD_GATEWAY_6} dev eth0"
        );
    }
    script
}

/// A node: its uplink, a host route for each of its pods, and the pod ranges of the other nodes.
pub(crate) fn node_script(plan: &Plan, index: usize) -> String {
    let node = &plan.nodes[index];
    let mut script = format!(
        "link set lo up\n\
         address add {}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via {NODE_GATEWAY}\n",
        node.address
    );
    if let Some(address) = node.address_6 {
        let _ = writeln!(
            script,
            "address add {address}/64 dev eth0 nodad\nroute add default via {NODE_GATEWAY_6}"
        );
    }
    for other in plan.nodes.iter().filter(|other| other.number != node.number) {
        let _ = writeln!(script, "route add {} via {}", other.pod_cidr, other.address);
        if let (Some(range), Some(address)) = (&other.pod_cidr_6, other.address_6) {
            let _ = writeln!(script, "route add {range} via {address}");
        }
    }
    for pod in plan.pods.iter().filter(|pod| pod.node == index) {
        if let Some(veth) = &pod.veth {
            let _ = writeln!(
                script,
                "link set {veth} up\nroute add {}/32 dev {veth} src {}",
                pod.address, node.address
            );
            if let Some(address) = pod.address_6 {
                let _ = writeln!(
                    script,
                    "address add {POD_GATEWAY_6}/64 dev {veth} nodad\nroute add {address}/128 dev {veth}"
                );
            }
        }
    }
    script
}

/// A node's kernel switches.
pub(crate) fn node_sysctls(plan: &Plan, index: usize) -> Vec<(String, String)> {
    let mut settings = vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())];
    let veths: Vec<&String> =
        plan.pods.iter().filter(|pod| pod.node == index).filter_map(|pod| pod.veth.as_ref()).collect();
    // The larger of `all` and the interface's own value counts (ip-sysctl, rp_filter).
    for device in ["all", "default", "eth0"].into_iter().chain(veths.iter().map(|veth| veth.as_str())) {
        settings.push((format!("net.ipv4.conf.{device}.rp_filter"), plan.rp_filter.to_string()));
    }
    for veth in veths {
        settings.push((format!("net.ipv4.conf.{veth}.proxy_arp"), "1".to_owned()));
        // Proxied answers are delayed by up to 0.8 s unless this is 0 (arp(7), proxy_delay).
        settings.push((format!("net.ipv4.neigh.{veth}.proxy_delay"), "0".to_owned()));
    }
    if plan.dual_stack {
        settings.push(("net.ipv6.conf.all.forwarding".to_owned(), "1".to_owned()));
    }
    settings
}

/// For every namespace, before it has interfaces: these take over the default. Duplicate address detection of
/// their link-local addresses would keep neighbour discovery waiting for seconds (RFC 4862, section 5.4).
pub(crate) fn duplicate_detection_off() -> Vec<(String, String)> {
    ["all", "default"].map(|device| (format!("net.ipv6.conf.{device}.accept_dad"), "0".to_owned())).into()
}

/// The interfaces that a namespace must have ready, for every namespace of the plan.
pub(crate) fn interfaces(plan: &Plan, names: &Names) -> Vec<(String, Vec<String>)> {
    let eth0 = || vec!["eth0".to_owned()];
    let ports = plan.nodes.iter().map(|node| format!("port{}", node.number));
    let fabric = ["br0", "ext0"].map(str::to_owned).into_iter().chain(ports).collect();
    let mut all = vec![(names.fabric.clone(), fabric), (names.external.clone(), eth0())];
    for (index, name) in names.nodes.iter().enumerate() {
        let veths = plan.pods.iter().filter(|pod| pod.node == index).filter_map(|pod| pod.veth.clone());
        all.push((name.clone(), eth0().into_iter().chain(veths).collect()));
    }
    all.extend(names.pods.iter().flatten().map(|name| (name.clone(), eth0())));
    all
}

/// The fabric's kernel switches: it routes, and spoofing tests on the nodes must not fail here.
pub(crate) fn fabric_sysctls(plan: &Plan) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = ["all", "default", "br0", "ext0"]
        .map(|device| (format!("net.ipv4.conf.{device}.rp_filter"), "0".to_owned()))
        .into();
    settings.push(("net.ipv4.ip_forward".to_owned(), "1".to_owned()));
    if plan.dual_stack {
        settings.push(("net.ipv6.conf.all.forwarding".to_owned(), "1".to_owned()));
    }
    settings
}

fn describe(object: &str, problem: String) -> LabError {
    LabError::Description { object: object.to_owned(), problem }
}
