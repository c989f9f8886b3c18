//! Turns a plan into what wires it up: `ip` and `bridge` scripts, and kernel switches. Pure: nothing is run.
//!
//! Routed pods have an address of their own and nothing else on their link: a link-local gateway, for which the
//! node answers ARP by proxy, and a host route on the node. Bridged pods share their node's range on the bridge
//! `cni0`, whose address is their gateway. Nodes route to each other's ranges over the fabric, or through VXLAN
//! with one entry per node and no learning, as flannel does it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::shape::{Family, Topology};
use crate::topology::{EXTERNAL, EXTERNAL_6, NODE_CIDR, NODE_CIDR_6, Names, NodePlan, PUBLIC, Plan, PodPlan};

const EXTERNAL_GATEWAY: &str = "203.0.113.1";
const EXTERNAL_GATEWAY_6: &str = "2001:db8:113::1";
const NODE_GATEWAY: &str = "172.18.0.1";
const NODE_GATEWAY_6: &str = "fd00:172:18::1";
/// The gateway of routed pods: every veth of a node has it, the IPv4 one by proxy ARP.
const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const POD_GATEWAY_6: &str = "fe80::1";
/// The bridge of a node's pods.
const BRIDGE: &str = "cni0";
/// What the overlay leaves of a link of 1,500 bytes: 50 of headers over IPv4 (RFC 7348).
const OVERLAY_MTU: u16 = 1450;

/// The overlay's device of one family.
const fn overlay(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.1",
        Family::V6 => "flannel-v6.1",
    }
}

/// The veth pairs, made straight into their namespaces: the caller's namespace never sees them.
pub(crate) fn links(plan: &Plan, names: &Names) -> String {
    let mut script = String::new();
    let mtu = if plan.topology == Topology::Vxlan { OVERLAY_MTU } else { 1500 };
    let mut pair = |left: &str, left_in: &str, right: &str, right_in: &str, mtu: u16| {
        let _ = writeln!(
            script,
            "link add name {left} mtu {mtu} netns {left_in} type veth peer name {right} mtu {mtu} netns {right_in}"
        );
    };
    for (node, name) in plan.nodes.iter().zip(&names.nodes) {
        pair(&format!("port{}", node.number), &names.fabric, "eth0", name, 1500);
    }
    for (pod, name) in plan.pods.iter().zip(&names.pods) {
        if let (Some(veth), Some(name)) = (&pod.veth, name) {
            pair(veth, &names.nodes[pod.node], "eth0", name, mtu);
        }
    }
    pair("ext0", &names.fabric, "eth0", &names.external, 1500);
    script
}

/// The bridge between the nodes, and the way out.
pub(crate) fn fabric_script(plan: &Plan) -> String {
    let mut script = "link set lo up\n\
         link add name br0 type bridge forward_delay 0 stp_state 0\n\
         link set br0 up\n\
         link set ext0 up\n"
        .to_owned();
    for family in plan.families.each() {
        script.push_str(&match family {
            Family::V4 => {
                format!("address add {NODE_GATEWAY}/24 dev br0\naddress add {EXTERNAL_GATEWAY}/24 dev ext0\n")
            }
            Family::V6 => format!(
                "address add {NODE_GATEWAY_6}/64 dev br0 nodad\naddress add {EXTERNAL_GATEWAY_6}/64 dev ext0 nodad\n"
            ),
        });
    }
    for node in &plan.nodes {
        let _ = writeln!(script, "link set port{0} master br0\nlink set port{0} up", node.number);
        for more in node.more.iter().filter(|more| more.device == PUBLIC) {
            let family = if more.ip.is_ipv4() { Family::V4 } else { Family::V6 };
            if let Some(way) = node.ip(family) {
                let _ = writeln!(script, "route add {} via {way}", more.ip);
            }
        }
    }
    script
}

/// The external host: it reaches the nodes and, without a route to them, no pod.
pub(crate) fn external_script(plan: &Plan) -> String {
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    for family in plan.families.each() {
        script.push_str(&match family {
            Family::V4 => format!(
                "address add {EXTERNAL}/24 dev eth0\nroute add {NODE_CIDR} via {EXTERNAL_GATEWAY}\n"
            ),
            Family::V6 => format!(
                "address add {EXTERNAL_6}/64 dev eth0 nodad\nroute add {NODE_CIDR_6} via {EXTERNAL_GATEWAY_6}\n"
            ),
        });
    }
    if plan.nodes.iter().any(|node| !node.more.is_empty()) {
        for family in plan.families.each() {
            script.push_str(&match family {
                Family::V4 => format!("route add 198.51.100.0/24 via {EXTERNAL_GATEWAY}\n"),
                Family::V6 => format!("route add 2001:db8:100::/64 via {EXTERNAL_GATEWAY_6}\n"),
            });
        }
    }
    script
}

