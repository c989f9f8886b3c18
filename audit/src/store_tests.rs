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

/// Whether a line is wanted, by its own words.
fn is_wanted(line: &serde_json::Value, query: &StoreQuery) -> bool {
    let action = line["event"]["action"].as_str().unwrap();
    let cause = line["sluice"]["end_cause"].as_str();
    let ends = [&line["source"]["k8s"], &line["destination"]["k8s"]];
    let is_named = |pod: &PodNamed, end: &serde_json::Value| {
        end["pod"].as_str().is_some_and(|name| name.starts_with(&pod.prefix))
            && pod.namespace.as_deref().is_none_or(|namespace| end["namespace"] == namespace)
    };
    let one_of = |list: &[String], word: Option<&str>| {
        list.is_empty() || word.is_some_and(|word| list.iter().any(|one| one == word))
    };
    query.losses && action == LOST_ACTION
        || one_of(&query.actions, Some(action))
            && one_of(&query.causes, cause)
            && (!query.denied || action == "connection-denied" || cause == Some("policy-revoked"))
            && (query.namespaces.is_empty()
                || ends.iter().any(|end| one_of(&query.namespaces, end["namespace"].as_str())))
            && (query.pods.is_empty()
                || query.pods.iter().any(|pod| ends.iter().any(|end| is_named(pod, end))))
}

#[test]
fn whatever_is_named_is_found_by_an_index_as_it_is_by_reading_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig { max_age_h: 87_600, ..StoreConfig::default() });
    let named = |namespace: &str, name: &str| {
        let pod = crate::line::tests::pod(namespace, "a", true);
        Endpoint::Pod(std::sync::Arc::new(flow::Pod { name: name.into(), ..pod }))
    };
    let ends = [named("shop", "web-1"), named("shop", "w"), named("bank", "web-1"), Endpoint::External];
    let causes = [EndCause::ClientClosed, EndCause::PolicyRevoked, EndCause::Refused];
    let mut number = 0;
    for hour in 0..2 {
        let mut all = Batch::default();
        for source in &ends {
            for destination in &ends {
                for action in [Action::Started, Action::Ended, Action::Denied] {
                    number += 1;
                    let mut record = record(action, "", at(hour * 3_600 + number * 7 % 50));
                    record.cause = record.cause.map(|_| causes[usize::try_from(number % 3).unwrap()]);
                    (record.source, record.destination) = (source.clone(), destination.clone());
                    assert!(all.add_record(number, "node-a", record));
                }
            }
        }
        all.add_lost(
            "node-a",
            crate::batch::Lost {
                count: 1,
                first: number + 1,
                last: number + 1,
                cause: crate::batch::LossCause::QueueFull,
            },
        );
        number += 1;
        store.keep(&all, at(hour * 3_600)).unwrap();
    }
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let pod = |namespace: Option<&str>, prefix: &str| PodNamed {
        namespace: namespace.map(str::to_owned),
        prefix: prefix.to_owned(),
    };
    let pods = [
        vec![],
        vec![pod(Some("shop"), "web")],
        vec![pod(None, "w")],
        vec![pod(Some("x"), ""), pod(Some("bank"), "")],
    ];
    let mut found = 0;
    for pods in &pods {
        for (namespaces, actions) in
            [("", ""), ("shop", ""), ("bank x", "connection-denied"), ("", "connection-ended records-lost")]
        {
            for (causes, flags) in [("", 0), ("refused", 1), ("refused client-closed", 2), ("", 3), ("", 7)] {
                let query = StoreQuery {
                    namespaces: words(namespaces),
                    pods: pods.clone(),
                    actions: words(actions),
                    causes: words(causes),
                    denied: flags & 1 != 0,
                    losses: flags & 2 != 0,
                    newest_first: flags & 4 != 0,
                    ..StoreQuery::default()
                };
                let lines = |query: &StoreQuery| {
                    let mut lines: Vec<serde_json::Value> = Vec::new();
                    read_store(folder.path(), query, |line| {
                        lines.push(serde_json::from_str(line).unwrap());
                        true
                    })
                    .unwrap();
                    lines
                };
                let read = lines(&query);
                let mut all =
                    lines(&StoreQuery { newest_first: query.newest_first, ..StoreQuery::default() });
                all.retain(|line| is_wanted(line, &query));
                // Those of one time stand as they were written, in both.
                assert_eq!(read, all, "{query:?}");
                found += read.len();
            }
        }
    }
    assert!(found > 500, "{found}");
}

#[test]
fn the_last_few_of_what_is_named_are_read_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig::default());
    store.deliver(&batch((0..200).map(|second| record(Action::Denied, "shop", at(second))))).unwrap();
    let query = StoreQuery { denied: true, newest_first: true, ..StoreQuery::default() };
    let mut read = 0;
    read_store(folder.path(), &query, |_| {
        read += 1;
        read < 3
    })
    .unwrap();
    assert_eq!(read, 3);
}
