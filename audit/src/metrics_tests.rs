//! What a scrape sees.

use std::collections::HashSet;

use flow::{Decision, EndCause, Generation, Reason, SideVerdict};
use prometheus_client::encoding::text::encode;

use super::*;
use crate::metric_labels::Label;

fn scrape(metrics: &Metrics) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// What is wrong with the names in `text`, by the conventions of prometheus.io/docs/practices/naming and the
/// suffix rules of OpenMetrics.
fn naming_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut families = HashSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["#", "HELP", name, ..] => {
                if line.ends_with("..") || line.len() < name.len() + 20 {
                    faults.push(format!("{name}: help text"));
                }
            }
            ["#", "TYPE", name, kind] => {
                families.insert(name);
                faults.extend(family_fault(name, kind).map(|fault| format!("{name}: {fault}")));
            }
            ["#", "UNIT", ..] | ["#", "EOF"] => {}
            [sample, _] => {
                let name = sample.split('{').next().unwrap();
                let suffixes = ["", "_total", "_sum", "_count", "_bucket"];
                let known = suffixes
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix).is_some_and(|family| families.contains(family)));
                if !known {
                    faults.push(format!("{name}: sample without a family"));
                }
            }
            _ => faults.push(format!("not understood: {line}")),
        }
    }
    faults
}

fn family_fault(name: &str, kind: &str) -> Option<&'static str> {
    let words: Vec<&str> = name.split('_').collect();
    let reserved = ["total", "sum", "count", "bucket", "created", "info"];
    let scaled =
        ["ms", "us", "ns", "milliseconds", "micros", "nanos", "minutes", "kb", "kib", "mb", "percent"];
    let last = *words.last()?;
    if words[0] != "sluice" || words.len() < 2 {
        Some("no sluice_ prefix")
    } else if words.iter().any(|word| word.is_empty() || !word.bytes().all(|b| b.is_ascii_lowercase())) {
        Some("not lower case words")
    } else if reserved.contains(&last) {
        Some("a suffix that the encoder adds")
    } else if words.iter().any(|word| scaled.contains(word)) {
        Some("not a base unit")
    } else if words.contains(&kind) {
        Some("its type in its name")
    } else if kind == "histogram" && last != "seconds" {
        Some("a histogram without its unit")
    } else {
        None
    }
}

#[test]
fn names_keep_the_conventions() {
    assert_eq!(naming_faults(&scrape(&Metrics::default())), Vec::<String>::new());
}

#[test]
fn a_name_against_the_conventions_is_noticed() {
    let bad = [
        "opened",
        "connect_latency_ms",
        "connections_total",
        "Connections",
        "connections__live",
        "connections_counter",
    ];
    for name in bad {
        let mut registry = Registry::default();
        let mut text = String::new();
        let prefixed =
            if name == "opened" { &mut registry } else { registry.sub_registry_with_prefix("sluice") };
        prefixed.register(name, "A help text that is long enough", Counter::<u64>::default());
        encode(&mut text, &registry).unwrap();
        assert_eq!(naming_faults(&text).len(), 1, "{name}: {:?}", naming_faults(&text));
    }
    let mut registry = Registry::default();
    let mut text = String::new();
    registry.register("sluice_wait", "A help text that is long enough", Histogram::new([1.0]));
    encode(&mut text, &registry).unwrap();
    assert_eq!(naming_faults(&text), ["sluice_wait: a histogram without its unit"]);
}

