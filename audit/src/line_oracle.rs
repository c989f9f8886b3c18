//! A line as serde makes it from structs, for comparison: slower, and easier to read.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use flow::{Decision, EndCause, Endpoint, Labels, Service, SideVerdict, Uid};
use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::community::CommunityId;
use crate::line::SCHEMA;
use crate::record::{Action, LegInfo, Legs, Record};

/// The line of a record, its newline included.
pub(crate) fn line(sequence: u64, node: &str, record: &Record) -> String {
    serde_json::to_string(&Line::new(sequence, node, record)).unwrap() + "\n"
}

#[derive(serde::Serialize)]
struct Ecs {
    version: &'static str,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Time,
    ecs: Ecs,
    event: Event<'a>,
    network: Network,
    source: Side<'a>,
    destination: Side<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<TcpLegs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsHello<'a>>,
    observer: Observer<'a>,
    sluice: Own<'a>,
}

#[derive(serde::Serialize)]
struct Event<'a> {
    kind: &'static str,
    category: [&'static str; 1],
    #[serde(rename = "type")]
    types: &'static [&'static str],
    action: &'static str,
    outcome: &'static str,
    id: Shown<crate::ConnectionId>,
    sequence: u64,
    start: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Shown<EventReason<'a>>>,
}

#[derive(serde::Serialize)]
struct Network {
    transport: &'static str,
    #[serde(rename = "type")]
    family: &'static str,
    direction: &'static str,
    community_id: Community,
}

#[derive(serde::Serialize)]
struct Side<'a> {
    ip: IpAddr,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s: Option<K8s<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Dialed<'a>>,
}

#[derive(serde::Serialize)]
struct K8s<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "printed")]
    uid: Option<&'a Uid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner<'a>>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "pairs")]
    labels: Option<&'a Labels>,
}

#[derive(serde::Serialize)]
struct Owner<'a> {
    kind: &'a str,
    name: &'a str,
}

#[derive(serde::Serialize)]
struct Dialed<'a> {
    namespace: &'a str,
    name: &'a str,
    ip: IpAddr,
    port: u16,
}

#[derive(serde::Serialize)]
struct TcpLegs {
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<TcpLeg>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<TcpLeg>,
}

#[derive(serde::Serialize)]
struct TcpLeg {
    rtt_us: u32,
    retransmits: u32,
}

#[derive(serde::Serialize)]
struct TlsHello<'a> {
    client: TlsClient<'a>,
}

#[derive(serde::Serialize)]
struct TlsClient<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    alpn: &'a [Box<str>],
}

#[derive(serde::Serialize)]
struct Observer<'a> {
    name: &'a str,
    product: &'static str,
}

#[derive(serde::Serialize)]
struct Own<'a> {
    schema: u32,
    generation: u64,
    egress: Judged<'a>,
    ingress: Judged<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<Address>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    hairpin: bool,
    timing: TimingMicros,
}

#[derive(serde::Serialize)]
struct Address {
    ip: IpAddr,
    port: u16,
}

#[derive(serde::Serialize)]
struct TimingMicros {
    #[serde(skip_serializing_if = "Option::is_none")]
    decide_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_us: Option<u64>,
}

impl<'a> Line<'a> {
    fn new(sequence: u64, node: &'a str, record: &'a Record) -> Self {
        let traffic = &record.traffic;
        let is_counted = matches!(record.action, Action::Updated | Action::Ended) && !traffic.uncounted;
        let bytes = |count| is_counted.then_some(count);
        let packets = |count: Option<u64>| count.filter(|_| is_counted);
        Self {
            timestamp: Time(told_at(record)),
            ecs: Ecs { version: crate::ECS_VERSION },
            event: Event::new(sequence, record),
            network: Network::new(record),
            source: Side::new(
                record.tuple.client.0,
                (bytes(traffic.client_bytes), packets(traffic.client_packets)),
                &record.source,
                None,
            ),
            destination: Side::new(
                record.tuple.destination.0,
                (bytes(traffic.server_bytes), packets(traffic.server_packets)),
                &record.destination,
                record.service.as_ref(),
            ),
            tcp: TcpLegs::of(record),
            tls: record.tls.as_ref().map(|hello| TlsHello {
                client: TlsClient { server_name: hello.server_name.as_deref(), alpn: &hello.protocols },
            }),
            observer: Observer { name: node, product: "sluice" },
            sluice: Own::new(record),
        }
    }
}

