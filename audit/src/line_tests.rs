//! What each kind of record looks like, field by field.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flow::{
    Decision, EndCause, Endpoint, Generation, Labels, Owner, Pod, PolicyKind, PolicyRef, Reason, Service,
    SideVerdict, Tier, Tuple, Uid, UpstreamSource, Verdict, Workload,
};
use serde_json::{Value, json};

use super::{LineWriter, append_lost};
use crate::batch::{LossCause, Lost};
use crate::schema_tests::assert_valid;
use crate::{Action, ConnectionId, Record, Timing, Traffic};

pub(crate) fn pod(namespace: &str, name: &str, local: bool) -> Pod {
    let workload = Workload {
        namespace: namespace.into(),
        labels: Labels::from_iter([("app.kubernetes.io/name", "web")]),
        owner: Some(Owner { kind: "Deployment".into(), name: "web".into() }),
    };
    Pod {
        workload: Arc::new(workload),
        name: name.into(),
        uid: Uid::new(&format!("uid-{name}")),
        node: Some(if local { "node-a" } else { "node-b" }.into()),
        local,
    }
}

fn policy(name: &str, rule: Option<u32>) -> flow::Policies {
    let policy = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: name.into(),
        rule,
    };
    Arc::<[PolicyRef]>::from([policy]).into()
}

fn allowed() -> Decision {
    Decision {
        generation: Generation(7),
        egress: SideVerdict {
            verdict: Verdict::Allow,
            tier: Some(Tier::Default),
            policies: None,
            reason: Reason::NotIsolated,
        },
        ingress: SideVerdict {
            verdict: Verdict::Allow,
            tier: Some(Tier::NetworkPolicy),
            policies: Some(policy("web", Some(2))),
            reason: Reason::RuleMatched,
        },
    }
}

fn refused_at_ingress(generation: u64) -> Decision {
    Decision {
        generation: Generation(generation),
        ingress: SideVerdict {
            verdict: Verdict::Deny,
            tier: Some(Tier::NetworkPolicy),
            policies: Some(policy("deny-all", None)),
            reason: Reason::NoRuleMatched,
        },
        ..allowed()
    }
}

/// 2026-08-01T12:00:00.000000123Z
fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_785_585_600, 123)
}

pub(crate) fn record(action: Action) -> Record {
    Record {
        action,
        id: ConnectionId::next(),
        tuple: Tuple::tcp("10.244.1.2:40000".parse().unwrap(), "10.244.2.3:8080".parse().unwrap()),
        source: Endpoint::Pod(Arc::new(pod("front", "client", true))),
        destination: Endpoint::Pod(Arc::new(pod("shop", "web-0", false))),
        service: Some(Service {
            namespace: "shop".into(),
            name: "web".into(),
            address: "10.96.0.10:80".parse().unwrap(),
        }),
        decision: allowed(),
        cause: None,
        revoked_by: None,
        start: noon(),
        end: None,
        duration: None,
        traffic: Traffic::default(),
        upstream_source: None,
        hairpin: false,
        timing: Timing::default(),
        legs: crate::Legs::default(),
        tls: None,
        detail: None,
    }
}

fn finished(action: Action, cause: EndCause) -> Record {
    Record {
        cause: Some(cause),
        end: Some(noon() + Duration::from_millis(1500)),
        duration: Some(Duration::from_nanos(1_500_000_001)),
        timing: Timing { decide: Some(Duration::from_nanos(41_900)), connect: None },
        ..record(action)
    }
}

/// A record with every field that one can have.
pub(crate) fn everything() -> Record {
    Record {
        traffic: Traffic {
            client_bytes: 17,
            server_bytes: 1 << 40,
            client_packets: Some(3),
            server_packets: Some(4),
            uncounted: false,
        },
        upstream_source: Some(UpstreamSource("10.244.1.2:20000".parse().unwrap())),
        hairpin: true,
        revoked_by: Some(refused_at_ingress(8)),
        timing: Timing {
            decide: Some(Duration::from_nanos(41_900)),
            connect: Some(Duration::from_micros(350)),
        },
        ..finished(Action::Ended, EndCause::PolicyRevoked)
    }
}

/// A connection that was refused at ingress.
pub(crate) fn denied() -> Record {
    Record { decision: refused_at_ingress(7), ..finished(Action::Denied, EndCause::PolicyDenied) }
}

fn line(sequence: u64, record: &Record) -> Value {
    let mut lines = Vec::new();
    LineWriter::new("node-a").append(&mut lines, sequence, record);
    let text = String::from_utf8(lines).unwrap();
    assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text}");
    let line = serde_json::from_str(&text).unwrap();
    assert_valid(&line);
    line
}

