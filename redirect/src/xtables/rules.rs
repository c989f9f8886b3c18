//! The restore script of one family: every chain but those that classify first packets. Pure.
//!
//! Marks, verdicts and their order are those of the nft ruleset; see there for the why of each. REJECT may stand
//! in table `filter` alone, so what the gate refuses is answered there.

use super::classify;
use super::script::{Chain, Place, Table};
use crate::config::{FailMode, Icmp};
use crate::marks::Marks;
use crate::overlays::Overlays;
use crate::ruleset::closed;
use crate::spec::RedirectSpec;

/// SYN alone.
pub(super) const OPENING: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
/// Keeps in mind what was changed on the node, in rules that nothing jumps to.
pub(crate) const NOTES: &str = "SLUICE-NOTES";
/// The most sources whose rate is remembered; a source beyond is refused (net/netfilter/xt_hashlimit.c).
const MOST_SOURCES: u32 = 262_144;
/// The most that hashlimit takes (include/uapi/linux/netfilter/xt_hashlimit.h, XT_HASHLIMIT_SCALE_v2).
const MOST_RATE: u32 = 1_000_000;

/// A family of iptables' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// iptables.
    V4,
    /// ip6tables.
    V6,
}

impl Version {
    /// The number at the end of sets' names.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    pub(super) fn icmp(self) -> &'static str {
        match self {
            Self::V4 => "-p icmp",
            Self::V6 => "-p ipv6-icmp",
        }
    }

    pub(super) fn echo_request(self) -> &'static str {
        match self {
            Self::V4 => "-p icmp -m icmp --icmp-type 8",
            Self::V6 => "-p ipv6-icmp -m icmp6 --icmpv6-type 128",
        }
    }
}

/// What the script is to take away first, table by table in its own order, and which jumps it has to make.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stale {
    /// By table: lines that delete what others' installations have left.
    pub(crate) lines: Vec<(String, Vec<String>)>,
    /// Tables whose jumps stand as they should.
    pub(crate) keep_jumps: Vec<String>,
}

/// For `iptables-restore --noflush`: each table in one transaction. What hands packets over comes last.
pub(crate) fn restore_script(spec: &RedirectSpec, version: Version, stale: &Stale) -> String {
    let mut script = String::new();
    for table in tables(spec, version) {
        let lines = stale.lines.iter().find(|(name, _)| name == table.name);
        let lines = lines.map(|(_, lines)| &lines[..]).unwrap_or_default();
        script.push_str(&table.write(lines, !stale.keep_jumps.iter().any(|name| name == table.name)));
    }
    script
}

/// The tables, in the order in which they are installed.
pub(super) fn tables(spec: &RedirectSpec, version: Version) -> [Table; 3] {
    [filter(spec, version), raw(spec, version), mangle(spec, version)]
}

/// `mark` has all of these bits.
pub(super) fn has(bits: u32) -> String {
    format!("-m mark --mark {bits:#x}/{bits:#x}")
}

fn of_connection(bits: u32) -> String {
    format!("-m connmark --mark {bits:#x}/{bits:#x}")
}

pub(super) fn set(bits: u32) -> String {
    format!("-j MARK --set-xmark {bits:#x}/{bits:#x}")
}

fn clear(bits: u32) -> String {
    format!("-j MARK --set-xmark 0x0/{bits:#x}")
}

fn mark_connection(bits: u32) -> String {
    format!("-j CONNMARK --set-xmark {bits:#x}/{bits:#x}")
}

/// The bits by which a SYN asks whether a process is there, and the answer says so.
pub(super) fn asked(marks: &Marks) -> u32 {
    marks.unreachable
}

pub(super) fn answered(marks: &Marks) -> u32 {
    marks.unreachable | marks.reset
}

fn queue(spec: &RedirectSpec, bypass: bool) -> String {
    let last = spec.last_queue();
    let numbers = match last == spec.queue {
        true => format!("--queue-num {last}"),
        false => format!("--queue-balance {}:{last}", spec.queue),
    };
    format!("-j NFQUEUE {numbers}{}", if bypass { " --queue-bypass" } else { "" })
}

