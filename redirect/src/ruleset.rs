//! Turns the desired interception into the text of one nftables transaction and, for the iptables gate, one
//! restore script per family. Pure.
//!
//! The order of a packet's questions, most frequent answer first: does it come from loopback, is it TCP, does
//! it open a connection, does a socket of the proxy own it. The rule for SYN stands before the one for owned
//! packets: a SYN that meets a TIME_WAIT socket of the proxy must reach the listener, not that socket.

use std::fmt::Write;

use crate::bridges;
use crate::config::FailMode;
use crate::datagrams;
use crate::first_packet;
use crate::marks::Marks;
use crate::overlays;
use crate::pods::{element_list, name_list};
use crate::spec::{GateBackend, RedirectSpec};
use crate::xtables::{self, IptablesVariant, Stale, Version};

/// The nftables table, family `inet`.
pub(crate) const TABLE: &str = "sluice";
/// The chain of the iptables gate, in table `mangle`.
pub(crate) const GATE_CHAIN: &str = "SLUICE-GATE";

/// The chains of table `mangle` that jump to it.
pub(crate) const GATE_HOOKS: [&str; 2] = ["INPUT", "FORWARD"];
/// The rules in it.
pub(crate) const GATE_RULES: usize = 3;

/// What the names of the sets begin with that remember how many connections each client opens.
pub(crate) const SYN_RATE: &str = "syn_rate";

/// What the names of the sets begin with that remember where senders of accepted flows were found: address and interface.
pub(crate) const SENDERS: &str = "senders";

/// After destination translation at -100 (`dstnat`), so that rules see pods and pod ports.
const INTERCEPT_PRIORITY: i32 = -90;
/// Where iptables keeps its `mangle` chains; the nft gate stands at the same place.
pub(crate) const GATE_PRIORITY: i32 = -150;
/// A packet that user space accepts goes on with the next base chain, so the refusals have their own.
pub(crate) const REFUSE_PRIORITY: i32 = GATE_PRIORITY + 1;
/// Before conntrack, at -200.
const RAW_PRIORITY: i32 = -300;
/// After conntrack and before the filter chains.
const MANGLE_PRIORITY: i32 = -150;

/// SYN alone: the first packet of a connection, ECN bits or not.
const OPENING: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// The desired interception as commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// For `nft -f -`: creates or replaces the table, and that of the bridges where there are some, in one
    /// transaction.
    pub nft: String,
    /// The iptables gate, when that is the backend.
    pub gate: Option<GateScripts>,
    /// The rules and sets of iptables, when those are the backend. Of nft then only the bridges' table is left.
    pub iptables: Option<IptablesScripts>,
    /// The routing rules and routes, as `ip` commands. The installer speaks rtnetlink; these are for people.
    pub routes: Vec<String>,
}

/// The iptables gate: for `iptables-nft-restore --noflush` on a node that has no such chain yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateScripts {
    /// For `iptables-nft-restore --noflush`.
    pub v4: String,
    /// For `ip6tables-nft-restore --noflush`, when the node has IPv6.
    pub v6: Option<String>,
}

/// The iptables backend, on a node that has none of it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesScripts {
    /// The variant of the tools.
    pub variant: IptablesVariant,
    /// For `ipset restore`.
    pub sets: String,
    /// For `iptables-restore --noflush`.
    pub v4: String,
    /// For `ip6tables-restore --noflush`, when the node has IPv6.
    pub v6: Option<String>,
}

/// Writes down the desired interception.
pub fn ruleset(spec: &RedirectSpec) -> Ruleset {
    if let Some(variant) = spec.gate.iptables() {
        let script = |version| xtables::restore_script(spec, version, &Stale::default());
        let scripts = IptablesScripts {
            variant,
            sets: xtables::replace_script(spec),
            v4: script(Version::V4),
            v6: spec.ipv6.then(|| script(Version::V6)),
        };
        return Ruleset {
            nft: bridges::table(spec),
            gate: None,
            iptables: Some(scripts),
            routes: route_commands(spec),
        };
    }
    let gate = (spec.gate == GateBackend::IptablesNfqueue).then(|| {
        let script = gate_script(spec, &[], true);
        GateScripts { v6: spec.ipv6.then(|| script.clone()), v4: script }
    });
    Ruleset { nft: table(spec) + &bridges::table(spec), gate, iptables: None, routes: route_commands(spec) }
}

