//! A file that is put aside when it is large or old enough, under a name that ends in the time: `NAME.TIME`, with
//! `.zst` when compressed. Only the newest of those are kept.
//!
//! Putting aside is a rename. Compressing and removing happen on a thread of their own, one at a time, so that
//! records need not wait for them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::lane::{Deliver, Undelivered};
use crate::output::{Output, Sink, SinkError};

/// `20261122T184500.123456Z`: sorts as text in the order of time.
const STAMP: &str = "%Y%m%dT%H%M%S%.6fZ";
const STAMP_LENGTH: usize = 23;
const COMPRESSED: &str = ".zst";
const UNFINISHED: &str = ".part";

/// When a records file is put aside, and how many of those are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// Put aside before it grows beyond this many bytes; 0 is never. Default 0.
    pub max_bytes: u64,
    /// Put aside after this many seconds; 0 is never. Default 0.
    pub every_s: u64,
    /// Files put aside that are kept; older ones are removed. Default 8.
    pub keep: usize,
    /// Compress with zstd what is put aside. Default true.
    pub zstd: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_bytes: 0, every_s: 0, keep: 8, zstd: true }
    }
}

/// A records file that is put aside by its size and age.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    output: Output,
    path: PathBuf,
    rotation: Rotation,
    since: Instant,
    tidying: Option<JoinHandle<()>>,
}

impl RotatingFile {
    pub(crate) fn open(path: PathBuf, rotation: Rotation) -> Result<Self, SinkError> {
        let output = Output::open(Sink::File(path.clone()))?;
        let mut file = Self { output, path, rotation, since: Instant::now(), tidying: None };
        // What an earlier process put aside and had no time to compress.
        file.tidy();
        Ok(file)
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| if file.is_file() { file.len() } else { 0 })
    }

    /// A file that cannot be put aside stays in use: better too large than lost.
    fn put_aside(&mut self) {
        self.since = Instant::now();
        let aside = with_suffix(&self.path, &format!(".{}", next_stamp(&self.path)));
        let done = fs::rename(&self.path, &aside).map_err(|cause| SinkError::File { path: aside, cause });
        if let Err(error) = done.and_then(|()| self.output.reopen()) {
            tracing::error!(%error, "records file not put aside");
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.tidying.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let (path, rotation) = (self.path.clone(), self.rotation.clone());
        let tidy = move || {
            if let Err(error) = tidy(&path, &rotation) {
                tracing::error!(%error, path = %path.display(), "records files put aside are not tidied");
            }
        };
        self.tidying = std::thread::Builder::new().name("records-tidy".to_owned()).spawn(tidy).ok();
    }
}

impl Deliver for RotatingFile {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        let length = self.length();
        let would_be = length + batch.lines().len() as u64;
        if self.rotation.max_bytes > 0 && length > 0 && would_be > self.rotation.max_bytes {
            self.put_aside();
        }
        self.output.deliver(batch)
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        self.output.reopen()
    }

    fn wakes_at(&self) -> Option<Instant> {
        (self.rotation.every_s > 0).then(|| self.since + Duration::from_secs(self.rotation.every_s))
    }

    fn wake(&mut self) {
        if self.length() > 0 {
            self.put_aside();
        }
        self.since = Instant::now();
    }

    fn finish(&mut self) {
        if let Some(running) = self.tidying.take()
            && running.join().is_err()
        {
            tracing::error!("tidying the records files panicked");
        }
    }
}

/// Compresses what is put aside, if that is wanted, and removes all but the newest.
fn tidy(path: &Path, rotation: &Rotation) -> io::Result<()> {
    for unfinished in siblings(path)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
        fs::remove_file(path.with_file_name(unfinished))?;
    }
    let mut aside = put_aside(path)?;
    let surplus = aside.len().saturating_sub(rotation.keep);
    for name in aside.drain(..surplus) {
        fs::remove_file(path.with_file_name(name))?;
    }
    for name in aside.iter().filter(|name| rotation.zstd && !name.ends_with(COMPRESSED)) {
        compress(&path.with_file_name(name))?;
    }
    Ok(())
}

/// The file stays until its compressed form is whole and on the disk.
fn compress(file: &Path) -> io::Result<()> {
    let unfinished = with_suffix(file, &format!("{COMPRESSED}{UNFINISHED}"));
    let source = File::open(file)?;
    let target = File::create(&unfinished)?;
    fs::set_permissions(&unfinished, source.metadata()?.permissions())?;
    zstd::stream::copy_encode(&source, &target, zstd::DEFAULT_COMPRESSION_LEVEL)?;
    target.sync_all()?;
    fs::rename(&unfinished, with_suffix(file, COMPRESSED))?;
    fs::remove_file(file)
}

