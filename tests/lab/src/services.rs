//! Plays kube-proxy and a CNI's masquerade as nftables tables. Pure: a script comes out, nothing is run.
//!
//! The shape is kube-proxy's nftables and iptables modes': translation in prerouting and output at dstnat
//! priority, a random choice among endpoints, mark 0x4000 for what must be masqueraded on the way out.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::LabError;
use crate::shape::{Families, Family};
use crate::spec::{ServicePort, ServiceSpec, TargetPort};
use crate::topology::{CLUSTER_CIDR, CLUSTER_CIDR_6, NODE_CIDR, NODE_CIDR_6, NodePlan, Plan, PodPlan};

pub(crate) const MASQUERADE_MARK: &str = "0x4000";

/// The shape of the rules that lead to Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KubeProxy {
    /// kube-proxy's nftables mode.
    #[default]
    Nftables,
    /// Its iptables mode, through iptables-nft.
    Iptables,
}

/// A Service with its addresses, and the endpoints of each of its ports.
#[derive(Clone, Debug)]
pub(crate) struct ServicePlan {
    pub(crate) spec: ServiceSpec,
    pub(crate) cluster_ip: Option<Ipv4Addr>,
    pub(crate) cluster_ip_6: Option<Ipv6Addr>,
    /// For each port in the Service's order: the pods behind it, by index, and the port they listen on.
    pub(crate) endpoints: Vec<Vec<(usize, u16)>>,
}

impl ServicePlan {
    /// Its ClusterIP, when the cluster has the family.
    pub(crate) fn ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.cluster_ip.map(IpAddr::from),
            Family::V6 => self.cluster_ip_6.map(IpAddr::from),
        }
    }
}

/// Every pod of the cluster, every node, and what never leaves a host.
const fn ranges(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => (CLUSTER_CIDR, NODE_CIDR, "127.0.0.0/8"),
        Family::V6 => (CLUSTER_CIDR_6, NODE_CIDR_6, "::1"),
    }
}

/// Gives every Service a ClusterIP and finds its endpoints.
pub(crate) fn plan_services(
    specs: &[ServiceSpec],
    pods: &[PodPlan],
    families: Families,
) -> Result<Vec<ServicePlan>, LabError> {
    let mut plans = Vec::with_capacity(specs.len());
    for (spec, number) in specs.iter().zip(10_u8..) {
        if spec.ports.is_empty() {
            return Err(LabError::Description {
                object: spec.full_name(),
                problem: "has no port".to_owned(),
            });
        }
        let endpoints = spec.ports.iter().map(|port| endpoints(spec, port, pods)).collect();
        plans.push(ServicePlan {
            spec: spec.clone(),
            cluster_ip: families
                .has(Family::V4)
                .then(|| spec.cluster_ip.unwrap_or(Ipv4Addr::new(10, 96, 0, number))),
            cluster_ip_6: families
                .has(Family::V6)
                .then(|| Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into())),
            endpoints,
        });
    }
    Ok(plans)
}

fn endpoints(spec: &ServiceSpec, port: &ServicePort, pods: &[PodPlan]) -> Vec<(usize, u16)> {
    let selected = |pod: &PodPlan| {
        pod.spec.namespace == spec.namespace
            && spec.selector.iter().all(|(key, value)| pod.spec.labels.get(key) == Some(value))
    };
    let target = |pod: &PodPlan| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let named = pod
                .spec
                .ports
                .iter()
                .find(|declared| declared.name == *name && declared.transport == port.transport);
            named.map(|declared| declared.number)
        }
    };
    pods.iter()
        .enumerate()
        .filter(|(_, pod)| selected(pod))
        .filter_map(|(index, pod)| Some((index, target(pod)?)))
        .collect()
}

/// One port of a Service in one family, as a node leads to it.
#[derive(Debug)]
pub(crate) struct Way {
    /// Unique on the node, of letters, digits and dashes.
    pub(crate) name: String,
    pub(crate) transport: &'static str,
    pub(crate) cluster_ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// Every pod of the cluster.
    pub(crate) pods: &'static str,
    pub(crate) backends: Vec<SocketAddr>,
    /// Where the node's port leads to: everywhere, or to the node's own pods.
    pub(crate) from_outside: Vec<SocketAddr>,
    /// Whether pods see the addresses of clients outside (`externalTrafficPolicy: Local`).
    pub(crate) keeps_clients: bool,
}

/// Every port of every Service, as `node` leads to it.
pub(crate) fn ways(plan: &Plan, node: &NodePlan, family: Family) -> Vec<Way> {
    let (pods, ..) = ranges(family);
    let mut ways = Vec::new();
    for (number, service) in plan.services.iter().enumerate() {
        let Some(cluster_ip) = service.ip(family) else { continue };
        for (index, (port, endpoints)) in service.spec.ports.iter().zip(&service.endpoints).enumerate() {
            let local = service.spec.keeps_clients;
            let to = |own: bool| {
                let wanted = endpoints
                    .iter()
                    .filter(|(pod, _)| !own || plan.nodes[plan.pods[*pod].node].number == node.number);
                wanted
                    .filter_map(|(pod, port)| Some(SocketAddr::new(plan.pods[*pod].ip(family)?, *port)))
                    .collect()
            };
            ways.push(Way {
                name: format!("{number}-{index}"),
                transport: port.transport.nft(),
                cluster_ip,
                port: port.port,
                node_port: port.node_port,
                pods,
                backends: to(false),
                from_outside: to(local),
                keeps_clients: local,
            });
        }
    }
    ways
}

