//! Records to who talks to whom: one edge for each pair of workloads and port.

use std::collections::HashMap;

use audit::{End, Glance};
use serde::{Deserialize, Serialize};

use super::filter::{carried, is_denied};
use super::print::{printable, who};

/// A pair of workloads, and the server's port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// `namespace/workload`, `node NAME` or `external`.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) port: u64,
    pub(crate) protocol: String,
}

/// What happened between a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    edges: HashMap<Edge, Counts>,
    /// Each name's number.
    names: HashMap<String, u32>,
    /// Bytes of live connections that are counted already, by id.
    told: HashMap<u128, u64>,
    /// The name that is looked for.
    name: String,
}

/// An edge, as an agent tells of it in a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    #[serde(flatten)]
    pub(crate) pair: Pair,
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

/// A [`Pair`] whose names are numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Edge {
    from: u32,
    to: u32,
    port: u64,
    protocol: u32,
}

impl Edges {
    /// Adds what a record tells; a record of losses tells nothing.
    pub(crate) fn add(&mut self, record: &Glance<'_>) {
        if record.source.ip.is_none() {
            return;
        }
        let edge = Edge {
            from: self.name(|name| workload(name, &record.source)),
            to: self.name(|name| workload(name, &record.destination)),
            port: record.destination.port.unwrap_or(0),
            protocol: self.name(|name| {
                name.push_str(record.transport);
                name.make_ascii_uppercase();
            }),
        };
        let counts = self.edges.entry(edge).or_default();
        let id = record.id;
        match record.action {
            "connection-started" => {
                counts.carried += 1;
                self.told.insert(id, 0);
            }
            "connection-updated" => {
                let bytes = carried(record);
                // Its start may lie before what is read.
                let before = self.told.insert(id, bytes);
                counts.carried += u64::from(before.is_none());
                counts.bytes += bytes.saturating_sub(before.unwrap_or(0));
            }
            "connection-ended" => {
                let before = self.told.remove(&id);
                counts.carried += u64::from(before.is_none());
                counts.bytes += carried(record).saturating_sub(before.unwrap_or(0));
                counts.denied += u64::from(is_denied(record));
            }
            "connection-denied" => counts.denied += 1,
            "connection-failed" => counts.failed += 1,
            _ => {}
        }
    }

    /// Adds what somebody else has added up.
    pub(crate) fn add_counts(&mut self, pair: Pair, counts: Counts) {
        let [from, to, protocol] =
            [pair.from, pair.to, pair.protocol].map(|known| self.name(|name| name.push_str(&known)));
        let edge = Edge { from, to, port: pair.port, protocol };
        let sum = self.edges.entry(edge).or_default();
        sum.carried += counts.carried;
        sum.denied += counts.denied;
        sum.failed += counts.failed;
        sum.bytes += counts.bytes;
    }

    /// The number of what is written. A name that is known is not copied: there are a few, and millions of records.
    fn name(&mut self, write: impl FnOnce(&mut String)) -> u32 {
        self.name.clear();
        write(&mut self.name);
        if let Some(number) = self.names.get(&self.name) {
            return *number;
        }
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.insert(self.name.clone(), next);
        next
    }

    /// Every edge, in the order of its names.
    pub(crate) fn all(&self) -> Vec<(Pair, Counts)> {
        let mut names: Vec<(&str, u32)> =
            self.names.iter().map(|(name, number)| (name.as_str(), *number)).collect();
        names.sort_by_key(|(_, number)| *number);
        let name =
            |number: u32| names.get(number as usize).map_or_else(String::new, |(name, _)| (*name).to_owned());
        let mut all: Vec<(Pair, Counts)> = self
            .edges
            .iter()
            .map(|(edge, counts)| {
                let Edge { from, to, port, protocol } = *edge;
                (Pair { from: name(from), to: name(to), port, protocol: name(protocol) }, *counts)
            })
            .collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}

/// Writes the workload's name, the pod's where it has none.
fn workload(name: &mut String, of: &End<'_>) {
    let k8s = of.k8s;
    match (k8s["namespace"].as_str(), k8s["owner"]["name"].as_str()) {
        (Some(namespace), Some(owner)) => {
            name.extend([namespace, "/", owner]);
            if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                *name = printable(name);
            }
        }
        _ => name.push_str(&who(k8s).unwrap_or_else(|| "external".to_owned())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

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
        records.iter().for_each(|record| edges.add(&Glance::from(record)));
        let mut all = edges.all().into_iter();
        let (pair, counts) = all.next().unwrap();
        assert_eq!((&*pair.from, &*pair.to, pair.port), ("shop/web", "shop/db", 5432));
        assert!(all.next().is_none());
        counts
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
        edges.add(&Glance::from(&outside));
        edges.add(&Glance::from(&json!({"event": {"action": "records-lost"}})));
        let names: Vec<_> = edges.all().into_iter().map(|(pair, _)| pair.to).collect();
        assert_eq!(names, ["external"]);
    }
}