fn ecs() -> Value {
    json!({"version": "9.5.0"})
}

fn client_side() -> Value {
    json!({
        "ip": "10.244.1.2", "port": 40000,
        "k8s": {
            "namespace": "front", "pod": "client", "uid": "uid-client", "node": "node-a",
            "owner": {"kind": "Deployment", "name": "web"},
            "labels": {"app.kubernetes.io/name": "web"},
        },
    })
}

fn server_side() -> Value {
    json!({
        "ip": "10.244.2.3", "port": 8080,
        "k8s": {
            "namespace": "shop", "pod": "web-0", "uid": "uid-web-0", "node": "node-b",
            "owner": {"kind": "Deployment", "name": "web"},
            "labels": {"app.kubernetes.io/name": "web"},
        },
        "service": {"namespace": "shop", "name": "web", "ip": "10.96.0.10", "port": 80},
    })
}

fn network() -> Value {
    json!({
        "transport": "tcp", "type": "ipv4", "direction": "egress",
        "community_id": "1:tM5WfeBi6fC064ILLlgUnt6uzJw=",
    })
}

fn egress_not_isolated() -> Value {
    json!({"verdict": "allow", "tier": "Default", "policies": [], "reason": "not-isolated"})
}

fn ingress_allowed() -> Value {
    json!({
        "verdict": "allow", "tier": "NetworkPolicy", "policies": ["NetworkPolicy/shop/web#2"],
        "reason": "rule-matched",
    })
}

fn ingress_refused() -> Value {
    json!({
        "verdict": "deny", "tier": "NetworkPolicy", "policies": ["NetworkPolicy/shop/deny-all"],
        "reason": "no-rule-matched",
    })
}

#[test]
fn a_started_record_names_both_ends_and_the_allowing_rule() {
    let record = Record {
        timing: Timing {
            decide: Some(Duration::from_nanos(41_900)),
            connect: Some(Duration::from_micros(350)),
        },
        ..record(Action::Started)
    };
    let expected = json!({
        "@timestamp": "2026-08-01T12:00:00.000000123Z",
        "event": {
            "kind": "event", "category": ["network"], "type": ["connection", "allowed", "start"],
            "action": "connection-started", "outcome": "success", "id": record.id.to_string(), "sequence": 3,
            "start": "2026-08-01T12:00:00.000000123Z",
        },
        "ecs": ecs(),
        "network": network(),
        "source": client_side(),
        "destination": server_side(),
        "observer": {"name": "node-a", "product": "sluice"},
        "sluice": {
            "schema": 1, "generation": 7,
            "egress": egress_not_isolated(), "ingress": ingress_allowed(),
            "timing": {"decide_us": 41, "connect_us": 350},
        },
    });
    assert_eq!(line(3, &record), expected);
}

#[test]
fn what_the_kernel_and_the_hello_tell_is_there_when_they_told() {
    let quiet = line(1, &finished(Action::Ended, EndCause::ClientClosed));
    assert!(quiet["tcp"].is_null() && quiet["tls"].is_null());
    let leg = |rtt_us, retransmits| Some(crate::LegInfo { rtt_us, retransmits });
    let tls = crate::Tls {
        server_name: Some("shop.example".into()),
        protocols: ["h2".into(), "http/1.1".into()].into(),
    };
    let both = Record {
        legs: crate::Legs { client: leg(120, 0), server: leg(4_000, 3) },
        tls: Some(Box::new(tls)),
        ..finished(Action::Ended, EndCause::ClientClosed)
    };
    let told = line(1, &both);
    let legs = json!({
        "client": {"rtt_us": 120, "retransmits": 0}, "server": {"rtt_us": 4000, "retransmits": 3},
    });
    assert_eq!(told["tcp"], legs);
    assert_eq!(told["tls"], json!({"client": {"server_name": "shop.example", "alpn": ["h2", "http/1.1"]}}));
    let one = Record {
        legs: crate::Legs { client: None, server: leg(4_000, 3) },
        tls: Some(Box::default()),
        ..both
    };
    let told = line(1, &one);
    assert_eq!(told["tcp"], json!({"server": {"rtt_us": 4000, "retransmits": 3}}));
    assert_eq!(told["tls"], json!({"client": {}}), "a hello that asks for nothing by name");
}