/// Drops what one source begins beyond its rate.
pub(super) fn limit(chain: &mut Chain, spec: &RedirectSpec) {
    let rate = spec.syn_rate_per_client.min(MOST_RATE);
    if rate == 0 {
        return;
    }
    // A name keeps its rate as long as a rule has it.
    chain.rule(
        &format!(
            "-m hashlimit --hashlimit-above {rate}/sec --hashlimit-burst {} --hashlimit-mode srcip \
             --hashlimit-name sluice_{rate} --hashlimit-htable-max {MOST_SOURCES} --hashlimit-htable-expire 10000",
            rate.div_ceil(2)
        ),
        "too many new connections from one address",
        "-j DROP",
    );
}

fn filter(spec: &RedirectSpec, version: Version) -> Table {
    let Marks { proxy, reset, unreachable, flow, cluster, tracked, .. } = spec.marks;
    let mut table = Table::new("filter");
    let mut refuse = Chain::new("SLUICE-REFUSE");
    refuse.rule(&has(flow), "judged flows", "-g SLUICE-SETTLE");
    refuse.rule(&format!("-p tcp {}", has(proxy | reset)), "the gate refuses", "-g SLUICE-RESET");
    refuse.rule(
        &format!("-p tcp {}", has(proxy | unreachable)),
        "the gate found nobody",
        // An ICMP error of IPv4 about a packet for this node is not sent; see the nft ruleset.
        if version == Version::V4 { "-g SLUICE-RESET" } else { "-g SLUICE-UNREACHABLE" },
    );
    refuse.rule(
        &format!("-p tcp {}", of_connection(reset)),
        "no longer allowed, and not carried",
        "-g SLUICE-RESET",
    );
    table.hook("INPUT", Place::First, refuse);
    table.lead("FORWARD", Place::First, "SLUICE-REFUSE");
    let forget = clear(spec.marks.used());
    let mut answer = |name: &str, ways: &[(&str, &str)]| {
        let mut chain = Chain::new(name);
        // With net.ipv4.fwmark_reflect the answer would inherit the mark.
        chain.rule("", "for the answer", &forget);
        for (what, how) in ways {
            chain.rule(what, "refused", &format!("-j REJECT --reject-with {how}"));
        }
        table.add(chain);
    };
    answer("SLUICE-RESET", &[("-p tcp", "tcp-reset")]);
    match version {
        Version::V4 => answer(
            "SLUICE-REFUSED",
            &[("-p tcp", "tcp-reset"), ("-p sctp", "icmp-proto-unreachable"), ("", "icmp-port-unreachable")],
        ),
        Version::V6 => {
            answer("SLUICE-UNREACHABLE", &[("", "icmp6-addr-unreachable")]);
            answer("SLUICE-REFUSED", &[("-p tcp", "tcp-reset"), ("", "icmp6-port-unreachable")]);
        }
    }
    settle(&mut table, spec, "-g SLUICE-REFUSED");
    if !spec.pod_interfaces.is_empty() {
        // Before routing no rule can see that a destination lies behind an interface of pods.
        let mut legs = Chain::new("SLUICE-LEGS");
        for interface in &spec.pod_interfaces {
            for bit in [cluster, tracked] {
                legs.rule(
                    &format!(
                        "-o {} {OPENING} {} {}",
                        pattern(interface),
                        has(bit),
                        classify::unknown_to(spec, version)
                    ),
                    "to an unknown pod: until it is known",
                    "-j DROP",
                );
            }
        }
        table.hook("OUTPUT", Place::First, legs);
    }
    table
}

/// What the gate's verdict says, in the mark. A packet that comes here without one was held by nobody.
fn settle(table: &mut Table, spec: &RedirectSpec, refused: &str) {
    let Marks { proxy, reset, unreachable, flow, .. } = spec.marks;
    let forget = clear(spec.marks.used());
    let mut settle = Chain::new("SLUICE-SETTLE");
    settle.rule(&has(flow | proxy), "the gate accepts the flow", "-g SLUICE-ACCEPTED");
    settle.rule(&has(flow | reset), "the gate refuses", refused);
    settle.rule(&has(flow | unreachable), "nobody judges: open", "-g SLUICE-PASS");
    settle.rule("", "nobody judges: closed", "-j DROP");
    table.add(settle);
    let mut accepted = Chain::new("SLUICE-ACCEPTED");
    accepted.rule("", "ends the questions", &mark_connection(flow));
    accepted.rule("", "judged", &forget);
    table.add(accepted);
    let mut pass = Chain::new("SLUICE-PASS");
    pass.rule("", "judged by nobody", &forget);
    table.add(pass);
}

