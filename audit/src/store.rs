//! Records in SQLite files, one an hour, that any `sqlite3` opens. Bounded: the oldest file is dropped whole.
//!
//! Every row has the whole line and, in columns of their own, what is asked for most. A batch is one transaction.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use flow::Endpoint;
use jiff::Timestamp;
use rusqlite::{Connection, Statement, params};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Entry, Told};
use crate::lane::{Deliver, Undelivered};
use crate::line::{self, LOST_ACTION};
use crate::output::SinkError;
use crate::record::Record;

mod reading;

pub use reading::{
    MOST_NAMED, PodNamed, ReadStoreError, StoreQuery, read_namespaces, read_store, store_size,
};

const HOUR: Duration = Duration::from_secs(3600);
/// A file that holds this part of all that may be kept is followed by another, so that there is something to drop.
const PART: u64 = 8;
/// Sizes are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const PREFIX: &str = "records-";
const SUFFIX: &str = ".sqlite";
/// `20261122T180000.000000Z`: sorts as text in the order of time.
const STAMP: &str = "%Y%m%dT%H%M%S%.6fZ";

const SCHEMA: &str = "
CREATE TABLE records (
    time INTEGER NOT NULL,          -- nanoseconds since 1970
    sequence INTEGER NOT NULL,
    action TEXT NOT NULL,           -- connection-started, ...
    id TEXT,
    source_ip TEXT, source_port INTEGER, source_namespace TEXT, source_pod TEXT,
    destination_ip TEXT, destination_port INTEGER, destination_namespace TEXT, destination_pod TEXT,
    end_cause TEXT,
    line TEXT NOT NULL              -- the whole record as JSON
);
CREATE INDEX records_time ON records (time);
CREATE INDEX records_action ON records (action, time);
CREATE INDEX records_source ON records (source_namespace, source_pod, time);
CREATE INDEX records_destination ON records (destination_namespace, destination_pod, time);
CREATE INDEX records_cause ON records (end_cause, time) WHERE end_cause IS NOT NULL;
";

const INSERT: &str =
    "INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";

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
    current: Current,
    looked: Instant,
}

#[derive(Debug)]
struct Current {
    connection: Connection,
    path: PathBuf,
    hour: u64,
}

impl Store {
    pub(crate) fn open(config: &StoreConfig, folder: &Path) -> Result<Self, SinkError> {
        let error = |cause| SinkError::StoreFolder { folder: folder.to_owned(), cause };
        fs::create_dir_all(folder).map_err(error)?;
        let current = Current::begin(folder, SystemTime::now())?;
        let store =
            Self { config: config.clone(), folder: folder.to_owned(), current, looked: Instant::now() };
        store.drop_surplus();
        Ok(store)
    }

    fn keep(&mut self, batch: &Batch, now: SystemTime) -> Result<(), SinkError> {
        if self.is_full(now) {
            // The file in use is the newest until then, so a failure leaves it in use.
            let next = Current::begin(&self.folder, now)?;
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
        self.current.settle();
    }
}

impl Current {
    fn begin(folder: &Path, now: SystemTime) -> Result<Self, SinkError> {
        let stamp = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH).strftime(STAMP).to_string();
        let path = folder.join(format!("{PREFIX}{stamp}{SUFFIX}"));
        let connection = Connection::open(&path).and_then(|connection| {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // A commit survives the process; the machine's end may take the last ones.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.busy_timeout(Duration::from_secs(1))?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        });
        let connection = connection.map_err(|cause| SinkError::Store { path: path.clone(), cause })?;
        Ok(Self { connection, path, hour: hour(now) })
    }

    fn insert(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let path = &self.path;
        let inserted = self.connection.transaction().and_then(|transaction| {
            let mut statement = transaction.prepare(INSERT)?;
            for entry in batch.entries() {
                insert(&mut statement, batch, entry)?;
            }
            drop(statement);
            transaction.commit()
        });
        inserted.map_err(|cause| SinkError::Store { path: path.clone(), cause })
    }

    /// Leaves one file, without a log beside it.
    fn settle(&self) {
        if let Err(error) = self.connection.pragma_update(None, "journal_mode", "DELETE") {
            tracing::warn!(%error, file = %self.path.display(), "a file of the store keeps its log beside it");
        }
    }

    fn finish(self) {
        self.settle();
    }
}

fn insert(statement: &mut Statement<'_>, batch: &Batch, entry: &Entry) -> rusqlite::Result<()> {
    let line = String::from_utf8_lossy(batch.line(entry));
    let line = line.trim_end();
    let sequence = i64::try_from(entry.sequence).unwrap_or(i64::MAX);
    match &entry.told {
        // The store keeps every record, and adds up when it is asked.
        Told::Summary => {}
        Told::Lost(_) => {
            let none = None::<&str>;
            statement.execute(params![
                nanos(SystemTime::now()),
                sequence,
                LOST_ACTION,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                line
            ])?;
        }
        Told::Record(record) => {
            let (source, destination) = (record.tuple.client.0, record.tuple.destination.0);
            statement.execute(params![
                nanos(line::told_at(record)),
                sequence,
                record.action.as_str(),
                record.id.to_string(),
                ip(source),
                source.port(),
                namespace(&record.source),
                pod(&record.source),
                ip(destination),
                destination.port(),
                namespace(&record.destination),
                pod(&record.destination),
                cause(record),
                line,
            ])?;
        }
    }
    Ok(())
}

fn ip(address: SocketAddr) -> String {
    address.ip().to_string()
}

fn namespace(endpoint: &Endpoint) -> Option<&str> {
    endpoint.pod().map(|pod| &*pod.namespace)
}

fn pod(endpoint: &Endpoint) -> Option<&str> {
    endpoint.pod().map(|pod| &*pod.name)
}

fn cause(record: &Record) -> Option<&'static str> {
    record.cause.map(flow::EndCause::as_str)
}

/// Nanoseconds since 1970; what is out of range is at its end.
fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
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