#[test]
fn every_metric_appears_with_its_value() {
    let metrics = Metrics::default();
    metrics.connections_opened.inc_by(2);
    metrics.connections_closed.of(EndCause::ClientClosed).inc();
    metrics.connections_denied.of(DeniedSide::Ingress).inc_by(3);
    metrics.connections_failed.of(EndCause::Refused).inc_by(4);
    metrics.connections_live.set(5);
    metrics.bytes.of(ByteDirection::Sent).inc_by(6);
    metrics.bytes.of(ByteDirection::Received).inc_by(7);
    metrics.gate_packets.inc_by(8);
    metrics.gate_pending.set(9);
    metrics.gate_dropped.of(GateDrop::QueueFull).inc_by(10);
    metrics.records_written.inc_by(11);
    metrics.records_lost.inc_by(12);
    metrics.records_waiting.set(21);
    metrics.sink("store").written.inc_by(22);
    metrics.sink("store").lost.inc_by(23);
    metrics.sink("store").waiting.set(24);
    metrics.records_limit.set(25);
    metrics.flows_live.set(26);
    metrics.gate_queued.set(27);
    metrics.connection_duration.observe(90.0);
    metrics.policy_revocations.inc_by(13);
    metrics.snapshot_generation.set(14);
    metrics.ruleset_repairs.inc_by(15);
    metrics.pipes_in_use.set(16);
    metrics.pipes_pooled.set(17);
    metrics.descriptors_open.set(18);
    metrics.descriptors_limit.set(19);
    metrics.upstream_port_fallbacks.inc_by(20);
    metrics.gate_latency.observe(0.0002);
    metrics.connect_latency.observe(1.5);
    let text = scrape(&metrics);
    let expected = [
        "sluice_connections_opened_total 2",
        "sluice_connections_closed_total{cause=\"client-closed\"} 1",
        "sluice_connections_denied_total{side=\"ingress\"} 3",
        "sluice_connections_failed_total{cause=\"refused\"} 4",
        "sluice_connections_live 5",
        "sluice_bytes_total{direction=\"sent\"} 6",
        "sluice_bytes_total{direction=\"received\"} 7",
        "sluice_gate_packets_total 8",
        "sluice_gate_pending 9",
        "sluice_gate_dropped_total{reason=\"queue-full\"} 10",
        "sluice_records_written_total 11",
        "sluice_records_lost_total 12",
        "sluice_records_waiting 21",
        "sluice_sink_written_total{sink=\"store\"} 22",
        "sluice_sink_lost_total{sink=\"store\"} 23",
        "sluice_sink_waiting{sink=\"store\"} 24",
        "sluice_records_limit 25",
        "sluice_flows_live 26",
        "sluice_gate_queued 27",
        "sluice_connection_duration_seconds_bucket{le=\"180.0\"} 1",
        "sluice_policy_revocations_total 13",
        "sluice_snapshot_generation 14",
        "sluice_ruleset_repairs_total 15",
        "sluice_pipes_in_use 16",
        "sluice_pipes_pooled 17",
        "sluice_descriptors_open 18",
        "sluice_descriptors_limit 19",
        "sluice_upstream_port_fallbacks_total 20",
        "sluice_gate_latency_seconds_bucket{le=\"0.00025\"} 1",
        "sluice_connect_latency_seconds_count 1",
        "sluice_connect_latency_seconds_sum 1.5",
    ];
    for sample in expected {
        assert!(text.lines().any(|line| line == sample), "no line {sample} in\n{text}");
    }
    assert!(text.contains("\nsluice_snapshot_age_seconds "));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn every_series_exists_before_its_first_event() {
    let text = scrape(&Metrics::default());
    for cause in EndCause::ALL {
        for family in ["closed", "failed"] {
            let sample = format!("sluice_connections_{family}_total{{cause=\"{}\"}} 0\n", cause.as_str());
            assert!(text.contains(&sample), "{sample}");
        }
    }
    assert!(text.contains("sluice_connections_denied_total{side=\"none\"} 0\n"));
}

#[test]
fn each_label_value_has_the_index_of_its_place() {
    fn check<L: Label + PartialEq>() {
        let places: Vec<usize> = L::ALL.iter().map(|value| value.index()).collect();
        assert_eq!(places, (0..L::ALL.len()).collect::<Vec<_>>(), "{}", L::NAME);
        let values: HashSet<&str> = L::ALL.iter().map(|value| value.value()).collect();
        assert_eq!(values.len(), L::ALL.len(), "{}", L::NAME);
    }
    check::<EndCause>();
    check::<DeniedSide>();
    check::<ByteDirection>();
    check::<GateDrop>();
}

#[test]
fn clones_share_their_counts() {
    let metrics = Metrics::default();
    let clone = metrics.clone();
    clone.connections_closed.of(EndCause::Shutdown).inc();
    clone.snapshot_age.reset();
    assert_eq!(metrics.connections_closed.of(EndCause::Shutdown).get(), 1);
    assert_eq!(metrics.connections_failed.of(EndCause::Shutdown).get(), 0);
    assert!(metrics.snapshot_age.seconds() < 5.0);
}

#[test]
fn a_denial_is_counted_at_the_side_that_refused_first() {
    let denies = SideVerdict::refused(Reason::NoRuleMatched);
    let allows = SideVerdict::not_applicable();
    let side = |egress: &SideVerdict, ingress: &SideVerdict| {
        let decision =
            Decision { generation: Generation(1), egress: egress.clone(), ingress: ingress.clone() };
        DeniedSide::of(&decision)
    };
    assert_eq!(side(&denies, &denies), DeniedSide::Egress);
    assert_eq!(side(&denies, &allows), DeniedSide::Egress);
    assert_eq!(side(&allows, &denies), DeniedSide::Ingress);
    assert_eq!(side(&allows, &allows), DeniedSide::None);
}