impl<'a> Event<'a> {
    fn new(sequence: u64, record: &'a Record) -> Self {
        Self {
            kind: "event",
            category: ["network"],
            types: types(record.action),
            action: record.action.as_str(),
            outcome: outcome(record.action),
            id: Shown(record.id),
            sequence,
            start: Time(record.start),
            end: record.end.map(Time),
            duration: record.duration.map(|duration| saturating(duration.as_nanos())),
            reason: EventReason::of(record).map(Shown),
        }
    }
}

impl Network {
    fn new(record: &Record) -> Self {
        Self {
            transport: record.tuple.protocol.as_lower_str(),
            family: if record.tuple.client.0.is_ipv4() { "ipv4" } else { "ipv6" },
            direction: direction(&record.source, &record.destination),
            community_id: Community(CommunityId::of(&record.tuple)),
        }
    }
}

impl TcpLegs {
    /// `None` when the kernel told nothing.
    fn of(record: &Record) -> Option<Self> {
        let leg = |info: LegInfo| TcpLeg { rtt_us: info.rtt_us, retransmits: info.retransmits };
        let legs = record.legs;
        (legs != Legs::default()).then(|| Self { client: legs.client.map(leg), server: legs.server.map(leg) })
    }
}

impl<'a> Side<'a> {
    fn new(
        address: SocketAddr,
        (bytes, packets): (Option<u64>, Option<u64>),
        endpoint: &'a Endpoint,
        service: Option<&'a Service>,
    ) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
            bytes,
            packets,
            k8s: K8s::of(endpoint),
            service: service.map(|service| Dialed {
                namespace: &service.namespace,
                name: &service.name,
                ip: service.address.ip(),
                port: service.address.port(),
            }),
        }
    }
}

impl<'a> K8s<'a> {
    fn of(endpoint: &'a Endpoint) -> Option<Self> {
        match endpoint {
            Endpoint::Pod(pod) => Some(Self {
                namespace: Some(&pod.namespace),
                pod: Some(&pod.name),
                uid: Some(&pod.uid).filter(|uid| !uid.is_empty()),
                node: pod.node.as_deref(),
                owner: pod.owner.as_ref().map(|owner| Owner { kind: &owner.kind, name: &owner.name }),
                labels: Some(&pod.labels).filter(|labels| !labels.is_empty()),
            }),
            Endpoint::Node { name, .. } => Some(Self {
                namespace: None,
                pod: None,
                uid: None,
                node: Some(name),
                owner: None,
                labels: None,
            }),
            Endpoint::UnknownLocal | Endpoint::External => None,
        }
    }
}

fn printed<S: Serializer>(uid: &Option<&Uid>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(uid.unwrap_or(&Uid::default()))
}

fn pairs<S: Serializer>(labels: &Option<&Labels>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().flat_map(|labels| labels.iter()))
}

impl<'a> Own<'a> {
    fn new(record: &'a Record) -> Self {
        let decision = shown_decision(record);
        let upstream = record.upstream_source.filter(|source| source.0 != record.tuple.client.0);
        Self {
            schema: SCHEMA,
            generation: decision.generation.0,
            egress: Judged(&decision.egress),
            ingress: Judged(&decision.ingress),
            end_cause: record.cause.map(EndCause::as_str),
            upstream: upstream.map(|source| Address { ip: source.0.ip(), port: source.0.port() }),
            hairpin: record.hairpin,
            timing: TimingMicros {
                decide_us: record.timing.decide.map(micros),
                connect_us: record.timing.connect.map(micros),
            },
        }
    }
}