fn raw(spec: &RedirectSpec, version: Version) -> Table {
    let Marks { cluster, .. } = spec.marks;
    let mut table = Table::new("raw");
    let mut legs = Chain::new("SLUICE-LEG");
    legs.rule(&has(cluster), "upstream legs", "-j CT --notrack");
    legs.rule("", "the socket's mark", &clear(spec.marks.used()));
    // The socket's mark takes the place of the packet's; what comes in for one of the proxy's sockets has none.
    let mut incoming = Chain::new("SLUICE-UNTRACKED-IN");
    for what in ["-p tcp", version.icmp()] {
        incoming.rule(
            &format!("{what} -m socket --transparent --restore-skmark"),
            "for the proxy's sockets",
            "-g SLUICE-LEG",
        );
    }
    table.add(legs);
    table.hook("PREROUTING", Place::First, incoming);
    let mut outgoing = Chain::new("SLUICE-UNTRACKED-OUT");
    outgoing.rule(&has(cluster), "upstream legs", "-j CT --notrack");
    table.hook("OUTPUT", Place::First, outgoing);
    if spec.fail_mode != FailMode::Closed {
        let mut ask = Chain::new("SLUICE-ASK");
        limit(&mut ask, spec);
        ask.rule("", "is a process there", &set(asked(&spec.marks)));
        ask.rule("", "is a process there", &queue(spec, true));
        table.add(ask);
        table.hook("PREROUTING", Place::Last, classify::askers(spec, version));
    }
    table
}

fn mangle(spec: &RedirectSpec, version: Version) -> Table {
    let Marks { proxy, cluster, .. } = spec.marks;
    let mut table = Table::new("mangle");
    let mut notes = Chain::new(NOTES);
    if version == Version::V4 {
        let created = spec.created.markers();
        let settings = created.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (*name).to_owned());
        settings.chain(spec.made_bases.iter().cloned()).for_each(|note| notes.note(&note));
    }
    table.add(notes);
    classify::sources(&mut table, spec, version);
    classify::before_translation(&mut table, spec, version);
    classify::behind_translation(&mut table, spec, version);
    targets(&mut table, spec, version);
    let mut ours = Chain::new("SLUICE-OURS");
    ours.rule("", "the proxy's packets", &set(proxy));
    table.add(ours);
    datagram(&mut table, spec);
    strays(&mut table, spec, version);

    let mut prerouting = Chain::new("SLUICE-PREROUTING");
    prerouting.rule("-i lo", "own-node legs are never redirected again", "-j RETURN");
    // Before the rules for sockets: a SYN that meets a TIME_WAIT socket of the proxy must reach the listener.
    prerouting.rule(OPENING, "a new connection", "-j SLUICE-SYN");
    prerouting.rule(OPENING, "handed to nobody", &clear(spec.marks.used()));
    prerouting.rule(OPENING, "handed to nobody", "-j RETURN");
    // A translated leg is found by its connection's mark: no socket has the address it still carries.
    prerouting.rule(&of_connection(cluster), "the proxy's connections", "-g SLUICE-OURS");
    for what in ["-p tcp", version.icmp()] {
        let asks = format!("{what} -m socket --transparent");
        prerouting.rule(&asks, "the proxy's connections, and errors about them", "-g SLUICE-OURS");
    }
    if spec.fail_mode != FailMode::Open {
        prerouting.rule(
            "-p tcp -m conntrack --ctstate NEW,INVALID",
            "no known connection",
            "-g SLUICE-STRAY-FROM",
        );
    }
    overlays(&mut table, &mut prerouting, spec, version);
    for protocol in ["udp", "sctp"] {
        // Whatever the connection's mark says: conntrack tells a flow by its addresses, and anybody can write those.
        let asks = format!("-p {protocol} -m rpfilter --invert");
        prerouting.rule(&asks, "nobody speaks for others", "-g SLUICE-SOURCE");
    }
    table.hook("PREROUTING", Place::First, prerouting);

    let mut forward = Chain::new("SLUICE-FORWARD");
    forward.rule(OPENING, "handed to nobody so far", "-g SLUICE-OPENING");
    if spec.fail_mode != FailMode::Open {
        forward.rule(
            "-p tcp -m conntrack --ctstate NEW,INVALID",
            "no known connection",
            "-g SLUICE-STRAY-TO",
        );
    }
    for protocol in ["udp", "sctp"] {
        forward.rule(&format!("-p {protocol}"), "flows that stay in the kernel", "-g SLUICE-DATAGRAM");
    }
    if spec.icmp == Icmp::Isolate {
        for (end, word) in [("dst", "to"), ("src", "from")] {
            forward.rule(
                &format!(
                    "{} -m conntrack --ctstate NEW {}",
                    version.echo_request(),
                    classify::is("isolated", version, end)
                ),
                &format!("echo {word} isolated pods"),
                "-j DROP",
            );
        }
    }
    table.hook("FORWARD", Place::First, forward);

    let mut input = Chain::new("SLUICE-INPUT");
    // Without bypass: while nobody reads the queue, a SYN for the proxy is dropped.
    input.rule(&format!("{OPENING} {}", has(proxy)), "hold the SYN until the decision", &queue(spec, false));
    input.rule("-i lo", "between processes of this node", "-j RETURN");
    for protocol in ["udp", "sctp"] {
        input.rule(&format!("-p {protocol}"), "flows that stay in the kernel", "-g SLUICE-DATAGRAM");
    }
    table.hook("INPUT", Place::First, input);

    // Where a rule of others has let a held packet by the chain that answers, it still must not pass unjudged.
    settle(&mut table, spec, "-j DROP");
    let mut late = Chain::new("SLUICE-POSTROUTING");
    late.rule(&has(spec.marks.flow), "judged flows", "-g SLUICE-SETTLE");
    table.hook("POSTROUTING", Place::First, late);
    own_node(&mut table, spec);
    table
}

