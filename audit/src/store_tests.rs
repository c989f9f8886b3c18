//! A store on a real disk, read by this crate and by Debian's sqlite3.

use std::process::Command;

use flow::{Decision, EndCause, Generation, SideVerdict, Tuple};

use super::*;
use crate::{Action, ConnectionId, Timing, Traffic};

fn pod_of(namespace: &str) -> Endpoint {
    Endpoint::Pod(std::sync::Arc::new(crate::line::tests::pod(namespace, "a", true)))
}

fn record(action: Action, namespace: &str, at: SystemTime) -> Box<Record> {
    let is_over = action != Action::Started;
    Box::new(Record {
        action,
        id: ConnectionId::next(),
        tuple: Tuple::tcp("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()),
        source: pod_of(namespace),
        destination: Endpoint::External,
        service: None,
        decision: Decision {
            generation: Generation(1),
            egress: SideVerdict::not_applicable(),
            ingress: SideVerdict::not_applicable(),
        },
        cause: is_over.then_some(EndCause::ClientClosed),
        revoked_by: None,
        start: at,
        end: is_over.then_some(at),
        duration: is_over.then_some(Duration::ZERO),
        traffic: Traffic::default(),
        upstream_source: None,
        hairpin: false,
        timing: Timing::default(),
        legs: crate::Legs::default(),
        tls: None,
        detail: None,
    })
}

fn batch(records: impl IntoIterator<Item = Box<Record>>) -> Batch {
    let mut batch = Batch::default();
    for (number, record) in records.into_iter().enumerate() {
        assert!(batch.add_record(number as u64 + 1, "node-a", record));
    }
    batch
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_585_600 + seconds)
}

fn open(folder: &Path, config: &StoreConfig) -> Store {
    Store::open(config, folder).unwrap()
}

fn read(folder: &Path, query: &StoreQuery) -> Vec<(u64, String)> {
    let mut read = Vec::new();
    read_store(folder, query, |line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        crate::schema_tests::assert_valid(&line);
        read.push((
            line["event"]["sequence"].as_u64().unwrap(),
            line["event"]["action"].as_str().unwrap().to_owned(),
        ));
        true
    })
    .unwrap();
    read
}

fn three() -> Batch {
    batch([
        record(Action::Started, "shop", at(0)),
        record(Action::Ended, "shop", at(1)),
        record(Action::Denied, "bank", at(2)),
    ])
}

#[test]
fn what_was_kept_is_found_by_time_namespace_and_action_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig::default());
    store.deliver(&three()).unwrap();
    let all = StoreQuery::default();
    assert_eq!(read(folder.path(), &all).len(), 3);
    let numbers = |query: &StoreQuery| -> Vec<u64> {
        read(folder.path(), query).into_iter().map(|(number, _)| number).collect()
    };
    assert_eq!(numbers(&StoreQuery { since: nanos(at(1)), ..all.clone() }), [2, 3]);
    assert_eq!(numbers(&StoreQuery { until: nanos(at(1)), ..all.clone() }), [1, 2]);
    assert_eq!(numbers(&StoreQuery { namespaces: vec!["bank".into(), "x".into()], ..all.clone() }), [3]);
    let both = StoreQuery {
        namespaces: vec!["shop".into()],
        actions: vec!["connection-ended".into(), "connection-denied".into()],
        ..all
    };
    assert_eq!(numbers(&both), [2]);
}

#[test]
fn any_sqlite3_opens_it_also_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig::default());
    store.deliver(&three()).unwrap();
    let asked = |sql: &str| {
        let output =
            Command::new("sqlite3").arg(&files(folder.path()).unwrap()[0]).arg(sql).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let denied = "SELECT source_namespace, json_extract(line, '$.event.reason') FROM records \
                  WHERE action = 'connection-denied'";
    assert_eq!(asked(denied), "bank|");
    store.finish();
    assert_eq!(asked("PRAGMA integrity_check"), "ok");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "one file and no log beside it");
}

#[test]
fn an_hour_is_a_file_and_the_oldest_are_dropped_by_size_and_age() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig { max_bytes: 400_000, ..StoreConfig::default() });
    let many = || batch((0..100).map(|_| record(Action::Ended, "shop", at(0))));
    let now = SystemTime::now();
    for hour in 1..10 {
        store.keep(&many(), now + HOUR * hour).unwrap();
    }
    let left = files(folder.path()).unwrap();
    assert!((2..8).contains(&left.len()), "{left:?}");
    assert!(left.iter().map(|file| size(file)).sum::<u64>() < 600_000);
    assert!(left.contains(&store.current.path));
    drop(store);

    let old = SystemTime::now() - 25 * HOUR;
    for file in &left {
        fs::File::options().append(true).open(file).unwrap().set_modified(old).unwrap();
    }
    let store = open(folder.path(), &StoreConfig::default());
    assert_eq!(files(folder.path()).unwrap(), std::slice::from_ref(&store.current.path));
}

#[test]
fn a_file_that_grows_too_large_within_its_hour_is_followed_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig { max_bytes: 80_000, ..StoreConfig::default() });
    let many = || batch((0..100).map(|_| record(Action::Ended, "shop", at(0))));
    store.deliver(&many()).unwrap();
    store.looked = Instant::now().checked_sub(LOOK_EVERY).unwrap();
    let first = store.current.path.clone();
    store.deliver(&many()).unwrap();
    assert_ne!(store.current.path, first);
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&StoreConfig::default(), &file.join("store")).unwrap_err().to_string();
    assert!(error.contains("file/store"), "{error}");
    let error = read_store(folder.path(), &StoreQuery::default(), |_| true).unwrap_err().to_string();
    assert!(error.contains("there are no records-*.sqlite files"), "{error}");
}

#[test]
fn a_store_is_read_backwards_across_its_files_and_says_its_size_and_its_namespaces() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(store_size(folder.path()), Err(ReadStoreError::Empty { .. })));
    let mut store = open(folder.path(), &StoreConfig { max_age_h: 87_600, ..StoreConfig::default() });
    let keep = |store: &mut Store, namespace: &str, seconds: u64| {
        let records = (0..3).map(|second| record(Action::Ended, namespace, at(seconds + second)));
        store.keep(&batch(records), at(seconds)).unwrap();
    };
    keep(&mut store, "shop", 0);
    keep(&mut store, "front", 3_600);
    keep(&mut store, "shop", 7_200);
    let lines = |query: &StoreQuery| {
        let mut lines = Vec::new();
        read_store(folder.path(), query, |line| {
            lines.push(line.to_owned());
            true
        })
        .unwrap();
        lines
    };
    let forwards = lines(&StoreQuery::default());
    let mut backwards = lines(&StoreQuery { newest_first: true, ..StoreQuery::default() });
    // Lines begin with their times.
    assert!(forwards.is_sorted() && backwards.is_sorted_by(|one, other| one >= other));
    backwards.reverse();
    assert_eq!((forwards.len(), &forwards), (9, &backwards));
    assert_eq!(store_size(folder.path()).unwrap(), 9);
    assert_eq!(read_namespaces(folder.path(), i64::MIN).unwrap(), ["front", "shop"]);
    let since = nanos(at(7_000));
    assert_eq!(read_namespaces(folder.path(), since).unwrap(), ["shop"]);
}