#[test]
fn an_ended_record_adds_bytes_duration_cause_and_the_upstream_source() {
    let record = Record {
        traffic: Traffic { client_bytes: 17, server_bytes: 1 << 40, ..Traffic::default() },
        upstream_source: Some(UpstreamSource("10.244.1.2:20000".parse().unwrap())),
        ..finished(Action::Ended, EndCause::ServerReset)
    };
    let mut source = client_side();
    source["bytes"] = json!(17);
    let mut destination = server_side();
    destination["bytes"] = json!(1_u64 << 40);
    let expected = json!({
        "@timestamp": "2026-08-01T12:00:01.500000123Z",
        "event": {
            "kind": "event", "category": ["network"], "type": ["connection", "allowed", "end"],
            "action": "connection-ended", "outcome": "success", "id": record.id.to_string(), "sequence": 4,
            "start": "2026-08-01T12:00:00.000000123Z", "end": "2026-08-01T12:00:01.500000123Z",
            "duration": 1_500_000_001_u64,
        },
        "ecs": ecs(),
        "network": network(),
        "source": source,
        "destination": destination,
        "observer": {"name": "node-a", "product": "sluice"},
        "sluice": {
            "schema": 1, "generation": 7,
            "egress": egress_not_isolated(), "ingress": ingress_allowed(),
            "end_cause": "server-reset", "upstream": {"ip": "10.244.1.2", "port": 20000},
            "timing": {"decide_us": 41},
        },
    });
    assert_eq!(line(4, &record), expected);
}

#[test]
fn an_updated_record_tells_bytes_and_duration_so_far_and_no_end() {
    let record = Record {
        traffic: Traffic {
            client_bytes: 1,
            server_bytes: 2,
            client_packets: Some(3),
            server_packets: None,
            uncounted: false,
        },
        duration: Some(Duration::from_secs(60)),
        ..record(Action::Updated)
    };
    let line = line(2, &record);
    assert_eq!(line["@timestamp"], "2026-08-01T12:01:00.000000123Z");
    assert_eq!(line["event"]["type"], json!(["connection", "allowed", "info"]));
    assert_eq!(line["event"]["duration"], 60_000_000_000_u64);
    assert_eq!((&line["source"]["bytes"], &line["destination"]["bytes"]), (&json!(1), &json!(2)));
    assert_eq!((&line["source"]["packets"], line["destination"].get("packets")), (&json!(3), None));
    assert_eq!((line["event"].get("end"), line["sluice"].get("end_cause")), (None, None));
}

#[test]
fn missing_records_are_told_by_a_line_with_the_last_of_their_numbers() {
    let mut lines = Vec::new();
    append_lost(&mut lines, "node-a", &Lost { first: 7, last: 9, count: 2, cause: LossCause::SinkSlow });
    let line: Value = serde_json::from_slice(&lines).unwrap();
    assert_valid(&line);
    assert_eq!(line["event"]["action"], "records-lost");
    assert_eq!(line["event"]["reason"], "sink-slow");
    assert_eq!(line["event"]["sequence"], 9);
    assert_eq!(line["sluice"]["lost"], json!({"count": 2, "first": 7, "last": 9}));
    assert_eq!(lines.last(), Some(&b'\n'));
}

#[test]
fn a_denied_record_says_which_side_refused_and_why() {
    let record =
        Record { decision: refused_at_ingress(7), ..finished(Action::Denied, EndCause::PolicyDenied) };
    let expected = json!({
        "@timestamp": "2026-08-01T12:00:01.500000123Z",
        "event": {
            "kind": "event", "category": ["network"], "type": ["connection", "denied"],
            "action": "connection-denied", "outcome": "success", "id": record.id.to_string(), "sequence": 1,
            "start": "2026-08-01T12:00:00.000000123Z", "end": "2026-08-01T12:00:01.500000123Z",
            "duration": 1_500_000_001_u64, "reason": "ingress no-rule-matched",
        },
        "ecs": ecs(),
        "network": network(),
        "source": client_side(),
        "destination": server_side(),
        "observer": {"name": "node-a", "product": "sluice"},
        "sluice": {
            "schema": 1, "generation": 7,
            "egress": egress_not_isolated(), "ingress": ingress_refused(),
            "end_cause": "policy-denied", "timing": {"decide_us": 41},
        },
    });
    assert_eq!(line(1, &record), expected);
}

