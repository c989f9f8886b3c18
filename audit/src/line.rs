//! A record to one line of JSON with the names of the Elastic Common Schema (ECS).
//!
//! Everything is written straight into the caller's buffer, in a fixed order; what says who a pod is is copied from
//! the last time. What ECS has no name for lives under `sluice`. A line never contains a newline other than the one
//! that ends it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flow::{Endpoint, Pod};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::batch::Lost;
use crate::community::CommunityId;
use crate::json;
use crate::parts::{self, shown_decision};
use crate::record::{Action, LegInfo, Legs, Record};

/// The version of the line's fields, in `sluice.schema`. It grows when a field changes its name or meaning;
/// a new field leaves it alone.
pub const SCHEMA: u32 = 1;

/// The version of the Elastic Common Schema whose names a line uses, in `ecs.version`.
pub const ECS_VERSION: &str = "9.5.0";

/// Pods whose words are remembered, and which are kept in memory for it.
const REMEMBERED: usize = 8192;

/// Makes the lines of one node.
#[derive(Debug)]
pub(crate) struct LineWriter {
    /// `"observer":{…},"sluice":{"schema":1,"generation":`
    observer: Vec<u8>,
    pods: Words,
}

/// What is said of pods, by where each is in memory: it stays there while it is held here, and nobody changes it.
#[derive(Debug, Default)]
struct Words(HashMap<usize, (Arc<Pod>, Box<[u8]>)>);

impl LineWriter {
    pub(crate) fn new(node: &str) -> Self {
        let mut observer = b"\"observer\":{\"name\":".to_vec();
        json::text(&mut observer, node);
        observer.extend_from_slice(b",\"product\":\"sluice\"},\"sluice\":{\"schema\":");
        json::number(&mut observer, SCHEMA.into());
        observer.extend_from_slice(b",\"generation\":");
        Self { observer, pods: Words::default() }
    }

    /// Appends the line of `record`, its newline included, and returns the Community ID in it.
    pub(crate) fn append(&mut self, lines: &mut Vec<u8>, sequence: u64, record: &Record) -> CommunityId {
        let community = CommunityId::of(&record.tuple);
        push(lines, "{\"@timestamp\":");
        json::time(lines, told_at(record));
        push(lines, ",\"ecs\":{\"version\":\"");
        push(lines, ECS_VERSION);
        push(lines, "\"},");
        event(lines, sequence, record);
        push(lines, ",\"network\":{\"transport\":\"");
        push(lines, record.tuple.protocol.as_lower_str());
        push(lines, "\",\"type\":\"");
        push(lines, if record.tuple.client.0.is_ipv4() { "ipv4" } else { "ipv6" });
        push(lines, "\",\"direction\":\"");
        push(lines, direction(record));
        push(lines, "\",\"community_id\":\"");
        push(lines, community.as_str());
        push(lines, "\"},\"source\":{");
        let traffic = &record.traffic;
        let counts = is_counted(record).then_some((traffic.client_bytes, traffic.client_packets));
        self.end(lines, record.tuple.client.0, counts, &record.source);
        push(lines, "},\"destination\":{");
        let counts = is_counted(record).then_some((traffic.server_bytes, traffic.server_packets));
        self.end(lines, record.tuple.destination.0, counts, &record.destination);
        if let Some(service) = &record.service {
            push(lines, ",\"service\":");
            parts::service(lines, service);
        }
        push(lines, "},");
        if record.legs != Legs::default() {
            legs(lines, &record.legs);
        }
        if let Some(hello) = &record.tls {
            push(lines, "\"tls\":");
            parts::tls(lines, hello);
            lines.push(b',');
        }
        lines.extend_from_slice(&self.observer);
        own(lines, record);
        push(lines, "}}\n");
        community
    }

    fn end(
        &mut self,
        lines: &mut Vec<u8>,
        address: SocketAddr,
        counts: Option<(u64, Option<u64>)>,
        endpoint: &Endpoint,
    ) {
        parts::address(lines, b"\"ip\":", address);
        if let Some((bytes, packets)) = counts {
            push(lines, ",\"bytes\":");
            json::number(lines, bytes);
            if let Some(packets) = packets {
                push(lines, ",\"packets\":");
                json::number(lines, packets);
            }
        }
        let before = lines.len();
        push(lines, ",\"k8s\":");
        let said = match endpoint {
            Endpoint::Pod(pod) => {
                lines.extend_from_slice(self.pods.of(pod, endpoint));
                true
            }
            other => parts::k8s(lines, other),
        };
        if !said {
            lines.truncate(before);
        }
    }
}

