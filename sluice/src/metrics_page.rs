//! deploy/docs/metrics.md lists exactly what /metrics tells. `UPDATE_GOLDEN=1` writes its table anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use audit::{Metrics, OtlpSink, Recorder, RecorderConfig, Sink, SinkConfig, StoreConfig};
use policy_cache::{ApiStatus, KindStatus};
use prometheus_client::encoding::text::encode;

use crate::admin::Conditions;
use crate::agent::registry;
use crate::exposition::text_format;
use crate::source_metrics::SourceMetrics;
use crate::status::Board;

/// What is scraped of an agent that follows the API, keeps a store and has a collector, so that no family is without series.
fn scrape() -> String {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::default();
    let store = StoreConfig { folder: Some(folder.path().to_owned()), ..StoreConfig::default() };
    // Nobody listens there; it is not asked before there is a record.
    let otlp = OtlpSink { endpoint: "http://127.0.0.1:1".to_owned(), ..OtlpSink::default() };
    let collector = SinkConfig { name: "collector".to_owned(), otlp: Some(otlp), ..SinkConfig::default() };
    let config = RecorderConfig { store, sinks: vec![collector], ..RecorderConfig::default() };
    let (_recorder, writer) = Recorder::start(config, Sink::Discard, "n1", metrics.clone()).unwrap();
    let source = SourceMetrics::default();
    let kind = KindStatus {
        kind: "Pod",
        served: true,
        listed: true,
        objects: 1,
        rejected: 0,
        age: Some(Duration::ZERO),
        listing: None,
        reconnects: 0,
        relists: 0,
        error: None,
    };
    let api = ApiStatus { complete: true, alive: true, kinds: vec![kind], rejected: Vec::new() };
    source.set(Some(api), vec![("Pod", 0)]);
    let board = Board::new("n1", Conditions::new(&["gate"]), metrics.clone());
    let mut text = String::new();
    encode(&mut text, &registry(&metrics, &source, &board)).unwrap();
    writer.close(Duration::from_secs(5));
    text_format(&text)
}

/// The names of the labels in a sample line.
fn labels(sample: &str) -> BTreeSet<String> {
    let Some((_, rest)) = sample.split_once('{') else { return BTreeSet::new() };
    let pairs = rest.split_once('}').unwrap().0.split("\",");
    pairs.map(|pair| pair.split_once('=').unwrap().0.to_owned()).filter(|name| name != "le").collect()
}

fn table(text: &str) -> String {
    let (mut helps, mut rows) = (BTreeMap::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, ..] => {
                helps.insert(name, line.splitn(4, ' ').nth(3).unwrap().trim_end_matches('.'));
            }
            ["#", "TYPE", name, kind] => rows.push((name, kind, BTreeSet::new())),
            _ => {
                let (_, _, of_family) = rows.last_mut().unwrap();
                of_family.extend(labels(line));
            }
        }
    }
    let mut table = "| metric | type | labels | what it tells |\n|---|---|---|---|\n".to_owned();
    for (name, kind, labels) in rows {
        let labels: Vec<String> = labels.into_iter().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), helps[name]);
    }
    table
}

const BEGIN: &str = "<!-- every metric: begin -->\n";
const END: &str = "<!-- every metric: end -->\n";

#[test]
fn the_page_lists_every_metric_with_its_labels_and_no_other() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docs/metrics.md"));
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (listed, after) = rest.split_once(END).unwrap();
    let expected = table(&scrape());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    } else {
        assert_eq!(listed, expected, "UPDATE_GOLDEN=1 writes it anew");
    }
}

#[test]
fn no_label_carries_an_address_a_pod_or_a_label_by_default() {
    const ALLOWED: [&str; 13] = [
        "cause",
        "condition",
        "destination_namespace",
        "destination_workload",
        "direction",
        "kind",
        "reason",
        "side",
        "sink",
        "source_namespace",
        "source_workload",
        "state",
        "version",
    ];
    let text = scrape();
    let used: BTreeSet<String> =
        text.lines().filter(|line| !line.starts_with('#')).flat_map(labels).collect();
    assert_eq!(used.iter().map(String::as_str).collect::<Vec<_>>(), ALLOWED);
}
