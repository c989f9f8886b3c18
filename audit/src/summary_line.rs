//! One row of a summary → one line of JSON. Its fields are those of records where it has them.

use std::time::SystemTime;

use serde::Serialize;

use crate::line::{Ecs, Observer, SCHEMA, Time};
use crate::summary::{End, Pair, Sums};

/// `event.action` of the line.
const ACTION: &str = "connections-summed";

/// Appends the line of a row, its newline included. The interval is from the first time to the other.
pub(crate) fn append(
    lines: &mut Vec<u8>,
    node: &str,
    pair: &Pair,
    sums: &Sums,
    (since, until): (SystemTime, SystemTime),
) {
    let line = Line {
        timestamp: Time(until),
        ecs: Ecs,
        event: Event {
            kind: "metric",
            category: ["network"],
            types: ["connection", "info"],
            action: ACTION,
            start: Time(since),
            end: Time(until),
        },
        network: Network { transport: pair.protocol },
        source: Side::of(&pair.source, None, sums.sent),
        destination: Side::of(&pair.destination, (pair.port != 0).then_some(pair.port), sums.received),
        observer: Observer { name: node, product: "sluice" },
        sluice: Own {
            schema: SCHEMA,
            summed: Summed {
                from: pair.source.to_string(),
                to: pair.destination.to_string(),
                opened: sums.opened,
                ended: sums.ended,
                denied: sums.denied,
                failed: sums.failed,
            },
        },
    };
    // Numbers and strings: writing those to memory cannot fail.
    if serde_json::to_writer(&mut *lines, &line).is_ok() {
        lines.push(b'\n');
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Time,
    ecs: Ecs,
    event: Event,
    network: Network,
    source: Side<'a>,
    destination: Side<'a>,
    observer: Observer<'a>,
    sluice: Own,
}

#[derive(Serialize)]
struct Event {
    kind: &'static str,
    category: [&'static str; 1],
    #[serde(rename = "type")]
    types: [&'static str; 2],
    action: &'static str,
    start: Time,
    end: Time,
}

#[derive(Serialize)]
struct Network {
    transport: &'static str,
}

#[derive(Serialize)]
struct Side<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s: Option<K8s<'a>>,
}

#[derive(Default, Serialize)]
struct K8s<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner<'a>>,
}

#[derive(Serialize)]
struct Owner<'a> {
    kind: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
struct Own {
    schema: u32,
    summed: Summed,
}

#[derive(Serialize)]
struct Summed {
    from: String,
    to: String,
    opened: u64,
    ended: u64,
    denied: u64,
    failed: u64,
}

impl<'a> Side<'a> {
    fn of(end: &'a End, port: Option<u16>, bytes: u64) -> Self {
        let k8s = match end {
            End::External | End::Unknown | End::Other => None,
            End::Node(name) => Some(K8s { node: Some(name), ..K8s::default() }),
            End::Workload { namespace, owner, pod } => Some(K8s {
                namespace: Some(namespace),
                pod: pod.as_deref(),
                node: None,
                owner: owner.as_ref().map(|(kind, name)| Owner { kind, name }),
            }),
        };
        Self { port, bytes, k8s }
    }
}