/// A pod: its addresses and the way to its gateway.
pub(crate) fn pod_script(plan: &Plan, pod: &PodPlan) -> String {
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    let node = &plan.nodes[pod.node];
    for family in plan.families.each() {
        let Some(address) = pod.ip(*family) else { continue };
        script.push_str(&match (plan.topology.is_bridged(), family) {
            (false, Family::V4) => format!(
                "address add {address}/32 dev eth0\nroute add {POD_GATEWAY} dev eth0 scope link\n\
                 route add default via {POD_GATEWAY} dev eth0\n"
            ),
            (false, Family::V6) => format!(
                "address add {address}/128 dev eth0 nodad\nroute add default via {POD_GATEWAY_6} dev eth0\n"
            ),
            (true, Family::V4) => {
                format!(
                    "address add {address}/24 dev eth0\nroute add default via {}\n",
                    node.gateway(*family)
                )
            }
            (true, Family::V6) => format!(
                "address add {address}/64 dev eth0 nodad\nroute add default via {}\n",
                node.gateway(*family)
            ),
        });
    }
    script
}

/// A node: its uplink, its pods, and the pod ranges of the other nodes.
pub(crate) fn node_script(plan: &Plan, index: usize) -> String {
    let node = &plan.nodes[index];
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    for family in plan.families.each() {
        let Some(address) = node.ip(*family) else { continue };
        let _ = match family {
            Family::V4 => {
                writeln!(script, "address add {address}/24 dev eth0\nroute add default via {NODE_GATEWAY}")
            }
            Family::V6 => writeln!(
                script,
                "address add {address}/64 dev eth0 nodad\nroute add default via {NODE_GATEWAY_6}"
            ),
        };
    }
    if node.more.iter().any(|more| more.device == PUBLIC) {
        let _ = writeln!(script, "link add name {PUBLIC} type bridge\nlink set {PUBLIC} up");
    }
    for more in &node.more {
        let (length, nodad) = match (more.ip.is_ipv4(), more.device == PUBLIC) {
            (true, true) => ("32", ""),
            (true, false) => ("24", ""),
            (false, true) => ("128", " nodad"),
            (false, false) => ("64", " nodad"),
        };
        let _ = writeln!(script, "address add {}/{length} dev {}{nodad}", more.ip, more.device);
    }
    if plan.topology.is_bridged() {
        script.push_str(&bridged_pods(plan, index));
    } else {
        script.push_str(&routed_pods(plan, index));
    }
    for family in plan.families.each() {
        script.push_str(&match plan.topology {
            Topology::Routed | Topology::Bridge => routes_to_nodes(plan, node, *family),
            Topology::Vxlan => overlay_script(plan, node, *family),
        });
    }
    script
}

fn routed_pods(plan: &Plan, index: usize) -> String {
    let node = &plan.nodes[index];
    let mut script = String::new();
    for (pod, veth) in plan.pods_on(index) {
        let _ = writeln!(script, "link set {veth} up");
        for family in plan.families.each() {
            let Some(address) = pod.ip(*family) else { continue };
            script.push_str(&match family {
                Family::V4 => format!("route add {address}/32 dev {veth} src {}\n", node.address),
                Family::V6 => format!(
                    "address add {POD_GATEWAY_6}/64 dev {veth} nodad\nroute add {address}/128 dev {veth}\n"
                ),
            });
        }
    }
    script
}

/// The ports reflect what they sent (`hairpin on`), as flannel configures the bridge plugin.
fn bridged_pods(plan: &Plan, index: usize) -> String {
    let node = &plan.nodes[index];
    let mut script =
        format!("link add name {BRIDGE} type bridge forward_delay 0 stp_state 0\nlink set {BRIDGE} up\n");
    for family in plan.families.each() {
        let length = if *family == Family::V4 { "24" } else { "64" };
        let nodad = if *family == Family::V4 { "" } else { " nodad" };
        let _ = writeln!(script, "address add {}/{length} dev {BRIDGE}{nodad}", node.gateway(*family));
    }
    for (_, veth) in plan.pods_on(index) {
        let _ = writeln!(
            script,
            "link set {veth} master {BRIDGE}\nlink set {veth} type bridge_slave hairpin on\nlink set {veth} up"
        );
    }
    script
}

