//! What of a record can be asked for, whether it comes from a line or from the columns of a store.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

/// A record, without what nobody filters by or adds up. What is missing is `None`, empty or null.
#[derive(Clone, Copy, Debug)]
pub struct Glance<'a> {
    /// `@timestamp` in nanoseconds since 1970.
    pub time: Option<i64>,
    /// `event.action`.
    pub action: &'a str,
    /// `event.id`, as a number that is the same for all records of a connection.
    pub id: u128,
    /// `event.duration`, in nanoseconds.
    pub duration: Option<u64>,
    /// `network.transport`.
    pub transport: &'a str,
    /// `network.direction`.
    pub direction: &'a str,
    /// `observer.name`.
    pub node: &'a str,
    /// `source`.
    pub source: End<'a>,
    /// `destination`.
    pub destination: End<'a>,
    /// `destination.service`.
    pub service: &'a Value,
    /// `sluice.egress`.
    pub egress: &'a Value,
    /// `sluice.ingress`.
    pub ingress: &'a Value,
    /// `sluice.end_cause`.
    pub cause: Option<&'a str>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// `ip`; `None` where the record is about nobody.
    pub ip: Option<&'a str>,
    /// `port`.
    pub port: Option<u64>,
    /// `bytes`.
    pub bytes: Option<u64>,
    /// `k8s`.
    pub k8s: &'a Value,
}

impl<'a> From<&'a Value> for Glance<'a> {
    fn from(record: &'a Value) -> Self {
        let (event, network, own) = (&record["event"], &record["network"], &record["sluice"]);
        let text = |value: &'a Value| value.as_str().unwrap_or_default();
        Self {
            time: time(text(&record["@timestamp"])),
            action: text(&event["action"]),
            id: id(text(&event["id"])),
            duration: event["duration"].as_u64(),
            transport: text(&network["transport"]),
            direction: text(&network["direction"]),
            node: text(&record["observer"]["name"]),
            source: End::from(&record["source"]),
            destination: End::from(&record["destination"]),
            service: &record["destination"]["service"],
            egress: &own["egress"],
            ingress: &own["ingress"],
            cause: own["end_cause"].as_str(),
        }
    }
}

impl<'a> From<&'a Value> for End<'a> {
    fn from(end: &'a Value) -> Self {
        Self {
            ip: end["ip"].as_str(),
            port: end["port"].as_u64(),
            bytes: end["bytes"].as_u64(),
            k8s: &end["k8s"],
        }
    }
}

fn time(text: &str) -> Option<i64> {
    i64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()
}

/// Both halves of an id; of any other text a hash.
fn id(text: &str) -> u128 {
    let halves = text.split_once('-').and_then(|(process, connection)| {
        let half = |text| u64::from_str_radix(text, 16).ok();
        half(process).zip(half(connection))
    });
    match halves {
        Some((process, connection)) => u128::from(process) << 64 | u128::from(connection),
        None => {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            hasher.finish().into()
        }
    }
}
