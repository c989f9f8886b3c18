//! Records in SQLite files, one an hour, that any `sqlite3` opens. Bounded: the oldest file is dropped whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::lane::{Deliver, Undelivered};
use crate::output::SinkError;

mod blocks;
mod conditions;
mod dictionary;
mod hints;
mod hour;
mod layout;
mod query;
mod reading;
mod retention;
mod rows;
mod writing;

pub use hints::Hints;
pub use query::{IpBlock, MOST_NAMED, PodNamed, StoreQuery};
pub use reading::{ReadStoreError, read_namespaces, read_store, read_store_where, scan_store, store_size};
use retention::{Kept, Now, Retention};
use writing::Current;

const HOUR: Duration = Duration::from_secs(3600);
/// A file that holds this part of all that may be kept is followed by another, so that there is something to drop.
const PART: u64 = 8;
/// Sizes are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What is too old is dropped this often, also while nothing is recorded.
const DROP_EVERY: Duration = Duration::from_secs(600);
const PREFIX: &str = "records-";
const SUFFIX: &str = ".sqlite";
/// `20261122T180000.000000Z`: sorts as text in the order of time.
const STAMP: &str = "%Y%m%dT%H%M%S%.6fZ";

/// Where records are kept for questions, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The folder; made when it is missing. Default: none, and no store, unless `--data` names one.
    pub folder: Option<PathBuf>,
    /// Bytes of all files together. Default 1 GiB.
    pub max_bytes: u64,
    /// Hours that records are kept. A wall clock that is set, by days even, drops nothing. Default 24.
    pub max_age_h: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { folder: None, max_bytes: 1 << 30, max_age_h: 24 }
    }
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Store {
    config: StoreConfig,
    folder: PathBuf,
    node: String,
    current: Current,
    retention: Retention,
    looked: Instant,
    dropped: Instant,
}

impl Store {
    /// `node` is this node's name, as it stands in the lines.
    pub(crate) fn open(config: &StoreConfig, folder: &Path, node: &str) -> Result<Self, SinkError> {
        let error = |cause| SinkError::StoreFolder { folder: folder.to_owned(), cause };
        fs::create_dir_all(folder).map_err(error)?;
        let now = Now::read();
        let current = Current::begin(folder, now.wall, node)?;
        let mut store = Self {
            config: config.clone(),
            folder: folder.to_owned(),
            node: node.to_owned(),
            current,
            retention: Retention::new(config),
            looked: now.steady,
            dropped: now.steady,
        };
        store.drop_surplus(now);
        Ok(store)
    }

    fn keep(&mut self, batch: &Batch, now: Now) -> Result<(), SinkError> {
        if self.is_full(now.wall) {
            // The file in use is the newest until then, so a failure leaves it in use.
            let next = Current::begin(&self.folder, now.wall, &self.node)?;
            let mut full = std::mem::replace(&mut self.current, next);
            full.finish();
            self.retention.finished(full.path, now.steady);
            self.drop_surplus(now);
        } else if now.steady.saturating_duration_since(self.dropped) >= DROP_EVERY {
            self.drop_surplus(now);
        }
        self.current.insert(batch)
    }

    fn is_full(&mut self, now: SystemTime) -> bool {
        if self.current.hour != hour(now) {
            return true;
        }
        if self.looked.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked = Instant::now();
        size(&self.current.path) > self.config.max_bytes / PART
    }

    /// Drops files until what is left is small and young enough. The one in use stays.
    fn drop_surplus(&mut self, now: Now) {
        self.dropped = now.steady;
        let Ok(mut paths) = files(&self.folder) else { return };
        paths.retain(|path| *path != self.current.path);
        let files = paths.into_iter().map(|path| {
            // Its last record is as old as its last change.
            let changed = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
            Kept { bytes: size(&path), changed, path }
        });
        for path in self.retention.surplus(files.collect(), size(&self.current.path), now) {
            if let Err(error) = remove(&path) {
                tracing::error!(%error, file = %path.display(), "an old file of the store is not removed");
            }
        }
    }
}

impl Deliver for Store {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        self.keep(batch, Now::read()).map_err(|cause| Undelivered { delivered: 0, cause })
    }

    fn wakes_at(&self) -> Option<Instant> {
        Some(self.dropped + DROP_EVERY)
    }

    fn wake(&mut self) {
        self.drop_surplus(Now::read());
    }

    fn finish(&mut self) {
        self.current.finish();
    }
}

fn hour(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / HOUR.as_secs()
}

fn size(path: &Path) -> u64 {
    [path.to_owned(), beside(path, "-wal")]
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|file| file.len())
        .sum()
}

fn remove(path: &Path) -> io::Result<()> {
    for log in ["-wal", "-shm"] {
        match fs::remove_file(beside(path, log)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_file(path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The store's files, the oldest first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
