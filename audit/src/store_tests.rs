//! A store on a real disk, read by this crate and by Debian's sqlite3.

use std::process::Command;

use flow::{Decision, EndCause, Endpoint, Generation, SideVerdict, Tuple};
use proptest::prelude::*;

use super::layout::BLOCK;
use super::*;
use crate::any_record::any_record;
use crate::line::{LOST_ACTION, LineWriter};
use crate::record::Record;
use crate::{Action, ConnectionId, Glance, Timing, Traffic};

fn nanos(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

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
    let mut writer = LineWriter::new("node-a");
    for (number, record) in records.into_iter().enumerate() {
        batch.add_record(number as u64 + 1, &mut writer, record);
    }
    batch
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_585_600 + seconds)
}

/// Now, by a wall clock that says this.
fn wall(wall: SystemTime) -> Now {
    Now { wall, ..Now::read() }
}

fn open(folder: &Path, config: &StoreConfig) -> Store {
    Store::open(config, folder, "node-a").unwrap()
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
    let mut store = open(folder.path(), &StoreConfig { max_bytes: 220_000, ..StoreConfig::default() });
    let many = || batch((0..100).map(|_| record(Action::Ended, "shop", at(0))));
    let now = SystemTime::now();
    for hour in 1..10 {
        store.keep(&many(), wall(now + HOUR * hour)).unwrap();
    }
    let left = files(folder.path()).unwrap();
    assert!((2..8).contains(&left.len()), "{left:?}");
    assert!(left.iter().map(|file| size(file)).sum::<u64>() < 330_000);
    assert!(left.contains(&store.current.path));
    drop(store);

    let old = SystemTime::now() - 25 * HOUR;
    for file in &left {
        fs::File::options().append(true).open(file).unwrap().set_modified(old).unwrap();
    }
    let mut store = open(folder.path(), &StoreConfig::default());
    assert_eq!(files(folder.path()).unwrap().len(), left.len() + 1, "the wall clock has only just said so");
    let later = Now::read();
    store.drop_surplus(Now { steady: later.steady + HOUR, wall: later.wall + HOUR });
    assert_eq!(files(folder.path()).unwrap(), std::slice::from_ref(&store.current.path));
}

#[test]
fn a_clock_that_is_set_a_day_ahead_and_back_again_costs_no_history() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = open(folder.path(), &StoreConfig::default());
    drop(earlier);
    let mut store = open(folder.path(), &StoreConfig::default());
    let now = SystemTime::now();
    let day = 24 * HOUR;
    let one = |store: &mut Store, at: SystemTime| {
        store.keep(&batch([record(Action::Ended, "shop", at)]), wall(at)).unwrap();
    };
    for at in [now, now + HOUR, now + day + 2 * HOUR, now + 2 * HOUR, now - day, now + 3 * HOUR] {
        one(&mut store, at);
    }
    assert_eq!(read(folder.path(), &StoreQuery::default()).len(), 6);
    // While nothing is recorded, what is too old goes all the same.
    let due = store.wakes_at().unwrap();
    assert!(due <= Instant::now() + DROP_EVERY);
    store.drop_surplus(Now { steady: Instant::now() + day + HOUR, wall: now });
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
fn a_clock_that_comes_to_the_same_time_again_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig { max_age_h: 87_600, ..StoreConfig::default() });
    for (hour, seconds) in [(1, 0), (2, 3_600), (1, 0), (2, 3_600)] {
        store.keep(&batch([record(Action::Ended, "shop", at(hour))]), wall(at(seconds))).unwrap();
    }
    assert_eq!(
        files(folder.path()).unwrap().len(),
        5,
        "that of the start, and one for each change of the hour"
    );
    assert_eq!(read(folder.path(), &StoreQuery::default()).len(), 4);
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&StoreConfig::default(), &file.join("store"), "node-a").unwrap_err().to_string();
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
        store.keep(&batch(records), wall(at(seconds))).unwrap();
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
    let is_at = |block: &IpBlock| {
        ["source", "destination"]
            .iter()
            .any(|end| line[end]["ip"].as_str().is_some_and(|ip| block.contains(ip.parse().unwrap())))
    };
    query.losses && action == LOST_ACTION
        || one_of(&query.actions, Some(action))
            && one_of(&query.causes, cause)
            && (!query.denied || action == "connection-denied" || cause == Some("policy-revoked"))
            && (query.ips.is_empty() || query.ips.iter().any(is_at))
            && (query.namespaces.is_empty()
                || ends.iter().any(|end| one_of(&query.namespaces, end["namespace"].as_str())))
            && (query.pods.is_empty()
                || query.pods.iter().any(|pod| ends.iter().any(|end| is_named(pod, end))))
}

#[test]
fn whatever_is_named_is_found_in_blocks_as_it_is_by_reading_everything() {
    what_is_named_is_found(true);
}

#[test]
fn whatever_is_named_is_found_where_a_process_was_killed_before_its_first_block() {
    what_is_named_is_found(false);
}