/// When it was so: at the end, at the update, or at the start of a connection.
fn told_at(record: &Record) -> SystemTime {
    let updated = || record.start.checked_add(record.duration?);
    record.end.or_else(updated).unwrap_or(record.start)
}

/// The values that ECS allows for `event.type` in the category `network`.
const fn types(action: Action) -> &'static [&'static str] {
    match action {
        Action::Started => &["connection", "allowed", "start"],
        Action::Updated => &["connection", "allowed", "info"],
        Action::Ended => &["connection", "allowed", "end"],
        Action::Denied => &["connection", "denied"],
        Action::Failed => &["connection", "allowed", "end"],
    }
}

/// ECS judges an outcome by what the observer set out to do: a connection that was blocked as policy asks is
/// a success (ECS, "Using the categorization fields"). Whether it was let through is in `event.type`.
const fn outcome(action: Action) -> &'static str {
    match action {
        Action::Started | Action::Updated | Action::Ended | Action::Denied => "success",
        Action::Failed => "failure",
    }
}

/// Seen from this node's pods. An address of the node's pod ranges without a known pod counts as local.
fn direction(source: &Endpoint, destination: &Endpoint) -> &'static str {
    match (is_local(source), is_local(destination)) {
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

fn shown_decision(record: &Record) -> &Decision {
    record.revoked_by.as_ref().unwrap_or(&record.decision)
}

fn micros(duration: Duration) -> u64 {
    saturating(duration.as_micros())
}

fn saturating(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// A value written as the string it prints as.
struct Shown<T>(T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// What `event.reason` says: what went wrong in words, or which side refused and why.
enum EventReason<'a> {
    Detail(&'a str),
    Refusal(&'a Decision),
    Cause(EndCause),
}

impl<'a> EventReason<'a> {
    fn of(record: &'a Record) -> Option<Self> {
        if let Some(detail) = &record.detail {
            return Some(Self::Detail(detail));
        }
        match (record.action, record.cause) {
            // A held attempt may have been allowed first.
            (Action::Denied, _) => Some(Self::Refusal(shown_decision(record))),
            (Action::Ended, _) => record.revoked_by.as_ref().map(Self::Refusal),
            (Action::Failed, cause) => cause.map(Self::Cause),
            (Action::Started | Action::Updated, _) => None,
        }
    }
}

impl Display for EventReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detail(detail) => f.write_str(detail),
            Self::Cause(cause) => f.write_str(cause.as_str()),
            Self::Refusal(decision) => {
                let sides = [("egress", &decision.egress), ("ingress", &decision.ingress)];
                let refusing = sides.into_iter().filter(|(_, side)| !side.verdict.is_allow());
                for (index, (name, side)) in refusing.enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{name} {}", side.reason.as_str())?;
                }
                Ok(())
            }
        }
    }
}

/// One side of a decision, in the words of `sluice verdict`.
struct Judged<'a>(&'a SideVerdict);

impl Serialize for Judged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let side = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("verdict", side.verdict.as_str())?;
        if let Some(tier) = side.tier {
            map.serialize_entry("tier", tier.as_str())?;
        }
        map.serialize_entry("policies", &Policies(side.policies()))?;
        map.serialize_entry("reason", side.reason.as_str())?;
        map.end()
    }
}

struct Policies<'a>(&'a [flow::PolicyRef]);

impl Serialize for Policies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for policy in self.0 {
            list.serialize_element(&Shown(policy))?;
        }
        list.end()
    }
}

struct Community(CommunityId);

impl Serialize for Community {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

struct Time(SystemTime);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Outside the years -9999 to 9999 there is no such text; a clock that far off is shown as the epoch.
        let timestamp = Timestamp::try_from(self.0).unwrap_or(Timestamp::UNIX_EPOCH);
        serializer.collect_str(&format_args!("{timestamp:.9}"))
    }
}
