//! Records on their way from the datapath to a real file.

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use flow::{Decision, EndCause, Endpoint, Generation, SideVerdict, Tuple};
use serde_json::Value;

use super::*;
use crate::schema_tests::assert_valid;
use crate::{CloseReport, ConnectionId, Timing, Traffic};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

fn record(action: Action) -> Record {
    let is_over = !matches!(action, Action::Started | Action::Updated);
    Record {
        action,
        id: ConnectionId::next(),
        tuple: Tuple::tcp("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()),
        source: Endpoint::External,
        destination: Endpoint::External,
        service: None,
        decision: Decision {
            generation: Generation(1),
            egress: SideVerdict::not_applicable(),
            ingress: SideVerdict::not_applicable(),
        },
        cause: is_over.then_some(EndCause::Refused),
        revoked_by: None,
        start: SystemTime::now(),
        end: is_over.then(SystemTime::now),
        duration: (action != Action::Started).then_some(Duration::from_millis(1)),
        traffic: Traffic::default(),
        upstream_source: None,
        hairpin: false,
        timing: Timing::default(),
        legs: crate::Legs::default(),
        tls: None,
        detail: None,
    }
}

fn start(config: RecorderConfig, sink: Sink) -> (Recorder, Writer, Metrics) {
    let metrics = Metrics::default();
    let (recorder, writer) = Recorder::start(config, sink, "node-a", metrics.clone()).unwrap();
    (recorder, writer, metrics)
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.iter().for_each(assert_valid);
    lines
}

fn is_lost(line: &Value) -> bool {
    line["event"]["action"] == "records-lost"
}

/// Fails unless the numbers of `lines` and what they tell of losses are every number from 1 to `last`; returns
/// how many records are missing.
fn assert_accounted(lines: &[Value], last: u64) -> u64 {
    let (mut next, mut missing) = (1, 0);
    for line in lines {
        let sequence = line["event"]["sequence"].as_u64().unwrap();
        if is_lost(line) {
            let lost = &line["sluice"]["lost"];
            assert_eq!(lost["first"], next, "{line}");
            assert_eq!(lost["last"], sequence, "{line}");
            assert_eq!(lost["count"], sequence + 1 - next, "all between are missing: {line}");
            missing += sequence + 1 - next;
        } else {
            assert_eq!(sequence, next, "a gap that no line tells of");
        }
        next = sequence + 1;
    }
    assert_eq!(next, last + 1);
    missing
}

fn sequences(path: &Path) -> Vec<u64> {
    lines(path).iter().map(|line| line["event"]["sequence"].as_u64().unwrap()).collect()
}

#[test]
fn every_record_of_many_threads_is_written_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let (recorder, writer, metrics) = start(RecorderConfig::default(), Sink::File(path.clone()));
    let submitted: Vec<Vec<String>> = std::thread::scope(|scope| {
        let submit = || {
            let records = (0..2_000).map(|_| record(Action::Ended));
            records
                .map(|record| {
                    let id = record.id.to_string();
                    recorder.submit(record);
                    id
                })
                .collect()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(submit)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(writer.close(LIMIT), crate::CloseReport { written: 8_000, lost: 0, finished: true });

    assert_eq!(sequences(&path), (1..=8_000).collect::<Vec<_>>());
    let place: HashMap<String, usize> = lines(&path)
        .iter()
        .enumerate()
        .map(|(place, line)| (line["event"]["id"].as_str().unwrap().to_owned(), place))
        .collect();
    assert_eq!(place.len(), 8_000);
    for ids in submitted {
        assert!(ids.windows(2).all(|pair| place[&pair[0]] < place[&pair[1]]), "one thread's order is kept");
    }
    assert_eq!((metrics.records_written.get(), metrics.records_lost.get()), (8_000, 0));
}

/// A FIFO that nobody reads holds 64 KiB (pipe(7)): the writer then hangs in its write.
fn hanging_sink(folder: &Path) -> Sink {
    let path = folder.join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    Sink::File(path)
}

#[test]
fn records_beyond_the_queue_are_counted_and_leave_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let sink = hanging_sink(folder.path());
    let Sink::File(fifo) = sink.clone() else { unreachable!() };
    let config = RecorderConfig { queue_records: 100, gather_ms: 0, ..RecorderConfig::default() };
    let (recorder, writer, metrics) = start(config, sink);

    let slowest = (0..5_000)
        .map(|_| {
            let started = Instant::now();
            recorder.submit(record(Action::Ended));
            started.elapsed()
        })
        .max()
        .unwrap();
    assert!(slowest < Duration::from_secs(1), "submitting waited {slowest:?} for a sink that hangs");
    // A reader comes: what was kept arrives, in order, and lines tell of exactly what was lost.
    let reader = std::thread::spawn(move || {
        let text = std::fs::read_to_string(fifo).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    let report = writer.close(LIMIT);
    let lost = metrics.records_lost.get();
    assert!(lost > 0, "5000 records fit neither a queue of 100 nor a pipe");
    assert_eq!(report, CloseReport { written: 5_000 - lost, lost, finished: true });
    let arrived = reader.join().unwrap();
    assert_eq!(assert_accounted(&arrived, 5_000), lost);
    assert_eq!(arrived.iter().filter(|line| !is_lost(line)).count() as u64, 5_000 - lost);
    assert_eq!(metrics.records_waiting.get(), 0);
}

/// A file that waits, then takes what it is given.
fn blocked(config: &RecorderConfig) -> RecorderConfig {
    RecorderConfig { overflow: Overflow::BlockNew, gather_ms: 0, ..config.clone() }
}

#[test]
fn with_block_new_no_connection_goes_unrecorded_and_new_ones_are_not_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let sink = hanging_sink(folder.path());
    let Sink::File(fifo) = sink.clone() else { unreachable!() };
    let config = blocked(&RecorderConfig { queue_records: 100, ..RecorderConfig::default() });
    let (recorder, writer, metrics) = start(config, sink);
    assert!(recorder.accepts_connections());
    // Connections are admitted while that is allowed, and denied ones come all the time.
    let mut admitted = 0;
    let started = Instant::now();
    while recorder.accepts_connections() {
        assert!(started.elapsed() < LIMIT, "a sink that takes nothing is never full");
        recorder.submit(record(Action::Started));
        admitted += 1;
        recorder.submit(record(Action::Denied));
    }
    let mut denied = admitted;
    // Those admitted end, while denials go on.
    for _ in 0..admitted {
        recorder.submit(record(Action::Ended));
        recorder.submit(record(Action::Denied));
        denied += 1;
    }
    // The writer may have taken what waited, until it holds all that it may.
    wait_until("full again", || {
        recorder.submit(record(Action::Denied));
        denied += 1;
        !recorder.accepts_connections()
    });
    let reader = std::thread::spawn(move || {
        let text = std::fs::read_to_string(fifo).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    wait_until("room again", || recorder.accepts_connections());
    let report = writer.close(LIMIT);
    let arrived = reader.join().unwrap();
    let count = |action: &str| arrived.iter().filter(|line| line["event"]["action"] == action).count();
    assert_eq!(count("connection-started"), admitted);
    assert_eq!(count("connection-ended"), admitted);
    assert_eq!(count("connection-denied") as u64 + report.lost, denied as u64);
    assert_eq!(report.lost, metrics.records_lost.get());
    let told: u64 = arrived
        .iter()
        .filter(|line| is_lost(line))
        .map(|line| line["sluice"]["lost"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(told, report.lost, "every loss is told");
}

#[test]
fn with_block_new_a_sink_that_fails_is_tried_until_it_works_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (path, healthy) = (folder.path().join("records"), folder.path().join("healthy"));
    symlink("/dev/full", &path).unwrap();
    let config = blocked(&RecorderConfig { queue_records: 8, ..RecorderConfig::default() });
    let (recorder, writer, metrics) = start(config, Sink::File(path.clone()));
    let mut submitted = 0;
    wait_until("a full disk to be noticed", || {
        recorder.submit(record(Action::Started));
        submitted += 1;
        !recorder.accepts_connections()
    });
    symlink(&healthy, folder.path().join("new")).unwrap();
    std::fs::rename(folder.path().join("new"), &path).unwrap();
    wait_until("room again", || recorder.accepts_connections());
    assert_eq!(writer.close(LIMIT), CloseReport { written: submitted, lost: 0, finished: true });
    assert_eq!(assert_accounted(&lines(&healthy), submitted), 0);
    assert_eq!(metrics.records_lost.get(), 0);
}

#[test]
fn what_waits_is_told_with_how_much_may() {
    let folder = tempfile::tempdir().unwrap();
    let config = RecorderConfig { queue_records: 100, gather_ms: 0, ..RecorderConfig::default() };
    let (recorder, _writer, _metrics) = start(config, hanging_sink(folder.path()));
    assert_eq!((recorder.waiting(), recorder.limit()), (0, 100));
    // The writer takes what it can until its sink hangs; then the queue fills, and no further.
    let deadline = Instant::now() + LIMIT;
    while recorder.waiting() < recorder.limit() {
        assert!(Instant::now() < deadline, "{} of {}", recorder.waiting(), recorder.limit());
        recorder.submit(record(Action::Ended));
    }
    recorder.submit(record(Action::Ended));
    assert!(recorder.waiting() <= recorder.limit());
}

#[test]
fn closing_does_not_wait_longer_than_its_limit_for_a_sink_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let config = RecorderConfig { gather_ms: 0, ..RecorderConfig::default() };
    let (recorder, writer, _) = start(config, hanging_sink(folder.path()));
    for _ in 0..2_000 {
        recorder.submit(record(Action::Ended));
    }
    let started = Instant::now();
    let report = writer.close(Duration::from_millis(50));
    assert!(started.elapsed() < LIMIT);
    assert!(!report.finished);
    assert_eq!(report.written + report.lost, 2_000);
    assert!(report.lost > 0);
}

#[test]
fn a_reopened_file_is_the_one_that_has_the_name_now() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("records"), folder.path().join("records.1"));
    let (recorder, writer, metrics) = start(RecorderConfig::default(), Sink::File(path.clone()));
    recorder.submit(record(Action::Ended));
    wait_until("first record", || metrics.records_written.get() == 1);

    std::fs::rename(&path, &rotated).unwrap();
    recorder.submit(record(Action::Ended));
    wait_until("second record", || metrics.records_written.get() == 2);
    assert!(!path.exists(), "a rename alone changes nothing");

    writer.reopen();
    recorder.submit(record(Action::Ended));
    assert_eq!(writer.close(LIMIT).written, 3);
    assert_eq!(sequences(&rotated), [1, 2]);
    assert_eq!(sequences(&path), [3]);
}

#[test]
fn a_file_that_cannot_be_reopened_stays_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, moved) = (folder.path().join("logs"), folder.path().join("moved"));
    std::fs::create_dir(&inside).unwrap();
    let (recorder, writer, _) = start(RecorderConfig::default(), Sink::File(inside.join("records")));
    std::fs::rename(&inside, &moved).unwrap();
    writer.reopen();
    recorder.submit(record(Action::Ended));
    assert_eq!(writer.close(LIMIT).written, 1);
    assert_eq!(sequences(&moved.join("records")), [1]);
}

#[test]
fn a_failing_sink_loses_records_that_are_counted_and_is_used_again_when_it_works() {
    let folder = tempfile::tempdir().unwrap();
    let (path, healthy) = (folder.path().join("records"), folder.path().join("healthy"));
    symlink("/dev/full", &path).unwrap();
    let (recorder, writer, metrics) = start(RecorderConfig::default(), Sink::File(path.clone()));
    for _ in 0..3 {
        recorder.submit(record(Action::Ended));
    }
    wait_until("three lost records", || metrics.records_lost.get() == 3);
    assert_eq!(metrics.records_written.get(), 0);

    symlink(&healthy, folder.path().join("new")).unwrap();
    std::fs::rename(folder.path().join("new"), &path).unwrap();
    recorder.submit(record(Action::Ended));
    recorder.submit(record(Action::Ended));
    assert_eq!(writer.close(LIMIT), crate::CloseReport { written: 2, lost: 3, finished: true });
    assert_eq!(sequences(&healthy), [3, 4, 5], "the first line tells what is missing");
    assert_eq!(assert_accounted(&lines(&healthy), 5), 3);
    assert_eq!(lines(&healthy)[0]["event"]["reason"], "sink-failed");
    assert_eq!((metrics.records_written.get(), metrics.records_lost.get()), (2, 3));
}

#[test]
fn started_records_can_be_left_out_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let config = RecorderConfig { started: false, ..RecorderConfig::default() };
    let (recorder, writer, _) = start(config, Sink::File(path.clone()));
    for action in [Action::Started, Action::Ended, Action::Started, Action::Denied, Action::Failed] {
        recorder.submit(record(action));
    }
    assert_eq!(writer.close(LIMIT).written, 3);
    assert_eq!(sequences(&path), [1, 2, 3]);
}

