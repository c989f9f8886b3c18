//! The rules for UDP and SCTP: which packets the gate has to see, and what becomes of them once it has judged.
//!
//! A flow is judged once. The connection mark then says that it was accepted, and its packets pass by that one
//! look; replies belong to their flow. What carries no mark is held, also in the middle of a flow: one that is
//! older than the proxy, or that began while none ran.
//!
//! `prerouting` marks packets (behind DNAT, so that the gate sees pods and pod ports), `forward` and `input`
//! hold them, and a chain behind the gate does what its verdict says.

use crate::config::Icmp;
use crate::marks::Marks;
use crate::overlays;
use crate::ruleset::{GATE_PRIORITY, SENDERS, Script, families};
use crate::spec::{GateBackend, RedirectSpec};

/// The protocols of which flows are judged by their first packet and left to the kernel.
pub(crate) const DATAGRAM: &str = "meta l4proto { udp, sctp }";

/// The chain that asks whether a datagram's flow has been judged, and the switch for echo requests.
pub(crate) fn write_interception(script: &mut Script, spec: &RedirectSpec) {
    let flow = spec.marks.flow;
    script.chain("datagram", None);
    // Before the marks: conntrack tells a flow by its addresses, and anybody can write those. Looking for the way back is
    // dear: senders of accepted flows are remembered for a moment, with the interface that they were found behind.
    let accepted = format!("ct mark and {flow:#x} == {flow:#x}");
    for (protocol, version) in families(spec) {
        script.rule(
            &format!("{accepted} {protocol} saddr . iif @{SENDERS}{version} accept"),
            "its flow was accepted, its sender found there",
        );
    }
    script.rule("fib saddr . iif oif missing jump of_pods", "nobody speaks for others");
    for (protocol, version) in families(spec) {
        script.rule(
            &format!(
                "{accepted} fib saddr . iif oif exists add @{SENDERS}{version} {{ {protocol} saddr . iif }}"
            ),
            "a sender found",
        );
    }
    script.rule(&format!("{accepted} accept"), "its flow was accepted");
    script.rule("ct direction reply accept", "replies belong to their flow");
    script.rule("ct state related accept", "expected by a helper that the node's owner set up");
    overlays::write_ports(script, spec);
    script.rule("goto first_packet", "a flow that nobody has judged");
    script.end();
    if spec.icmp == Icmp::Isolate {
        script.chain("echoes", None);
        for (protocol, version) in families(spec) {
            script
                .rule(&format!("{protocol} daddr @isolated{version} counter drop"), "echo to isolated pods");
            script.rule(
                &format!("{protocol} saddr @isolated{version} fib daddr type != local counter drop"),
                "echo from isolated pods",
            );
        }
        script.end();
    }
}

/// The rules that lead there, for what is not TCP.
pub(crate) fn write_dispatch(script: &mut Script, spec: &RedirectSpec) {
    script.rule(&format!("{DATAGRAM} goto datagram"), "flows that stay in the kernel");
    if spec.icmp == Icmp::Isolate {
        for (protocol, _) in families(spec) {
            let echo = if protocol == "ip" { "icmp" } else { "icmpv6" };
            script.rule(&format!("{echo} type echo-request ct state new jump echoes"), "new echo requests");
        }
    }
}

/// The gate's rules for datagrams, where nft holds them. Every packet of the node asks them: marks come first, which
/// cost less than a set. With `bypass` a packet goes on while nobody reads.
pub(crate) fn write_gate(script: &mut Script, spec: &RedirectSpec, queues: &str) {
    let Marks { flow, unreachable, .. } = spec.marks;
    let open = flow | unreachable;
    script.rule(
        &format!("meta mark and {open:#x} == {open:#x} {DATAGRAM} queue num {queues} bypass"),
        "hold the datagram until the decision",
    );
    script.rule(
        &format!("meta mark and {open:#x} == {flow:#x} {DATAGRAM} queue num {queues}"),
        "hold the datagram until the decision",
    );
}

/// The gate at `forward`: datagrams alone.
pub(crate) fn write_forward_gate(script: &mut Script, spec: &RedirectSpec, queues: &str) {
    if spec.gate == GateBackend::NftQueue {
        script.chain("gate_forward", Some(("filter", "forward", GATE_PRIORITY)));
        write_gate(script, spec, queues);
        script.end();
    }
}

/// What the gate's verdict says, in the mark. A packet that comes here without one was held by nobody.
pub(crate) fn write_settlement(script: &mut Script, spec: &RedirectSpec) {
    let Marks { proxy, reset, unreachable, flow, .. } = spec.marks;
    let forget = format!("meta mark set meta mark and {:#x}", !spec.marks.used());
    script.chain("settle", None);
    let (refused, accepted, open) = (flow | reset, flow | proxy, flow | unreachable);
    // A flow is new as long as nobody has answered; the mark is what ends the questions.
    script.rule(
        &format!(
            "meta mark and {accepted:#x} == {accepted:#x} ct mark set ct mark or {flow:#x} {forget} accept"
        ),
        "the gate accepts the flow",
    );
    let mut refuse = |what: &str, how: &str| {
        script.rule(
            &format!("meta mark and {refused:#x} == {refused:#x} {what} counter {forget} reject with {how}"),
            "the gate refuses",
        );
    };
    // To SCTP an unreachable port is a hint and an unreachable protocol an abort (RFC 9260, section 10).
    refuse("meta nfproto ipv4 meta l4proto sctp", "icmp type prot-unreachable");
    refuse(DATAGRAM, "icmpx type port-unreachable");
    script.rule(&format!("meta mark and {open:#x} == {open:#x} {forget} accept"), "nobody judges: open");
    script.rule("counter drop", "nobody judges: closed");
    script.end();
}

/// The rule that leads to what the verdict says.
pub(crate) fn write_settle(script: &mut Script, spec: &RedirectSpec) {
    let flow = spec.marks.flow;
    script.rule(&format!("meta mark and {flow:#x} == {flow:#x} {DATAGRAM} goto settle"), "judged datagrams");
}
