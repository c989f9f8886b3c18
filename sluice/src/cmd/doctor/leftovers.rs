//! An agent that runs here, or what an earlier one has left.

use redirect::survey::Source;

use super::facts::Facts;
use super::finding::{Finding, fail, ok, warn};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let (table, read) = (facts.has_our_table(), facts.queue_is_read());
    let filter = &facts.survey.filter;
    let chains = filter.chains.iter().filter(|chain| chain.place.chain.starts_with("SLUICE-")).count();
    let rules = facts.survey.mark_rules.iter().filter(|rule| rule.ours).count();
    let mut findings = vec![match (table, read) {
        (true, true) => ok("leftovers", "an agent works here: its rules stand and its queue is read"),
        (true, false) if facts.unknown("leftovers", &[Source::Queues], "").is_some() => {
            ok("leftovers", "the rules of Sluice stand; whether an agent works here is not known")
        }
        (true, false) => warn(
            "leftovers",
            "the rules of Sluice stand, and nobody reads their queue",
            "pods that policies isolate are closed, and nothing is recorded",
            "start the agent; or `sluice cleanup`, which removes all of it",
        ),
        (false, _) if chains + rules > 0 => warn(
            "leftovers",
            format!("{chains} chains and {rules} routing rules of Sluice, without its table"),
            "something took the table away; these do nothing by themselves",
            "start the agent; or `sluice cleanup`, which removes all of it",
        ),
        (false, _) => {
            let sources = [Source::Ruleset, Source::Iptables, Source::Links];
            let unknown =
                facts.unknown("leftovers", &sources, "rules of an earlier Sluice may hold pods closed");
            unknown.unwrap_or_else(|| ok("leftovers", "no rule of Sluice is on this node"))
        }
    }];
    let port = facts.config.redirect.listener_port;
    if facts.survey.listening.contains(&port) && !(table && read) {
        findings.push(fail(
            "listener",
            format!("something listens on port {port} of the loopback address"),
            "sluice run cannot listen there and does not start",
            "set redirect.listener_port to a port that nobody uses",
        ));
    }
    findings
}
