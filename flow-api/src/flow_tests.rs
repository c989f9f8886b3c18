//! What each kind of record is as a flow.

use serde_json::json;

use super::*;

/// A record of `front/client` to `shop/web-0` on `node-a`, changed by `change`.
pub(crate) fn record(action: &str, sequence: u64, change: impl FnOnce(&mut Value)) -> String {
    let allowed = json!({"verdict": "allow", "tier": "NetworkPolicy", "policies": ["NetworkPolicy/shop/web#2"],
        "reason": "rule-matched"});
    let not_isolated =
        json!({"verdict": "allow", "tier": "Default", "policies": [], "reason": "not-isolated"});
    let mut record = json!({
        "@timestamp": format!("2026-08-01T12:00:{:02}.{:09}Z", sequence / 1000 % 60, sequence % 1000 + 1),
        "event": {"action": action, "id": format!("0123456789abcdef-{sequence:x}"), "sequence": sequence,
            "start": "2026-08-01T12:00:00.000000001Z"},
        "network": {"transport": "tcp", "type": "ipv4", "direction": "internal", "community_id": "1:x="},
        "source": {"ip": "10.244.1.2", "port": 40000, "k8s": {"namespace": "front", "pod": "client-7d-x",
            "owner": {"kind": "Deployment", "name": "client"}, "labels": {"app": "client"}}},
        "destination": {"ip": "10.244.2.3", "port": 8080, "k8s": {"namespace": "shop", "pod": "web-0",
            "labels": {"app": "web", "tier": "front"}},
            "service": {"namespace": "shop", "name": "web", "ip": "10.96.0.10", "port": 80}},
        "observer": {"name": "node-a", "product": "sluice"},
        "sluice": {"schema": 1, "generation": 7, "egress": not_isolated, "ingress": allowed},
    });
    change(&mut record);
    record.to_string()
}

pub(crate) fn started(sequence: u64) -> String {
    record("connection-started", sequence, |_| {})
}

pub(crate) fn denied(sequence: u64) -> String {
    record("connection-denied", sequence, |record| {
        record["sluice"]["ingress"] = json!({"verdict": "deny", "tier": "NetworkPolicy",
            "policies": ["NetworkPolicy/shop/deny-all"], "reason": "no-rule-matched"});
        record["sluice"]["end_cause"] = json!("policy-denied");
        record["event"]["reason"] = json!("ingress no-rule-matched");
    })
}

pub(crate) fn flow_of(line: &str) -> Flow {
    match told(line, "default").unwrap().response_types {
        Some(ResponseTypes::Flow(flow)) => flow,
        other => panic!("{other:?}"),
    }
}

fn extension(flow: &Flow) -> Struct {
    let any = flow.extensions.as_ref().unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.Struct");
    Struct::decode(&*any.value).unwrap()
}

