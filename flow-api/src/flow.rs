//! A line of the records to a flow, or to a notice of lost ones.
//!
//! Nothing is looked up: what a flow says is what the record says.

use audit::LOST_ACTION;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, ListValue, Struct, Timestamp, Value as ProtoValue};
use serde_json::Value;

use crate::identity::{self, Peer};
use crate::proto::flow::layer4::Protocol;
use crate::proto::flow::{
    CiliumEventType, DropReason, Emitter, Endpoint, Flow, FlowType, Ip, IpVersion, Layer4, LostEvent,
    LostEventSource, Policy, Sctp, Service, Tcp, TcpFlags, TraceObservationPoint, TrafficDirection, Udp,
    Verdict, Workload,
};
use crate::proto::observer::GetFlowsResponse;
use crate::proto::observer::get_flows_response::ResponseTypes;

/// Numbers of Cilium's monitor for kinds of events.
const EVENT_DROP: i32 = 1;
const EVENT_TRACE: i32 = 4;
/// And for where a trace was seen: at an endpoint, at the host's stack.
const AT_ENDPOINT: i32 = 0;
const AT_STACK: i32 = 3;

/// Fields that a flow has no place for, as the record names them.
const MORE: [&str; 18] = [
    "/event/action",
    "/event/id",
    "/event/sequence",
    "/event/start",
    "/event/end",
    "/event/duration",
    "/event/reason",
    "/network/community_id",
    "/source/bytes",
    "/source/packets",
    "/destination/bytes",
    "/destination/packets",
    "/sluice/generation",
    "/sluice/end_cause",
    "/sluice/hairpin",
    "/sluice/timing",
    "/tcp",
    "/tls",
];

/// What a line tells, in the name of the cluster; `None` when it is no record.
pub(crate) fn told(line: &str, cluster: &str) -> Option<GetFlowsResponse> {
    let record: Value = serde_json::from_str(line).ok()?;
    let time = time(&record)?;
    let node = node_name(record["observer"]["name"].as_str()?, cluster);
    let told = if record["event"]["action"] == LOST_ACTION {
        ResponseTypes::LostEvents(lost(record["sluice"]["lost"]["count"].as_u64()?, time))
    } else {
        ResponseTypes::Flow(flow(&record, time, &node, cluster)?)
    };
    Some(GetFlowsResponse { response_types: Some(told), node_name: node, time: Some(time) })
}

/// Flows that a client has missed because it read too slowly.
pub(crate) fn missed(count: u64, node: &str, cluster: &str) -> GetFlowsResponse {
    let lost = LostEvent {
        source: LostEventSource::HubbleRingBuffer.into(),
        num_events_lost: count,
        ..LostEvent::default()
    };
    GetFlowsResponse {
        response_types: Some(ResponseTypes::LostEvents(lost)),
        node_name: node_name(node, cluster),
        time: Some(std::time::SystemTime::now().into()),
    }
}

/// As Hubble names nodes: clusters that are not called default stand in front.
pub(crate) fn node_name(node: &str, cluster: &str) -> String {
    if cluster == "default" { node.to_owned() } else { format!("{cluster}/{node}") }
}

/// `@timestamp` of a line in nanoseconds since 1970, and `event.sequence`: the order of the store.
pub(crate) fn place(line: &str) -> Option<(i64, u64)> {
    let record: Value = serde_json::from_str(line).ok()?;
    let time: jiff::Timestamp = record["@timestamp"].as_str()?.parse().ok()?;
    Some((i64::try_from(time.as_nanosecond()).ok()?, record["event"]["sequence"].as_u64().unwrap_or(0)))
}

fn lost(count: u64, time: Timestamp) -> LostEvent {
    LostEvent {
        source: LostEventSource::ObserverEventsQueue.into(),
        num_events_lost: count,
        cpu: None,
        first: None,
        last: Some(time),
    }
}