impl Words {
    fn of(&mut self, pod: &Arc<Pod>, endpoint: &Endpoint) -> &[u8] {
        let place = Arc::as_ptr(pod).addr();
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&place) {
            self.0.clear();
        }
        let (_, words) = self.0.entry(place).or_insert_with(|| {
            let mut words = Vec::with_capacity(512);
            parts::k8s(&mut words, endpoint);
            (Arc::clone(pod), words.into())
        });
        words
    }
}

fn push(to: &mut Vec<u8>, text: &str) {
    to.extend_from_slice(text.as_bytes());
}

fn event(lines: &mut Vec<u8>, sequence: u64, record: &Record) {
    push(lines, "\"event\":{\"kind\":\"event\",\"category\":[\"network\"],\"type\":[");
    push(lines, types(record.action));
    push(lines, "],\"action\":\"");
    push(lines, record.action.as_str());
    push(lines, "\",\"outcome\":\"");
    push(lines, outcome(record.action));
    push(lines, "\",\"id\":\"");
    record.id.append(lines);
    push(lines, "\",\"sequence\":");
    json::number(lines, sequence);
    push(lines, ",\"start\":");
    json::time(lines, record.start);
    if let Some(end) = record.end {
        push(lines, ",\"end\":");
        json::time(lines, end);
    }
    if let Some(duration) = record.duration {
        push(lines, ",\"duration\":");
        json::number(lines, nanos_of(duration));
    }
    let before = lines.len();
    push(lines, ",\"reason\":");
    if !parts::reason(lines, record) {
        lines.truncate(before);
    }
    lines.push(b'}');
}

/// What the kernel told of both legs.
fn legs(lines: &mut Vec<u8>, legs: &Legs) {
    let mut leg = |name: &str, info: LegInfo| {
        push(lines, name);
        json::number(lines, info.rtt_us.into());
        push(lines, ",\"retransmits\":");
        json::number(lines, info.retransmits.into());
        lines.push(b'}');
    };
    if let Some(client) = legs.client {
        leg("\"tcp\":{\"client\":{\"rtt_us\":", client);
    }
    if let Some(server) = legs.server {
        let is_first = legs.client.is_none();
        leg(if is_first { "\"tcp\":{\"server\":{\"rtt_us\":" } else { ",\"server\":{\"rtt_us\":" }, server);
    }
    push(lines, "},");
}

/// What stands under `sluice`, behind the generation's name.
fn own(lines: &mut Vec<u8>, record: &Record) {
    let decision = shown_decision(record);
    json::number(lines, decision.generation.0);
    push(lines, ",\"egress\":");
    parts::side(lines, &decision.egress);
    push(lines, ",\"ingress\":");
    parts::side(lines, &decision.ingress);
    if let Some(cause) = record.cause {
        push(lines, ",\"end_cause\":\"");
        push(lines, cause.as_str());
        lines.push(b'"');
    }
    if let Some(upstream) = upstream(record) {
        parts::address(lines, b",\"upstream\":{\"ip\":", upstream);
        lines.push(b'}');
    }
    if record.hairpin {
        push(lines, ",\"hairpin\":true");
    }
    push(lines, ",\"timing\":{");
    if let Some(decide) = record.timing.decide {
        push(lines, "\"decide_us\":");
        json::number(lines, micros_of(decide));
    }
    if let Some(connect) = record.timing.connect {
        let is_first = record.timing.decide.is_none();
        push(lines, if is_first { "\"connect_us\":" } else { ",\"connect_us\":" });
        json::number(lines, micros_of(connect));
    }
    lines.push(b'}');
}

/// When it was so: at the end, at the update, or at the start of a connection.
pub(crate) fn told_at(record: &Record) -> SystemTime {
    let updated = || record.start.checked_add(record.duration?);
    record.end.or_else(updated).unwrap_or(record.start)
}

