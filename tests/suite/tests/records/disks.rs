//! A disk that stands still under file, store and spool: connections go on, and what is lost is told.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::wait_until;
use serde_json::Value;
use suite::ends::Dialer;
use suite::stage::{ALLOWED, LIMIT, Stage};

/// Rows of records are short, so that they are soon full. Nobody is there to take the spool's.
const CONFIG: &str = "
records:
  queue_records: 64
  gather_ms: 0
  sinks:
  - name: collector
    otlp: {endpoint: 'http://127.0.0.1:4318', protocol: http, batch_delay_ms: 50}
shutdown: {drain_timeout_ms: 500, records_timeout_ms: 1000}
";
/// What the others are told by. A record is one of these three in the end.
const SINKS: [&str; 2] = ["store", "collector"];

/// An ext4 file system of its own; what writes to it while it is frozen stands still (fsfreeze(8)).
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (image, mounted) = (folder.path().join("image"), folder.path().join("disk"));
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &mounted]));
        Self(folder)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("disk")
    }

    fn freeze(&self) -> Frozen {
        run(Command::new("fsfreeze").arg("-f").arg(self.path()));
        Frozen(self.path())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Stands still until it is dropped.
struct Frozen(std::path::PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// An agent all of whose records go to this disk.
fn stage_on(disk: &Path) -> Stage {
    let mut stage = Stage::without_sluice(CONFIG).unwrap();
    stage.options.records = Some(disk.join("records.json"));
    stage.options.arguments = vec!["--data".into(), disk.join("data").into()];
    stage.start_sluice().unwrap();
    stage
}

/// A connection to the server, carried and closed.
fn visit(stage: &Stage) {
    let mut stream = stage.pod("client").connect(stage.pod("server").at(ALLOWED), LIMIT).unwrap();
    lab::greeting_peer(&mut stream, LIMIT).unwrap();
}

fn lost(stage: &Stage) -> [f64; 3] {
    let of_sink = |sink: &str| {
        stage.sluice().metric(&format!("sluice_sink_lost_total{{sink=\"{sink}\"}}")).unwrap_or_default()
    };
    [stage.sluice().metric("sluice_records_lost_total").unwrap(), of_sink(SINKS[0]), of_sink(SINKS[1])]
}

/// Records that are told, and those that are told to be missing; every number up to the last is one of both.
fn account(mut lines: Vec<Value>) -> (u64, u64) {
    lines.sort_by_key(|line| line["event"]["sequence"].as_u64());
    let (mut told, mut missing, mut next) = (0, 0, 1);
    for line in &lines {
        let (sequence, lost) = (line["event"]["sequence"].as_u64().unwrap(), &line["sluice"]["lost"]);
        assert_eq!(lost["first"].as_u64().unwrap_or(sequence), next, "a gap that no line tells of: {line}");
        told += u64::from(lost.is_null());
        missing += lost["count"].as_u64().unwrap_or(0);
        next = sequence + 1;
    }
    (told, missing)
}

#[test]
fn while_the_disk_stands_still_connections_go_on_and_file_store_and_spool_tell_what_they_lost() {
    let disk = Disk::new();
    let mut stage = stage_on(&disk.path());
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let (mut near, mut far) = Dialer::new(client, server, server.at(8_001), LIMIT).unwrap().pair().unwrap();
    visit(&stage);
    let frozen = disk.freeze();
    let mut slowest = Duration::ZERO;
    let all_lose = wait_until(Duration::from_secs(60), || {
        let begun = Instant::now();
        visit(&stage);
        slowest = slowest.max(begun.elapsed());
        lost(&stage).iter().all(|lost| *lost > 0.0)
    });
    assert!(all_lose, "{:?}", lost(&stage));
    assert!(slowest < Duration::from_secs(2), "a connection took {slowest:?}");
    assert_eq!(stage.sluice().get("/readyz").unwrap().0, 200);
    near.write_all(&[1; 100_000]).unwrap();
    far.read_exact(&mut vec![0; 100_000]).unwrap();
    drop(frozen);

    drop((near, far));
    visit(&stage);
    assert!(stage.settled());
    let metric = |series: &str| stage.sluice().metric(series).unwrap_or_default();
    let (mut submitted, mut written) = (0.0, 0.0);
    let all_told = wait_until(LIMIT, || {
        written = metric("sluice_records_written_total");
        submitted = written + lost(&stage)[0];
        let stored = metric("sluice_sink_written_total{sink=\"store\"}") + lost(&stage)[1];
        let spooled = metric("sluice_sink_waiting{sink=\"collector\"}") + lost(&stage)[2];
        metric("sluice_records_waiting") == 0.0 && stored == submitted && spooled == submitted
    });
    assert!(all_told, "{submitted} submitted, {:?} lost", lost(&stage));
    let [of_file, of_store, _] = lost(&stage);
    stage.sluice_mut().sigterm();
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);

    let counted = |(told, missing): (u64, u64)| (told as f64, missing as f64);
    assert_eq!(counted(account(stage.sluice().records().unwrap())), (written, of_file));
    let store = disk.path().join("data/records");
    let kept = super::said(
        &stage,
        &["observe", "--store", store.to_str().unwrap(), "--last", "1000000", "-o", "json"],
    );
    assert_eq!(counted(account(super::parsed(&kept))), (submitted - of_store, of_store));
}

/// Threads that wait for the disk cannot be ended by anybody before it goes on; the process is done all the same.
#[test]
fn told_to_stop_while_the_disk_stands_still_it_is_done_in_time_and_says_what_is_lost() {
    let disk = Disk::new();
    let mut stage = stage_on(&disk.path());
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    visit(&stage);
    let frozen = disk.freeze();
    (0..10).for_each(|_| visit(&stage));
    stage.sluice_mut().sigterm();
    let begun = Instant::now();
    let is_over = |stage: &Stage| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", stage.sluice().pid())).unwrap();
        // The state stands behind the name, which is in brackets (proc_pid_stat(5)).
        stat.rsplit(") ").next().unwrap().starts_with('Z')
    };
    assert!(wait_until(LIMIT, || is_over(&stage)), "{}", stage.sluice().stderr());
    // Half a second to drain, a second for records, and what a busy machine takes.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let said = stage.sluice().stderr();
    let stopped = said.lines().find(|line| line.contains("stopped; the rules stay")).unwrap();
    assert!(!stopped.contains("records_lost=0"), "{stopped}");
    drop(frozen);
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);

    stage.start_sluice().unwrap();
    visit(&stage);
    let told = "sluice_sink_written_total{sink=\"store\"}";
    assert!(wait_until(LIMIT, || stage.sluice().metric(told).is_ok_and(|written| written >= 2.0)));
}
