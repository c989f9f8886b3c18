//! What a node's tunnels take their packets out of: UDP ports, and protocols of IP. Pure.
//!
//! A tunnel takes a packet from whoever sends it, and what was in it comes to the node as if another node had sent it, with
//! whatever source it says. So a pod that speaks for an overlay would speak for every pod of other nodes.

use std::collections::BTreeSet;

use crate::first_packet::interfaces;
use crate::ruleset::{Script, families};
use crate::spec::RedirectSpec;

/// What the node's tunnels are reached by; empty without tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlays {
    /// Ports of VXLAN and Geneve.
    pub ports: BTreeSet<u16>,
    /// Numbers of IP's protocols: 4 and 41 for packets in packets, 47 for GRE (RFC 2003, RFC 4213, RFC 2784).
    pub protocols: BTreeSet<u8>,
}

impl Overlays {
    /// The ports or protocols as a set of nft; `None` when there are none.
    pub(crate) fn set_of<N: ToString>(numbers: &BTreeSet<N>) -> Option<String> {
        let list: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        (!list.is_empty()).then(|| format!("{{ {} }}", list.join(", ")))
    }
}

/// The chain for what no pod may send: it drops what has a pod's address or comes from where pods are.
pub(crate) fn write_of_pods(script: &mut Script, spec: &RedirectSpec) {
    script.chain("of_pods", None);
    let mut sets = vec!["isolated", "observed", "pod_ranges"];
    if spec.passes {
        sets.push("passed");
    }
    for set in sets {
        for (protocol, version) in families(spec) {
            let own = if set == "pod_ranges" { " fib saddr type != local" } else { "" };
            script
                .rule(&format!("{protocol} saddr @{set}{version}{own} counter drop"), "with a pod's address");
        }
    }
    script.rule("iifname @pod_links counter drop", "from a pod");
    for interface in interfaces(spec) {
        script.rule(&format!("iifname {interface} counter drop"), "from a pod");
    }
    script.end();
}

/// Tunnels that are protocols of IP, in the chain of what is not TCP.
pub(crate) fn write_protocols(script: &mut Script, spec: &RedirectSpec) {
    if let Some(protocols) = Overlays::set_of(&spec.overlays.protocols) {
        script.rule(&format!("meta l4proto {protocols} jump of_pods"), "pods speak for no overlay");
    }
}

/// Tunnels over UDP, in the chain of flows that nobody has judged.
pub(crate) fn write_ports(script: &mut Script, spec: &RedirectSpec) {
    if let Some(ports) = Overlays::set_of(&spec.overlays.ports) {
        script.rule(&format!("udp dport {ports} jump of_pods"), "pods speak for no overlay");
    }
}