/// True where the record tells what was carried.
pub(crate) const fn is_counted(record: &Record) -> bool {
    matches!(record.action, Action::Updated | Action::Ended) && !record.traffic.uncounted
}

/// The address from which the server was connected, where it is another than the client's.
pub(crate) fn upstream(record: &Record) -> Option<SocketAddr> {
    record.upstream_source.map(|source| source.0).filter(|source| *source != record.tuple.client.0)
}

/// The values that ECS allows for `event.type` in the category `network`, as a list's elements.
pub(crate) const fn types(action: Action) -> &'static str {
    match action {
        Action::Started => r#""connection","allowed","start""#,
        Action::Updated => r#""connection","allowed","info""#,
        Action::Ended => r#""connection","allowed","end""#,
        Action::Denied => r#""connection","denied""#,
        Action::Failed => r#""connection","allowed","end""#,
    }
}

/// ECS judges an outcome by what the observer set out to do: a connection that was blocked as policy asks is
/// a success (ECS, "Using the categorization fields"). Whether it was let through is in `event.type`.
pub(crate) const fn outcome(action: Action) -> &'static str {
    match action {
        Action::Started | Action::Updated | Action::Ended | Action::Denied => "success",
        Action::Failed => "failure",
    }
}

/// Seen from this node's pods. An address of the node's pod ranges without a known pod counts as local.
pub(crate) fn direction(record: &Record) -> &'static str {
    match (is_local(&record.source), is_local(&record.destination)) {
        (true, true) => "internal",
        (true, false) => "egress",
        (false, true) => "ingress",
        (false, false) => "unknown",
    }
}

fn is_local(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Pod(pod) => pod.local,
        Endpoint::UnknownLocal => true,
        Endpoint::Node { .. } | Endpoint::External => false,
    }
}

pub(crate) fn micros_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Appends the line that stands in the place of records that are missing.
pub(crate) fn append_lost(lines: &mut Vec<u8>, node: &str, lost: &Lost) {
    let line = LostLine {
        timestamp: Time(SystemTime::now()),
        ecs: Ecs,
        event: LostEvent {
            kind: "event",
            category: ["network"],
            types: ["info"],
            action: LOST_ACTION,
            outcome: "failure",
            sequence: lost.last,
            reason: lost.cause.as_str(),
        },
        observer: Observer { name: node, product: "sluice" },
        sluice: LostOwn {
            schema: SCHEMA,
            lost: LostNumbers { count: lost.count, first: lost.first, last: lost.last },
        },
    };
    // Numbers and one string: writing those to memory cannot fail.
    if serde_json::to_writer(&mut *lines, &line).is_ok() {
        lines.push(b'\n');
    }
}

/// `event.action` of the line that stands for missing records.
pub const LOST_ACTION: &str = "records-lost";

#[derive(serde::Serialize)]
struct LostLine<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Time,
    ecs: Ecs,
    event: LostEvent,
    observer: Observer<'a>,
    sluice: LostOwn,
}

#[derive(serde::Serialize)]
struct LostEvent {
    kind: &'static str,
    category: [&'static str; 1],
    #[serde(rename = "type")]
    types: [&'static str; 1],
    action: &'static str,
    outcome: &'static str,
    sequence: u64,
    reason: &'static str,
}

#[derive(serde::Serialize)]
struct LostOwn {
    schema: u32,
    lost: LostNumbers,
}

#[derive(serde::Serialize)]
struct LostNumbers {
    count: u64,
    first: u64,
    last: u64,
}

/// `{"version": …}`
pub(crate) struct Ecs;

impl Serialize for Ecs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("version", ECS_VERSION)?;
        map.end()
    }
}

#[derive(serde::Serialize)]
pub(crate) struct Observer<'a> {
    pub(crate) name: &'a str,
    pub(crate) product: &'static str,
}

/// A wall-clock time, as [`json::time`] writes it.
pub(crate) struct Time(pub(crate) SystemTime);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Vec::with_capacity(32);
        json::time(&mut text, self.0);
        let text = std::str::from_utf8(&text).unwrap_or_default();
        serializer.serialize_str(text.trim_matches('"'))
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
pub(crate) mod tests;