#[test]
fn a_connection_that_began_is_forwarded_with_both_ends_and_the_policy_that_allowed_it() {
    let flow = flow_of(&started(3));
    assert_eq!(flow.verdict(), Verdict::Forwarded);
    assert_eq!(flow.time.unwrap().nanos, 4);
    assert_eq!(flow.uuid, "0123456789abcdef-3-3");
    assert_eq!((flow.r#type(), flow.is_reply, &*flow.node_name), (FlowType::L3L4, Some(false), "node-a"));
    assert_eq!(flow.traffic_direction(), TrafficDirection::Ingress);
    assert_eq!(flow.trace_observation_point(), TraceObservationPoint::ToEndpoint);
    assert_eq!(flow.event_type.unwrap(), CiliumEventType { r#type: 4, sub_type: 0 });
    let ip = flow.ip.unwrap();
    assert_eq!(
        (&*ip.source, &*ip.destination, ip.ip_version()),
        ("10.244.1.2", "10.244.2.3", IpVersion::IPv4)
    );
    let Some(Protocol::Tcp(tcp)) = flow.l4.unwrap().protocol else { panic!() };
    assert_eq!((tcp.source_port, tcp.destination_port), (40_000, 8_080));
    assert_eq!(tcp.flags, Some(TcpFlags { syn: true, ..TcpFlags::default() }));
    let source = flow.source.unwrap();
    assert_eq!(
        (&*source.namespace, &*source.pod_name, &*source.cluster_name),
        ("front", "client-7d-x", "default")
    );
    assert_eq!(source.labels, ["k8s:app=client", "k8s:io.kubernetes.pod.namespace=front"]);
    assert_eq!(source.workloads, [Workload { name: "client".to_owned(), kind: "Deployment".to_owned() }]);
    let destination = flow.destination.unwrap();
    assert_eq!(destination.workloads[0].kind, "Pod", "a pod without an owner is its own workload");
    assert_ne!(source.identity, destination.identity);
    assert_eq!(flow.destination_service.unwrap().name, "web");
    let policy = Policy {
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        kind: "NetworkPolicy".to_owned(),
        ..Policy::default()
    };
    assert_eq!(flow.ingress_allowed_by, [policy]);
    assert!(flow.egress_allowed_by.is_empty() && flow.ingress_denied_by.is_empty());
}

#[test]
fn a_denial_is_dropped_with_its_reason_and_its_policy() {
    let flow = flow_of(&denied(1));
    assert_eq!(
        (flow.verdict(), flow.drop_reason_desc(), flow.drop_reason),
        (Verdict::Dropped, DropReason::PolicyDenied, 133)
    );
    assert_eq!(flow.event_type.unwrap(), CiliumEventType { r#type: 1, sub_type: 133 });
    assert_eq!(flow.ingress_denied_by[0].name, "deny-all");
    assert!(flow.ingress_allowed_by.is_empty());
    assert_eq!(flow.summary, "TCP Flags: SYN; denied; ingress no-rule-matched");

    let by_rule = record("connection-denied", 1, |record| {
        record["sluice"]["egress"] = json!({"verdict": "deny", "tier": "Admin",
            "policies": ["ClusterNetworkPolicy/guard#0"], "reason": "rule-matched"});
    });
    let flow = flow_of(&by_rule);
    assert_eq!(
        (flow.drop_reason_desc(), flow.traffic_direction()),
        (DropReason::PolicyDeny, TrafficDirection::Egress)
    );
    let policy = &flow.egress_denied_by[0];
    assert_eq!((&*policy.kind, &*policy.namespace, &*policy.name), ("ClusterNetworkPolicy", "", "guard"));
}

#[test]
fn an_end_tells_bytes_and_duration_and_how() {
    let ended = |cause: &str| {
        record("connection-ended", 5, |record| {
            record["sluice"]["end_cause"] = json!(cause);
            record["event"]["duration"] = json!(1_500_000_000_u64);
            record["source"]["bytes"] = json!(17);
            record["destination"]["bytes"] = json!(1_u64 << 40);
            record["sluice"]["upstream"] = json!({"ip": "192.0.2.1", "port": 1});
        })
    };
    let flow = flow_of(&ended("server-closed"));
    assert_eq!(flow.verdict(), Verdict::Forwarded);
    assert_eq!(
        flow.summary,
        "TCP Flags: FIN, ACK; ended; 17 B sent, 1099511627776 B received; 1.500 s; server-closed"
    );
    assert_eq!(flow.ip.as_ref().unwrap().source_xlated, "192.0.2.1");
    let more = extension(&flow);
    let number = |name: &str| match more.fields[name].kind {
        Some(Kind::NumberValue(number)) => number,
        ref other => panic!("{name}: {other:?}"),
    };
    assert_eq!(number("source.bytes"), 17.0);
    assert_eq!(number("destination.bytes"), 1_099_511_627_776.0);
    assert_eq!(number("event.duration"), 1_500_000_000.0);
    assert!(flow_of(&ended("client-reset")).summary.starts_with("TCP Flags: RST"));
    let revoked = flow_of(&ended("policy-revoked"));
    assert_eq!(revoked.verdict(), Verdict::Dropped);
}

#[test]
fn failures_updates_other_protocols_and_families_have_their_own_look() {
    let failed = record("connection-failed", 1, |record| record["sluice"]["end_cause"] = json!("refused"));
    assert_eq!(flow_of(&failed).verdict(), Verdict::Error);
    let updated = record("connection-updated", 1, |_| {});
    let Some(Protocol::Tcp(tcp)) = flow_of(&updated).l4.unwrap().protocol else { panic!() };
    assert_eq!(tcp.flags, None);
    for (transport, expected) in [("udp", "UDP; started"), ("sctp", "SCTP; started")] {
        let line = record("connection-started", 1, |record| {
            record["network"]["transport"] = json!(transport);
            record["network"]["type"] = json!("ipv6");
        });
        let flow = flow_of(&line);
        assert_eq!((&*flow.summary, flow.ip.unwrap().ip_version()), (expected, IpVersion::IPv6));
    }
}

#[test]
fn ends_that_are_no_pods_have_the_names_that_tools_know() {
    for (k8s, labels, number) in [
        (json!({"node": "node-a"}), "reserved:host", 1),
        (json!({"node": "node-b"}), "reserved:remote-node", 6),
        (json!(null), "reserved:world", 2),
    ] {
        let line = record("connection-started", 1, |record| record["source"]["k8s"] = k8s);
        let source = flow_of(&line).source.unwrap();
        assert_eq!((source.labels, source.identity), (vec![labels.to_owned()], number));
    }
}

#[test]
fn losses_are_lost_events_and_other_clusters_stand_in_front_of_nodes() {
    let line = record("records-lost", 9, |record| record["sluice"]["lost"] = json!({"count": 4}));
    let answer = told(&line, "east").unwrap();
    assert_eq!(answer.node_name, "east/node-a");
    let Some(ResponseTypes::LostEvents(lost)) = answer.response_types else { panic!() };
    assert_eq!((lost.source(), lost.num_events_lost), (LostEventSource::ObserverEventsQueue, 4));
}

#[test]
fn what_is_no_record_is_no_flow() {
    for line in ["", "{", "{}", "null", "[]", r#"{"@timestamp":"x","observer":{"name":"a"}}"#] {
        assert!(told(line, "default").is_none(), "{line}");
    }
    let odd = record("connection-started", 1, |record| {
        record["source"]["port"] = json!(-1);
        record["source"]["k8s"] = json!([]);
        record["sluice"] = json!(7);
    });
    assert_eq!(flow_of(&odd).l4, None);
}
