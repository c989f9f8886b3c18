//! Turns a description into nodes, pods and Services with their addresses and names. Pure.
//!
//! Nodes share a bridge in a namespace of their own, the fabric, which also routes to the external network. The
//! fabric knows no pod address: what leaves the cluster unmasqueraded never comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::error::LabError;
use crate::services::{KubeProxy, ServicePlan, plan_services};
use crate::shape::{Families, Family, Topology};
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

const MAX_NODES: u8 = 9;
const MAX_PODS_PER_NODE: u8 = 250;

/// A node with its addresses.
#[derive(Clone, Debug)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) address: Ipv4Addr,
    pub(crate) pod_cidr: Option<String>,
    pub(crate) address_6: Option<Ipv6Addr>,
    pub(crate) pod_cidr_6: Option<String>,
    pub(crate) more: Vec<MoreAddress>,
}

/// An address of a node beside its first.
#[derive(Clone, Debug)]
pub(crate) struct MoreAddress {
    /// As Node.status.addresses has it.
    pub(crate) kind: &'static str,
    pub(crate) ip: IpAddr,
    pub(crate) device: &'static str,
}

/// The device of a node's ExternalIPs.
pub(crate) const PUBLIC: &str = "public";

/// A pod with its node and address. `veth` is its interface on the node; pods on the host network have none.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    pub(crate) spec: PodSpec,
    pub(crate) node: usize,
    /// Planned, and given to the pod when the cluster has IPv4.
    pub(crate) address: Ipv4Addr,
    pub(crate) has_v4: bool,
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
    pub(crate) families: Families,
    pub(crate) topology: Topology,
    pub(crate) kube_proxy: KubeProxy,
    pub(crate) secluded: bool,
}

impl NodePlan {
    /// Its address, when the cluster has the family.
    pub(crate) fn ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.pod_cidr.as_ref().map(|_| self.address.into()),
            Family::V6 => self.address_6.map(IpAddr::from),
        }
    }

    /// The range of its pods.
    pub(crate) fn pods(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.pod_cidr.as_deref(),
            Family::V6 => self.pod_cidr_6.as_deref(),
        }
    }

    /// The first address of its pods' range: an overlay's.
    pub(crate) fn base(&self, family: Family) -> Option<IpAddr> {
        self.pods(family)?.split('/').next()?.parse().ok()
    }

    /// The second one: the gateway of bridged pods.
    pub(crate) fn gateway(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 244, self.number, 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, 1).into(),
        }
    }
}

impl PodPlan {
    /// Its address, when the cluster has the family.
    pub(crate) fn ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.has_v4.then(|| self.address.into()),
            Family::V6 => self.address_6.map(IpAddr::from),
        }
    }
}

impl Plan {
    /// The pods of a node that have an interface there, and that interface.
    pub(crate) fn pods_on(&self, node: usize) -> impl Iterator<Item = (&PodPlan, &str)> {
        self.pods
            .iter()
            .filter(move |pod| pod.node == node)
            .filter_map(|pod| Some((pod, pod.veth.as_deref()?)))
    }
}

/// Gives every node, pod and Service its address. Refuses what contradicts itself.
pub(crate) fn plan(builder: &ClusterBuilder) -> Result<Plan, LabError> {
    if builder.nodes == 0 || builder.nodes > MAX_NODES {
        return Err(describe("cluster", format!("{} nodes; 1 to {MAX_NODES} are possible", builder.nodes)));
    }
    let families = builder.families;
    let (has_v4, has_v6) = (families.has(Family::V4), families.has(Family::V6));
    if has_v6 && !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(describe("cluster", "IPv6 is asked for, and this kernel has none".to_owned()));
    }
    let nodes: Vec<NodePlan> = (1..=builder.nodes)
        .map(|number| NodePlan {
            name: format!("node{number}"),
            number,
            address: Ipv4Addr::new(172, 18, 0, 10 + number),
            pod_cidr: has_v4.then(|| format!("10.244.{number}.0/24")),
            address_6: has_v6
                .then(|| Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x10 + u16::from(number))),
            pod_cidr_6: has_v6.then(|| format!("fd00:10:244:{number}::/64")),
            more: families
                .each()
                .iter()
                .filter(|_| builder.more_addresses)
                .flat_map(|family| more_addresses(*family, number))
                .collect(),
        })
        .collect();
    let pods = plan_pods(&builder.pods, &nodes)?;
    let services = plan_services(&builder.services, &pods, families)?;
    let mut namespaces = builder.namespaces.clone();
    let used = pods.iter().map(|pod| &pod.spec.namespace);
    for name in used.chain(services.iter().map(|service| &service.spec.namespace)) {
        namespaces.entry(name.clone()).or_default();
    }
    namespaces.retain(|name, _| !builder.declared_elsewhere.contains(name));
    Ok(Plan {
        nodes,
        pods,
        services,
        namespaces,
        rp_filter: builder.rp_filter,
        families,
        topology: builder.topology,
        kube_proxy: builder.kube_proxy,
        secluded: builder.secluded,
    })
}

fn more_addresses(family: Family, number: u8) -> [MoreAddress; 2] {
    let [internal, external]: [IpAddr; 2] = match family {
        Family::V4 => [[172, 18, 0, 110 + number].into(), [198, 51, 100, number].into()],
        Family::V6 => [
            [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x110 + u16::from(number)].into(),
            [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, u16::from(number)].into(),
        ],
    };
    [
        MoreAddress { kind: "InternalIP", ip: internal, device: "eth0" },
        MoreAddress { kind: "ExternalIP", ip: external, device: PUBLIC },
    ]
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
                has_v4: nodes[node].pod_cidr.is_some(),
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
            has_v4: nodes[node].pod_cidr.is_some(),
            address_6: nodes[node].address_6.map(|_| {
                let host = 1 + u16::from(taken[node]);
                Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, host)
            }),
            veth: Some(format!("veth{}", taken[node])),
        });
    }
    Ok(pods)
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

fn describe(object: &str, problem: String) -> LabError {
    LabError::Description { object: object.to_owned(), problem }
}
