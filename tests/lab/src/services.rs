//! Plays kube-proxy and a CNI's masquerade as nftables tables. Pure: a script comes out, nothing is run.
//!
//! The shape is kube-proxy's nftables and iptables modes': translation in prerouting and output at dstnat
//! priority, a random choice among endpoints, mark 0x4000 for what must be masqueraded on the way out.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::error::LabError;
use crate::spec::{ServicePort, ServiceSpec, TargetPort};
use crate::topology::{CLUSTER_CIDR, NODE_CIDR, NodePlan, PodPlan};

const MASQUERADE_MARK: &str = "0x4000";

/// A Service with its address, and the endpoints of each of its ports.
#[derive(Clone, Debug)]
pub(crate) struct ServicePlan {
    pub(crate) spec: ServiceSpec,
    pub(crate) cluster_ip: Ipv4Addr,
    /// For each port in the Service's order: the pods behind it, by index, and where they listen.
    pub(crate) endpoints: Vec<Vec<(usize, SocketAddrV4)>>,
}

/// Gives every Service a ClusterIP and finds its endpoints.
pub(crate) fn plan_services(specs: &[ServiceSpec], pods: &[PodPlan]) -> Result<Vec<ServicePlan>, LabError> {
    let mut plans = Vec::with_capacity(specs.len());
    for (spec, number) in specs.iter().zip(10_u8..) {
        if spec.ports.is_empty() {
            return Err(LabError::Description {
                object: spec.full_name(),
                problem: "has no port".to_owned(),
            });
        }
        let cluster_ip = spec.cluster_ip.unwrap_or(Ipv4Addr::new(10, 96, 0, number));
        let endpoints = spec.ports.iter().map(|port| endpoints(spec, port, pods)).collect();
        plans.push(ServicePlan { spec: spec.clone(), cluster_ip, endpoints });
    }
    Ok(plans)
}

fn endpoints(spec: &ServiceSpec, port: &ServicePort, pods: &[PodPlan]) -> Vec<(usize, SocketAddrV4)> {
    let selected = |pod: &PodPlan| {
        pod.spec.namespace == spec.namespace
            && spec.selector.iter().all(|(key, value)| pod.spec.labels.get(key) == Some(value))
    };
    let target = |pod: &PodPlan| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            pod.spec.ports.iter().find(|(declared, _)| declared == name).map(|(_, number)| *number)
        }
    };
    pods.iter()
        .enumerate()
        .filter(|(_, pod)| selected(pod))
        .filter_map(|(index, pod)| Some((index, SocketAddrV4::new(pod.address, target(pod)?))))
        .collect()
}

/// The tables of one node.
pub(crate) fn node_ruleset(services: &[ServicePlan], node: &NodePlan) -> String {
    let mut dispatch = String::new();
    let mut node_ports = String::new();
    let mut rejects = String::new();
    let mut chains = String::new();
    for (service_index, service) in services.iter().enumerate() {
        for (port_index, (port, endpoints)) in service.spec.ports.iter().zip(&service.endpoints).enumerate() {
            let chain = format!("svc-{service_index}-{port_index}");
            let cluster_ip = service.cluster_ip;
            if endpoints.is_empty() {
                let _ = writeln!(rejects, "    ip daddr {cluster_ip} tcp dport {} reject", port.port);
                continue;
            }
            let _ = writeln!(
                dispatch,
                "    ip daddr {cluster_ip} tcp dport {0} ip saddr != {CLUSTER_CIDR} meta mark set meta mark or {MASQUERADE_MARK}\n    \
                 ip daddr {cluster_ip} tcp dport {0} goto {chain}",
                port.port
            );
            if let Some(node_port) = port.node_port {
                let _ = writeln!(
                    node_ports,
                    "    fib daddr type local ip daddr != 127.0.0.0/8 tcp dport {node_port} meta mark set meta mark or {MASQUERADE_MARK} goto {chain}"
                );
            }
            chains.push_str(&endpoint_chains(&chain, endpoints));
        }
    }
    format!(
        "table ip kube-proxy-lab {{\n{chains}  \
         chain services {{\n{dispatch}{node_ports}  }}\n  \
         chain prerouting {{\n    type nat hook prerouting priority dstnat;\n    goto services\n  }}\n  \
         chain output {{\n    type nat hook output priority -100;\n    goto services\n  }}\n  \
         chain no-endpoints {{\n{rejects}  }}\n  \
         chain forward {{\n    type filter hook forward priority filter;\n    goto no-endpoints\n  }}\n  \
         chain local-out {{\n    type filter hook output priority filter;\n    goto no-endpoints\n  }}\n  \
         chain postrouting {{\n    type nat hook postrouting priority srcnat;\n    \
         meta mark and {MASQUERADE_MARK} == 0 return\n    \
         meta mark set meta mark xor {MASQUERADE_MARK}\n    masquerade fully-random\n  }}\n}}\n\
         table ip cni-lab {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat + 5;\n    \
         ip saddr {} ip daddr != {{ {CLUSTER_CIDR}, {NODE_CIDR} }} masquerade\n  }}\n}}\n",
        node.pod_cidr
    )
}

/// One chain per endpoint, and one that picks among them. A pod that gets itself back must be masqueraded:
/// it would drop a packet from its own address.
fn endpoint_chains(service_chain: &str, endpoints: &[(usize, SocketAddrV4)]) -> String {
    let mut text = String::new();
    let mut choices = Vec::with_capacity(endpoints.len());
    for (choice, (_, address)) in endpoints.iter().enumerate() {
        let chain = service_chain.replacen("svc", "sep", 1);
        let _ = writeln!(
            text,
            "  chain {chain}-{choice} {{\n    ip saddr {} meta mark set meta mark or {MASQUERADE_MARK}\n    meta l4proto tcp dnat to {address}\n  }}",
            address.ip()
        );
        choices.push(format!("{choice} : goto {chain}-{choice}"));
    }
    let _ = writeln!(
        text,
        "  chain {service_chain} {{\n    numgen random mod {} vmap {{ {} }}\n  }}",
        endpoints.len(),
        choices.join(", ")
    );
    text
}