#[test]
fn a_failed_record_says_what_failed() {
    let record = Record {
        detail: Some("connect: No route to host".to_owned()),
        ..finished(Action::Failed, EndCause::Unreachable)
    };
    let expected = json!({
        "@timestamp": "2026-08-01T12:00:01.500000123Z",
        "event": {
            "kind": "event", "category": ["network"], "type": ["connection", "allowed", "end"],
            "action": "connection-failed", "outcome": "failure", "id": record.id.to_string(), "sequence": 9,
            "start": "2026-08-01T12:00:00.000000123Z", "end": "2026-08-01T12:00:01.500000123Z",
            "duration": 1_500_000_001_u64, "reason": "connect: No route to host",
        },
        "ecs": ecs(),
        "network": network(),
        "source": client_side(),
        "destination": server_side(),
        "observer": {"name": "node-a", "product": "sluice"},
        "sluice": {
            "schema": 1, "generation": 7,
            "egress": egress_not_isolated(), "ingress": ingress_allowed(),
            "end_cause": "unreachable", "timing": {"decide_us": 41},
        },
    });
    assert_eq!(line(9, &record), expected);

    let silent = Record { detail: None, ..record };
    assert_eq!(line(1, &silent)["event"]["reason"], "unreachable");
}

#[test]
fn a_revoked_connection_shows_the_decision_that_ended_it() {
    let record = Record {
        revoked_by: Some(refused_at_ingress(8)),
        ..finished(Action::Ended, EndCause::PolicyRevoked)
    };
    let line = line(1, &record);
    assert_eq!(line["sluice"]["generation"], 8);
    assert_eq!(line["sluice"]["ingress"], ingress_refused());
    assert_eq!(line["sluice"]["end_cause"], "policy-revoked");
    assert_eq!(line["event"]["reason"], "ingress no-rule-matched");
    assert_eq!(line["event"]["outcome"], "success");
}

#[test]
fn an_attempt_revoked_while_it_was_held_shows_the_decision_that_refused_it() {
    let record = Record {
        revoked_by: Some(refused_at_ingress(8)),
        ..finished(Action::Denied, EndCause::PolicyRevoked)
    };
    let line = line(1, &record);
    assert_eq!(line["sluice"]["ingress"], ingress_refused());
    assert_eq!(line["event"]["reason"], "ingress no-rule-matched");
}

#[test]
fn the_reason_of_a_refusal_names_every_side_that_refused() {
    let record = Record {
        decision: Decision::refused(Generation(0), Reason::NoSnapshot),
        ..finished(Action::Denied, EndCause::PolicyDenied)
    };
    let line = line(1, &record);
    assert_eq!(line["event"]["reason"], "egress no-snapshot, ingress no-snapshot");
    assert_eq!(
        line["sluice"]["egress"],
        json!({"verdict": "deny", "policies": [], "reason": "no-snapshot"}),
        "no tier decided"
    );
}

#[test]
fn direction_is_seen_from_local_pods() {
    let local = || Endpoint::Pod(Arc::new(pod("a", "b", true)));
    let remote = || Endpoint::Pod(Arc::new(pod("a", "b", false)));
    let node = || Endpoint::Node { name: "node-a".into(), own: true };
    let table = [
        (local(), local(), "internal"),
        (local(), remote(), "egress"),
        (local(), Endpoint::External, "egress"),
        (local(), node(), "egress"),
        (remote(), local(), "ingress"),
        (node(), local(), "ingress"),
        (Endpoint::External, Endpoint::UnknownLocal, "ingress"),
        (Endpoint::UnknownLocal, Endpoint::External, "egress"),
        (Endpoint::External, Endpoint::External, "unknown"),
    ];
    for (source, destination, expected) in table {
        let record = Record { source, destination, ..record(Action::Started) };
        assert_eq!(line(1, &record)["network"]["direction"], expected, "{record:?}");
    }
}

#[test]
fn a_node_has_its_name_and_nothing_else_and_a_stranger_has_nothing() {
    let record = Record {
        source: Endpoint::Node { name: "node-b".into(), own: false },
        destination: Endpoint::External,
        service: None,
        ..record(Action::Started)
    };
    let line = line(1, &record);
    assert_eq!(line["source"], json!({"ip": "10.244.1.2", "port": 40000, "k8s": {"node": "node-b"}}));
    assert_eq!(line["destination"], json!({"ip": "10.244.2.3", "port": 8080}));
}

#[test]
fn what_a_pod_does_not_have_is_left_out() {
    let workload = Workload { namespace: "front".into(), labels: Labels::default(), owner: None };
    let workload = Arc::new(workload);
    let bare = Pod { workload, uid: Uid::default(), node: None, ..pod("front", "client", true) };
    let record = Record { source: Endpoint::Pod(Arc::new(bare)), ..record(Action::Started) };
    assert_eq!(line(1, &record)["source"]["k8s"], json!({"namespace": "front", "pod": "client"}));
}