/// What becomes of a first packet: to the listener, or held where it is.
fn targets(table: &mut Table, spec: &RedirectSpec, version: Version) {
    let Marks { proxy, cluster, unreachable, flow, .. } = spec.marks;
    let loopback = if version == Version::V4 { "127.0.0.1" } else { "::1" };
    let mut tproxy = Chain::new("SLUICE-TPROXY");
    tproxy.rule("", "asked and answered", &clear(answered(&spec.marks)));
    tproxy.rule("", "a leg of the proxy", &mark_connection(cluster));
    tproxy.rule(
        "-p tcp",
        "to the listener; dropped when there is none",
        &format!(
            "-j TPROXY --on-ip {loopback} --on-port {} --tproxy-mark {proxy:#x}/{proxy:#x}",
            spec.listener_port
        ),
    );
    table.add(tproxy);
    let (isolated, observed) = closed(spec.fail_mode);
    if isolated || observed {
        let mut chain = Chain::new("SLUICE-SYN-CLOSED");
        limit(&mut chain, spec);
        chain.rule("", "to the listener", "-g SLUICE-TPROXY");
        table.add(chain);
        let mut chain = Chain::new("SLUICE-FLOW-CLOSED");
        limit(&mut chain, spec);
        chain.rule("-m conntrack --ctstate INVALID", "no flow that conntrack knows", "-j DROP");
        chain.rule("", "for the gate", "-g SLUICE-HOLD");
        table.add(chain);
        let mut chain = Chain::new("SLUICE-HOLD");
        chain.rule("", "for the gate", &set(flow));
        chain.rule("", "hold it until the decision", &queue(spec, false));
        table.add(chain);
    }
    if !(isolated && observed) {
        let answer = answered(&spec.marks);
        let mut chain = Chain::new("SLUICE-SYN-OPEN");
        chain.rule(&has(answer), "a process is there", "-g SLUICE-TPROXY");
        // What an earlier connection with these ports was says nothing of this one.
        chain.rule("", "nobody listens: open", &format!("-j CONNMARK --set-xmark 0x0/{cluster:#x}"));
        table.add(chain);
        let mut chain = Chain::new("SLUICE-FLOW-OPEN");
        limit(&mut chain, spec);
        if spec.fail_mode != FailMode::Open {
            classify::to_unknown(&mut chain, spec, version, "-g SLUICE-HOLD");
        }
        chain.rule("-m conntrack --ctstate INVALID", "no flow that conntrack knows", "-j RETURN");
        // The second bit says that the packet may pass while nobody reads the gate's queue.
        chain.rule("", "for the gate", &set(flow | unreachable));
        chain.rule("", "hold it until the decision", &queue(spec, true));
        table.add(chain);
    }
}

