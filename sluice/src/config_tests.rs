//! The configuration file as people write it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

const EXAMPLE: &str = include_str!("../../deploy/config.example.yaml");

fn checked(text: &str) -> Result<Config, ConfigError> {
    Config::checked(Path::new("sluice.yaml"), text)
}

fn refused(text: &str) -> String {
    checked(text).unwrap_err().to_string()
}

/// Every key that holds a value, as a path.
fn keys(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                keys(value, &format!("{path}/{key}"), into);
            }
        }
        _ => {
            into.insert(path.to_owned());
        }
    }
}

fn key_set(value: &Value) -> BTreeSet<String> {
    let mut set = BTreeSet::new();
    keys(value, "", &mut set);
    set
}

#[test]
fn the_example_is_the_default_and_leaves_no_key_out() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.example.yaml");
    assert_eq!(Config::load(Path::new(path)).unwrap(), Config::default());
    let written: Value = serde_saphyr::from_str(EXAMPLE).unwrap();
    let known = serde_json::to_value(Config::default()).unwrap();
    assert_eq!(key_set(&written), key_set(&known));
}

#[test]
fn every_key_of_the_example_has_a_comment() {
    let lines: Vec<&str> = EXAMPLE.lines().map(str::trim).collect();
    for (before, line) in lines.iter().zip(&lines[1..]) {
        if !line.is_empty() && !line.starts_with('#') {
            assert!(before.starts_with('#'), "{line}");
        }
    }
}

#[test]
fn the_default_configuration_can_be_used() {
    assert_eq!(Config::default().validate(), []);
}

#[test]
fn a_file_without_content_is_the_default() {
    for text in ["", "\n", "# nothing\n", "---\n", "{}", "null", "records:\nlog: {}\nredirect: null\n"] {
        assert_eq!(checked(text).unwrap(), Config::default(), "{text:?}");
    }
}

#[test]
fn a_key_given_changes_that_key_alone() {
    let config = checked("redirect:\n  mark_mask: 0x7e0\nlog: {format: json}\n").unwrap();
    let mut expected = Config::default();
    expected.redirect.mark_mask = 0x7e0;
    expected.log.format = LogFormat::Json;
    assert_eq!(config, expected);
}

#[test]
fn what_is_written_can_be_read_back() {
    let mut config = Config::default();
    config.records.queue_records = 17;
    config.log.filter = "info,proxy=debug".to_owned();
    assert_eq!(checked(&serde_saphyr::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn what_does_not_belong_there_is_refused_with_its_place() {
    let table = [
        (
            "# sections\nredirct: {}\n",
            "sluice.yaml:2:1: unknown field `redirct`, expected one of redirect, proxy, records, interception, metrics, hubble, policy, \
             api, shutdown, log, in `redirct: {}`",
        ),
        (
            "records:\n  queue: 3\n",
            "sluice.yaml:2:3: unknown field `queue`, expected one of queue_records, overflow, started, \
             update_every_s, gather_ms, rotate, served_to, store, sinks, in \
             `queue: 3`",
        ),
        (
            "redirect:\n  queues: -1\n",
            "sluice.yaml:2:11: must be a whole number from 0 to 65535, in `queues: -1`",
        ),
        (
            "redirect:\n  mark_mask: all\n",
            "sluice.yaml:2:14: must be a whole number from 0 to 4294967295, in `mark_mask: all`",
        ),
        (
            "proxy:\n  connect_timeout_ms: 1.5\n",
            "sluice.yaml:2:23: must be a whole number from 0 to 18446744073709551615, in \
             `connect_timeout_ms: 1.5`",
        ),
        ("records:\n  started: maybe\n", "sluice.yaml:2:12: must be true or false, in `started: maybe`"),
        (
            "log: {format: xml}",
            "sluice.yaml:1:15: unknown variant `xml`, expected one of text, json, in `log: {format: xml}`",
        ),
        (
            "records:\n  started: true\n  started: false\n",
            "sluice.yaml:3:3: duplicate mapping key `started` is not allowed here, in `started: false`",
        ),
        ("- redirect\n", "sluice.yaml:1:1: must be a mapping of keys to values, in `- redirect`"),
        (
            "log: {}\n---\nlog: {}\n",
            "sluice.yaml:3:1: only single YAML document expected but multiple found, in `log: {}`",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(refused(text), expected);
    }
}

#[test]
fn broken_yaml_is_refused_with_its_place() {
    for text in [
        "redirect: [",
        "log: {filter: \"info}\n",
        "log:\n\tfilter: info\n",
        "log: *nowhere",
        "log: !!binary x",
        "a: b: c",
    ] {
        match checked(text).expect_err(text) {
            ConfigError::Parse { line, column, .. } => assert!(line > 0 && column > 0, "{text:?}"),
            other => panic!("{text:?}: {other}"),
        }
    }
}

#[test]
fn all_unusable_values_are_reported_together_with_path_and_value() {
    let text = "
redirect: {queues: 0, mark_mask: 0x1}
proxy: {connect_timeout_ms: 0}
records: {queue_records: 0}
shutdown: {records_timeout_ms: 0, drain_timeout_ms: 86400001}
log: {filter: 'sluice=loud'}
";
    let report = refused(text);
    let lines: Vec<&str> = report.lines().collect();
    for expected in [
        "sluice.yaml: redirect.queues: 0: ",
        "sluice.yaml: redirect.mark_mask: 0x1: ",
        "sluice.yaml: proxy.connect_timeout_ms: 0: must be above 0",
        "sluice.yaml: records.queue_records: 0: must be from 1 to 4194304",
        "sluice.yaml: shutdown.records_timeout_ms: 0: must be from 1 to 86400000",
        "sluice.yaml: shutdown.drain_timeout_ms: 86400001: must be at most 86400000",
        "sluice.yaml: log.filter: sluice=loud: ",
    ] {
        assert_eq!(lines.iter().filter(|line| line.starts_with(expected)).count(), 1, "{expected}\n{report}");
    }
    assert_eq!(lines.len(), 7, "{report}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/sluice.yaml")).unwrap_err().to_string();
    assert!(error.starts_with("read configuration /nonexistent/sluice.yaml: No such file"), "{error}");
}
