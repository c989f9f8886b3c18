//! The chains that a connection's first packet passes: is an end of it a pod of this node, known or not.
//!
//! They stand twice. Before translation SYNs are handed to the listener, when an end that is a pod is known by its
//! own address. Behind it stands what was handed to nobody, and every datagram, with the addresses that pods have:
//! there nothing is missed. An order of questions is the nft ruleset's (`first_packet`, `bypass`).

use super::rules::{OPENING, Version, pattern, set};
use super::script::{Chain, Table};
use crate::config::FailMode;
use crate::ruleset::closed;
use crate::spec::RedirectSpec;

/// RFC 4291, section 2.5.6.
const LINK_LOCAL: &str = "fe80::/10";
/// How many ports one rule takes (include/uapi/linux/netfilter/xt_multiport.h, XT_MULTI_PORTS).
const MOST_PORTS: usize = 15;
/// The chain of the interfaces that lead to known pods. It changes with them.
pub(super) const LINKS: &str = "SLUICE-LINKS";

/// Where the questions are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Before,
    Behind,
}

impl Stage {
    fn prefix(self) -> &'static str {
        match self {
            Self::Before => "SLUICE-SYN",
            Self::Behind => "SLUICE-FLOW",
        }
    }

    fn go(self, chain: &str) -> String {
        format!("-g {}-{chain}", self.prefix())
    }

    fn target(self, is_closed: bool) -> String {
        self.go(if is_closed { "CLOSED" } else { "OPEN" })
    }

    fn chain(self, name: &str) -> Chain {
        Chain::new(format!("{}-{name}", self.prefix()))
    }
}

/// The packet's `end` (`src` or `dst`) is in a set.
pub(super) fn is(set: &str, version: Version, end: &str) -> String {
    format!("-m set --match-set sluice-{set}{} {end}", version.number())
}

fn is_not(set: &str, version: Version, end: &str) -> String {
    format!("-m set ! --match-set sluice-{set}{} {end}", version.number())
}

/// The destination is of no pod that is known.
pub(super) fn unknown_to(spec: &RedirectSpec, version: Version) -> String {
    format!("{} {}", is_not("isolated", version, "dst"), not_open(spec, version))
}

/// The destination is of no pod that is known to be open.
fn not_open(spec: &RedirectSpec, version: Version) -> String {
    let observed = is_not("observed", version, "dst");
    if spec.passes { format!("{observed} {}", is_not("passed", version, "dst")) } else { observed }
}

/// SYNs that may go to the listener if there is one, and on if there is none, ask in the queue.
pub(super) fn askers(spec: &RedirectSpec, version: Version) -> Chain {
    let mut chain = Chain::new("SLUICE-ALIVE");
    chain.rule("-i lo", "own-node legs", "-j RETURN");
    let mut ask = |asks: &str, comment: &str| {
        chain.rule(&format!("{OPENING} {asks}"), comment, "-g SLUICE-ASK");
    };
    if spec.fail_mode != FailMode::Open {
        for (end, other, word) in [("src", "dst", "from"), ("dst", "src", "to")] {
            let asks = format!("{} {}", is("observed", version, end), is_not("isolated", version, other));
            ask(&asks, &format!("{word} observed pods"));
        }
        return chain;
    }
    for (end, word) in [("src", "from"), ("dst", "to")] {
        for name in ["isolated", "observed", "ranges"] {
            ask(&is(name, version, end), &format!("{word} pods"));
        }
    }
    if version == Version::V6 {
        ask(&format!("-s {LINK_LOCAL}"), "from nobody known");
        ask(&format!("-d {LINK_LOCAL}"), "to nobody known");
    }
    for interface in &spec.pod_interfaces {
        ask(&format!("-i {}", pattern(interface)), "from a pod's interface");
    }
    chain
}

/// A policy decides by addresses: nobody may speak with a local pod's but from where that pod is.
pub(super) fn sources(table: &mut Table, spec: &RedirectSpec, version: Version) {
    let mut chain = Chain::new("SLUICE-SOURCE");
    let mut sets = vec!["isolated", "observed", "ranges"];
    if spec.passes {
        sets.push("passed");
    }
    for name in sets {
        let asks = format!("{} -m rpfilter --invert", is(name, version, "src"));
        chain.rule(&asks, "a pod's address from elsewhere", "-j DROP");
    }
    for interface in &spec.pod_interfaces {
        let asks = format!("-i {} -m rpfilter --invert", pattern(interface));
        chain.rule(&asks, "a pod with an address that is not routed to it", "-j DROP");
    }
    chain.rule("", "interfaces of known pods", &format!("-j {LINKS}"));
    table.add(links(spec));
    table.add(chain);
}