/// The names of files put aside, the oldest first.
pub(crate) fn put_aside(path: &Path) -> io::Result<Vec<String>> {
    let mut names = siblings(path)?;
    names.retain(|name| stamp(path, name).is_some() && !name.ends_with(UNFINISHED));
    names.sort();
    Ok(names)
}

/// The names in the file's folder that begin with its name and a full stop.
fn siblings(path: &Path) -> io::Result<Vec<String>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let start = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(&start)
            && stamp(path, &name).is_some()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// The time in the name of a file that was put aside; `None` for other files.
fn stamp(path: &Path, name: &str) -> Option<Timestamp> {
    let start = path.file_name()?.to_string_lossy().len() + 1;
    let text = name.get(start..start + STAMP_LENGTH)?;
    let rest = name.get(start + STAMP_LENGTH..)?;
    let is_ours = ["", COMPRESSED, ".zst.part"].contains(&rest);
    let time = jiff::civil::DateTime::strptime(STAMP, text).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    is_ours.then_some(time)
}

/// Now, and in any case after every file that was put aside: the clock may have been set back.
fn next_stamp(path: &Path) -> String {
    let latest = siblings(path).unwrap_or_default().iter().filter_map(|name| stamp(path, name)).max();
    let after_latest = latest.and_then(|latest| latest.checked_add(SignedDuration::from_micros(1)).ok());
    let now = Timestamp::now();
    after_latest.map_or(now, |after| after.max(now)).strftime(STAMP).to_string()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lines: u64) -> Batch {
        let mut batch = Batch::default();
        for number in 1..=lines {
            let lost = crate::batch::Lost {
                first: number,
                last: number,
                count: 1,
                cause: crate::batch::LossCause::QueueFull,
            };
            batch.add_lost("node-a", lost);
        }
        batch
    }

    fn aside(path: &Path) -> Vec<String> {
        put_aside(path).unwrap()
    }

    fn lines(path: &Path) -> usize {
        let bytes = fs::read(path).unwrap();
        let is_compressed = path.extension().is_some_and(|extension| extension == "zst");
        let text = if is_compressed { zstd::decode_all(&*bytes).unwrap() } else { bytes };
        text.iter().filter(|&&byte| byte == b'\n').count()
    }

    #[test]
    fn a_file_is_put_aside_before_it_is_too_large_and_the_newest_are_kept_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.json");
        let two = batch(2);
        let rotation = Rotation { max_bytes: two.lines().len() as u64 * 2, keep: 3, ..Rotation::default() };
        let mut file = RotatingFile::open(path.clone(), rotation).unwrap();
        for _ in 0..11 {
            file.deliver(&two).unwrap();
            file.finish();
        }
        assert_eq!(lines(&path), 2);
        let kept = aside(&path);
        assert_eq!(kept.len(), 3, "{kept:?}");
        for name in kept {
            assert!(name.ends_with(".zst"), "{name}");
            assert_eq!(lines(&path.with_file_name(&name)), 4);
        }
    }

    #[test]
    fn a_file_is_put_aside_by_its_age_unless_it_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let rotation = Rotation { every_s: 60, zstd: false, ..Rotation::default() };
        let mut file = RotatingFile::open(path.clone(), rotation).unwrap();
        let due = file.wakes_at().unwrap();
        assert!(due <= Instant::now() + Duration::from_secs(60));
        file.wake();
        assert_eq!(aside(&path), Vec::<String>::new());
        file.deliver(&batch(1)).unwrap();
        file.wake();
        file.finish();
        assert_eq!(aside(&path).len(), 1);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(file.wakes_at().unwrap() > due);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_the_newest_file_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let future = "records.29990101T000000.000000Z";
        fs::write(path.with_file_name(future), "old\n").unwrap();
        let rotation = Rotation { max_bytes: 1, keep: 1, zstd: false, ..Rotation::default() };
        let mut file = RotatingFile::open(path.clone(), rotation).unwrap();
        file.deliver(&batch(1)).unwrap();
        file.deliver(&batch(1)).unwrap();
        file.finish();
        assert_eq!(aside(&path), ["records.29990101T000000.000001Z"]);
    }

    #[test]
    fn what_a_dead_process_left_half_compressed_is_made_whole_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let name = "records.20260101T000000.000000Z";
        fs::write(path.with_file_name(name), "a\nb\n").unwrap();
        fs::write(path.with_file_name(format!("{name}.zst.part")), "half").unwrap();
        for other in ["records.1", "records.bak.zst", "recordsx.20260101T000000.000000Z"] {
            fs::write(path.with_file_name(other), "").unwrap();
        }
        RotatingFile::open(path.clone(), Rotation { keep: 1, ..Rotation::default() }).unwrap().finish();
        let compressed = format!("{name}.zst");
        assert_eq!(aside(&path), std::slice::from_ref(&compressed));
        assert_eq!(lines(&path.with_file_name(compressed)), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5, "and the file in use");
    }
}
