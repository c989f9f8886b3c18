//! Questions to a store, also while another process writes it.
//!
//! A file at a time, in the order that is wanted. What is read of rows is numbers first; lines are made only of those
//! that are wanted, one by one and for as long as anybody wants them. No statement stays open in between, so that
//! somebody who reads slowly does not keep the writer's log from being emptied.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::hour::{Hour, OpenError};
use super::query::StoreQuery;
use super::{PREFIX, SUFFIX, files};
use crate::glance::Glance;

/// A store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadStoreError {
    /// Its folder.
    #[error("store {}: {cause}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There is no file of a store in the folder.
    #[error("store {}: there are no {PREFIX}*{SUFFIX} files", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// One of its files. The others were read.
    #[error("store file {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
    /// One of its files has a layout of another version of Sluice. The others were read.
    #[error("store file {}: it has layout {layout}, which this version of Sluice does not know", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        layout: i32,
    },
}

/// Reads a store that another process may be writing, from the oldest record to the newest of each file, or the other
/// way round. `each` gets every line that the query wants and says whether to go on. A file that cannot be read does
/// not hide the others: its error comes last.
pub fn read_store(
    folder: &Path,
    query: &StoreQuery,
    mut each: impl FnMut(&str) -> bool,
) -> Result<(), ReadStoreError> {
    each_hour(folder, query.newest_first, |hour| hour.lines(query, None, &mut each))
}

/// The same, for those records alone that are wanted; only of these are lines made.
pub fn read_store_where(
    folder: &Path,
    query: &StoreQuery,
    mut wanted: impl FnMut(&Glance<'_>) -> bool,
    mut each: impl FnMut(&str) -> bool,
) -> Result<(), ReadStoreError> {
    each_hour(folder, query.newest_first, |hour| hour.lines(query, Some(&mut wanted), &mut each))
}

/// Gives every record that the query wants to `each`, in the order in which they were written. Blocks are read for as
/// long as it says that it goes on.
pub fn scan_store(
    folder: &Path,
    query: &StoreQuery,
    mut each: impl FnMut(&Glance<'_>) -> bool,
) -> Result<(), ReadStoreError> {
    each_hour(folder, false, |hour| hour.scan(query, &mut each))
}

/// How many records a store has, but for those that may have been dropped from the middle of a file.
pub fn store_size(folder: &Path) -> Result<u64, ReadStoreError> {
    let mut records = 0;
    each_hour(folder, false, |hour| {
        records += u64::try_from(hour.count()).unwrap_or(0);
        Ok(true)
    })?;
    Ok(records)
}

/// The namespaces of pods at either end of records since then (nanoseconds since 1970), in the order of their names.
pub fn read_namespaces(folder: &Path, since: i64) -> Result<Vec<String>, ReadStoreError> {
    let mut found = BTreeSet::new();
    each_hour(folder, false, |hour| hour.namespaces(since, &mut found).map(|()| true))?;
    Ok(found.into_iter().collect())
}

/// Gives every file to `read`, which says whether to go on.
fn each_hour(
    folder: &Path,
    newest_first: bool,
    mut read: impl FnMut(&mut Hour) -> rusqlite::Result<bool>,
) -> Result<(), ReadStoreError> {
    let error = |cause| ReadStoreError::Folder { folder: folder.to_owned(), cause };
    let mut files = files(folder).map_err(error)?;
    if files.is_empty() {
        return Err(ReadStoreError::Empty { folder: folder.to_owned() });
    }
    if newest_first {
        files.reverse();
    }
    let mut outcome = Ok(());
    for path in files {
        let error = match Hour::open(&path) {
            Ok(mut hour) => match read(&mut hour) {
                Ok(true) => continue,
                Ok(false) => return outcome,
                Err(cause) => ReadStoreError::File { path, cause },
            },
            // Begun a moment ago, and nothing is in it yet.
            Err(OpenError::Unbegun) => continue,
            Err(OpenError::Layout(layout)) => ReadStoreError::Layout { path, layout },
            Err(OpenError::File(cause)) => ReadStoreError::File { path, cause },
        };
        let (ReadStoreError::File { path, .. } | ReadStoreError::Layout { path, .. }) = &error else {
            continue;
        };
        // Unless it was dropped by its writer a moment ago.
        if path.exists() {
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}
