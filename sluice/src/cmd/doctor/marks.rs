//! Mark bits: who else writes those of Sluice, and where routing looks at them.

use redirect::Marks;
use redirect::survey::{MarkWrite, Source};

use super::facts::{Facts, ours, shown};
use super::finding::{Finding, fail, ok, shortened, warn};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mask = facts.config.redirect.mark_mask;
    // The configuration was validated, so there are six bits.
    let Ok(bits) = Marks::from_mask(mask).map(|marks| marks.used()) else { return Vec::new() };
    let mut findings = writes(facts, bits);
    findings.extend(routing(facts, bits));
    if findings.is_empty() {
        let sources = [Source::Ruleset, Source::Iptables, Source::Links];
        let unknown = facts.unknown("marks", &sources, "others may write Sluice's bits, or route by them");
        findings.push(unknown.unwrap_or_else(|| ok("marks", format!("nobody else uses the bits {bits:#x}"))));
    }
    findings
}

fn writes(facts: &Facts, bits: u32) -> Vec<Finding> {
    let theirs = || facts.survey.filter.mark_writes.iter().filter(|write| !ours(&write.place));
    let places = |wanted: &dyn Fn(&MarkWrite) -> bool| -> Vec<String> {
        let mut places: Vec<String> = theirs()
            .filter(|write| wanted(write))
            .map(|write| {
                let which = if write.connection { "connection mark" } else { "mark" };
                format!("{which} in {}", shown(&write.place))
            })
            .collect();
        places.sort();
        places.dedup();
        places
    };
    let mut findings = Vec::new();
    let set = places(&|write| write.sets & bits != 0);
    if !set.is_empty() {
        findings.push(fail(
            "marks.set",
            format!("rules may turn on bits of {bits:#x}: {}", shortened(&set)),
            "packets look as if the gate had judged them, or as the proxy's own",
            "set redirect.mark_mask to six bits that nobody uses, or narrow their mask",
        ));
    }
    let cleared = places(&|write| write.sets & bits == 0 && write.clears & bits != 0);
    if !cleared.is_empty() {
        findings.push(warn(
            "marks.cleared",
            format!("rules may turn off bits of {bits:#x}: {}", shortened(&cleared)),
            "packets that lose them between two rules of Sluice are dropped, or asked about again",
            "let them write their own bits only (a mask), or set redirect.mark_mask to others",
        ));
    }
    findings
}

fn routing(facts: &Facts, bits: u32) -> Vec<Finding> {
    let config = &facts.config.redirect;
    let theirs = facts.survey.mark_rules.iter().filter(|rule| {
        // Without the protocol number of ours, but the same in all else: written by hand, or by an older one.
        let alike = rule.table == config.route_table && rule.priority == config.rule_priority;
        !(rule.ours || alike)
    });
    let overlapping: Vec<String> = theirs
        .filter(|rule| {
            rule.mask & rule.mark & bits != 0 || (rule.mask & bits != 0 && rule.mark & rule.mask != 0)
        })
        .map(|rule| {
            format!(
                "IPv{} priority {} fwmark {:#x}/{:#x} lookup {}",
                rule.family, rule.priority, rule.mark, rule.mask, rule.table
            )
        })
        .collect();
    if overlapping.is_empty() {
        return Vec::new();
    }
    vec![fail(
        "marks.routing",
        format!("routing rules look at bits of {bits:#x}: {}", shortened(&overlapping)),
        "packets with Sluice's bits are routed elsewhere, or others' marks are not recognised any more",
        "set redirect.mark_mask to six bits that nobody looks at",
    )]
}