#[test]
fn closing_writes_what_is_queued_and_refuses_what_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    // The writer would let records gather for a second; closing must not wait for that.
    let config = RecorderConfig { gather_ms: 1_000, ..RecorderConfig::default() };
    let (recorder, writer, metrics) = start(config, Sink::File(path.clone()));
    for _ in 0..10 {
        recorder.submit(record(Action::Ended));
    }
    let started = Instant::now();
    assert_eq!(writer.close(LIMIT), crate::CloseReport { written: 10, lost: 0, finished: true });
    assert!(started.elapsed() < Duration::from_millis(900));
    assert_eq!(sequences(&path), (1..=10).collect::<Vec<_>>());

    recorder.submit(record(Action::Ended));
    assert_eq!(metrics.records_lost.get(), 1);
}

#[test]
fn a_discarding_sink_counts_as_any_other() {
    let (recorder, writer, metrics) = start(RecorderConfig::default(), Sink::Discard);
    recorder.submit(record(Action::Ended));
    assert_eq!(writer.close(LIMIT).written, 1);
    assert_eq!(metrics.records_written.get(), 1);
}

#[test]
fn a_second_process_appends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    for _ in 0..2 {
        let (recorder, writer, _) = start(RecorderConfig::default(), Sink::File(path.clone()));
        recorder.submit(record(Action::Ended));
        writer.close(LIMIT);
    }
    assert_eq!(sequences(&path), [1, 1]);
}

