//! Disks that are full, on file systems of a few hundred kilobytes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::line::tests::everything;
use crate::recorder::tests::{LIMIT, wait_until};
use crate::{
    CloseReport, ConnectionId, Metrics, Record, Recorder, RecorderConfig, Sink, StoreConfig, StoreQuery,
    read_store,
};

/// A small file system in memory, gone with the value.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `size` as mount(8) takes it.
    pub(crate) fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.unwrap().success(), "mounting needs CAP_SYS_ADMIN");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn record() -> Record {
    Record { id: ConnectionId::next(), ..everything() }
}

/// Numbers that are told, and how many are told to be missing. Fails where a number is neither.
fn account(lines: &[Value]) -> (u64, u64) {
    let (mut told, mut missing, mut next) = (0, 0, 1);
    for line in lines {
        let sequence = line["event"]["sequence"].as_u64().unwrap();
        let lost = &line["sluice"]["lost"];
        if lost.is_null() {
            assert_eq!(sequence, next, "a gap that no line tells of");
            told += 1;
        } else {
            assert_eq!(
                (lost["first"].as_u64(), lost["last"].as_u64()),
                (Some(next), Some(sequence)),
                "{line}"
            );
            missing += lost["count"].as_u64().unwrap();
        }
        next = sequence + 1;
    }
    (told, missing)
}

#[test]
fn a_full_disk_costs_file_and_store_what_it_refuses_told_in_each_and_both_go_on_when_there_is_room() {
    let (of_file, of_store) = (SmallDisk::of("512k"), SmallDisk::of("512k"));
    let path = of_file.path().join("records.json");
    let store = of_store.path().join("store");
    let fillers = [of_file.path().join("filler"), of_store.path().join("filler")];
    for filler in &fillers {
        fs::write(filler, vec![0; 256 << 10]).unwrap();
    }
    let config = RecorderConfig {
        store: StoreConfig { folder: Some(store.clone()), ..StoreConfig::default() },
        gather_ms: 0,
        ..RecorderConfig::default()
    };
    let metrics = Metrics::default();
    let (recorder, writer) =
        Recorder::start(config, Sink::File(path.clone()), "node-a", metrics.clone()).unwrap();
    let store_counts = || (metrics.sink("store").written.get(), metrics.sink("store").lost.get());
    let mut submitted = 0;
    while metrics.records_lost.get() == 0 || store_counts().1 == 0 {
        (0..50).for_each(|_| recorder.submit(record()));
        submitted += 50;
        assert!(submitted < 100_000, "the disks do not fill");
        wait_until("these", || {
            let (written, lost) = store_counts();
            metrics.records_written.get() + metrics.records_lost.get() == submitted
                && written + lost == submitted
        });
    }
    assert!(fs::read_dir(&store).unwrap().count() <= 3, "one file, and its log");
    fillers.iter().for_each(|filler| fs::remove_file(filler).unwrap());
    let before = (metrics.records_written.get(), store_counts().0);
    for _ in 0..20 {
        recorder.submit(record());
    }
    submitted += 20;
    wait_until("what came after", || {
        metrics.records_written.get() == before.0 + 20 && store_counts().0 == before.1 + 20
    });
    let lost = metrics.records_lost.get();
    assert_eq!(writer.close(LIMIT), CloseReport { written: submitted - lost, lost, finished: true });

    let text = fs::read_to_string(&path).unwrap();
    let of_file: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(account(&of_file), (submitted - lost, lost));
    let mut kept: Vec<Value> = Vec::new();
    read_store(&store, &StoreQuery::default(), |line| {
        kept.push(serde_json::from_str(line).unwrap());
        true
    })
    .unwrap();
    // Those of a full disk are of one moment, the lines that tell of losses of another.
    kept.sort_by_key(|line| line["event"]["sequence"].as_u64());
    let (written, lost) = store_counts();
    assert_eq!(account(&kept), (written, lost));
    assert_eq!(written + lost, submitted);
}

#[test]
fn with_block_new_a_full_disk_refuses_connections_and_loses_nothing() {
    let disk = SmallDisk::of("256k");
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 200 << 10]).unwrap();
    let path = disk.path().join("records.json");
    let config = RecorderConfig {
        overflow: crate::Overflow::BlockNew,
        queue_records: 100,
        gather_ms: 0,
        ..RecorderConfig::default()
    };
    let metrics = Metrics::default();
    let (recorder, writer) =
        Recorder::start(config, Sink::File(path.clone()), "node-a", metrics.clone()).unwrap();
    let mut submitted = 0;
    while recorder.accepts_connections() {
        recorder.submit(record());
        submitted += 1;
        assert!(submitted < 100_000, "the disk does not fill");
        std::thread::sleep(Duration::from_micros(50));
    }
    fs::remove_file(filler).unwrap();
    wait_until("room again", || recorder.accepts_connections());
    assert_eq!(writer.close(LIMIT), CloseReport { written: submitted, lost: 0, finished: true });
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(account(&lines), (submitted, 0));
}