/// One iptables restore script: empties or creates the chain, fills it, and makes `INPUT` jump there once.
/// `stale` are jumps to take away first, as `iptables-save` prints them.
pub(crate) fn gate_script(spec: &RedirectSpec, stale: &[String], jump: bool) -> String {
    let Marks { proxy, unreachable, flow, .. } = spec.marks;
    let open = flow | unreachable;
    let target = match spec.last_queue() {
        last if last == spec.queue => format!("--queue-num {last}"),
        last => format!("--queue-balance {}:{last}", spec.queue),
    };
    let mut script = format!("*mangle\n:{GATE_CHAIN} - [0:0]\n");
    for line in stale {
        script.push_str(&line.replacen("-A ", "-D ", 1));
        script.push('\n');
    }
    script.push_str(&format!(
        "-A {GATE_CHAIN} -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m mark --mark {proxy:#x}/{proxy:#x} \
         -m comment --comment \"sluice: hold the SYN until the decision\" -j NFQUEUE {target}\n"
    ));
    for (mark, bypass) in [(open, " --queue-bypass"), (flow, "")] {
        script.push_str(&format!(
            "-A {GATE_CHAIN} -m mark --mark {mark:#x}/{open:#x} \
             -m comment --comment \"sluice: hold the datagram until the decision\" -j NFQUEUE {target}{bypass}\n"
        ));
    }
    for hook in GATE_HOOKS.iter().filter(|_| jump) {
        script.push_str(&format!("-I {hook} 1 -m comment --comment \"sluice: gate\" -j {GATE_CHAIN}\n"));
    }
    script.push_str("COMMIT\n");
    script
}

fn route_commands(spec: &RedirectSpec) -> Vec<String> {
    let RedirectSpec { route_table, rule_priority, marks: Marks { proxy, .. }, .. } = spec;
    let families: &[&str] = if spec.ipv6 { &["-4", "-6"] } else { &["-4"] };
    families
        .iter()
        .flat_map(|family| {
            [
                format!("ip {family} rule add priority {rule_priority} fwmark {proxy:#x}/{proxy:#x} lookup {route_table}"),
                format!("ip {family} route add local default dev lo table {route_table}"),
            ]
        })
        .collect()
}

fn table(spec: &RedirectSpec) -> String {
    let mut script = Script::default();
    // Creating before deleting makes the deletion succeed on a node without the table; all of it is one
    // transaction (nft(8), "atomic").
    script.line(0, &format!("table inet {TABLE}"));
    script.line(0, &format!("delete table inet {TABLE}"));
    script.line(0, &format!("table inet {TABLE} {{"));
    sets(&mut script, spec);
    for (marker, wanted) in spec.created.markers() {
        if wanted {
            script.line(1, &format!("chain {marker} {{ }}"));
        }
    }
    first_packet::write(&mut script, spec);
    overlays::write_of_pods(&mut script, spec);
    datagrams::write_interception(&mut script, spec);
    datagrams::write_settlement(&mut script, spec);
    stray(&mut script, spec);
    intercept(&mut script, spec);
    untracked(&mut script, spec);
    own_node(&mut script, spec);
    gate(&mut script, spec);
    refuse(&mut script, spec);
    refuse_forward(&mut script, spec);
    script.line(0, "}");
    script.text
}

fn sets(script: &mut Script, spec: &RedirectSpec) {
    let elements = spec.elements();
    let mut set = |name: &str, kind: &str, list: String| {
        let elements = if list.is_empty() { String::new() } else { format!(" elements = {{ {list} }};") };
        script.line(1, &format!("set {name} {{ type {kind};{elements} }}"));
    };
    const RANGES: [&str; 2] = ["ipv4_addr; flags interval", "ipv6_addr; flags interval"];
    set("isolated4", "ipv4_addr", element_list(&elements.isolated4));
    set("observed4", "ipv4_addr", element_list(&elements.observed4));
    set("pod_ranges4", RANGES[0], element_list(&elements.ranges4));
    set("pod_links", "ifname", name_list(&elements.links));
    if spec.ipv6 {
        set("isolated6", "ipv6_addr", element_list(&elements.isolated6));
        set("observed6", "ipv6_addr", element_list(&elements.observed6));
        set("pod_ranges6", RANGES[1], element_list(&elements.ranges6));
    }
    if spec.passes {
        set("passed4", "ipv4_addr", element_list(&elements.passed4));
        if spec.ipv6 {
            set("passed6", "ipv6_addr", element_list(&elements.passed6));
        }
    }
    if spec.syn_rate_per_client > 0 {
        for (_, version) in families(spec) {
            let flags = "size 65535; flags dynamic, timeout; timeout 10s;";
            script.line(1, &format!("set {SYN_RATE}{version} {{ type ipv{version}_addr; {flags} }}"));
        }
    }
    for (_, version) in families(spec) {
        // A way that has changed is known after two seconds, as it is for the set of pods' interfaces.
        let flags = "size 65535; flags dynamic, timeout; timeout 2s;";
        let kind = format!("ipv{version}_addr . iface_index");
        script.line(1, &format!("set {SENDERS}{version} {{ type {kind}; {flags} }}"));
    }
}