fn file_sink(name: &str, path: &Path) -> SinkConfig {
    let file = crate::FileSink { path: path.to_owned(), rotate: Rotation::default() };
    SinkConfig { name: name.to_owned(), file: Some(file), ..SinkConfig::default() }
}

fn of_sink(metrics: &Metrics, name: &str) -> (u64, u64) {
    let crate::metrics::SinkCounts { written, lost, .. } = metrics.sink(name);
    (written.get(), lost.get())
}

#[test]
fn records_are_served_to_the_own_node_unless_told_otherwise() {
    let serves = |config: RecorderConfig| {
        let (recorder, ..) = start(config, Sink::Discard);
        ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "fd00::1"]
            .map(|ip| recorder.serves(ip.parse().unwrap()))
    };
    assert_eq!(serves(RecorderConfig::default()), [true, true, true, false, false]);
    assert_eq!(
        serves(RecorderConfig { served_to: ServedTo::Anyone, ..RecorderConfig::default() }),
        [true; 5]
    );
}

#[test]
fn a_sink_that_hangs_costs_its_own_records_and_no_other_sink_any() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("records"), folder.path().join("other"));
    let Sink::File(fifo) = hanging_sink(folder.path()) else { unreachable!() };
    let config = RecorderConfig {
        queue_records: 10_000,
        sinks: vec![file_sink("hanging", &fifo), file_sink("other", &other)],
        store: StoreConfig { folder: Some(folder.path().join("store")), ..StoreConfig::default() },
        ..RecorderConfig::default()
    };
    let (recorder, writer, metrics) = start(config, Sink::File(path.clone()));
    for batch in 1..=20 {
        (0..1_000).for_each(|_| recorder.submit(record(Action::Ended)));
        // Those that work keep up.
        let all = batch * 1_000;
        wait_until("the others", || {
            metrics.records_written.get() == all
                && of_sink(&metrics, "other") == (all, 0)
                && of_sink(&metrics, "store") == (all, 0)
        });
    }
    let (written, lost) = of_sink(&metrics, "hanging");
    assert!(lost > 5_000 && written < 1_000, "{written} written, {lost} lost");
    assert!(!writer.close(Duration::from_millis(50)).finished);
    assert_eq!(assert_accounted(&lines(&path), 20_000), 0);
    assert_eq!(assert_accounted(&lines(&other), 20_000), 0);
}

