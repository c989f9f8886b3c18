//! A status as lines for a person: what is wrong first, then one line for each part.

use std::fmt::Write;

use crate::status::{Condition, Connections, Enforcement, Policy, Process, Rejected, Source, Status};

/// More are counted, not shown; the JSON has them all.
const MAX_REJECTED: usize = 20;

/// The lines, each ended. What an agent says cannot forge lines or steer a terminal.
pub(crate) fn for_a_person(status: &Status) -> String {
    let mut text = String::new();
    let state = if status.ready { "ready" } else { "NOT READY" };
    line(&mut text, &status.node, state);
    for (name, reason) in status.conditions.iter().filter_map(failing) {
        line(&mut text, &format!("  {name}"), reason);
    }
    let holding: Vec<&str> =
        status.conditions.iter().filter(|condition| condition.holds).map(|c| c.name.as_str()).collect();
    part(&mut text, "in order", &or_none(holding.join(", ")));
    part(&mut text, "enforcing", &status.enforcement.as_ref().map_or("not yet".to_owned(), enforcement));
    part(&mut text, "policy", &policy(status.snapshot.as_ref(), status.source.as_ref()));
    if let Some(remark) = status.source.as_ref().and_then(|source| source.remark.as_ref()) {
        line(&mut text, "", remark);
    }
    part(&mut text, "objects", &objects(status));
    let rejected = status.source.as_ref().map_or(&[][..], |source| &source.rejected);
    part(&mut text, "rejected", &rejections(rejected));
    let pods = &status.pods;
    part(&mut text, "pods here", &format!("{} isolated, {} observed", pods.isolated, pods.observed));
    part(&mut text, "connections", &connections(&status.connections));
    let records = &status.records;
    let queue = format!("{} of {} queued", records.queued, records.queue_limit);
    part(&mut text, "records", &format!("{} written, {} lost, {queue}", records.written, records.lost));
    part(&mut text, "process", &process(&status.process));
    let versions = &status.versions;
    let parts = [("sluice", &versions.sluice), ("kernel", &versions.kernel), ("nft", &versions.nft)];
    let known = parts.iter().filter(|(_, version)| !version.is_empty());
    let versions: Vec<String> = known.map(|(name, version)| format!("{name} {version}")).collect();
    part(&mut text, "versions", &or_none(versions.join(", ")));
    text
}

fn failing(condition: &Condition) -> Option<(&str, &str)> {
    let reason = condition.reason.as_deref().unwrap_or("does not hold");
    (!condition.holds).then_some((condition.name.as_str(), reason))
}

fn enforcement(enforcement: &Enforcement) -> String {
    let families = if enforcement.ipv6 { "IPv4 and IPv6" } else { "IPv4 only" };
    let rules = if enforcement.rules_installed { "rules in place" } else { "RULES NOT IN PLACE" };
    format!(
        "with {}, {families}, {}, fail mode {}, {rules}, {} repairs",
        enforcement.backend,
        scope(&enforcement.interception),
        enforcement.fail_mode,
        enforcement.repairs
    )
}

fn scope(interception: &str) -> &str {
    match interception {
        "isolated" => "isolated pods only",
        "namespaceSelector" => "isolated pods and chosen namespaces",
        // An agent that does not say has no other.
        _ => "every pod",
    }
}

fn policy(policy: Option<&Policy>, source: Option<&Source>) -> String {
    let mut text = match policy {
        Some(policy) => format!("generation {}, {} old", policy.generation, duration(policy.age_s)),
        None => "none yet".to_owned(),
    };
    if let Some(source) = source {
        let _ = write!(text, ", from {} {}", source.kind, source.places.join(" "));
        if let Some(seconds) = source.failing_for_s {
            let _ = write!(
                text,
                ", FAILING for {}: the last good state of what fails is in force",
                duration(seconds)
            );
        }
        if !source.alive {
            text.push_str(", NOT WATCHED");
        }
    }
    text
}

fn objects(status: &Status) -> String {
    let some = status.objects.iter().filter(|(_, count)| **count > 0);
    or_none(some.map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", "))
}

fn rejections(rejected: &[Rejected]) -> String {
    let mut lines: Vec<&str> =
        rejected.iter().take(MAX_REJECTED).map(|rejected| rejected.problem.as_str()).collect();
    let more = format!("and {} more", rejected.len().saturating_sub(MAX_REJECTED));
    if rejected.len() > MAX_REJECTED {
        lines.push(&more);
    }
    or_none(lines.iter().map(|line| one_line(line)).collect::<Vec<_>>().join("\n"))
}