/// Whether pods of the two kinds are closed while no proxy listens: (isolated, observed).
pub(crate) fn closed(mode: FailMode) -> (bool, bool) {
    match mode {
        FailMode::Isolation => (true, false),
        FailMode::Closed => (true, true),
        FailMode::Open => (false, false),
    }
}

/// A TCP packet without SYN that no socket of the proxy owns and no tracked connection explains: forged, or
/// left over. Closed pods get and send none of these.
fn stray(script: &mut Script, spec: &RedirectSpec) {
    if spec.fail_mode == FailMode::Open {
        return;
    }
    script.chain("stray", None);
    let (isolated, observed) = closed(spec.fail_mode);
    for (set, closed) in [("isolated", isolated), ("observed", observed)] {
        for (protocol, version) in families(spec).filter(|_| closed) {
            script.rule(
                &format!("{protocol} daddr @{set}{version} counter drop"),
                &format!("stray to {set} pods"),
            );
            script.rule(
                &format!("{protocol} saddr @{set}{version} counter drop"),
                &format!("stray from {set} pods"),
            );
        }
    }
    script.end();
}

fn intercept(script: &mut Script, spec: &RedirectSpec) {
    let proxy = spec.marks.proxy;
    script.chain("no_tcp", None);
    datagrams::write_dispatch(script, spec);
    overlays::write_protocols(script, spec);
    for (protocol, errors) in icmp_errors(spec) {
        script.rule(
            &format!(
                "meta nfproto {protocol} {errors} socket transparent 1 meta mark set meta mark or {proxy:#x} accept"
            ),
            "errors about the proxy's packets",
        );
    }
    script.end();
    script.chain("intercept", Some(("filter", "prerouting", INTERCEPT_PRIORITY)));
    script.rule("iifname lo accept", "own-node legs are never redirected again");
    script.rule("meta l4proto != tcp goto no_tcp", "flows and errors");
    script.rule(&format!("{OPENING} goto first_packet"), "a new connection; before the sockets' rule");
    script.rule(
        &format!("socket transparent 1 meta mark set meta mark or {proxy:#x} accept"),
        "the proxy's connections",
    );
    if spec.fail_mode != FailMode::Open {
        script.rule("ct state new,invalid goto stray", "no known connection");
    }
    script.end();
}

/// Upstream legs to pods stay out of conntrack in both directions: they have the same addresses and ports as
/// the client's leg, and one conntrack entry cannot be both.
fn untracked(script: &mut Script, spec: &RedirectSpec) {
    let cluster = spec.marks.cluster;
    script.chain("untracked_in", Some(("filter", "prerouting", RAW_PRIORITY)));
    script.rule(
        &format!("meta l4proto tcp socket mark and {cluster:#x} == {cluster:#x} notrack"),
        "replies to upstream legs",
    );
    for (protocol, errors) in icmp_errors(spec) {
        script.rule(
            &format!("meta nfproto {protocol} {errors} socket mark and {cluster:#x} == {cluster:#x} notrack"),
            "errors about upstream legs",
        );
    }
    script.end();
    script.chain("untracked_out", Some(("filter", "output", RAW_PRIORITY)));
    script.rule(&format!("meta mark and {cluster:#x} == {cluster:#x} notrack"), "upstream legs");
    script.end();
}

/// Upstream legs that end on this node loop through lo and their replies never cross prerouting. Their
/// replies are found by the connection mark, or by their ports, and routed back to the proxy's socket.
fn own_node(script: &mut Script, spec: &RedirectSpec) {
    let Marks { proxy, tracked, cluster, .. } = spec.marks;
    script.chain("own_node", Some(("route", "output", MANGLE_PRIORITY)));
    script.rule(
        &format!("ct direction reply ct mark and {tracked:#x} == {tracked:#x} meta mark set meta mark or {proxy:#x}"),
        "replies of own-node legs return to the proxy",
    );
    // A node-local DNS cache keeps what is for it out of conntrack. What leaves from one of this node's addresses to a port
    // of the proxy's legs, and is not the proxy's own, answers such a leg.
    let (ports, used) = (&spec.upstream_ports, spec.marks.used());
    script.rule(
        &format!(
            "ct state untracked meta mark and {used:#x} == 0x0 tcp dport {}-{} fib saddr type local meta mark set \
             meta mark or {proxy:#x}",
            ports.start(),
            ports.end()
        ),
        "the same, where somebody keeps them out of conntrack",
    );
    script.rule(
        &format!("meta mark and {tracked:#x} == {tracked:#x} fib daddr type local ct mark set ct mark or {tracked:#x}"),
        "own-node legs",
    );
    script.rule(
        &format!(
            "meta mark and {tracked:#x} == {tracked:#x} ct state new ct mark set ct mark or {cluster:#x}"
        ),
        "upstream legs are the proxy's",
    );
    script.end();
}

