//! Turns Services into a restore script in the shape of kube-proxy's iptables mode: chains per Service and
//! endpoint, a random choice by probability, marks set and cleared by single bits, INVALID packets dropped.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::services::{MASQUERADE_MARK, Way, ways};
use crate::shape::Family;
use crate::topology::{NodePlan, Plan};

/// For `iptables-nft-restore`, or `ip6tables-nft-restore`.
pub(crate) fn restore_script(plan: &Plan, node: &NodePlan, family: Family) -> String {
    let mut nat = Nat::default();
    let mut filter = String::new();
    for way in ways(plan, node, family) {
        nat.add(&way);
        let Way { transport, cluster_ip, port, .. } = &way;
        if way.backends.is_empty() {
            let how = if *transport == "tcp" { " --reject-with tcp-reset" } else { "" };
            for chain in ["FORWARD", "OUTPUT"] {
                let _ = writeln!(
                    filter,
                    "-A {chain} -d {cluster_ip} -p {transport} --dport {port} -j REJECT{how}"
                );
            }
        }
        if let (Some(node_port), true) = (way.node_port, way.from_outside.is_empty()) {
            let _ = writeln!(
                filter,
                "-A INPUT -m addrtype --dst-type LOCAL -p {transport} --dport {node_port} -j DROP"
            );
        }
    }
    let Nat { chains, services, node_ports, endpoints } = nat;
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n{chains}\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {services}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n{node_ports}{endpoints}COMMIT\n\
         *filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A FORWARD -m mark --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j ACCEPT\n{filter}COMMIT\n"
    )
}

#[derive(Default)]
struct Nat {
    chains: String,
    services: String,
    node_ports: String,
    endpoints: String,
}

impl Nat {
    fn add(&mut self, way: &Way) {
        let Way { transport, cluster_ip, port, pods, .. } = way;
        // The chain of a Service that leads to its pods, and the one for what comes from outside.
        let (inside, outside) = (format!("KUBE-SVC-{}", way.name), format!("KUBE-EXT-{}", way.name));
        if way.backends.is_empty() {
            return;
        }
        self.choose(&inside, "KUBE-SEP", way, &way.backends);
        let to = format!("-d {cluster_ip} -p {transport} --dport {port}");
        let _ = writeln!(
            self.services,
            "-A KUBE-SERVICES ! -s {pods} {to} -j KUBE-MARK-MASQ\n-A KUBE-SERVICES {to} -j {inside}"
        );
        if let (Some(node_port), false) = (way.node_port, way.from_outside.is_empty()) {
            let _ = writeln!(
                self.node_ports,
                "-A KUBE-NODEPORTS -p {transport} --dport {node_port} -j {outside}"
            );
            if way.keeps_clients {
                self.choose(&outside, "KUBE-LOC", way, &way.from_outside);
            } else {
                let _ = writeln!(self.chains, ":{outside} - [0:0]");
                let _ = writeln!(self.endpoints, "-A {outside} -j KUBE-MARK-MASQ\n-A {outside} -j {inside}");
            }
        }
    }

    fn choose(&mut self, chain: &str, prefix: &str, way: &Way, backends: &[SocketAddr]) {
        let _ = writeln!(self.chains, ":{chain} - [0:0]");
        for (index, backend) in backends.iter().enumerate() {
            let endpoint = format!("{prefix}-{}-{index}", way.name);
            let left = backends.len() - index;
            #[expect(clippy::cast_precision_loss, reason = "a handful of endpoints")]
            let chance = match left {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.6} ", 1.0 / left as f64),
            };
            let _ = writeln!(self.chains, ":{endpoint} - [0:0]");
            let _ = writeln!(
                self.endpoints,
                "-A {chain} {chance}-j {endpoint}\n-A {endpoint} -s {} -j KUBE-MARK-MASQ\n\
                 -A {endpoint} -p {} -j DNAT --to-destination {backend}",
                backend.ip(),
                way.transport
            );
        }
    }
}
