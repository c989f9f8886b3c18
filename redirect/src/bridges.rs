//! Turns the bridges that pods of this node are ports of into an nftables table of family `bridge`. Pure.
//!
//! Frames between two ports of a bridge never come to the node's IP layer, where pods are intercepted. So every
//! IP packet that a pod sends to one host gets the hardware address of the port it came in by: the bridge takes
//! it for the node's own, and it is routed like any other. Neighbour discovery and ARP stay on the bridge; what
//! is left between two ports, group addresses above all, is dropped, as it is between routed pods.

use std::collections::BTreeMap;
use std::fmt;

use crate::owners;
use crate::ruleset::{Script, TABLE};
use crate::spec::RedirectSpec;

/// The first place in family `bridge`: before broute's tables and br_netfilter
/// (include/uapi/linux/netfilter_bridge.h).
const PRIORITY: i32 = -300;
/// What the names of the empty chains begin with that keep in mind which bridges told of shorter ways before.
pub(crate) const QUIETED: &str = "quieted/";
/// RFC 4861, the messages between neighbours.
const DISCOVERY: &str =
    "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }";
/// IEEE 802.1Q and 802.1ad, by their numbers: nft 0.9 has no name for the second.
const TAGS: &str = "0x8100, 0x88a8";
/// RFC 2710 and RFC 3810: who listens to which group.
const LISTENERS: &str =
    "{ mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }";

/// The hardware address of an Ethernet device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HardwareAddr(pub [u8; 6]);

impl fmt::Display for HardwareAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A bridge that pods of this node are ports of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodBridge {
    /// Its name.
    pub name: String,
    /// The names of the ports that lead to pods, each with its own hardware address, which the bridge takes
    /// for one of the node's (net/bridge/br_fdb.c, `br_fdb_add_local`).
    pub ports: BTreeMap<String, HardwareAddr>,
}

/// The table; empty without bridges.
pub(crate) fn table(spec: &RedirectSpec) -> String {
    let ports: Vec<_> = spec.bridges.iter().flat_map(|bridge| &bridge.ports).collect();
    let mut script = Script::default();
    if spec.bridges.is_empty() {
        return script.text();
    }
    script.line(0, &format!("table bridge {TABLE}"));
    script.line(0, &format!("delete table bridge {TABLE}"));
    script.line(0, &format!("table bridge {TABLE} {{"));
    let elements = |list: Vec<String>| {
        if list.is_empty() { String::new() } else { format!(" elements = {{ {} }};", list.join(", ")) }
    };
    let names = elements(ports.iter().map(|(name, _)| format!("\"{name}\"")).collect());
    let own = elements(ports.iter().map(|(name, address)| format!("\"{name}\" : {address}")).collect());
    script.line(1, &format!("set ports {{ type ifname;{names} }}"));
    script.line(1, &format!("map own_address {{ type ifname : ether_addr;{own} }}"));
    for bridge in &spec.quieted {
        script.line(1, &format!("chain {QUIETED}{bridge} {{ }}"));
    }
    owners::write(&mut script, spec);
    to_the_node(&mut script, spec);
    between_ports(&mut script);
    from_the_node(&mut script);
    script.line(0, "}");
    script.text()
}

/// The lookup in the map ends the rule for a frame from any other port (net/netfilter/nft_lookup.c).
fn to_the_node(script: &mut Script, spec: &RedirectSpec) {
    script.chain("to_the_node", Some(("filter", "prerouting", PRIORITY)));
    owners::write_jumps(script, spec, TAGS);
    script.rule(&format!("icmpv6 type {DISCOVERY} accept"), "neighbours speak for themselves");
    let up = "ether daddr set iifname map @own_address meta pkttype set host accept";
    let group = "{ 224.0.0.0/4, 255.255.255.255 }";
    script.rule(&format!("meta protocol ip ip daddr != {group} {up}"), "to be routed");
    if spec.ipv6 {
        script.rule(&format!("meta protocol ip6 ip6 daddr != ff00::/8 {up}"), "to be routed");
    } else {
        script.rule("meta protocol ip6 iifname @ports counter drop", "this node has no IPv6 to route by");
    }
    script.end();
}

fn between_ports(script: &mut Script) {
    script.chain("between_ports", Some(("filter", "forward", PRIORITY)));
    script.rule(&format!("icmpv6 type {DISCOVERY} accept"), "neighbours speak for themselves");
    script.rule(&format!("icmpv6 type {LISTENERS} accept"), "who listens to which group");
    // A tag of VLAN 0 is no tag to the receiver (net/core/dev.c, __netif_receive_skb_core).
    for end in ["iifname", "oifname"] {
        script.rule(
            &format!("{end} @ports meta protocol {{ ip, ip6, {TAGS} }} counter drop"),
            "no packet passes the node unseen",
        );
    }
    script.end();
}

/// The node routes back out of the bridge, and would tell the sender of the shorter way. IPv4 has a setting for
/// that, which these rules do not rely on; IPv6 has none.
fn from_the_node(script: &mut Script) {
    script.chain("from_the_node", Some(("filter", "output", PRIORITY)));
    script.rule("oifname @ports icmp type redirect drop", "there is no shorter way");
    script.rule("oifname @ports icmpv6 type nd-redirect drop", "there is no shorter way");
    script.end();
}
