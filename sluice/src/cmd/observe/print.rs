//! One record as a line for a person.

use std::time::Duration;

use audit::Glance;
use serde_json::Value;

use super::filter::{is_denied, lived, policies};

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A line each, only what matters of it
    Compact,
    /// Columns
    Table,
    /// The record as it was written
    Json,
}

/// The head of the table.
pub(crate) const HEAD: &str = "TIME            FROM                             TO                               PORT      VERDICT  WHAT      BYTES      FOR        WHY";

/// The line for `record`.
pub(crate) fn line(format: Format, record: &Value, text: &str) -> String {
    match format {
        Format::Json => text.to_owned(),
        Format::Compact => compact(record),
        Format::Table => row(record),
    }
}

fn compact(record: &Value) -> String {
    let (time, what) = (clock(record), what(record));
    if let Some(lost) = record["sluice"].get("lost") {
        let why = word(&record["event"]["reason"]);
        return format!(
            "{time} {}: {} records LOST, {} to {} ({why})",
            word(&record["observer"]["name"]),
            lost["count"],
            lost["first"],
            lost["last"]
        );
    }
    let service = match record["destination"].get("service") {
        Some(service) => format!(" (service {}/{})", word(&service["namespace"]), word(&service["name"])),
        None => String::new(),
    };
    let mut line = format!(
        "{time} {}:{} -> {}:{}{service} {} {what}",
        end(&record["source"]),
        record["source"]["port"],
        end(&record["destination"]),
        record["destination"]["port"],
        word(&record["network"]["transport"]).to_uppercase(),
    );
    if let (Some(sent), Some(received)) = (bytes(record, "source"), bytes(record, "destination")) {
        line.push_str(&format!(" {sent} sent, {received} received"));
    }
    if let Some(lived) = lived(&Glance::from(record)).filter(|_| what != "DENIED") {
        line.push_str(&format!(" in {}", short(lived)));
    }
    let why = why(record);
    if !why.is_empty() {
        line.push_str(&format!(", {why}"));
    }
    line
}

fn row(record: &Value) -> String {
    let verdict = match record["event"]["action"].as_str() {
        Some("records-lost") => "-",
        _ if is_denied(&Glance::from(record)) => "deny",
        _ => "allow",
    };
    let port = match record["destination"].get("port") {
        Some(port) => format!("{port}/{}", word(&record["network"]["transport"]).to_uppercase()),
        None => "-".to_owned(),
    };
    let carried = bytes(record, "source").zip(bytes(record, "destination"));
    let cells = [
        (clock(record), 15),
        (end(&record["source"]), 32),
        (end(&record["destination"]), 32),
        (port, 9),
        (verdict.to_owned(), 8),
        (what(record).to_lowercase(), 9),
        (carried.map_or_else(|| "-".to_owned(), |(sent, received)| scaled(sent + received)), 10),
        (lived(&Glance::from(record)).map_or_else(|| "-".to_owned(), short), 10),
    ];
    let row: String = cells.iter().map(|(cell, width)| format!("{} ", padded(cell, *width))).collect();
    (row + &why(record)).trim_end().to_owned()
}

/// Cut to `width`, or filled up to it.
fn padded(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return format!("{cell:width$}");
    }
    cell.chars().take(width - 1).chain(['…']).collect()
}

/// Hours to microseconds of a timestamp in UTC.
fn clock(record: &Value) -> String {
    word(&record["@timestamp"]).get(11..26).unwrap_or("-").to_owned()
}

/// Who stands behind an end, as shortly as can be.
fn end(end: &Value) -> String {
    who(&end["k8s"]).unwrap_or_else(|| word(&end["ip"]))
}

/// The pod or the node of an end.
pub(crate) fn who(k8s: &Value) -> Option<String> {
    Some(match (k8s["namespace"].as_str(), k8s["pod"].as_str(), k8s["node"].as_str()) {
        (Some(namespace), Some(pod), _) => printable(&format!("{namespace}/{pod}")),
        (_, _, Some(node)) => printable(&format!("node {node}")),
        _ => return None,
    })
}

fn what(record: &Value) -> String {
    match record["event"]["action"].as_str() {
        Some("connection-denied") => "DENIED".to_owned(),
        Some("connection-failed") => "FAILED".to_owned(),
        Some("records-lost") => "LOST".to_owned(),
        Some(action) => action.trim_start_matches("connection-").to_owned(),
        None => "-".to_owned(),
    }
}

