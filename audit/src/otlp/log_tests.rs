//! Every field has the name that the documentation gives it.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};

use super::*;
use crate::batch::{Batch, LossCause, Lost};
use crate::line::tests::{denied, everything};

/// The field and its OpenTelemetry cell, for each row of the documentation.
fn documented() -> Vec<(&'static str, &'static str)> {
    let rows = include_str!("../../FIELDS.md").lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
        (cells.len() == 4).then(|| (cells[0].trim_end_matches('`'), cells[2]))
    });
    rows.collect()
}

#[test]
fn names_are_those_of_the_documentation() {
    let rows = documented();
    assert!(rows.len() > 50, "{rows:?}");
    for (field, told) in rows {
        let renamed = NAMES.iter().chain(&LABELS).find(|(name, _)| *name == field).map(|(_, name)| *name);
        let is_elsewhere = ELSEWHERE.contains(&field);
        match told {
            "same" => assert!(renamed.is_none() && !is_elsewhere, "{field}"),
            "not sent" | "`time_unix_nano`" | "`event_name`" => assert!(is_elsewhere, "{field}"),
            _ if told.starts_with("resource ") || told.starts_with("scope ") => {
                assert!(is_elsewhere, "{field}")
            }
            name => {
                let name = name.trim_matches('`');
                assert_eq!(
                    renamed.map(|renamed| renamed.trim_end_matches('.')),
                    Some(name.trim_end_matches(".KEY")),
                    "{field}"
                );
            }
        }
    }
}

fn logged(record: crate::Record) -> LogRecord {
    let mut batch = Batch::default();
    batch.add_record(7, &mut crate::line::LineWriter::new("node-a"), Box::new(record));
    let entry = &batch.entries()[0];
    log_record(batch.line(entry), &entry.told, 1_785_585_700_000_000_000).unwrap()
}

fn attributes(record: &LogRecord) -> BTreeMap<&str, &Any> {
    record
        .attributes
        .iter()
        .map(|pair| (&*pair.key, pair.value.as_ref().unwrap().value.as_ref().unwrap()))
        .collect()
}

/// The golden file, rewritten when `UPDATE_GOLDEN` is set.
#[test]
fn a_record_as_otlp_json_is_the_golden_one() {
    let mut record = logged(everything());
    // The one attribute that differs from run to run.
    let id = record.attributes.iter_mut().find(|pair| pair.key == "event.id").unwrap();
    id.value = Some(string("0123456789abcdef-1".to_owned()));
    let more = BTreeMap::from([("k8s.cluster.name".to_owned(), "prod".to_owned())]);
    let logs = ResourceLogs {
        resource: Some(resource("node-a", "0123456789abcdef", more.iter())),
        scope_logs: vec![ScopeLogs {
            scope: Some(scope()),
            log_records: vec![record],
            ..ScopeLogs::default()
        }],
        ..ResourceLogs::default()
    };
    let mut value = serde_json::json!({"resourceLogs": [serde_json::to_value(logs).unwrap()]});
    let version = value.pointer_mut("/resourceLogs/0/resource/attributes/1/value/stringValue").unwrap();
    *version = "VERSION".into();
    let json = serde_json::to_string_pretty(&value).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/otlp/golden.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &json).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), json);
}

#[test]
fn times_names_and_severity_are_where_opentelemetry_has_a_place_for_them() {
    let record = logged(denied());
    assert_eq!(record.event_name, "connection-denied");
    assert_eq!((record.severity_number, &*record.severity_text), (SeverityNumber::Info2.into(), "INFO2"));
    assert_eq!(record.observed_time_unix_nano, 1_785_585_700_000_000_000);
    assert!(record.time_unix_nano > 1_785_585_600_000_000_000);
    let attributes = attributes(&record);
    assert_eq!(attributes["source.address"], &Any::StringValue("10.244.1.2".to_owned()));
    assert_eq!(attributes["destination.port"], &Any::IntValue(8080));
    assert_eq!(
        attributes["source.k8s.pod.label.app.kubernetes.io/name"],
        &Any::StringValue("web".to_owned())
    );
    assert!(!attributes.contains_key("event.action") && !attributes.contains_key("ecs.version"));
    let body = record.body.unwrap().value.unwrap();
    let expected = "connection-denied front/client -> shop/web-0 8080/tcp: ingress no-rule-matched";
    assert_eq!(body, Any::StringValue(expected.to_owned()));
}

#[test]
fn a_line_of_losses_is_an_error_with_its_numbers() {
    let lost = Lost { first: 3, last: 9, count: 7, cause: LossCause::SinkSlow };
    let mut batch = Batch::default();
    batch.add_lost("node-a", lost);
    let entry = &batch.entries()[0];
    let record = log_record(batch.line(entry), &entry.told, 1).unwrap();
    assert_eq!((record.severity_number, &*record.event_name), (SeverityNumber::Error.into(), "records-lost"));
    assert_eq!(attributes(&record)["sluice.lost.count"], &Any::IntValue(7));
}

#[test]
fn numbers_and_texts_of_any_size_are_taken() {
    let mut record = everything();
    record.traffic.client_bytes = u64::MAX;
    record.detail = Some("\u{1f600}\u{0}\"".repeat(10_000));
    let node: Arc<str> = "n".repeat(70_000).into();
    assert!(!node.is_empty());
    let logged = logged(record);
    assert_eq!(attributes(&logged)["source.bytes"], &Any::IntValue(i64::MAX));
    assert!(
        log_record(b"{", &Told::Lost(Lost { first: 1, last: 1, count: 1, cause: LossCause::QueueFull }), 1)
            .is_none()
    );
}
