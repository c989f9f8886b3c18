//! Records to who talks to whom: one edge for each pair of workloads and port.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use super::filter::{carried, is_denied};
use super::print::{end, printable};

/// A pair of workloads, and the server's port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct Pair {
    /// `namespace/workload`, `node NAME` or `external`.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) port: u64,
    pub(crate) protocol: String,
}

/// What happened between a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Connections that were carried.
    pub(crate) carried: u64,
    /// Connections that policy refused or cut.
    pub(crate) denied: u64,
    /// Connections that could not be established.
    pub(crate) failed: u64,
    /// Payload both ways.
    pub(crate) bytes: u64,
}

/// All edges so far.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    edges: BTreeMap<Pair, Counts>,
    /// Bytes of live connections that are counted already, by id.
    told: HashMap<String, u64>,
}

impl Edges {
    /// Adds what a record tells; a record of losses tells nothing.
    pub(crate) fn add(&mut self, record: &Value) {
        if record["source"].get("ip").is_none() {
            return;
        }
        let counts = self.edges.entry(pair(record)).or_default();
        let id = record["event"]["id"].as_str().unwrap_or_default();
        match record["event"]["action"].as_str() {
            Some("connection-started") => {
                counts.carried += 1;
                self.told.insert(id.to_owned(), 0);
            }
            Some("connection-updated") => {
                let bytes = carried(record);
                // Its start may lie before what is read.
                let before = self.told.insert(id.to_owned(), bytes);
                counts.carried += u64::from(before.is_none());
                counts.bytes += bytes.saturating_sub(before.unwrap_or(0));
            }
            Some("connection-ended") => {
                let before = self.told.remove(id);
                counts.carried += u64::from(before.is_none());
                counts.bytes += carried(record).saturating_sub(before.unwrap_or(0));
                counts.denied += u64::from(is_denied(record));
            }
            Some("connection-denied") => counts.denied += 1,
            Some("connection-failed") => counts.failed += 1,
            _ => {}
        }
    }

    /// Every edge, in the order of its names.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Pair, &Counts)> {
        self.edges.iter()
    }
}

fn pair(record: &Value) -> Pair {
    Pair {
        from: workload(&record["source"]),
        to: workload(&record["destination"]),
        port: record["destination"]["port"].as_u64().unwrap_or(0),
        protocol: record["network"]["transport"].as_str().unwrap_or("-").to_uppercase(),
    }
}

/// The workload's name, the pod's where it has none.
fn workload(of: &Value) -> String {
    let k8s = &of["k8s"];
    match (k8s["namespace"].as_str(), k8s["owner"]["name"].as_str(), k8s["node"].as_str()) {
        (Some(namespace), Some(owner), _) => printable(&format!("{namespace}/{owner}")),
        (Some(_), None, _) | (None, _, Some(_)) => end(of),
        (None, _, None) => "external".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn record(action: &str, id: &str, bytes: u64) -> Value {
        json!({
            "event": {"action": action, "id": id},
            "network": {"transport": "tcp"},
            "source": {"ip": "10.0.0.1", "port": 4, "bytes": bytes,
                       "k8s": {"namespace": "shop", "pod": "web-1", "owner": {"kind": "Deployment", "name": "web"}}},
            "destination": {"ip": "10.0.0.2", "port": 5432, "k8s": {"namespace": "shop", "pod": "db"}},
        })
    }

    fn counts(records: &[Value]) -> Counts {
        let mut edges = Edges::default();
        records.iter().for_each(|record| edges.add(record));
        let mut all = edges.all();
        let (pair, counts) = all.next().unwrap();
        assert_eq!((&*pair.from, &*pair.to, pair.port), ("shop/web", "shop/db", 5432));
        assert!(all.next().is_none());
        *counts
    }

    #[test]
    fn a_connection_counts_once_and_its_bytes_once_whatever_part_of_it_is_read() {
        let whole = [
            record("connection-started", "1", 0),
            record("connection-updated", "1", 60),
            record("connection-updated", "1", 100),
            record("connection-ended", "1", 110),
        ];
        for from in 0..whole.len() {
            let expected = Counts { carried: 1, bytes: 110, ..Counts::default() };
            assert_eq!(counts(&whole[from..]), expected, "from {from}");
        }
        assert_eq!(counts(&whole[..3]).bytes, 100, "while it lives");
    }

    #[test]
    fn denials_failures_and_revocations_are_told_apart() {
        let mut revoked = record("connection-ended", "3", 1);
        revoked["sluice"] = json!({"end_cause": "policy-revoked"});
        let records = [record("connection-denied", "1", 0), record("connection-failed", "2", 0), revoked];
        assert_eq!(counts(&records), Counts { carried: 1, denied: 2, failed: 1, bytes: 1 });
    }

    #[test]
    fn strangers_are_one_and_losses_are_nobody() {
        let mut edges = Edges::default();
        let mut outside = record("connection-started", "1", 0);
        outside["destination"] = json!({"ip": "192.0.2.1", "port": 443});
        edges.add(&outside);
        edges.add(&json!({"event": {"action": "records-lost"}}));
        let names: Vec<_> = edges.all().map(|(pair, _)| pair.to.clone()).collect();
        assert_eq!(names, ["external"]);
    }
}