fn others<'a>(plan: &'a Plan, node: &'a NodePlan) -> impl Iterator<Item = &'a NodePlan> {
    plan.nodes.iter().filter(move |other| other.number != node.number)
}

fn routes_to_nodes(plan: &Plan, node: &NodePlan, family: Family) -> String {
    let ways = others(plan, node).filter_map(|other| Some((other.pods(family)?, other.ip(family)?)));
    ways.map(|(range, address)| format!("route add {range} via {address}\n")).collect()
}

/// The overlay's device, which has the base address of the node's range, and the way to each other node's.
fn overlay_script(plan: &Plan, node: &NodePlan, family: Family) -> String {
    let (Some(own), Some(base)) = (node.ip(family), node.base(family)) else { return String::new() };
    let device = overlay(family);
    let mut script = format!(
        "link add name {device} address {} type vxlan id 1 local {own} dev eth0 dstport 8472 nolearning\n\
         link set {device} up\n",
        hardware_address(node)
    );
    let _ = match family {
        Family::V4 => writeln!(script, "address add {base}/32 dev {device}"),
        Family::V6 => writeln!(script, "address add {base}/128 dev {device} nodad"),
    };
    for other in others(plan, node) {
        if let (Some(range), Some(base)) = (other.pods(family), other.base(family)) {
            let hardware = hardware_address(other);
            let _ = writeln!(
                script,
                "neighbour add {base} lladdr {hardware} dev {device} nud permanent\n\
                 route add {range} via {base} dev {device} onlink"
            );
        }
    }
    script
}

/// Which node stands behind which hardware address of the overlay, for `bridge -batch`; empty without one.
pub(crate) fn overlay_entries(plan: &Plan, index: usize) -> String {
    let node = &plan.nodes[index];
    if plan.topology != Topology::Vxlan {
        return String::new();
    }
    let entries = plan.families.each().iter().flat_map(|family| {
        others(plan, node).filter_map(|other| {
            let (hardware, device) = (hardware_address(other), overlay(*family));
            Some(format!("fdb append {hardware} dev {device} dst {}\n", other.ip(*family)?))
        })
    });
    entries.collect()
}

fn hardware_address(node: &NodePlan) -> String {
    format!("0e:00:00:00:00:{:02x}", node.number)
}

/// A node's kernel switches.
pub(crate) fn node_sysctls(plan: &Plan, index: usize) -> Vec<(String, String)> {
    let mut settings = vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())];
    let veths: Vec<&str> = plan.pods_on(index).map(|(_, veth)| veth).collect();
    // The larger of `all` and the interface's own value counts (ip-sysctl, rp_filter).
    for device in ["all", "default"].into_iter().chain(devices(plan)).chain(veths.iter().copied()) {
        let device = device.replace('.', "/");
        settings.push((format!("net.ipv4.conf.{device}.rp_filter"), plan.rp_filter.to_string()));
    }
    for veth in veths.iter().filter(|_| !plan.topology.is_bridged()) {
        settings.push((format!("net.ipv4.conf.{veth}.proxy_arp"), "1".to_owned()));
        // Proxied answers are delayed by up to 0.8 s unless this is 0 (arp(7), proxy_delay).
        settings.push((format!("net.ipv4.neigh.{veth}.proxy_delay"), "0".to_owned()));
    }
    if plan.families.has(Family::V6) {
        settings.push(("net.ipv6.conf.all.forwarding".to_owned(), "1".to_owned()));
    }
    settings
}

/// The devices of a node beside those of its pods.
fn devices(plan: &Plan) -> Vec<&'static str> {
    let mut devices = vec!["eth0"];
    if plan.topology.is_bridged() {
        devices.push(BRIDGE);
    }
    if plan.topology == Topology::Vxlan {
        devices.extend(plan.families.each().iter().map(|family| overlay(*family)));
    }
    devices
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
        let mut devices = eth0();
        if !plan.topology.is_bridged() {
            devices.extend(plan.pods_on(index).map(|(_, veth)| veth.to_owned()));
        } else if plan.pods_on(index).next().is_some() {
            devices.push(BRIDGE.to_owned());
        }
        all.push((name.clone(), devices));
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
    if plan.families.has(Family::V6) {
        settings.push(("net.ipv6.conf.all.forwarding".to_owned(), "1".to_owned()));
    }
    settings
}