fn gate(script: &mut Script, spec: &RedirectSpec) {
    if spec.gate != GateBackend::NftQueue {
        return;
    }
    let proxy = spec.marks.proxy;
    let queues = match spec.last_queue() {
        last if last == spec.queue => last.to_string(),
        last => format!("{}-{last}", spec.queue),
    };
    script.chain("gate", Some(("filter", "input", GATE_PRIORITY)));
    // Without bypass: while nobody reads the queue, a SYN for the proxy is dropped.
    script.rule(
        &format!("meta mark and {proxy:#x} == {proxy:#x} {OPENING} queue num {queues}"),
        "hold the SYN until the decision",
    );
    datagrams::write_gate(script, spec, &queues);
    script.end();
    datagrams::write_forward_gate(script, spec, &queues);
}

fn refuse(script: &mut Script, spec: &RedirectSpec) {
    let Marks { proxy, reset, unreachable, flow, .. } = spec.marks;
    // With net.ipv4.fwmark_reflect the answer inherits the mark and would be routed to this node.
    let forget = !spec.marks.used();
    script.chain("judged", None);
    datagrams::write_settle(script, spec);
    let mut rule = |bit: u32, family: &str, how: &str, comment: &str| {
        let bits = proxy | bit;
        script.rule(
            &format!(
                "meta mark and {bits:#x} == {bits:#x} {family} counter \
                 meta mark set meta mark and {forget:#x} reject with {how}"
            ),
            comment,
        );
    };
    rule(reset, "meta l4proto tcp", "tcp reset", "the gate refuses");
    // An ICMP error of IPv4 about a locally delivered packet is sent from that packet's destination, which is
    // no address of this node, so the kernel gives up (__icmp_send, icmp_route_lookup in net/ipv4/icmp.c).
    // IPv6 takes an address of the node. A reset is the answer that arrives.
    rule(unreachable, "meta nfproto ipv4 meta l4proto tcp", "tcp reset", "the gate found nobody");
    if spec.ipv6 {
        rule(unreachable, "meta nfproto ipv6", "icmpv6 type addr-unreachable", "the gate found nobody");
    }
    script.end();
    // Every packet to this node asks this chain, those of carried connections among them: one look at the mark, one at
    // the connection's.
    let verdict = reset | unreachable | flow;
    script.chain("refuse", Some(("filter", "input", REFUSE_PRIORITY)));
    script.rule(&format!("meta mark and {verdict:#x} != 0x0 jump judged"), "what the gate has judged");
    revoked(script, spec);
    script.end();
}

fn refuse_forward(script: &mut Script, spec: &RedirectSpec) {
    script.chain("refuse_forward", Some(("filter", "forward", REFUSE_PRIORITY)));
    datagrams::write_settle(script, spec);
    revoked(script, spec);
    script.end();
}

/// Connections that came about without the proxy and that no policy allows: the datapath has marked them in
/// conntrack.
fn revoked(script: &mut Script, spec: &RedirectSpec) {
    let reset = spec.marks.reset;
    script.rule(
        &format!("meta l4proto tcp ct mark and {reset:#x} == {reset:#x} counter reject with tcp reset"),
        "no longer allowed, and not carried",
    );
}

/// ICMP errors, by family. They go to the source of the packet they are about, which on upstream legs is the
/// client's address; the proxy's socket must have them, for path MTU discovery above all. `socket` looks up
/// the packet that an error quotes (net/ipv4/netfilter/nf_socket_ipv4.c, `extract_icmp4_fields`).
fn icmp_errors(spec: &RedirectSpec) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
    let count = if spec.ipv6 { 2 } else { 1 };
    let types = [
        ("ipv4", "icmp type { destination-unreachable, time-exceeded, parameter-problem }"),
        ("ipv6", "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"),
    ];
    types.into_iter().take(count)
}

pub(crate) fn families(spec: &RedirectSpec) -> impl Iterator<Item = (&'static str, u8)> + use<> {
    let count = if spec.ipv6 { 2 } else { 1 };
    [("ip", 4), ("ip6", 6)].into_iter().take(count)
}

#[derive(Default)]
pub(crate) struct Script {
    text: String,
}

impl Script {
    pub(crate) fn text(self) -> String {
        self.text
    }

    pub(crate) fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.text, "{}{text}", "\t".repeat(depth));
    }

    pub(crate) fn chain(&mut self, name: &str, base: Option<(&str, &str, i32)>) {
        self.line(1, &format!("chain {name} {{"));
        if let Some((kind, hook, priority)) = base {
            self.line(2, &format!("type {kind} hook {hook} priority {priority}; policy accept;"));
        }
    }

    pub(crate) fn rule(&mut self, rule: &str, comment: &str) {
        self.line(2, &format!("{rule} comment \"{comment}\""));
    }

    pub(crate) fn end(&mut self) {
        self.line(1, "}");
    }
}
