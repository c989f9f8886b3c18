//! The chains that a connection's first packet passes: is an end of it a pod of this node, known or not, and
//! does it come from where that pod is.
//!
//! Known pods are asked for first. A pod that nobody has told of yet is found by its address, inside the
//! node's ranges, or by its interface; a policy may isolate it, so that it is closed while no proxy listens,
//! unless everything is open. The node's own addresses are never taken for a pod's.
//!
//! What comes in by an interface that leads to known pods comes from one of them: with a source that is not routed
//! there it would pass for somebody else, or for nobody, and is dropped.
//!
//! A SYN goes to the listener. A datagram is only marked here: the gate stands where it is forwarded or
//! delivered, and holds what carries the mark.

use crate::bypass;
use crate::config::FailMode;
use crate::datagrams::DATAGRAM;
use crate::ruleset::{SYN_RATE, Script, closed, families};
use crate::spec::RedirectSpec;

/// Addresses that mean something on one link only (RFC 4291, section 2.5.6). They are routed only from one port
/// of a bridge to another.
const LINK_LOCAL: &str = "fe80::/10";

/// The chains, in the order in which each is defined before it is used.
pub(crate) fn write(script: &mut Script, spec: &RedirectSpec) {
    targets(script, spec);
    bypass::write(script, spec);
    from_known(script, spec);
    from_unknown(script, spec);
    first_packet(script, spec);
}

/// The chains that hand a SYN to the listener. nft `tproxy` without a listener ends the rule and not the
/// packet (net/netfilter/nft_tproxy.c returns NFT_BREAK), so the rules after it state the fail mode.
fn targets(script: &mut Script, spec: &RedirectSpec) {
    let (isolated, observed) = closed(spec.fail_mode);
    let verdicts = [("closed", isolated || observed), ("open", !(isolated && observed))];
    for (name, _) in verdicts.into_iter().filter(|(_, used)| *used) {
        script.chain(name, None);
        syn_rate(script, spec);
        let (port, proxy, carried) = (spec.listener_port, spec.marks.proxy, spec.marks.cluster);
        let mut families = vec![("ipv4", "ip", "127.0.0.1")];
        if spec.ipv6 {
            families.push(("ipv6", "ip6", "[::1]"));
        }
        for (protocol, family, loopback) in families {
            let rule = format!(
                "meta nfproto {protocol} meta l4proto tcp tproxy {family} to {loopback}:{port} \
                 meta mark set meta mark or {proxy:#x} ct mark set ct mark or {carried:#x} accept"
            );
            script.rule(&rule, "to the listener");
        }
        if name == "closed" {
            datagram_closed(script, spec);
            script.rule("counter drop", "nobody listens: closed");
        } else {
            datagram_open(script, spec);
            nobody_listens(script, spec);
        }
        script.end();
    }
}

/// What conntrack cannot make out belongs to no flow, and would be judged packet by packet.
fn datagram_closed(script: &mut Script, spec: &RedirectSpec) {
    let hold = spec.marks.flow;
    script.rule(&format!("{DATAGRAM} ct state invalid counter drop"), "no flow that conntrack knows");
    script.rule(&format!("{DATAGRAM} meta mark set meta mark or {hold:#x} accept"), "for the gate");
}

/// The second bit says that the packet may pass while nobody reads the gate's queue.
fn datagram_open(script: &mut Script, spec: &RedirectSpec) {
    let hold = spec.marks.flow;
    if spec.fail_mode != FailMode::Open {
        for (protocol, version) in families(spec) {
            script.rule(
                &format!(
                    "{DATAGRAM} {protocol} daddr @pod_ranges{version} {} \
                     fib daddr type != local meta mark set meta mark or {hold:#x} accept",
                    bypass::not_open(spec, protocol, version)
                ),
                "for the gate, to an unknown pod",
            );
            for interface in interfaces(spec) {
                script.rule(
                    &format!(
                        "{DATAGRAM} {} fib daddr oifname {interface} \
                         meta mark set meta mark or {hold:#x} accept",
                        bypass::not_open(spec, protocol, version)
                    ),
                    "for the gate, to an unknown pod",
                );
            }
        }
    }
    script.rule(&format!("{DATAGRAM} ct state invalid accept"), "no flow that conntrack knows");
    let open = hold | spec.marks.unreachable;
    script.rule(&format!("{DATAGRAM} meta mark set meta mark or {open:#x} accept"), "for the gate");
}

/// Open to the pods that are known to be open. Whoever comes here from one of them may be on its way to an
/// unknown one.
fn nobody_listens(script: &mut Script, spec: &RedirectSpec) {
    if spec.fail_mode != FailMode::Open {
        for (protocol, version) in families(spec) {
            script.rule(
                &format!(
                    "{protocol} daddr @pod_ranges{version} {} fib daddr type != local counter drop",
                    bypass::not_open(spec, protocol, version)
                ),
                "nobody listens: an unknown pod is closed",
            );
            for interface in interfaces(spec) {
                script.rule(
                    &format!(
                        "{} fib daddr oifname {interface} counter drop",
                        bypass::not_open(spec, protocol, version)
                    ),
                    "nobody listens: an unknown pod is closed",
                );
            }
        }
    }
    if spec.pod_interfaces.is_empty() {
        script.rule("counter accept", "nobody listens: open");
    } else {
        let forget = !(spec.marks.cluster | spec.marks.tracked);
        let rule = format!("counter meta mark set meta mark and {forget:#x} accept");
        script.rule(&rule, "nobody listens: open");
    }
}