#[test]
fn a_sink_gets_what_it_wants_and_sampling_keeps_whole_connections_and_every_denial() {
    let folder = tempfile::tempdir().unwrap();
    let (path, few, some) =
        (folder.path().join("records"), folder.path().join("few"), folder.path().join("some"));
    let only = crate::Only { actions: vec![Action::Denied, Action::Ended], ..crate::Only::default() };
    let config = RecorderConfig {
        sinks: vec![
            SinkConfig { sample_one_in: 10, ..file_sink("few", &few) },
            SinkConfig { only, ..file_sink("some", &some) },
        ],
        ..RecorderConfig::default()
    };
    let (recorder, writer, metrics) = start(config, Sink::File(path.clone()));
    for _ in 0..200 {
        let id = ConnectionId::next();
        for action in [Action::Started, Action::Updated, Action::Ended] {
            recorder.submit(Record { id, ..record(action) });
        }
        recorder.submit(record(Action::Denied));
    }
    writer.close(LIMIT);
    assert_eq!(assert_accounted(&lines(&path), 800), 0);
    let count = |lines: &[Value], action: &str| {
        lines.iter().filter(|line| line["event"]["action"] == format!("connection-{action}")).count()
    };
    let few = lines(&few);
    assert_eq!(count(&few, "denied"), 200);
    let kept = count(&few, "started");
    assert!((5..=45).contains(&kept), "{kept} of 200 connections");
    assert_eq!((count(&few, "updated"), count(&few, "ended")), (kept, kept));
    let ids = |action: &str| -> Vec<&Value> {
        let is_it = |line: &&Value| line["event"]["action"] == format!("connection-{action}");
        few.iter().filter(is_it).map(|line| &line["event"]["id"]).collect()
    };
    assert_eq!(ids("started"), ids("ended"));
    let some = lines(&some);
    assert_eq!((count(&some, "denied"), count(&some, "ended"), some.len()), (200, 200, 400));
    assert_eq!(of_sink(&metrics, "some"), (400, 0));
}

