//! Records under load, loss and the end of the process: what is written is complete, and what is not is told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::wait_until;
use serde_json::Value;
use suite::ends::Dialer;
use suite::schema::assert_valid;
use suite::stage::{ALLOWED, DENIED, LIMIT, Stage, action, bytes, is_from};

#[path = "records/disks.rs"]
mod disks;

/// One connection after another from `client`, closed once the server has answered, until told to stop; when each
/// was over, and its address.
fn visit_until(stage: &Stage, stop: &AtomicBool) -> Vec<(Instant, SocketAddr)> {
    let mut over = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = stage.pod("client").connect(stage.pod("server").at(ALLOWED), LIMIT) else {
            continue;
        };
        let from = stream.local_addr().unwrap();
        if lab::greeting_peer(&mut stream, LIMIT).is_err() {
            continue;
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // The server's FIN comes when it has seen ours, so both directions are closed.
        if stream.read_to_end(&mut Vec::new()).is_ok() {
            over.push((Instant::now(), from));
        }
    }
    over
}

fn ended(records: &[Value]) -> HashSet<SocketAddr> {
    records
        .iter()
        .filter(|record| action(record) == "connection-ended")
        .map(|record| {
            let ip = record["source"]["ip"].as_str().unwrap().parse().unwrap();
            SocketAddr::new(ip, u16::try_from(record["source"]["port"].as_u64().unwrap()).unwrap())
        })
        .collect()
}

#[test]
fn a_long_connection_is_told_of_while_it_lives_with_its_bytes_so_far() {
    let stage = Stage::new("records: {update_every_s: 1}\n").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let (mut near, mut far) = Dialer::new(client, server, server.at(8_001), LIMIT).unwrap().pair().unwrap();
    let from = near.local_addr().unwrap();
    near.write_all(&[1; 1000]).unwrap();
    far.read_exact(&mut [0; 1000]).unwrap();
    let is_update = |record: &Value| is_from(record, from) && action(record) == "connection-updated";
    let update = stage.sluice().wait_record(is_update, LIMIT).unwrap();
    assert_eq!(bytes(&update), (1000, 0));
    far.write_all(&[2; 500]).unwrap();
    near.read_exact(&mut [0; 500]).unwrap();
    let is_second = |record: &Value| is_update(record) && bytes(record) == (1000, 500);
    stage.sluice().wait_record(is_second, LIMIT).unwrap();
    drop((near, far));
    let end = stage.final_record(from).unwrap();
    assert_eq!(bytes(&end), (1000, 500));

    let records = stage.sluice().records().unwrap();
    let of_it: Vec<&Value> = records.iter().filter(|record| is_from(record, from)).collect();
    assert_eq!(action(of_it.first().unwrap()), "connection-started");
    assert_eq!(action(of_it.last().unwrap()), "connection-ended");
    let durations: Vec<u64> =
        of_it.iter().filter_map(|record| record["event"]["duration"].as_u64()).collect();
    assert!(durations.is_sorted() && durations.len() >= 3, "{durations:?}");
    assert!(of_it.iter().all(|record| record["event"]["id"] == end["event"]["id"]));
}

#[test]
fn with_block_new_connections_are_refused_while_records_cannot_be_kept_and_none_goes_unrecorded() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("records");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let config = "records: {overflow: block-new, queue_records: 16}\n";
    let mut stage = Stage::without_sluice(config).unwrap();
    stage.options.records = Some(PathBuf::from(&fifo));
    stage.start_sluice().unwrap();
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    // The pipe fills (64 KiB), then the rows of records do.
    let mut carried = HashSet::new();
    let refused =
        wait_until(LIMIT, || match stage.pod("client").connect(stage.pod("server").at(ALLOWED), LIMIT) {
            Ok(mut stream) => {
                lab::greeting_peer(&mut stream, LIMIT).unwrap();
                carried.insert(stream.local_addr().unwrap());
                false
            }
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        });
    assert!(refused, "{} connections, and none refused", carried.len());
    assert!(carried.len() > 20);
    assert!(stage.sluice().metric("sluice_connections_failed_total{cause=\"records-full\"}").unwrap() >= 1.0);

    // Somebody reads: connections are carried again, and every one that was is recorded.
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(std::fs::File::open(fifo).unwrap()).lines();
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect::<Vec<Value>>()
    });
    let carried_again = wait_until(LIMIT, || {
        let connected = stage.pod("client").connect(stage.pod("server").at(ALLOWED), LIMIT);
        connected.is_ok_and(|stream| carried.insert(stream.local_addr().unwrap()))
    });
    assert!(carried_again);
    assert!(stage.settled());
    stage.sluice_mut().sigterm();
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);
    let records = reader.join().unwrap();
    records.iter().for_each(assert_valid);
    assert_eq!(ended(&records).intersection(&carried).count(), carried.len());
}