fn what_is_named_is_found(has_blocks: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig { max_age_h: 87_600, ..StoreConfig::default() });
    let named = |namespace: &str, name: &str| {
        let pod = crate::line::tests::pod(namespace, "a", true);
        Endpoint::Pod(std::sync::Arc::new(flow::Pod { name: name.into(), ..pod }))
    };
    let ends = [named("shop", "web-1"), named("shop", "w"), named("bank", "web-1"), Endpoint::External];
    let causes = [EndCause::ClientClosed, EndCause::PolicyRevoked, EndCause::Refused];
    let mut number = 0;
    let mut writer = LineWriter::new("node-a");
    for hour in 0..2 {
        let mut all = Batch::default();
        for source in &ends {
            for destination in &ends {
                for action in [Action::Started, Action::Ended, Action::Denied] {
                    number += 1;
                    let mut record = record(action, "", at(hour * 3_600 + number * 7 % 50));
                    record.cause = record.cause.map(|_| causes[usize::try_from(number % 3).unwrap()]);
                    (record.source, record.destination) = (source.clone(), destination.clone());
                    let port = u16::try_from(number).unwrap();
                    let server = if number % 5 == 0 { [192, 0, 2, 7] } else { [10, 0, 1, 2] };
                    record.tuple = Tuple::tcp(([10, 0, 0, 1], port).into(), (server, 80).into());
                    all.add_record(number, &mut writer, record);
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
        store.keep(&all, wall(at(hour * 3_600))).unwrap();
        if has_blocks {
            store.current.finish();
        }
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
    let blocks =
        |text: &str| -> Vec<IpBlock> { words(text).iter().map(|word| word.parse().unwrap()).collect() };
    let ips = ["", "10.0.0.0/16", "192.0.2.7 fd00::/8", "10.9.0.0/16"];
    let mut found = 0;
    for (pods, ips) in pods.iter().flat_map(|pods| ips.map(|ips| (pods, blocks(ips)))) {
        for (namespaces, actions) in
            [("", ""), ("shop", ""), ("bank x", "connection-denied"), ("", "connection-ended records-lost")]
        {
            for (causes, flags) in [("", 0), ("refused", 1), ("refused client-closed", 2), ("", 3), ("", 7)] {
                let query = StoreQuery {
                    namespaces: words(namespaces),
                    pods: pods.clone(),
                    ips: ips.clone(),
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
                let mut scanned = Vec::new();
                scan_store(folder.path(), &query, |glance| {
                    scanned.push(format!("{glance:?}"));
                    true
                })
                .unwrap();
                let mut expected: Vec<String> =
                    all.iter().map(|line| format!("{:?}", Glance::from(line))).collect();
                scanned.sort();
                expected.sort();
                assert_eq!(scanned, expected, "{query:?}");
                found += read.len();
            }
        }
    }
    assert!(found > 2000, "{found}");
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

/// Lines as they were given, in the order of their times.
fn expected(batches: &[Batch]) -> Vec<String> {
    let mut lines: Vec<(i64, String)> = Vec::new();
    for batch in batches {
        for entry in batch.entries() {
            let line = std::str::from_utf8(batch.line(entry)).unwrap().trim_end().to_owned();
            let crate::batch::Told::Record(record) = &entry.told else { panic!("a record") };
            let time = crate::line::told_at(record);
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            lines.push((i64::try_from(since).unwrap_or(i64::MAX), line));
        }
    }
    lines.sort_by_key(|(time, _)| *time);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn lines_of(folder: &Path, query: &StoreQuery) -> Vec<String> {
    let mut lines = Vec::new();
    read_store(folder, query, |line| {
        lines.push(line.to_owned());
        true
    })
    .unwrap();
    lines
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_a_record_says_its_line_comes_back_to_the_byte(
        records in proptest::collection::vec(any_record(), 1..20), node in ".{0,8}",
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&StoreConfig::default(), folder.path(), &node).unwrap();
        let mut writer = LineWriter::new(&node);
        let mut batch = Batch::default();
        for (record, sequence) in records.iter().zip(1..) {
            batch.add_record(sequence, &mut writer, Box::new(record.clone()));
        }
        store.deliver(&batch).unwrap();
        let all = lines_of(folder.path(), &StoreQuery::default());
        prop_assert_eq!(&all, &expected(&[batch]));
        let mut glances = Vec::new();
        let wanted = |glance: &Glance<'_>| {
            glances.push(format!("{glance:?}"));
            true
        };
        read_store_where(folder.path(), &StoreQuery::default(), wanted, |_| true).unwrap();
        let values = all.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let mut from_lines: Vec<String> = values.map(|value| format!("{:?}", Glance::from(&value))).collect();
        glances.sort();
        from_lines.sort();
        prop_assert_eq!(glances, from_lines);
    }
}

/// Times go up and down, across blocks too.
fn jumbled(from: u64, count: u64) -> Batch {
    let second = |number: u64| number / 900 * 900 + number * 7 % 1_800;
    let mut batch = Batch::default();
    let mut writer = LineWriter::new("node-a");
    for number in from..from + count {
        let action = if number % 1_000 == 3 { Action::Denied } else { Action::Ended };
        let mut record = record(action, if number % 500 == 1 { "rare" } else { "shop" }, at(second(number)));
        if action == Action::Denied {
            record.cause = Some(EndCause::PolicyDenied);
        }
        batch.add_record(number + 1, &mut writer, record);
    }
    batch
}

#[test]
fn blocks_are_read_in_the_order_of_their_times_from_both_ends_and_no_further_than_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig::default());
    let count = 3 * BLOCK as u64 + 100;
    let batches: Vec<Batch> =
        (0..count).step_by(1_000).map(|from| jumbled(from, 1_000.min(count - from))).collect();
    batches.iter().for_each(|batch| store.deliver(batch).unwrap());
    let all = expected(&batches);
    let forwards = StoreQuery::default();
    let backwards = StoreQuery { newest_first: true, ..StoreQuery::default() };
    assert_eq!(lines_of(folder.path(), &forwards), all);
    let mut turned = lines_of(folder.path(), &backwards);
    turned.reverse();
    assert_eq!(turned, all);
    for (query, first) in [(&forwards, all.first()), (&backwards, all.last())] {
        let mut read = Vec::new();
        read_store(folder.path(), query, |line| {
            read.push(line.to_owned());
            false
        })
        .unwrap();
        assert_eq!(read.first(), first);
        assert_eq!(read.len(), 1);
    }
    let rare = StoreQuery { namespaces: vec!["rare".into()], ..StoreQuery::default() };
    let denied = StoreQuery { denied: true, newest_first: true, ..StoreQuery::default() };
    let span = StoreQuery { since: nanos(at(5_000)), until: nanos(at(5_100)), ..StoreQuery::default() };
    for query in [&rare, &denied, &span] {
        let mut wanted: Vec<String> = all
            .iter()
            .filter(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let time = Glance::from(&line).time.unwrap();
                (query.since..=query.until).contains(&time) && is_wanted(&line, query)
            })
            .cloned()
            .collect();
        if query.newest_first {
            wanted.reverse();
        }
        assert!(wanted.len() > 10, "{query:?}");
        assert_eq!(lines_of(folder.path(), query), wanted, "{query:?}");
    }
    assert_eq!(store_size(folder.path()).unwrap(), count);
}

#[test]
fn what_a_full_disk_refused_is_gone_whole_and_nothing_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig::default());
    let limit = |store: &Store, pages: u32| store.current.limit_pages(pages);
    store.deliver(&jumbled(0, 3_000)).unwrap();
    limit(&store, 1);
    assert!(store.deliver(&jumbled(3_000, 3_000)).is_err());
    assert!(store.deliver(&jumbled(6_000, 3_000)).is_err());
    limit(&store, u32::MAX);
    store.deliver(&jumbled(9_000, 6_000)).unwrap();
    store.finish();
    // The same records once more, under other ids.
    let kept = expected(&[jumbled(0, 3_000), jumbled(9_000, 6_000)]);
    let sequences = |lines: &[String]| -> Vec<u64> {
        let sequence = |line: &String| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["event"]["sequence"].as_u64().unwrap()
        };
        lines.iter().map(sequence).collect()
    };
    assert_eq!(sequences(&lines_of(folder.path(), &StoreQuery::default())), sequences(&kept));
    let rare = StoreQuery { namespaces: vec!["rare".into()], ..StoreQuery::default() };
    assert_eq!(lines_of(folder.path(), &rare).len(), (3_000 + 6_000) / 500);
}

