//! Hooks, queues and detours of others around the rules of Sluice.

use redirect::GateBackend;
use redirect::survey::{Base, Chain, DetourKind, Source};

use super::facts::{Facts, ours, shown};
use super::finding::{Finding, fail, ok, shortened, warn};

/// Where rules of others are read from.
const RULES: [Source; 2] = [Source::Ruleset, Source::Iptables];

/// Where Sluice stands alone: prerouting behind the translation of destinations, and behind the gate.
const INTERCEPT: (&str, i32) = ("prerouting", -90);
const REFUSALS: [(&str, i32); 2] = [("input", -149), ("forward", -149)];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = hooks(facts);
    findings.extend(detours(facts));
    findings.push(queue(facts));
    findings
}

fn hooks(facts: &Facts) -> Vec<Finding> {
    let theirs = facts.survey.filter.chains.iter().filter(|chain| !ours(&chain.place) && chain.rules > 0);
    let bases: Vec<(&Chain, &Base)> =
        theirs.filter_map(|chain| Some((chain, chain.base.as_ref()?))).collect();
    let which = |wanted: &dyn Fn(&Base) -> bool| -> Vec<String> {
        let chains = bases.iter().filter(|(_, base)| wanted(base));
        chains
            .map(|(chain, base)| format!("{} at {} {}", shown(&chain.place), base.hook, base.priority))
            .collect()
    };
    let mut findings = Vec::new();
    let none_in_the_way = || {
        let unknown = facts.unknown("hooks", &RULES, "chains of others may stand in the way of Sluice's");
        unknown
            .unwrap_or_else(|| ok("hooks", format!("{} base chains of others, none in the way", bases.len())))
    };
    if facts.backend().and_then(GateBackend::iptables).is_some() {
        // Rules of iptables take SYNs before translation, and decide behind all of it.
        return vec![none_in_the_way()];
    }
    let late = which(&|base| base.kind == "nat" && base.hook == INTERCEPT.0 && base.priority >= INTERCEPT.1);
    if !late.is_empty() {
        findings.push(fail(
            "hooks.late-translation",
            shortened(&late),
            "destinations are translated behind Sluice: policies are asked about the address before, not about the pod",
            "give the chain priority dstnat (-100)",
        ));
    }
    let same = which(&|base| {
        let at = (base.hook.as_str(), base.priority);
        base.kind != "nat" && (at == INTERCEPT || REFUSALS.contains(&at))
    });
    if !same.is_empty() {
        findings.push(warn(
            "hooks.same-priority",
            shortened(&same),
            "which of both comes first depends on which was loaded first",
            "give the chain another priority",
        ));
    }
    if findings.is_empty() {
        findings.push(none_in_the_way());
    }
    findings
}

fn detours(facts: &Facts) -> Vec<Finding> {
    let which = |kind: DetourKind| -> Vec<String> {
        let mut places: Vec<String> = facts
            .survey
            .filter
            .detours
            .iter()
            .filter(|detour| detour.kind == kind && !ours(&detour.place))
            .map(|detour| shown(&detour.place))
            .collect();
        places.sort();
        places.dedup();
        places
    };
    let mut findings = Vec::new();
    let diverted = which(DetourKind::Divert);
    if !diverted.is_empty() {
        findings.push(fail(
            "detours.tproxy",
            format!("another transparent proxy: {}", shortened(&diverted)),
            "packets that it takes are its, and whether they pass the gate is not known",
            "keep pods' addresses out of its rules",
        ));
    }
    let untracked = which(DetourKind::Untrack);
    if !untracked.is_empty() {
        findings.push(warn(
            "detours.notrack",
            format!("rules that keep packets out of conntrack: {}", shortened(&untracked)),
            "where they concern pods, every packet of such a UDP or SCTP flow passes the gate, and closed pods' stray TCP \
             packets are dropped",
            "keep pods' addresses out of them; a node-local DNS cache's rules for its own address are as it wants them",
        ));
    }
    let offloaded = which(DetourKind::Offload);
    if !offloaded.is_empty() {
        findings.push(warn(
            "detours.offload",
            format!("a flow table: {}", shortened(&offloaded)),
            "established UDP and SCTP flows pass by all rules: a change of policy cannot end them before they fall idle",
            "keep pods' flows out of the flow table",
        ));
    }
    if findings.is_empty() {
        let unknown = facts.unknown("detours", &RULES, "packets of pods may pass by Sluice's rules");
        findings.push(
            unknown.unwrap_or_else(|| ok("detours", "nobody else diverts, untracks or offloads packets")),
        );
    }
    findings
}

fn queue(facts: &Facts) -> Finding {
    const NAME: &str = "queue";
    let config = &facts.config.redirect;
    let (first, last) = (config.queue, config.queue.saturating_add(config.queues.saturating_sub(1)));
    let others: Vec<String> = facts
        .survey
        .filter
        .queue_uses
        .iter()
        .filter(|used| !ours(&used.place) && used.first <= last && used.last >= first)
        .map(|used| shown(&used.place))
        .collect();
    if !others.is_empty() {
        return fail(
            NAME,
            format!("queue {first} is used by {}", shortened(&others)),
            "packets come to the gate that are not for it, or its own go to another program",
            "set redirect.queue to a number that nobody uses",
        );
    }
    let sources = [Source::Ruleset, Source::Iptables, Source::Queues];
    if let Some(unknown) = facts.unknown(NAME, &sources, "another program may read the gate's queue") {
        return unknown;
    }
    match (facts.queue_is_read(), facts.has_our_table()) {
        (true, false) => fail(
            NAME,
            format!("a program reads queue {first}, and Sluice has no rules here"),
            "sluice run cannot bind its gate",
            "set redirect.queue to a number that nobody uses",
        ),
        (true, true) => ok(NAME, format!("queue {first} is read by the agent")),
        (false, _) => ok(NAME, format!("queue {first} is free")),
    }
}