/// Drops what has a pod's address or comes from where pods are.
pub(super) fn of_pods(spec: &RedirectSpec, version: Version) -> Chain {
    let mut chain = Chain::new("SLUICE-OF-PODS");
    let mut sets = vec!["isolated", "observed"];
    if spec.passes {
        sets.push("passed");
    }
    for name in sets {
        chain.rule(&is(name, version, "src"), "with a pod's address", "-j DROP");
    }
    let in_range = format!("{} -m addrtype ! --src-type LOCAL", is("ranges", version, "src"));
    chain.rule(&in_range, "with a pod's address", "-j DROP");
    for interface in &spec.pod_interfaces {
        chain.rule(&format!("-i {}", pattern(interface)), "from a pod", "-j DROP");
    }
    chain.rule("", "interfaces of known pods", &format!("-j {LINKS}"));
    chain
}

/// The chain of the interfaces that lead to known pods.
pub(super) fn links(spec: &RedirectSpec) -> Chain {
    let mut chain = Chain::new(LINKS);
    for name in &spec.pod_links {
        let asks = format!("-i {name} -m rpfilter --invert");
        chain.rule(&asks, "a pod with an address that is not routed to it", "-j DROP");
    }
    chain
}

/// For SYNs, in PREROUTING.
pub(super) fn before_translation(table: &mut Table, spec: &RedirectSpec, version: Version) {
    chains(table, spec, version, Stage::Before);
}

/// For datagrams and what SYNs are left, in FORWARD and INPUT.
pub(super) fn behind_translation(table: &mut Table, spec: &RedirectSpec, version: Version) {
    chains(table, spec, version, Stage::Behind);
}

fn chains(table: &mut Table, spec: &RedirectSpec, version: Version, stage: Stage) {
    let (isolated, observed) = closed(spec.fail_mode);
    let mut chain = stage.chain("FROM-ISOLATED");
    towards_interface(&mut chain, spec, stage);
    chain.rule("", "from isolated pods", &stage.target(isolated));
    table.add(chain);
    from_observed(table, spec, version, stage);
    if spec.passes {
        from_passed(table, spec, version, stage);
    }
    if !spec.bypass.is_empty() {
        let mut chain = stage.chain("TO-OBSERVED");
        passing(&mut chain, spec, version, "src");
        chain.rule("", "to observed pods", &stage.target(observed));
        table.add(chain);
    }
    let mut chain = stage.chain("FROM-UNKNOWN");
    for interface in &spec.pod_interfaces {
        chain.rule(&format!("-i {}", pattern(interface)), "from a pod's interface", &set(spec.marks.cluster));
    }
    towards_interface(&mut chain, spec, stage);
    chain.rule("", "from unknown pods", &unknown(spec, stage));
    table.add(chain);
    if stage == Stage::Behind && !spec.pod_interfaces.is_empty() {
        let mut chain = stage.chain("TO-UNKNOWN");
        chain.rule("", "to a pod's interface", &set(spec.marks.tracked));
        chain.rule("", "to unknown pods", &unknown(spec, stage));
        table.add(chain);
    }
    table.add(first_packet(spec, version, stage));
}

fn from_observed(table: &mut Table, spec: &RedirectSpec, version: Version, stage: Stage) {
    let (isolated, observed) = closed(spec.fail_mode);
    let mut on = stage.chain("OBSERVED");
    towards_interface(&mut on, spec, stage);
    if isolated && !observed {
        on.rule(&is("isolated", version, "dst"), "to isolated pods", &stage.target(true));
    }
    on.rule("", "from observed pods", &stage.target(observed));
    table.add(on);
    let mut chain = stage.chain("FROM-OBSERVED");
    let on = stage.go("OBSERVED");
    if !spec.bypass.is_empty() {
        chain.rule(&is("isolated", version, "dst"), "to isolated pods: never passed by", &on);
        unknown_destinations(&mut chain, spec, version, stage, &on);
        passing(&mut chain, spec, version, "dst");
    }
    chain.rule("", "from observed pods", &on);
    table.add(chain);
}

/// Its connections are intercepted for the sake of the other end alone.
fn from_passed(table: &mut Table, spec: &RedirectSpec, version: Version, stage: Stage) {
    let (isolated, observed) = closed(spec.fail_mode);
    let mut chain = stage.chain("FROM-PASSED");
    for (name, is_closed) in [("isolated", isolated), ("observed", observed)] {
        let to = stage.target(is_closed);
        chain.rule(&is(name, version, "dst"), &format!("to {name} pods"), &to);
    }
    let to = if spec.pod_interfaces.is_empty() || stage == Stage::Before {
        unknown(spec, stage)
    } else {
        stage.go("TO-UNKNOWN")
    };
    unknown_destinations(&mut chain, spec, version, stage, &to);
    table.add(chain);
}

