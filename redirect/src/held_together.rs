//! The rules for datagrams that were held together with the first of their flow.
//!
//! Each of them came before its flow was known to conntrack, and goes on after the first has made it known: source
//! translation then takes the flow's own ports for another's and gives them new ones, so that a server hears one client
//! as two (`get_unique_tuple` in net/netfilter/nf_nat_core.c; seen with 5.10 and 6.1, not with 6.12 and 6.18). To translate such a
//! datagram to what it is leaves nothing to choose, and conntrack makes one flow of both, counts included
//! (`nf_ct_resolve_clash`). What the node's own rules translate at their place before has its new ports all the same.

use crate::marks::Marks;
use crate::ruleset::{RedirectSpec, Script, families};

/// After every source translation of the node's owner, network plugin and kube-proxy at 100 (`srcnat`).
const PRIORITY: i32 = 110;

/// A rule that needs what these need, for asking a kernel.
pub(crate) const PROBE: (&str, &str, &str) =
    ("nat", "postrouting", "meta l4proto udp snat ip to ip saddr : udp sport");

/// The connection marks that say so, of an entry that conntrack throws away.
fn noted(marks: &Marks) -> u32 {
    marks.flow | marks.unreachable
}

/// The verdict's way into the connection mark, ahead of that of others that are accepted.
pub(crate) fn write_settlement(script: &mut Script, spec: &RedirectSpec, forget: &str) {
    if !spec.source_translation {
        return;
    }
    let (verdict, note) = (spec.marks.flow | spec.marks.proxy | spec.marks.reset, noted(&spec.marks));
    script.rule(
        &format!(
            "meta mark and {verdict:#x} == {verdict:#x} meta l4proto udp ct mark set ct mark or {note:#x} {forget} accept"
        ),
        "the gate has accepted the flow meanwhile",
    );
}

/// The chains that leave them their ports.
pub(crate) fn write(script: &mut Script, spec: &RedirectSpec) {
    if !spec.source_translation {
        return;
    }
    let note = noted(&spec.marks);
    for (chain, hook) in [("keep_ports", "postrouting"), ("keep_ports_here", "input")] {
        script.chain(chain, Some(("nat", hook, PRIORITY)));
        for (protocol, _) in families(spec) {
            script.rule(
                &format!(
                    "meta l4proto udp ct mark and {note:#x} == {note:#x} \
                     snat {protocol} to {protocol} saddr : udp sport"
                ),
                "held with the first of its flow",
            );
        }
        script.end();
    }
}