#[test]
fn an_upstream_source_equal_to_the_client_is_left_out() {
    let mut record = record(Action::Started);
    record.upstream_source = Some(UpstreamSource(record.tuple.client.0));
    assert_eq!(line(1, &record)["sluice"].get("upstream"), None);
}

#[test]
fn a_hairpin_says_so() {
    let record = Record { hairpin: true, ..record(Action::Started) };
    assert_eq!(line(1, &record)["sluice"]["hairpin"], true);
}

#[test]
fn ipv6_is_named_and_written_in_its_short_form() {
    let record = Record {
        tuple: Tuple::tcp("[fd00:0:0:1::2]:1".parse().unwrap(), "[fd00::3]:2".parse().unwrap()),
        ..record(Action::Started)
    };
    let line = line(1, &record);
    assert_eq!(line["network"]["type"], "ipv6");
    assert_eq!(line["source"]["ip"], "fd00:0:0:1::2");
}

#[test]
fn hostile_text_stays_inside_its_string() {
    let hostile = "a\"b\\c\nd\re\u{0}f\u{1b}[31mg\u{2028}h\u{85}i\u{fffd}ß 🦀 }{";
    let mut record = finished(Action::Failed, EndCause::InternalError);
    record.detail = Some(hostile.to_owned());
    let labels = Labels::from_iter([(hostile, hostile)]);
    let workload = Arc::new(Workload { namespace: hostile.into(), labels, owner: None });
    record.source = Endpoint::Pod(Arc::new(Pod { workload, ..pod(hostile, hostile, true) }));
    record.decision.egress.policies = Some(policy(hostile, Some(0)));

    let mut lines = Vec::new();
    let mut writer = LineWriter::new(hostile);
    writer.append(&mut lines, 1, &record);
    writer.append(&mut lines, 2, &record);
    let text = String::from_utf8(lines).unwrap();
    assert!(text.chars().all(|c| c == '\n' || u32::from(c) >= 0x20), "control characters are escaped");
    assert_eq!(text.split_terminator('\n').count(), 2);
    for line in text.split_terminator('\n') {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_valid(&line);
        assert_eq!(line["event"]["reason"], hostile);
        assert_eq!(line["observer"]["name"], hostile);
        assert_eq!(line["source"]["k8s"]["pod"], hostile);
        assert_eq!(line["source"]["k8s"]["labels"][hostile], hostile);
        assert_eq!(line["sluice"]["egress"]["policies"][0], format!("NetworkPolicy/shop/{hostile}#0"));
    }
}

#[test]
fn impossible_clocks_still_make_a_line() {
    let record = Record {
        start: SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        end: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(1 << 40)),
        duration: Some(Duration::MAX),
        ..finished(Action::Ended, EndCause::ClientClosed)
    };
    let line = line(1, &record);
    assert_eq!(line["event"]["start"], "1969-12-31T23:59:59.000000000Z");
    assert_eq!(line["event"]["end"], "1970-01-01T00:00:00.000000000Z");
    assert_eq!(line["event"]["duration"], u64::MAX);
}

proptest::proptest! {
    #[test]
    fn a_line_is_what_serde_makes_of_the_record_to_the_byte(
        records in proptest::collection::vec(crate::any_record::any_record(), 1..8), node in ".{0,8}", twice: bool,
    ) {
        let mut writer = LineWriter::new(&node);
        let mut lines = Vec::new();
        let mut expected = String::new();
        // The second time a pod is known.
        for turn in 0..=u64::from(twice) {
            for record in &records {
                writer.append(&mut lines, turn, record);
                expected += &crate::line_oracle::line(turn, &node, record);
            }
        }
        proptest::prop_assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }
}

#[test]
fn remembered_pods_are_bounded_and_never_mixed_up() {
    let mut writer = LineWriter::new("node-a");
    for number in 0..super::REMEMBERED + 10 {
        let name = format!("pod-{number}");
        let source = Endpoint::Pod(Arc::new(pod("front", &name, true)));
        let mut lines = Vec::new();
        // Dropped at once: the next one could be put into the same place.
        writer.append(&mut lines, 1, &Record { source, ..record(Action::Started) });
        let line: Value = serde_json::from_slice(&lines).unwrap();
        assert_eq!(line["source"]["k8s"]["pod"], *name);
        assert!(writer.pods.0.len() <= super::REMEMBERED);
    }
}