#[test]
fn told_to_stop_under_load_it_loses_no_record() {
    let mut stage = Stage::new("").unwrap();
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    let stop = AtomicBool::new(false);
    let over = std::thread::scope(|scope| {
        let visitor = scope.spawn(|| visit_until(&stage, &stop));
        assert!(wait_until(LIMIT, || {
            stage.sluice().metric("sluice_connections_opened_total").is_ok_and(|opened| opened >= 200.0)
        }));
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(stage.sluice().pid()).unwrap()),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        stop.store(true, Ordering::Relaxed);
        visitor.join().unwrap()
    });
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);
    let records = stage.sluice().records().unwrap();
    let recorded = ended(&records);
    let missing: Vec<_> = over.iter().filter(|(_, from)| !recorded.contains(from)).collect();
    assert!(missing.is_empty(), "{missing:?} of {}", over.len());
    let sequences: Vec<u64> =
        records.iter().map(|record| record["event"]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
}

/// The default gathers records for 5 ms. The rest is what a busy machine takes to run the threads between the end
/// of a connection and the write.
#[test]
fn load_killed_under_load_it_loses_the_last_moment_and_nothing_before() {
    const MOMENT: Duration = Duration::from_millis(500);

    let mut stage = Stage::new("").unwrap();
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    let denied = stage.pod("client").connect(stage.pod("server").at(DENIED), LIMIT);
    assert_eq!(denied.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let stop = AtomicBool::new(false);
    let (over, killed) = std::thread::scope(|scope| {
        let visitor = scope.spawn(|| visit_until(&stage, &stop));
        assert!(wait_until(LIMIT, || {
            stage.sluice().metric("sluice_connections_opened_total").is_ok_and(|opened| opened >= 200.0)
        }));
        let killed = Instant::now();
        stop.store(true, Ordering::Relaxed);
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(stage.sluice().pid()).unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        (visitor.join().unwrap(), killed)
    });
    stage.sluice_mut().wait_exit(LIMIT).unwrap();
    let recorded = ended(&stage.sluice().records().unwrap());
    let lost: Vec<Duration> = over
        .iter()
        .filter(|(at, from)| *at < killed && !recorded.contains(from))
        .map(|(at, _)| killed - *at)
        .collect();
    eprintln!(
        "{} of {} connections lost their last record, the oldest {:?} old",
        lost.len(),
        over.len(),
        lost.first()
    );
    assert!(lost.iter().all(|age| *age < MOMENT), "{lost:?}");
    assert!(over.len() > 100);
}

/// What a command prints, in the namespace of the node.
fn said(stage: &Stage, arguments: &[&str]) -> String {
    let node = stage.cluster.node("node1").unwrap();
    let output = node.command(lab::sluice_binary().unwrap()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn parsed(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn observe_tells_the_same_from_the_agent_its_store_and_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::without_sluice("").unwrap();
    stage.options.arguments = vec!["--data".into(), folder.path().into()];
    stage.start_sluice().unwrap();
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    for _ in 0..5 {
        lab::greeting_peer(&mut client.connect(server.at(ALLOWED), LIMIT).unwrap(), LIMIT).unwrap();
        assert!(client.connect(server.at(DENIED), LIMIT).is_err());
    }
    assert!(stage.settled());
    let stored = "sluice_sink_written_total{sink=\"store\"}";
    assert!(wait_until(LIMIT, || stage.sluice().metric(stored).is_ok_and(|sum| sum >= 15.0)));
    let sequence = |record: &Value| record["event"]["sequence"].as_u64();
    let mut written = Vec::new();
    assert!(wait_until(LIMIT, || {
        written = stage.sluice().records().unwrap();
        written.len() == 15
    }));
    written.sort_by_key(sequence);

    let store = folder.path().join("records");
    let sources = [
        vec!["observe"],
        vec!["observe", "--store", store.to_str().unwrap()],
        vec!["observe", "--file", stage.sluice().records_path().to_str().unwrap()],
    ];
    for source in sources {
        let told = |more: &[&str]| {
            let mut told = parsed(&said(&stage, &[&source, more, &["-o", "json"]].concat()));
            told.sort_by_key(sequence);
            told
        };
        assert_eq!(told(&[]), written, "{source:?}");
        let denied = told(&["--verdict", "deny", "--to-pod", "server", "--port", "9999"]);
        assert_eq!(denied.len(), 5, "{source:?}");
        assert!(denied.iter().all(|record| action(record) == "connection-denied"));
        assert_eq!(told(&["--not", "--type", "denied", "--last", "3"]).len(), 3, "{source:?}");
        // What is looked up where records are kept is what reading all of them finds.
        for filter in [["--pod", "default/server"], ["--verdict", "deny"], ["--cause", "policy-denied"]] {
            let all = told(&filter);
            let last = told(&[&filter[..], &["--last", "2"]].concat());
            assert_eq!(last, all[all.len() - 2..], "{source:?} {filter:?}");
        }
        assert_eq!(told(&["--until", "1h"]).len(), 0, "{source:?}");
        assert_eq!(told(&["--since", "1h", "-n", "default"]).len(), 15, "{source:?}");
    }
    let file = stage.sluice().records_path().to_str().unwrap().to_owned();
    let from = [vec![], vec!["--store", store.to_str().unwrap()], vec!["--file", &file]];
    for filter in [&[][..], &["--verdict", "deny"], &["--not", "--port", "9999"], &["--min-bytes", "1"]] {
        let told = |command: &str, from: &[&str]| {
            let words: Vec<&str> =
                std::iter::once(command).chain(from.iter().chain(filter).copied()).collect();
            said(&stage, &words)
        };
        for command in ["top", "graph"] {
            let [agent, stored, written] = from.each_ref().map(|from| told(command, from));
            assert_eq!((&agent, &stored), (&written, &written), "{command} {filter:?}");
            assert!(agent.lines().count() > 1, "{agent}");
        }
    }
    let text = said(&stage, &["observe", "--type", "denied"]);
    let names_both = |line: &str| line.contains("DENIED") && line.contains("NetworkPolicy/default/server");
    assert!(text.lines().count() == 5 && text.lines().all(names_both), "{text}");
}

/// Ends by its own pid when the test does.
struct Observer(std::process::Child);

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn observe_follows_an_agent_that_keeps_nothing_and_says_so_when_asked_for_the_past() {
    let stage = Stage::new("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let refused = node.command(lab::sluice_binary().unwrap()).arg("observe").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--data DIR"), "{refused:?}");

    let mut command = node.command(lab::sluice_binary().unwrap());
    command
        .args(["observe", "--follow", "-o", "json", "--type", "denied"])
        .stdout(std::process::Stdio::piped());
    let mut observer = Observer(command.spawn().unwrap());
    let mut lines = BufReader::new(observer.0.stdout.take().unwrap()).lines();
    let (sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.next().map(|line| sender.send(line.unwrap())));
    // It takes a moment until it listens: a denial a round, until one is told.
    let mut told = None;
    assert!(wait_until(LIMIT, || {
        assert!(stage.pod("client").connect(stage.pod("server").at(DENIED), LIMIT).is_err());
        told = seen.recv_timeout(Duration::from_millis(100)).ok();
        told.is_some()
    }));
    let line: Value = serde_json::from_str(&told.unwrap()).unwrap();
    assert_valid(&line);
    assert_eq!(action(&line), "connection-denied");
}