fn flow(record: &Value, time: Timestamp, node: &str, cluster: &str) -> Option<Flow> {
    let (source, destination) = (&record["source"], &record["destination"]);
    let observer = record["observer"]["name"].as_str()?;
    let verdict = verdict(record);
    let direction = direction(record, verdict);
    let reason = drop_reason(record, verdict);
    let seen = seen(verdict, direction, reason);
    let [egress, ingress] = ["egress", "ingress"].map(|side| &record["sluice"][side]);
    Some(Flow {
        time: Some(time),
        uuid: format!("{}-{}", record["event"]["id"].as_str()?, record["event"]["sequence"]),
        emitter: Some(Emitter { name: "Sluice".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }),
        verdict: verdict.into(),
        drop_reason: u32::try_from(i32::from(reason)).unwrap_or(0),
        ip: Some(ip(record)?),
        l4: l4(record, verdict),
        source: Some(endpoint(source, observer, cluster)),
        destination: Some(endpoint(destination, observer, cluster)),
        r#type: FlowType::L3L4.into(),
        node_name: node.to_owned(),
        node_labels: Vec::new(),
        event_type: Some(CiliumEventType { r#type: seen.0, sub_type: seen.1 }),
        source_service: None,
        destination_service: service(destination),
        traffic_direction: direction.into(),
        trace_observation_point: seen.2.into(),
        drop_reason_desc: reason.into(),
        is_reply: Some(false),
        summary: summary(record, verdict),
        extensions: Some(extensions(record)),
        egress_allowed_by: policies(egress, "allow"),
        ingress_allowed_by: policies(ingress, "allow"),
        egress_denied_by: policies(egress, "deny"),
        ingress_denied_by: policies(ingress, "deny"),
    })
}

fn time(record: &Value) -> Option<Timestamp> {
    let time: jiff::Timestamp = record["@timestamp"].as_str()?.parse().ok()?;
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    // Nanoseconds of a Timestamp count forward, also before 1970.
    let (seconds, nanos) = if nanos < 0 { (seconds - 1, nanos + 1_000_000_000) } else { (seconds, nanos) };
    Some(Timestamp { seconds, nanos })
}

fn verdict(record: &Value) -> Verdict {
    match (record["event"]["action"].as_str(), record["sluice"]["end_cause"].as_str()) {
        (Some("connection-denied"), _) | (_, Some("policy-revoked")) => Verdict::Dropped,
        (Some("connection-failed"), _) => Verdict::Error,
        _ => Verdict::Forwarded,
    }
}

fn is_denied_by(record: &Value, side: &str) -> bool {
    record["sluice"][side]["verdict"] == "deny"
}

/// Between two pods of the node: towards the one that was asked last.
fn direction(record: &Value, verdict: Verdict) -> TrafficDirection {
    match record["network"]["direction"].as_str() {
        Some("egress") => TrafficDirection::Egress,
        Some("ingress") => TrafficDirection::Ingress,
        Some("internal") if verdict == Verdict::Dropped && is_denied_by(record, "egress") => {
            TrafficDirection::Egress
        }
        Some("internal") => TrafficDirection::Ingress,
        _ => TrafficDirection::Unknown,
    }
}

fn drop_reason(record: &Value, verdict: Verdict) -> DropReason {
    if verdict != Verdict::Dropped {
        return DropReason::Unknown;
    }
    let refusing = ["egress", "ingress"].into_iter().find(|side| is_denied_by(record, side));
    match refusing.map(|side| record["sluice"][side]["reason"] == "rule-matched") {
        Some(true) => DropReason::PolicyDeny,
        _ => DropReason::PolicyDenied,
    }
}

/// The kind of event, its finer kind, and the point.
fn seen(
    verdict: Verdict,
    direction: TrafficDirection,
    reason: DropReason,
) -> (i32, i32, TraceObservationPoint) {
    if verdict == Verdict::Dropped {
        return (EVENT_DROP, reason.into(), TraceObservationPoint::UnknownPoint);
    }
    match direction {
        TrafficDirection::Ingress => (EVENT_TRACE, AT_ENDPOINT, TraceObservationPoint::ToEndpoint),
        _ => (EVENT_TRACE, AT_STACK, TraceObservationPoint::ToStack),
    }
}

fn ip(record: &Value) -> Option<Ip> {
    let source = record["source"]["ip"].as_str()?;
    let upstream = record["sluice"]["upstream"]["ip"].as_str().filter(|ip| *ip != source);
    let version = match record["network"]["type"].as_str() {
        Some("ipv6") => IpVersion::IPv6,
        _ => IpVersion::IPv4,
    };
    Some(Ip {
        source: source.to_owned(),
        source_xlated: upstream.unwrap_or_default().to_owned(),
        destination: record["destination"]["ip"].as_str()?.to_owned(),
        ip_version: version.into(),
        encrypted: false,
    })
}

fn l4(record: &Value, verdict: Verdict) -> Option<Layer4> {
    let port = |side: &str| record[side]["port"].as_u64().and_then(|port| u32::try_from(port).ok());
    let (source_port, destination_port) = (port("source")?, port("destination")?);
    let protocol = match record["network"]["transport"].as_str()? {
        "tcp" => Protocol::Tcp(Tcp { source_port, destination_port, flags: flags(record, verdict) }),
        "udp" => Protocol::Udp(Udp { source_port, destination_port }),
        "sctp" => Protocol::Sctp(Sctp { source_port, destination_port }),
        _ => return None,
    };
    Some(Layer4 { protocol: Some(protocol) })
}

/// Of the packet that the record is about; an update is about none.
fn flags(record: &Value, verdict: Verdict) -> Option<TcpFlags> {
    let ended = record["event"]["action"] == "connection-ended";
    Some(match record["sluice"]["end_cause"].as_str() {
        Some("client-closed" | "server-closed") => TcpFlags { fin: true, ack: true, ..TcpFlags::default() },
        Some(_) if ended => TcpFlags { rst: true, ..TcpFlags::default() },
        None if record["event"]["action"] == "connection-updated" => return None,
        _ if verdict == Verdict::Forwarded && ended => return None,
        _ => TcpFlags { syn: true, ..TcpFlags::default() },
    })
}

fn endpoint(side: &Value, observer: &str, cluster: &str) -> Endpoint {
    let k8s = &side["k8s"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (Some(namespace), Some(pod)) = (k8s["namespace"].as_str(), k8s["pod"].as_str()) else {
        let peer = match k8s["node"].as_str() {
            Some(node) if node == observer => Peer::OwnNode,
            Some(_) => Peer::OtherNode,
            None => Peer::World,
        };
        return Endpoint {
            identity: peer.number(),
            labels: vec![peer.label().to_owned()],
            ..Endpoint::default()
        };
    };
    let labels = k8s["labels"].as_object().into_iter().flatten();
    let mut labels: Vec<String> =
        labels.filter_map(|(key, value)| Some(format!("k8s:{key}={}", value.as_str()?))).collect();
    labels.push(format!("k8s:io.kubernetes.pod.namespace={namespace}"));
    labels.sort();
    let owner = &k8s["owner"];
    let workload = match owner["name"].as_str() {
        Some(name) => Workload { name: name.to_owned(), kind: text(&owner["kind"]) },
        None => Workload { name: pod.to_owned(), kind: "Pod".to_owned() },
    };
    Endpoint {
        id: 0,
        identity: identity::number(&labels),
        cluster_name: cluster.to_owned(),
        namespace: namespace.to_owned(),
        labels,
        pod_name: pod.to_owned(),
        workloads: vec![workload],
    }
}

fn service(destination: &Value) -> Option<Service> {
    let service = &destination["service"];
    let text = |name: &str| service[name].as_str().map(str::to_owned);
    Some(Service { name: text("name")?, namespace: text("namespace")? })
}

/// `Kind/namespace/name#rule`, or without the namespace.
fn policies(side: &Value, verdict: &str) -> Vec<Policy> {
    if side["verdict"] != verdict {
        return Vec::new();
    }
    let names = side["policies"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let policy = |named: &str| {
        let named = named.split('#').next()?;
        let (kind, rest) = named.split_once('/')?;
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        let [kind, namespace, name] = [kind, namespace, name].map(str::to_owned);
        Some(Policy { name, namespace, kind, ..Policy::default() })
    };
    names.filter_map(policy).collect()
}

fn summary(record: &Value, verdict: Verdict) -> String {
    let mut parts = Vec::new();
    if record["network"]["transport"] == "tcp"
        && let Some(flags) = flags(record, verdict)
    {
        let names = [(flags.syn, "SYN"), (flags.fin, "FIN"), (flags.rst, "RST"), (flags.ack, "ACK")];
        let names: Vec<&str> = names.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
        parts.push(format!("TCP Flags: {}", names.join(", ")));
    } else {
        parts.push(record["network"]["transport"].as_str().unwrap_or_default().to_uppercase());
    }
    let action = record["event"]["action"].as_str().unwrap_or_default();
    parts.push(action.strip_prefix("connection-").unwrap_or(action).to_owned());
    if let (Some(sent), Some(received)) =
        (record["source"]["bytes"].as_u64(), record["destination"]["bytes"].as_u64())
    {
        parts.push(format!("{sent} B sent, {received} B received"));
    }
    let duration = record["event"]["duration"].as_u64().filter(|_| verdict != Verdict::Dropped);
    parts.extend(
        duration.map(|nanos| format!("{:.3} s", std::time::Duration::from_nanos(nanos).as_secs_f64())),
    );
    let why = record["event"]["reason"].as_str().or_else(|| record["sluice"]["end_cause"].as_str());
    parts.extend(why.map(str::to_owned));
    parts.join("; ")
}

fn extensions(record: &Value) -> Any {
    let mut more = Struct::default();
    for pointer in MORE {
        if let Some(value) = record.pointer(pointer).and_then(value) {
            more.fields.insert(pointer[1..].replace('/', "."), value);
        }
    }
    Any { type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(), value: more.encode_to_vec() }
}

fn value(json: &Value) -> Option<ProtoValue> {
    let kind = match json {
        Value::Null => return None,
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64()?),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().filter_map(value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().filter_map(|(key, json)| Some((key.clone(), value(json)?))).collect(),
        }),
    };
    Some(ProtoValue { kind: Some(kind) })
}

#[cfg(test)]
#[path = "flow_tests.rs"]
pub(crate) mod tests;