/// The cause, and what decided.
fn why(record: &Value) -> String {
    let cause = record["sluice"]["end_cause"].as_str().filter(|cause| *cause != "policy-denied");
    let reason = record["event"]["reason"].as_str().filter(|reason| Some(*reason) != cause);
    let mut parts: Vec<String> = cause.into_iter().chain(reason).map(printable).collect();
    let policies: Vec<String> = policies(&Glance::from(record)).map(printable).collect();
    if !policies.is_empty() {
        parts.push(format!("by {}", policies.join(" ")));
    }
    parts.join(", ")
}

fn bytes(record: &Value, side: &str) -> Option<u64> {
    record[side]["bytes"].as_u64()
}

fn word(value: &Value) -> String {
    printable(value.as_str().unwrap_or("-"))
}

/// Text of others must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `1.5s`, `20ms`.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_secs() {
        0 if duration.as_millis() == 0 => format!("{}us", duration.as_micros()),
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{:.1}m", seconds / 60.0),
        _ => format!("{:.1}h", seconds / 3600.0),
    }
}

/// `812`, `4.0K`, `1.2G`.
pub(crate) fn scaled(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let of = |unit: u64| bytes as f64 / unit as f64;
    UNITS
        .iter()
        .find(|(unit, _)| bytes >= *unit)
        .map_or_else(|| bytes.to_string(), |(unit, name)| format!("{:.1}{name}", of(*unit)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn denied() -> Value {
        json!({
            "@timestamp": "2026-08-01T12:00:01.500000123Z",
            "event": {"action": "connection-denied", "reason": "ingress no-rule-matched", "duration": 41_000},
            "network": {"transport": "tcp"},
            "source": {"ip": "10.244.1.2", "port": 40000, "k8s": {"namespace": "front", "pod": "client"}},
            "destination": {"ip": "10.244.2.3", "port": 8080, "k8s": {"node": "node-b"}},
            "sluice": {
                "ingress": {"policies": ["NetworkPolicy/shop/deny-all"]}, "egress": {"policies": []},
                "end_cause": "policy-denied",
            },
        })
    }

    #[test]
    fn a_denial_names_both_ends_and_the_policy() {
        assert_eq!(
            compact(&denied()),
            "12:00:01.500000 front/client:40000 -> node node-b:8080 TCP DENIED, ingress no-rule-matched, \
             by NetworkPolicy/shop/deny-all"
        );
        let row = row(&denied());
        for (head, cell) in
            [("FROM", "front/client"), ("PORT", "8080/TCP"), ("VERDICT", "deny"), ("FOR", "41us")]
        {
            let column = HEAD.find(head).unwrap();
            assert!(row[column..].starts_with(cell), "{HEAD}\n{row}");
        }
    }

    #[test]
    fn an_ended_connection_tells_what_it_carried_and_losses_are_counted() {
        let mut ended = denied();
        ended["event"] = json!({"action": "connection-ended", "duration": 1_500_000_000_u64});
        ended["source"]["bytes"] = json!(78);
        ended["destination"]["bytes"] = json!(1 << 20);
        ended["sluice"] = json!({"end_cause": "client-closed"});
        assert_eq!(
            compact(&ended),
            "12:00:01.500000 front/client:40000 -> node node-b:8080 TCP ended 78 sent, 1048576 received in 1.5s, \
             client-closed"
        );
        let lost = json!({
            "@timestamp": "2026-08-01T12:00:01.500000123Z", "observer": {"name": "node-a"},
            "event": {"action": "records-lost", "reason": "queue-full"},
            "sluice": {"lost": {"count": 3, "first": 4, "last": 6}},
        });
        assert_eq!(compact(&lost), "12:00:01.500000 node-a: 3 records LOST, 4 to 6 (queue-full)");
    }

    #[test]
    fn text_of_others_does_not_steer_the_terminal_and_garbage_makes_a_line() {
        let mut hostile = denied();
        hostile["event"]["reason"] = json!("\u{1b}[2J");
        assert!(!compact(&hostile).contains('\u{1b}'));
        assert!(!row(&hostile).contains('\u{1b}'));
        for garbage in [json!({}), json!([]), json!(null), json!({"source": 3, "sluice": []})] {
            assert!(!compact(&garbage).is_empty() && !row(&garbage).is_empty());
        }
    }

    #[test]
    fn numbers_are_shown_with_one_unit() {
        assert_eq!([812, 4096, 1 << 20, 3 << 30].map(scaled), ["812", "4.0K", "1.0M", "3.0G"]);
        let shown =
            [41_u64, 20_000, 1_500_000, 90_000_000, 5_400_000_000].map(|us| short(Duration::from_micros(us)));
        assert_eq!(shown, ["41us", "20ms", "1.5s", "1.5m", "1.5h"]);
    }
}
