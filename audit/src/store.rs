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
mod hour;
mod layout;
mod query;
mod reading;
mod rows;
mod writing;

pub use query::{IpBlock, MOST_NAMED, PodNamed, StoreQuery};
pub use reading::{ReadStoreError, read_namespaces, read_store, read_store_where, scan_store, store_size};
use writing::Current;

const HOUR: Duration = Duration::from_secs(3600);
/// A file that holds this part of all that may be kept is followed by another, so that there is something to drop.
const PART: u64 = 8;
/// Sizes are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
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
    /// Hours that records are kept. Default 24.
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
    looked: Instant,
}

impl Store {
    /// `node` is this node's name, as it stands in the lines.
    pub(crate) fn open(config: &StoreConfig, folder: &Path, node: &str) -> Result<Self, SinkError> {
        let error = |cause| SinkError::StoreFolder { folder: folder.to_owned(), cause };
        fs::create_dir_all(folder).map_err(error)?;
        let current = Current::begin(folder, SystemTime::now(), node)?;
        let store = Self {
            config: config.clone(),
            folder: folder.to_owned(),
            node: node.to_owned(),
            current,
            looked: Instant::now(),
        };
        store.drop_surplus();
        Ok(store)
    }

    fn keep(&mut self, batch: &Batch, now: SystemTime) -> Result<(), SinkError> {
        if self.is_full(now) {
            // The file in use is the newest until then, so a failure leaves it in use.
            let next = Current::begin(&self.folder, now, &self.node)?;
            std::mem::replace(&mut self.current, next).finish();
            self.drop_surplus();
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
    fn drop_surplus(&self) {
        let Ok(mut files) = files(&self.folder) else { return };
        files.retain(|file| *file != self.current.path);
        let mut total: u64 = size(&self.current.path) + files.iter().map(|file| size(file)).sum::<u64>();
        let oldest =
            SystemTime::now().checked_sub(HOUR * u32::try_from(self.config.max_age_h).unwrap_or(u32::MAX));
        for file in files {
            // Its last record is as old as its last change.
            let changed = fs::metadata(&file).and_then(|metadata| metadata.modified()).ok();
            let is_old = oldest.zip(changed).is_some_and(|(oldest, changed)| changed < oldest);
            if is_old || total > self.config.max_bytes {
                total = total.saturating_sub(size(&file));
                if let Err(error) = remove(&file) {
                    tracing::error!(%error, file = %file.display(), "an old file of the store is not removed");
                }
            }
        }
    }
}

impl Deliver for Store {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        self.keep(batch, SystemTime::now()).map_err(|cause| Undelivered { delivered: 0, cause })
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