fn connections(connections: &Connections) -> String {
    let Connections { live, pending, opened, denied, failed, revoked } = connections;
    format!(
        "{live} live, {pending} pending; {opened} opened, {denied} denied, {failed} failed, {revoked} revoked"
    )
}

fn process(process: &Process) -> String {
    let Process { pid, uptime_s, descriptors_open, descriptors_limit } = process;
    format!("pid {pid}, up {}, {descriptors_open} of {descriptors_limit} descriptors", duration(*uptime_s))
}

/// A part of several lines has them below each other.
fn part(text: &mut String, name: &str, content: &str) {
    for (index, content) in content.split('\n').enumerate() {
        line(text, if index == 0 { name } else { "" }, content);
    }
}

fn line(text: &mut String, name: &str, content: &str) {
    let (name, content) = (one_line(name), one_line(content));
    let _ = writeln!(text, "{name:<12} {content}");
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

/// `0.4 s`, `12 s`, `3 min 5 s`, `2 h 1 min`, `4 d 3 h`.
fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_in_its_two_largest_units() {
        let told = [0.0, 9.96, 59.9, 61.0, 7_260.0, 90_000.0, -1.0, f64::NAN].map(duration);
        assert_eq!(told, ["0.0 s", "10.0 s", "59 s", "1 min 1 s", "2 h 1 min", "1 d 1 h", "0.0 s", "0 s"]);
    }

    #[test]
    fn whose_connections_are_intercepted_and_why_the_source_fails_are_told() {
        let source = Source {
            kind: "api".to_owned(),
            places: vec!["kubeconfig".to_owned()],
            alive: true,
            failing_for_s: Some(3_600.0),
            remark: Some(
                "the last state stays in force: Pod last heard of 3600 s ago (refused)\nx".to_owned(),
            ),
            rejected: Vec::new(),
        };
        let told = |interception: &str| {
            let enforcement = Enforcement {
                backend: "nft".to_owned(),
                interception: interception.to_owned(),
                fail_mode: "isolation".to_owned(),
                rules_installed: true,
                ..Enforcement::default()
            };
            let status = Status {
                enforcement: Some(enforcement),
                snapshot: Some(Policy { generation: 3, age_s: 3_600.0 }),
                source: Some(source.clone()),
                ..Status::default()
            };
            for_a_person(&status)
        };
        let text = told("isolated");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(
            &"enforcing    with nft, IPv4 only, isolated pods only, fail mode isolation, rules in place, 0 repairs"
        ));
        let policy = lines.iter().position(|line| line.starts_with("policy ")).unwrap();
        assert!(
            lines[policy].contains("3, 1 h 0 min old") && lines[policy].contains("FAILING for 1 h 0 min")
        );
        assert_eq!(
            lines[policy + 1],
            "             the last state stays in force: Pod last heard of 3600 s ago (refused) x"
        );
        assert!(told("namespaceSelector").contains("chosen namespaces") && told("").contains(", every pod,"));
    }

    #[test]
    fn what_fails_stands_first_and_nothing_an_agent_says_forges_a_line() {
        let condition = |name: &str, reason: Option<&str>| Condition {
            name: name.to_owned(),
            holds: reason.is_none(),
            reason: reason.map(str::to_owned),
        };
        let problem = Rejected { object: String::new(), problem: "a.yaml:\nready \u{1b}[2J".to_owned() };
        let status = Status {
            node: "n1".to_owned(),
            conditions: vec![condition("gate", None), condition("rules", Some("gone\nnode ready"))],
            source: Some(Source {
                kind: "manifests".to_owned(),
                rejected: vec![problem; 21],
                ..Source::default()
            }),
            ..Status::default()
        };
        let text = for_a_person(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "n1           NOT READY");
        assert_eq!(lines[1], "  rules      gone node ready");
        assert_eq!(lines[2], "in order     gate");
        assert_eq!(lines[3], "enforcing    not yet");
        assert!(lines.contains(&"rejected     a.yaml: ready  [2J"), "{text}");
        assert!(lines.contains(&"             and 1 more"), "{text}");
    }
}