fn first_packet(spec: &RedirectSpec, version: Version, stage: Stage) -> Chain {
    let (isolated, observed) = closed(spec.fail_mode);
    let mut chain = Chain::new(stage.prefix());
    let from_unknown = stage.go("FROM-UNKNOWN");
    if stage == Stage::Before {
        chain.rule("", "whose address is it", "-j SLUICE-SOURCE");
    }
    if version == Version::V6 {
        // A pod has such an address beside those that are known, and others of its bridge reach it there.
        let not_ours = "-m addrtype ! --dst-type LOCAL --limit-iface-in";
        let not_ours = if stage == Stage::Before { not_ours } else { "-m addrtype ! --dst-type LOCAL" };
        chain.rule(&format!("-d {LINK_LOCAL} {not_ours}"), "to nobody known", &from_unknown);
        chain.rule(&format!("-s {LINK_LOCAL} ! -d ff00::/8 {not_ours}"), "from nobody known", &from_unknown);
    }
    let mut from = vec![("isolated", "FROM-ISOLATED"), ("observed", "FROM-OBSERVED")];
    if spec.passes {
        from.push(("passed", "FROM-PASSED"));
    }
    for (name, to) in from {
        chain.rule(&is(name, version, "src"), &format!("from {name} pods"), &stage.go(to));
    }
    chain.rule(&is("ranges", version, "src"), "from unknown pods", &from_unknown);
    for interface in &spec.pod_interfaces {
        chain.rule(&format!("-i {}", pattern(interface)), "from unknown pods", &from_unknown);
    }
    chain.rule(&is("isolated", version, "dst"), "to isolated pods", &stage.target(isolated));
    let to_observed = if spec.bypass.is_empty() { stage.target(observed) } else { stage.go("TO-OBSERVED") };
    chain.rule(&is("observed", version, "dst"), "to observed pods", &to_observed);
    if spec.passes {
        chain.rule(&is("passed", version, "dst"), "to pods out of scope", "-j RETURN");
    }
    chain.rule(
        &format!("{} -m addrtype ! --dst-type LOCAL", is("ranges", version, "dst")),
        "to unknown pods",
        &unknown(spec, stage),
    );
    if stage == Stage::Behind {
        for interface in &spec.pod_interfaces {
            let asks = format!("-o {}", pattern(interface));
            chain.rule(&asks, "to a pod's interface", &stage.go("TO-UNKNOWN"));
        }
    }
    chain
}

/// Rules for what goes to a pod of this node that nobody has told of yet, behind translation.
pub(super) fn to_unknown(chain: &mut Chain, spec: &RedirectSpec, version: Version, then: &str) {
    unknown_destinations(chain, spec, version, Stage::Behind, then);
}

fn unknown_destinations(chain: &mut Chain, spec: &RedirectSpec, version: Version, stage: Stage, then: &str) {
    let open = not_open(spec, version);
    let ranges = is("ranges", version, "dst");
    chain.rule(&format!("{ranges} {open} -m addrtype ! --dst-type LOCAL"), "to unknown pods", then);
    if stage == Stage::Behind {
        for interface in &spec.pod_interfaces {
            chain.rule(&format!("-o {} {open}", pattern(interface)), "to unknown pods", then);
        }
    }
}

/// Tells the gate that the destination lies behind an interface of pods.
fn towards_interface(chain: &mut Chain, spec: &RedirectSpec, stage: Stage) {
    for interface in spec.pod_interfaces.iter().filter(|_| stage == Stage::Behind) {
        let to_pod = set(spec.marks.tracked);
        chain.rule(&format!("-o {}", pattern(interface)), "to a pod's interface", &to_pod);
    }
}

fn unknown(spec: &RedirectSpec, stage: Stage) -> String {
    stage.target(spec.fail_mode != FailMode::Open)
}

/// Lets pass by what is not intercepted.
fn passing(chain: &mut Chain, spec: &RedirectSpec, version: Version, end: &str) {
    let option = if end == "src" { "-s" } else { "-d" };
    for range in spec.bypass.range_list(version.number()) {
        chain.rule(&format!("{option} {range}"), "ranges that are not intercepted", "-j RETURN");
    }
    let ports: Vec<String> = spec.bypass.port_list().map(|port| port.to_string()).collect();
    for ports in ports.chunks(MOST_PORTS) {
        for protocol in ["tcp", "udp", "sctp"] {
            chain.rule(
                &format!("-p {protocol} -m multiport --dports {}", ports.join(",")),
                "ports that are not intercepted",
                "-j RETURN",
            );
        }
    }
}

/// The one table's part that follows the interfaces of pods.
pub(super) fn links_script(spec: &RedirectSpec) -> String {
    let mut table = Table::new("mangle");
    table.add(links(spec));
    table.write(&[], false)
}