/// Also one that was never carried, whose record has one decision only.
#[test]
fn sampling_keeps_every_connection_that_policy_cut() {
    let folder = tempfile::tempdir().unwrap();
    let few = folder.path().join("few");
    let sink = SinkConfig { sample_one_in: 1_000_000, ..file_sink("few", &few) };
    let config = RecorderConfig { sinks: vec![sink], ..RecorderConfig::default() };
    let (recorder, writer, _) = start(config, Sink::File(folder.path().join("records")));
    for _ in 0..100 {
        let cause = Some(flow::EndCause::PolicyRevoked);
        recorder.submit(Record { cause, revoked_by: None, ..record(Action::Ended) });
    }
    writer.close(LIMIT);
    assert_eq!(lines(&few).len(), 100);
}

#[test]
fn a_sink_that_adds_up_gets_sums_beside_one_that_gets_records() {
    let folder = tempfile::tempdir().unwrap();
    let (path, sums) = (folder.path().join("records"), folder.path().join("sums"));
    let config = RecorderConfig {
        sinks: vec![SinkConfig { aggregate_s: 3_600, ..file_sink("sums", &sums) }],
        ..RecorderConfig::default()
    };
    let (recorder, writer, metrics) = start(config, Sink::File(path.clone()));
    (0..100).for_each(|_| recorder.submit(record(Action::Ended)));
    // What is left of the interval is told at the end.
    assert!(writer.close(LIMIT).finished);
    assert_eq!(assert_accounted(&lines(&path), 100), 0);
    let sums = lines(&sums);
    assert_eq!(sums.len(), 1, "{sums:#?}");
    assert_eq!(sums[0]["sluice"]["summed"]["ended"], 100);
    assert_eq!(of_sink(&metrics, "sums"), (100, 0));

    let sampled = SinkConfig { aggregate_s: 60, sample_one_in: 2, ..file_sink("a", Path::new("/tmp/a")) };
    let config = RecorderConfig { sinks: vec![sampled], ..RecorderConfig::default() };
    assert_eq!(config.validate()[0].field, "sinks[0].aggregate_s");
}

#[test]
fn sinks_that_cannot_be_used_are_named_by_their_place() {
    let good = file_sink("a", Path::new("/tmp/a"));
    let config = RecorderConfig {
        sinks: vec![
            good.clone(),
            SinkConfig { stdout: Some(crate::StdoutSink {}), ..good.clone() },
            SinkConfig { name: "B b".to_owned(), sample_one_in: 0, ..good.clone() },
            SinkConfig { name: "store".to_owned(), ..good },
        ],
        ..RecorderConfig::default()
    };
    let problems: Vec<_> = config.validate().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "sinks[1].name: a must have exactly one of file, stdout, syslog and otlp",
            "sinks[2].name: B b must be 1 to 32 lower case letters, digits and dashes",
            "sinks[2].sample_one_in: 0 must be above 0",
            "sinks[1].name: a must be a name that no other sink has; records and store are taken",
            "sinks[3].name: store must be a name that no other sink has; records and store are taken",
        ]
    );
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    assert_eq!(RecorderConfig::default().validate(), []);
    let config = RecorderConfig {
        queue_records: 0,
        gather_ms: 5_000,
        update_every_s: 86_401,
        ..RecorderConfig::default()
    };
    let problems: Vec<_> = config.validate().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "queue_records: 0 must be from 1 to 4194304",
            "update_every_s: 86401 must be at most 86400",
            "gather_ms: 5000 must be at most 1000",
        ]
    );
    let refused = Recorder::start(config, Sink::Discard, "node-a", Metrics::default()).unwrap_err();
    assert_eq!(refused.to_string(), "records.queue_records: 0 must be from 1 to 4194304");
}