/// The tables of one node, in every family it has: the Services', unless they are in iptables' shape, the CNI's
/// masquerade, and the ports of the node that lead to pods.
pub(crate) fn node_ruleset(plan: &Plan, node: &NodePlan) -> String {
    let services = |family: &Family| match plan.kube_proxy {
        KubeProxy::Nftables => service_table(plan, node, *family),
        KubeProxy::Iptables => String::new(),
    };
    plan.families
        .each()
        .iter()
        .map(|family| services(family) + &masquerade(node, *family) + &host_ports(plan, node, *family))
        .collect()
}

fn service_table(plan: &Plan, node: &NodePlan, family: Family) -> String {
    let (pods, _, loopback) = ranges(family);
    let ip = family.keyword();
    let (mut dispatch, mut node_ports, mut rejects, mut drops, mut chains) =
        (String::new(), String::new(), String::new(), String::new(), String::new());
    for way in ways(plan, node, family) {
        let Way { transport, cluster_ip, .. } = &way;
        let chain = format!("svc-{}", way.name);
        let matches = format!("{ip} daddr {cluster_ip} {transport} dport {}", way.port);
        if way.backends.is_empty() {
            // kube-proxy answers with ICMP. Here the node answers while the client's connect() still holds its
            // socket, and IPv6 then ignores the error until the next SYN, a second later (nstat,
            // TcpExtLockDroppedIcmps). A reset waits for the socket.
            let how = if *transport == "tcp" { " with tcp reset" } else { "" };
            let _ = writeln!(rejects, "    {matches} reject{how}");
            continue;
        }
        let _ = writeln!(
            dispatch,
            "    {matches} {ip} saddr != {pods} meta mark set meta mark or {MASQUERADE_MARK}\n    {matches} goto {chain}"
        );
        chains.push_str(&endpoint_chains(&chain, &way.backends, ip, transport));
        let Some(node_port) = way.node_port else { continue };
        let at = format!("fib daddr type local {ip} daddr != {loopback} {transport} dport {node_port}");
        if way.from_outside.is_empty() {
            let _ = writeln!(drops, "    {at} drop");
        } else if way.keeps_clients {
            let own = format!("svc-own-{}", way.name);
            chains.push_str(&endpoint_chains(&own, &way.from_outside, ip, transport));
            let _ = writeln!(node_ports, "    {at} goto {own}");
        } else {
            let _ =
                writeln!(node_ports, "    {at} meta mark set meta mark or {MASQUERADE_MARK} goto {chain}");
        }
    }
    format!(
        "table {ip} kube-proxy-lab {{\n{chains}  \
         chain services {{\n{dispatch}{node_ports}  }}\n  \
         chain prerouting {{\n    type nat hook prerouting priority dstnat;\n    goto services\n  }}\n  \
         chain output {{\n    type nat hook output priority -100;\n    goto services\n  }}\n  \
         chain no-endpoints {{\n{rejects}  }}\n  \
         chain local-in {{\n    type filter hook input priority filter;\n{drops}  }}\n  \
         chain forward {{\n    type filter hook forward priority filter;\n    goto no-endpoints\n  }}\n  \
         chain local-out {{\n    type filter hook output priority filter;\n    goto no-endpoints\n  }}\n  \
         chain postrouting {{\n    type nat hook postrouting priority srcnat;\n    \
         meta mark and {MASQUERADE_MARK} == 0 return\n    \
         meta mark set meta mark xor {MASQUERADE_MARK}\n    masquerade fully-random\n  }}\n}}\n"
    )
}

fn masquerade(node: &NodePlan, family: Family) -> String {
    let Some(own_pods) = node.pods(family) else { return String::new() };
    let (pods, nodes, _) = ranges(family);
    let ip = family.keyword();
    format!(
        "table {ip} cni-lab {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat + 5;\n    \
         {ip} saddr {own_pods} {ip} daddr != {{ {pods}, {nodes} }} masquerade\n  }}\n}}\n"
    )
}

/// The shape of the portmap plugin.
fn host_ports(plan: &Plan, node: &NodePlan, family: Family) -> String {
    let ip = family.keyword();
    let mut rules = String::new();
    for (pod, _) in plan.pods.iter().filter_map(|pod| Some((pod, pod.veth.as_ref()?))) {
        let Some(address) = pod.ip(family).filter(|_| plan.nodes[pod.node].number == node.number) else {
            continue;
        };
        for (host_port, port) in &pod.spec.host_ports {
            let to = SocketAddr::new(address, *port);
            let _ = writeln!(rules, "    fib daddr type local tcp dport {host_port} dnat to {to}");
        }
    }
    if rules.is_empty() {
        return rules;
    }
    format!(
        "table {ip} portmap-lab {{\n  chain prerouting {{\n    type nat hook prerouting priority dstnat;\n{rules}  }}\n}}\n"
    )
}

/// One chain per endpoint, and one that picks among them. A pod that gets itself back must be masqueraded:
/// it would drop a packet from its own address.
fn endpoint_chains(service_chain: &str, backends: &[SocketAddr], ip: &str, transport: &str) -> String {
    let mut text = String::new();
    let mut choices = Vec::with_capacity(backends.len());
    let chain = service_chain.replacen("svc", "sep", 1);
    for (choice, backend) in backends.iter().enumerate() {
        let _ = writeln!(
            text,
            "  chain {chain}-{choice} {{\n    {ip} saddr {} meta mark set meta mark or {MASQUERADE_MARK}\n    meta l4proto {transport} dnat to {backend}\n  }}",
            backend.ip()
        );
        choices.push(format!("{choice} : goto {chain}-{choice}"));
    }
    let _ = writeln!(
        text,
        "  chain {service_chain} {{\n    numgen random mod {} vmap {{ {} }}\n  }}",
        backends.len(),
        choices.join(", ")
    );
    text
}