/// Asks whether a flow has been judged.
fn datagram(table: &mut Table, spec: &RedirectSpec) {
    let flow = spec.marks.flow;
    let mut opening = Chain::new("SLUICE-OPENING");
    opening.rule(&of_connection(flow), "it was accepted", "-j RETURN");
    opening.rule("", "a connection that nobody has judged", "-g SLUICE-FLOW");
    table.add(opening);
    let mut chain = Chain::new("SLUICE-DATAGRAM");
    chain.rule(&of_connection(flow), "its flow was accepted", "-j RETURN");
    chain.rule("-m conntrack --ctdir REPLY", "replies belong to their flow", "-j RETURN");
    chain.rule(
        "-m conntrack --ctstate RELATED",
        "expected by a helper that the node's owner set up",
        "-j RETURN",
    );
    chain.rule("", "a flow that nobody has judged", "-g SLUICE-FLOW");
    table.add(chain);
}

/// What the node's tunnels take is not for pods; see the nft rules (`overlays`).
fn overlays(table: &mut Table, prerouting: &mut Chain, spec: &RedirectSpec, version: Version) {
    let Overlays { ports, protocols } = &spec.overlays;
    if ports.is_empty() && protocols.is_empty() {
        return;
    }
    table.add(classify::of_pods(spec, version));
    let tunnels = protocols.iter().map(|number| format!("-p {number}"));
    for asks in ports.iter().map(|port| format!("-p udp -m udp --dport {port}")).chain(tunnels) {
        prerouting.rule(&asks, "pods speak for no overlay", "-j SLUICE-OF-PODS");
    }
}

/// TCP packets without SYN that belong to no connection. Sources are asked for before translation, where what goes
/// to the node itself still passes; destinations behind it.
fn strays(table: &mut Table, spec: &RedirectSpec, version: Version) {
    if spec.fail_mode == FailMode::Open {
        return;
    }
    let (isolated, observed) = closed(spec.fail_mode);
    for (name, end, word) in [("SLUICE-STRAY-FROM", "src", "from"), ("SLUICE-STRAY-TO", "dst", "to")] {
        let mut chain = Chain::new(name);
        for (set, closed) in [("isolated", isolated), ("observed", observed)] {
            if closed {
                chain.rule(&classify::is(set, version, end), &format!("stray {word} {set} pods"), "-j DROP");
            }
        }
        table.add(chain);
    }
}

/// Upstream legs that end on this node; their replies never cross PREROUTING.
fn own_node(table: &mut Table, spec: &RedirectSpec) {
    let Marks { proxy, tracked, cluster, .. } = spec.marks;
    let mut chain = Chain::new("SLUICE-OUTPUT");
    chain.rule(
        &format!("-m conntrack --ctdir REPLY {}", of_connection(tracked)),
        "replies of own-node legs return to the proxy",
        &set(proxy),
    );
    // See the nft ruleset.
    let (ports, used) = (&spec.upstream_ports, spec.marks.used());
    chain.rule(
        &format!(
            "-p tcp --dport {}:{} -m conntrack --ctstate UNTRACKED -m mark --mark 0x0/{used:#x} -m addrtype --src-type LOCAL",
            ports.start(),
            ports.end()
        ),
        "the same, where somebody keeps them out of conntrack",
        &set(proxy),
    );
    chain.rule(
        &format!("{} -m addrtype --dst-type LOCAL", has(tracked)),
        "own-node legs",
        &mark_connection(tracked),
    );
    chain.rule(
        &format!("{} -m conntrack --ctstate NEW", has(tracked)),
        "upstream legs are the proxy's",
        &mark_connection(cluster),
    );
    table.hook("OUTPUT", Place::First, chain);
}

/// An interface's name in iptables' words: `+` for any end.
pub(super) fn pattern(interface: &str) -> String {
    interface.replace('*', "+")
}