/// Keeps a flood out of the queue, where everyone's first packets stand in one line. A source that finds no
/// room in the set is not limited here, and meets the gate's own bounds.
fn syn_rate(script: &mut Script, spec: &RedirectSpec) {
    let rate = spec.syn_rate_per_client;
    if rate == 0 {
        return;
    }
    for (protocol, version) in families(spec) {
        let limit = format!("limit rate over {rate}/second burst {} packets", rate.div_ceil(2));
        script.rule(
            &format!("update @{SYN_RATE}{version} {{ {protocol} saddr {limit} }} counter drop"),
            "too many new connections from one address",
        );
    }
}

/// A policy decides by addresses: nobody may speak with a local pod's but from where that pod is.
pub(crate) fn not_borrowed(script: &mut Script) {
    script.rule("fib saddr . iif oif missing counter drop", "a pod's address from elsewhere");
}

fn from_known(script: &mut Script, spec: &RedirectSpec) {
    let (isolated, observed) = closed(spec.fail_mode);
    for (name, is_closed) in [("from_isolated", isolated), ("from_observed", observed)] {
        script.chain(name, None);
        not_borrowed(script);
        if name == "from_observed" {
            bypass::write_jump(script, spec);
        }
        towards_interface(script, spec, "");
        if isolated && !is_closed {
            for (protocol, version) in families(spec) {
                script.rule(&format!("{protocol} daddr @isolated{version} goto closed"), "to isolated pods");
            }
        }
        script.rule(&format!("goto {}", target(is_closed)), "from known pods");
        script.end();
    }
}

fn from_unknown(script: &mut Script, spec: &RedirectSpec) {
    script.chain("from_unknown", None);
    not_borrowed(script);
    for interface in interfaces(spec) {
        let from_pod = spec.marks.cluster;
        script.rule(
            &format!("iifname {interface} meta mark set meta mark or {from_pod:#x}"),
            "from a pod's interface",
        );
    }
    towards_interface(script, spec, "");
    script.rule(&format!("goto {}", unknown(spec)), "from unknown pods");
    script.end();
}

fn first_packet(script: &mut Script, spec: &RedirectSpec) {
    let (isolated, _) = closed(spec.fail_mode);
    script.chain("first_packet", None);
    if spec.ipv6 {
        // A pod has such an address beside those that are known, and others of its bridge reach it there.
        let to = "goto from_unknown";
        script.rule(&format!("ip6 daddr {LINK_LOCAL} fib daddr type != local {to}"), "to nobody known");
        script.rule(
            &format!("ip6 saddr {LINK_LOCAL} ip6 daddr != ff00::/8 fib daddr type != local {to}"),
            "from nobody known",
        );
    }
    for set in ["isolated", "observed"] {
        for (protocol, version) in families(spec) {
            script.rule(
                &format!("{protocol} saddr @{set}{version} goto from_{set}"),
                &format!("from {set} pods"),
            );
        }
    }
    bypass::write_source(script, spec);
    for (protocol, version) in families(spec) {
        script.rule(&format!("{protocol} saddr @pod_ranges{version} goto from_unknown"), "from unknown pods");
    }
    script.rule(
        "iifname @pod_links fib saddr . iif oif missing counter drop",
        "a pod with an address that is not routed to it",
    );
    for interface in interfaces(spec) {
        script.rule(&format!("iifname {interface} goto from_unknown"), "from unknown pods");
    }
    let chains = [("isolated", target(isolated)), ("observed", bypass::to_observed_chain(spec))];
    for (set, chain) in chains {
        for (protocol, version) in families(spec) {
            script.rule(&format!("{protocol} daddr @{set}{version} goto {chain}"), &format!("to {set} pods"));
        }
    }
    bypass::write_destination(script, spec);
    for (protocol, version) in families(spec) {
        let to = unknown(spec);
        script.rule(
            &format!("{protocol} daddr @pod_ranges{version} fib daddr type != local goto {to}"),
            "to unknown pods",
        );
    }
    towards_interface(script, spec, &format!(" goto {}", unknown(spec)));
    script.end();
}

/// Tells the gate that the destination lies behind an interface of pods. The route of a local address leads
/// to no interface.
fn towards_interface(script: &mut Script, spec: &RedirectSpec, then: &str) {
    for interface in interfaces(spec) {
        let to_pod = spec.marks.tracked;
        script.rule(
            &format!("fib daddr oifname {interface} meta mark set meta mark or {to_pod:#x}{then}"),
            "to a pod's interface",
        );
    }
}

/// The interfaces of pods, each for a rule of its own: nft 0.9 knows no wildcards in sets.
pub(crate) fn interfaces(spec: &RedirectSpec) -> impl Iterator<Item = String> {
    spec.pod_interfaces.iter().map(|name| format!("\"{name}\""))
}

/// The chain for pods that are closed, or open, while nobody listens.
pub(crate) fn target(is_closed: bool) -> &'static str {
    if is_closed { "closed" } else { "open" }
}

/// The chain for pods of which nothing is known.
pub(crate) fn unknown(spec: &RedirectSpec) -> &'static str {
    target(spec.fail_mode != FailMode::Open)
}
