//! What a board tells of the parts that have reported to it.

use std::time::Duration;

use audit::{RecorderConfig, Sink};
use policy_cache::{ManifestSource, Options};

use super::*;

const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1},
 status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: shop}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop}, spec: {nodeName: n2}, status: {phase: Running, podIP: 10.1.1.2}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}}
"#;

fn board() -> (Board, Conditions, Metrics) {
    let (conditions, metrics) = (Conditions::new(&["gate"]), Metrics::default());
    (Board::new("n1", conditions.clone(), metrics.clone()), conditions, metrics)
}

#[test]
fn parts_that_have_not_started_are_absent_and_the_node_is_not_ready() {
    let status = board().0.status();
    assert_eq!((status.node.as_str(), status.ready), ("n1", false));
    assert_eq!((&status.enforcement, &status.snapshot, &status.source), (&None, &None, &None));
    assert_eq!(status.records, Records::default());
    assert_eq!(status.process.pid, std::process::id());
    assert!(!status.versions.kernel.is_empty() && !status.versions.sluice.is_empty());
    assert!(status.versions.nft.is_empty());
}

#[test]
fn objects_are_told_by_kind_and_pods_once_however_many_addresses_they_have() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), MANIFESTS).unwrap();
    let options = Options { node: Some("n1".to_owned()), ..Options::default() };
    let (_, policy) = ManifestSource::open(&[folder.path().to_owned()], options).unwrap();
    let (board, ..) = board();
    board.set_policy(policy);
    let status = board.status();
    assert_eq!(status.pods, Pods { isolated: 1, observed: 1 });
    let counts = ["Pod", "Namespace", "NetworkPolicy", "Node"].map(|kind| status.objects[kind]);
    assert_eq!(counts, [3, 1, 1, 0]);
    assert_eq!(status.snapshot.unwrap().generation, 1);
}

#[test]
fn counts_are_those_of_the_metrics() {
    let (board, conditions, metrics) = board();
    conditions.set("gate", Ok(()));
    metrics.connections_live.set(3);
    metrics.gate_pending.set(-1);
    metrics.connections_denied.of(DeniedSide::Egress).inc_by(2);
    metrics.connections_denied.of(DeniedSide::Ingress).inc_by(5);
    metrics.connections_failed.of(EndCause::ALL[0]).inc();
    let status = board.status();
    assert!(status.ready);
    assert_eq!(status.connections, Connections { live: 3, denied: 7, failed: 1, ..Connections::default() });
}

#[test]
fn records_that_wait_are_told_with_how_many_may() {
    let folder = tempfile::tempdir().unwrap();
    let (board, _, metrics) = board();
    let config = RecorderConfig { queue_records: 10, ..RecorderConfig::default() };
    let (recorder, _writer) =
        Recorder::start(config, Sink::File(folder.path().join("records")), "n1", metrics).unwrap();
    board.set_recorder(recorder);
    assert_eq!(board.status().records, Records { queue_limit: 10, ..Records::default() });
}

#[test]
fn a_source_that_fails_tells_since_when_and_every_object_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").unwrap();
    let (source, _store) = ManifestSource::open(&[folder.path().to_owned()], Options::default()).unwrap();
    let watch = source.watch();
    std::fs::write(&file, MANIFESTS.replace("podIP: 10.1.0.2", "podIP: nonsense")).unwrap();
    assert!(lab::wait_until(Duration::from_secs(10), || watch.status().failing_since.is_some()));
    let source = Source::manifests(vec!["dir".to_owned()], &watch.status());
    assert_eq!((source.kind.as_str(), source.alive), ("manifests", true));
    assert!(source.failing_for_s.is_some_and(|seconds| (0.0..10.0).contains(&seconds)), "{source:?}");
    assert_eq!(source.rejected.len(), 1, "{source:?}");
    assert_eq!(source.rejected[0].object, "Pod/shop/one");
    assert!(source.rejected[0].problem.contains("a.yaml"), "{source:?}");
}

#[test]
fn the_names_of_the_fields_are_stable() {
    let (board, ..) = board();
    board.set_enforcement(
        Enforcement::chosen(GateBackend::NftQueue, true, FailMode::Isolation, &Interception::All),
        Some("1.0.6"),
    );
    board.set_source(Source {
        failing_for_s: Some(1.0),
        remark: Some("Pod".to_owned()),
        rejected: vec![Rejected::default()],
        ..Source::default()
    });
    let status = Status { snapshot: Some(Policy::default()), ..board.status() };
    let mut names = Vec::new();
    paths(&serde_json::to_value(status).unwrap(), String::new(), &mut names);
    let expected = [
        "node",
        "ready",
        "conditions.name",
        "conditions.holds",
        "conditions.reason",
        "enforcement.backend",
        "enforcement.ipv6",
        "enforcement.interception",
        "enforcement.fail_mode",
        "enforcement.rules_installed",
        "enforcement.repairs",
        "snapshot.generation",
        "snapshot.age_s",
        "source.kind",
        "source.places",
        "source.alive",
        "source.failing_for_s",
        "source.remark",
        "source.rejected.object",
        "source.rejected.problem",
        "objects",
        "pods.isolated",
        "pods.observed",
        "connections.live",
        "connections.pending",
        "connections.opened",
        "connections.denied",
        "connections.failed",
        "connections.revoked",
        "records.written",
        "records.lost",
        "records.queued",
        "records.queue_limit",
        "process.pid",
        "process.uptime_s",
        "process.descriptors_open",
        "process.descriptors_limit",
        "versions.sluice",
        "versions.kernel",
        "versions.nft",
    ];
    for name in expected {
        assert!(names.iter().any(|found| found == name), "{name} is gone: {names:?}");
    }
}

fn paths(value: &serde_json::Value, path: String, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => map.iter().for_each(|(name, value)| {
            let name = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            paths(value, name, found);
        }),
        serde_json::Value::Array(items) if !items.is_empty() => {
            items.iter().for_each(|item| paths(item, path.clone(), found));
        }
        _ => found.push(path),
    }
}
