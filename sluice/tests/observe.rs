//! `sluice observe`, `top` and `graph` as they are called: what they refuse, and what they print of a file.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().unwrap()
}

fn line(second: u32) -> String {
    format!(
        "{{\"@timestamp\":\"2026-08-01T12:00:{second:02}.000000000Z\",\"event\":{{\"action\":\"connection-denied\"}},\
         \"source\":{{\"ip\":\"10.0.0.1\",\"port\":{second}}},\"destination\":{{\"ip\":\"10.0.0.2\",\"port\":80}}}}\n"
    )
}

fn records(path: &Path, seconds: std::ops::Range<u32>) {
    fs::write(path, seconds.map(line).collect::<String>()).unwrap();
}

#[test]
fn what_no_record_can_match_is_refused_with_a_hint_by_each_of_the_three() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    records(&file, 1..3);
    let file = file.to_str().unwrap();
    for (arguments, hint) in [
        ("--port 99999", "from 0 to 65535"),
        ("--verdict foo", "allow or deny"),
        ("--protocol tpc", "tcp, udp or sctp"),
        ("--cause closed", "client-closed"),
        ("--type begun", "started"),
        ("--direction out", "egress"),
        ("--policy NetworkPolcy/shop/web", "AdminNetworkPolicy"),
        ("--ip 10.0.0.0/33", "10.0.0.0/8"),
        ("--ip 10.0.0", "10.0.0.0/8"),
        ("--min-duration fast", "500ms"),
        ("--min-bytes 1X", "64K"),
        ("--since yesterday", "10m"),
        ("--since 2126-01-01T00:00:00Z", "future"),
        ("--since 1m --until 10m", "--until"),
        ("--label =x", "KEY"),
        ("--not", "--not"),
        ("--not --since 10m", "--not"),
    ] {
        for command in ["observe", "top", "graph"] {
            let all: Vec<&str> = [command, "--file", file].into_iter().chain(arguments.split(' ')).collect();
            let output = sluice(&all);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{all:?}: {said}");
            assert!(said.contains(hint), "{all:?}: no {hint:?} in {said}");
            assert!(output.stdout.is_empty(), "{all:?}");
        }
    }
    for (arguments, hint) in [
        (&["observe", "--file", file, "--last", "0"][..], "above 0"),
        (&["observe", "--file", file, "--follow", "--until", "10m"], "--follow"),
        (&["observe", "--file", "-", "--follow", "--last", "3"], "standard input"),
        (&["observe", "--store", folder.path().to_str().unwrap()], "no records-"),
    ] {
        let output = sluice(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(hint), "{arguments:?}: no {hint:?} in {said}");
    }
    // A name that nobody has is no mistake that can be known.
    let output = sluice(&["observe", "--file", file, "-n", "no-such-namespace"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}

#[test]
fn the_last_few_come_before_what_is_followed_and_none_comes_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    records(&path, 1..10);
    let mut observe = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["observe", "--last", "2", "--follow", "-o", "json", "--file"])
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(observe.stdout.take().unwrap()).lines().map(|line| line.unwrap() + "\n");
    assert_eq!([shown.next(), shown.next()], [8, 9].map(|second| Some(line(second))));
    let mut file = File::options().append(true).open(&path).unwrap();
    for second in 10..12 {
        file.write_all(line(second).as_bytes()).unwrap();
        assert_eq!(shown.next(), Some(line(second)));
    }
    observe.kill().unwrap();
    observe.wait().unwrap();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault_and_an_output_that_takes_nothing_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    records(&path, 1..60);
    for arguments in ["observe", "observe --last 50", "observe -o table", "top", "graph"] {
        let run = |output: Stdio| {
            let mut words = arguments.split(' ');
            let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
            command.arg(words.next().unwrap()).arg("--file").arg(&path).args(words);
            command.stdout(output).stderr(Stdio::piped()).output().unwrap()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(writer.into());
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{arguments}");
        let output = run(File::options().write(true).open("/dev/full").unwrap().into());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(said.contains("No space left"), "{arguments}: {said}");
    }
}
