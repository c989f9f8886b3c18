//! `sluice verdict` as it is called: a million probes, one probe at a time, and readers that leave.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use policy_bench::{Cluster, Shape};

/// A machine that does anything else as well needs a tenth of it.
const LIMIT: Duration = Duration::from_secs(240);
const PROBES: usize = 1_000_000;
/// Twice what it takes; a stream that is kept would need hundreds of megabytes.
const MAX_RESIDENT_KIB: u64 = 64 << 10;

fn manifests(cluster: &Cluster) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in cluster.texts() {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn sluice(manifests: &Path, output: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["verdict", "--probes", "-", "--manifests"])
        .arg(manifests)
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .unwrap()
}

/// Ends a child that hangs, so that the test fails instead of waiting with it.
fn within(limit: Duration, child: &Child) -> impl Drop + use<> {
    struct Guard(Option<std::sync::mpsc::Sender<()>>, Option<thread::JoinHandle<()>>);
    impl Drop for Guard {
        fn drop(&mut self) {
            drop(self.0.take());
            let _ = self.1.take().unwrap().join();
        }
    }
    let (over, waits) = channel::<()>();
    let pid = child.id().to_string();
    let thread = thread::spawn(move || {
        if waits.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
    });
    Guard(Some(over), Some(thread))
}

fn peak_kib(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn load_a_million_probes_stream_through_in_order_and_in_bounded_memory() {
    let cluster = Cluster::new(Shape::of(1_000), 3);
    let folder = manifests(&cluster);
    let names: Vec<String> = cluster.pod_names().collect();
    let mut child = sluice(folder.path(), Stdio::piped());
    let started = Instant::now();
    let _guard = within(LIMIT, &child);
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    let writer = thread::spawn(move || {
        for id in 0..PROBES {
            let (source, destination) = (&names[id % names.len()], &names[id / 7 % names.len()]);
            writeln!(
                input,
                r#"{{"id":{id},"src":{{"pod":"{source}"}},"dst":{{"pod":"{destination}"}},"port":8080}}"#
            )
            .unwrap();
        }
        input.into_inner().unwrap()
    });
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for id in 0..PROBES {
        line.clear();
        answers.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("{{\"id\":{id},\"verdict\":\"")), "after {id} answers: {line:?}");
    }
    // The writer's end is still open: everything was answered without waiting for more.
    let input = writer.join().unwrap();
    let peak = peak_kib(&child);
    drop(input);
    assert_eq!(answers.read_line(&mut line).unwrap(), 0);
    assert!(child.wait().unwrap().success());
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB resident");
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

#[test]
fn who_writes_a_probe_and_waits_gets_its_answer() {
    let cluster = Cluster::new(Shape::of(60), 3);
    let folder = manifests(&cluster);
    let name = cluster.pod_names().next().unwrap();
    let mut child = sluice(folder.path(), Stdio::piped());
    let _guard = within(LIMIT, &child);
    let mut input = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    for id in 0..200 {
        let probe =
            format!(r#"{{"id":{id},"src":{{"pod":"{name}"}},"dst":{{"ip":"203.0.113.7"}},"port":443}}"#);
        // In two pieces: half a line is no probe yet.
        let (first, second) = probe.split_at(id % probe.len());
        input.write_all(first.as_bytes()).unwrap();
        input.write_all(format!("{second}\n").as_bytes()).unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("{{\"id\":{id},")), "{line:?}");
    }
    // The last line may lack its end.
    input.write_all(b"{}").unwrap();
    drop(input);
    let mut rest = String::new();
    answers.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "{\"id\":null,\"line\":201,\"error\":\"port: required\"}\n");
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_though_the_writer_stays() {
    let cluster = Cluster::new(Shape::of(60), 3);
    let folder = manifests(&cluster);
    let mut child = sluice(folder.path(), Stdio::piped());
    let _guard = within(LIMIT, &child);
    let mut input = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    input.write_all(b"one\n").unwrap();
    answers.read_line(&mut line).unwrap();
    assert!(line.contains("error"), "{line}");
    drop(answers);
    input.write_all(b"two\n").unwrap();
    assert!(child.wait().unwrap().success(), "a closed pipe is no failure");
    drop(input);
}

#[test]
fn what_cannot_be_said_beside_the_answer_changes_neither_the_answer_nor_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.yaml"),
        "{apiVersion: apps/v1, kind: Widget, metadata: {name: w}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n",
    )
    .unwrap();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = |command: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(full())
            .spawn()
            .unwrap();
        command
            .stdin
            .take()
            .unwrap()
            .write_all(
                b"{\"id\":1,\"src\":{\"ip\":\"192.0.2.1\"},\"dst\":{\"ip\":\"192.0.2.2\"},\"port\":80}\n",
            )
            .unwrap_or(());
        let output = command.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let manifests = folder.path().to_str().unwrap();
    let (code, answer) = run(&["verdict", "--probes", "-", "--manifests", manifests]);
    assert_eq!(code, Some(0), "{answer}");
    assert!(answer.contains("\"verdict\":\"allow\""), "{answer}");
    assert_eq!(run(&["lint", "--manifests", manifests]).0, Some(0));
    assert_eq!(run(&["explain", "--manifests", manifests, "192.0.2.1", "192.0.2.2", "80"]).0, Some(0));
    assert_eq!(run(&["explain", "--manifests", manifests, "a/none", "192.0.2.2", "80"]).0, Some(2));
    assert_eq!(run(&["lint", "--manifests", "/nonexistent"]).0, Some(2));
}