#[test]
fn a_file_that_is_damaged_or_foreign_does_not_hide_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), &StoreConfig { max_age_h: 87_600, ..StoreConfig::default() });
    for hour in 0..3 {
        store
            .keep(&batch([record(Action::Ended, "shop", at(hour * 3_600))]), wall(at(hour * 3_600)))
            .unwrap();
    }
    let files = files(folder.path()).unwrap();
    // The file of the open comes last or first, and has no rows.
    let of_first = files.iter().find(|file| file.to_string_lossy().contains("20260801T12")).unwrap();
    let garbage = |path: &Path| fs::write(path, "no database ".repeat(1_000)).unwrap();
    garbage(of_first);
    for newest_first in [false, true] {
        let mut lines = 0;
        let query = StoreQuery { newest_first, ..StoreQuery::default() };
        let error = read_store(folder.path(), &query, |_| {
            lines += 1;
            true
        })
        .unwrap_err()
        .to_string();
        assert_eq!(lines, 2);
        assert!(error.contains("20260801T12") && error.contains("not a database"), "{error}");
    }
    fs::remove_file(of_first).unwrap();
    let other = rusqlite::Connection::open(of_first).unwrap();
    other.execute_batch("CREATE TABLE records (line TEXT)").unwrap();
    let error = read_store(folder.path(), &StoreQuery::default(), |_| true).unwrap_err().to_string();
    assert!(error.contains("layout 0"), "{error}");
    drop(other);
    // One that was begun a moment ago is no fault.
    fs::write(of_first, "").unwrap();
    assert_eq!(lines_of(folder.path(), &StoreQuery::default()).len(), 2);
}
