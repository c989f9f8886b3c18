//! Questions to a store, also while another process writes it.
//!
//! A question about time alone reads the rows as they lie. One that names pods, namespaces, actions or causes is
//! answered by an index first: places of rows are gathered there, a file at a time, and the rows are fetched one
//! by one in the order that is wanted, for as long as anybody wants them. So the last few of a rare kind are found
//! without reading a day.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};

use super::{PREFIX, SUFFIX, files};
use crate::line::LOST_ACTION;

/// Values that each list of a [`StoreQuery`] may have. SQLite's expressions are at most 1,000 deep.
pub const MOST_NAMED: usize = 100;

/// What of a store to read. Times are nanoseconds since 1970, both included. What is named adds up; the values of
/// one list, of [`MOST_NAMED`] at most, are alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreQuery {
    /// Not before.
    pub since: i64,
    /// Not after.
    pub until: i64,
    /// Only records of a pod of one of these namespaces, at either end; empty is all.
    pub namespaces: Vec<String>,
    /// Only records of one of these pods, at either end; empty is all.
    pub pods: Vec<PodNamed>,
    /// Only these actions, as `connection-denied`; empty is all.
    pub actions: Vec<String>,
    /// Only what ended by one of these causes, as `refused`; empty is all.
    pub causes: Vec<String>,
    /// Only what policy refused or cut.
    pub denied: bool,
    /// Lines of lost records as well, whatever is named.
    pub losses: bool,
    /// From the newest record to the oldest.
    pub newest_first: bool,
}

/// Pods whose name begins so, in one namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNamed {
    /// The namespace; `None` is any.
    pub namespace: Option<String>,
    /// How the pod's name begins.
    pub prefix: String,
}

impl Default for StoreQuery {
    fn default() -> Self {
        Self {
            since: i64::MIN,
            until: i64::MAX,
            namespaces: Vec::new(),
            pods: Vec::new(),
            actions: Vec::new(),
            causes: Vec::new(),
            denied: false,
            losses: false,
            newest_first: false,
        }
    }
}

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
    /// One of its files.
    #[error("store file {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
}

/// Reads a store that another process may be writing, from the oldest record to the newest of each file, or the other
/// way round. `each` gets every line that the query wants and says whether to go on.
pub fn read_store(
    folder: &Path,
    query: &StoreQuery,
    mut each: impl FnMut(&str) -> bool,
) -> Result<(), ReadStoreError> {
    let mut files = files_to_read(folder)?;
    if query.newest_first {
        files.reverse();
    }
    for path in files {
        match read_file(&path, query, &mut each) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Dropped by its writer a moment ago.
            Err(_) if !path.exists() => {}
            Err(cause) => return Err(ReadStoreError::File { path, cause }),
        }
    }
    Ok(())
}

/// How many records a store has, but for those that may have been dropped from the middle of a file.
pub fn store_size(folder: &Path) -> Result<u64, ReadStoreError> {
    let mut records = 0;
    for path in files_to_read(folder)? {
        let counted = open_to_read(&path).and_then(|connection| {
            connection
                .query_row("SELECT coalesce(max(rowid), 0) FROM records", [], |row| row.get::<_, i64>(0))
        });
        match counted {
            Ok(count) => records += u64::try_from(count).unwrap_or(0),
            // Dropped by its writer a moment ago.
            Err(_) if !path.exists() => {}
            Err(cause) => return Err(ReadStoreError::File { path, cause }),
        }
    }
    Ok(records)
}

/// The namespaces of pods at either end of records since then (nanoseconds since 1970), in the order of their names.
pub fn read_namespaces(folder: &Path, since: i64) -> Result<Vec<String>, ReadStoreError> {
    let mut found = BTreeSet::new();
    for path in files_to_read(folder)? {
        let read = open_to_read(&path).and_then(|connection| {
            let mut recent = Vec::new();
            for side in SIDES {
                let sql =
                    format!("SELECT 1 FROM records WHERE {side}_namespace = ?1 AND +time >= ?2 LIMIT 1");
                let mut statement = connection.prepare(&sql)?;
                for name in namespaces(&connection, side)? {
                    if !found.contains(&name) && statement.exists((&name, since))? {
                        recent.push(name);
                    }
                }
            }
            Ok(recent)
        });
        match read {
            Ok(names) => found.extend(names),
            // Dropped by its writer a moment ago.
            Err(_) if !path.exists() => {}
            Err(cause) => return Err(ReadStoreError::File { path, cause }),
        }
    }
    Ok(found.into_iter().collect())
}

/// Both ends, as columns begin.
const SIDES: [&str; 2] = ["source", "destination"];

/// Every namespace of one side: one step in the index for each of them, where DISTINCT would walk all of it.
fn namespaces(connection: &Connection, side: &str) -> rusqlite::Result<Vec<String>> {
    let column = format!("{side}_namespace");
    let sql = format!(
        "WITH RECURSIVE names (name) AS (SELECT min({column}) FROM records UNION ALL \
         SELECT (SELECT min({column}) FROM records WHERE {column} > name) FROM names WHERE name IS NOT NULL) \
         SELECT name FROM names WHERE name IS NOT NULL"
    );
    connection.prepare(&sql)?.query_map([], |row| row.get(0))?.collect()
}

fn files_to_read(folder: &Path) -> Result<Vec<PathBuf>, ReadStoreError> {
    let files = files(folder).map_err(|cause| ReadStoreError::Folder { folder: folder.to_owned(), cause })?;
    if files.is_empty() { Err(ReadStoreError::Empty { folder: folder.to_owned() }) } else { Ok(files) }
}

fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    // Reading a file that is being written needs its shared memory, and so the right to write.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .or_else(|_| Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

/// False when `each` has had enough.
fn read_file(path: &Path, query: &StoreQuery, each: &mut impl FnMut(&str) -> bool) -> rusqlite::Result<bool> {
    let connection = open_to_read(path)?;
    match places(&connection, query)? {
        None => read_rows(&connection, query, each),
        Some(places) => fetch(&connection, query, &places, each),
    }
}

/// Rows in the order of their time, as the index of times has them.
fn read_rows(
    connection: &Connection,
    query: &StoreQuery,
    each: &mut impl FnMut(&str) -> bool,
) -> rusqlite::Result<bool> {
    let order = if query.newest_first { "time DESC, sequence DESC" } else { "time, sequence" };
    let sql = format!("SELECT line FROM records WHERE time BETWEEN ?1 AND ?2 ORDER BY {order}");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query((query.since, query.until))?;
    while let Some(row) = rows.next()? {
        if !each(row.get_ref(0)?.as_str()?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The rows at these places that the whole query wants.
fn fetch(
    connection: &Connection,
    query: &StoreQuery,
    places: &[Place],
    each: &mut impl FnMut(&str) -> bool,
) -> rusqlite::Result<bool> {
    let mut sql = Sql::new("SELECT line FROM records WHERE rowid = ?");
    sql.values.push(Value::Null);
    sql.push_wanted(query);
    let mut statement = connection.prepare(&sql.text)?;
    for (_, row) in places {
        sql.values[0] = Value::Integer(*row);
        let mut rows = statement.query(params_from_iter(&sql.values))?;
        if let Some(row) = rows.next()?
            && !each(row.get_ref(0)?.as_str()?)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A row's time and number. Rows are numbered as they were written.
type Place = (i64, i64);

/// Where the rows are that the query may want, in its order, by the index of what it names that is the rarest as a
/// rule; `None` when it names nothing.
fn places(connection: &Connection, query: &StoreQuery) -> rusqlite::Result<Option<Vec<Place>>> {
    let mut parts = Vec::new();
    let mut part = |condition: String, values: Vec<Value>| parts.push((condition, values));
    let text = |text: &String| Value::Text(text.clone());
    if !query.pods.is_empty() {
        for side in SIDES {
            let mut all = None;
            for pod in &query.pods {
                let named = match &pod.namespace {
                    Some(namespace) => std::slice::from_ref(namespace),
                    None => all.get_or_insert(namespaces(connection, side)?),
                };
                for namespace in named {
                    let values = vec![text(namespace), text(&pod.prefix), Value::Text(after(&pod.prefix))];
                    part(format!("{side}_namespace = ? AND {side}_pod >= ? AND {side}_pod < ?"), values);
                }
            }
        }
    } else if !query.causes.is_empty() {
        query.causes.iter().for_each(|cause| part("end_cause = ?".to_owned(), vec![text(cause)]));
    } else if query.denied {
        DENIED.iter().for_each(|condition| part((*condition).to_owned(), Vec::new()));
    } else if !query.namespaces.is_empty() {
        for side in SIDES {
            for namespace in &query.namespaces {
                part(format!("{side}_namespace = ?"), vec![text(namespace)]);
            }
        }
    } else if !query.actions.is_empty() {
        query.actions.iter().for_each(|action| part("action = ?".to_owned(), vec![text(action)]));
    } else {
        return Ok(None);
    }
    if query.losses {
        part(format!("action = '{LOST_ACTION}'"), Vec::new());
    }
    let mut places: Vec<Place> = Vec::new();
    for (condition, mut values) in parts {
        // The plus keeps the index of times out of it, which would walk everything of that time.
        let sql = format!("SELECT time, rowid FROM records WHERE {condition} AND +time BETWEEN ? AND ?");
        values.extend([Value::Integer(query.since), Value::Integer(query.until)]);
        let mut statement = connection.prepare(&sql)?;
        let rows = statement.query_map(params_from_iter(&values), |row| Ok((row.get(0)?, row.get(1)?)))?;
        for place in rows {
            places.push(place?);
        }
    }
    places.sort_unstable();
    places.dedup();
    if query.newest_first {
        places.reverse();
    }
    Ok(Some(places))
}

/// What policy refused, and what it cut.
const DENIED: [&str; 2] = ["action = 'connection-denied'", "end_cause = 'policy-revoked'"];

/// A text after all that begin with `prefix`: no name has the last of all characters.
fn after(prefix: &str) -> String {
    format!("{prefix}\u{10ffff}")
}

/// A statement and the values of its question marks, in their order.
struct Sql {
    text: String,
    values: Vec<Value>,
}

impl Sql {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), values: Vec::new() }
    }

    /// Adds everything that the query names, but for its time.
    fn push_wanted(&mut self, query: &StoreQuery) {
        self.text.push_str(" AND (1");
        self.push_list(&["action"], &query.actions);
        self.push_list(&["end_cause"], &query.causes);
        if query.denied {
            self.text.push_str(&format!(" AND ({})", DENIED.join(" OR ")));
        }
        self.push_list(&["source_namespace", "destination_namespace"], &query.namespaces);
        if !query.pods.is_empty() {
            self.text.push_str(" AND (0");
            for side in SIDES {
                for pod in &query.pods {
                    self.push_pod(side, pod);
                }
            }
            self.text.push(')');
        }
        if query.losses {
            self.text.push_str(&format!(" OR action = '{LOST_ACTION}'"));
        }
        self.text.push(')');
    }

    /// One of the columns has one of the values, if there are any.
    fn push_list(&mut self, columns: &[&str], values: &[String]) {
        if values.is_empty() {
            return;
        }
        let places = vec!["?"; values.len()].join(", ");
        let each: Vec<String> = columns.iter().map(|column| format!("{column} IN ({places})")).collect();
        self.text.push_str(&format!(" AND ({})", each.join(" OR ")));
        for _ in columns {
            self.values.extend(values.iter().cloned().map(Value::Text));
        }
    }

    fn push_pod(&mut self, side: &str, pod: &PodNamed) {
        self.text.push_str(&format!(" OR ({side}_pod >= ? AND {side}_pod < ?"));
        self.values.extend([Value::Text(pod.prefix.clone()), Value::Text(after(&pod.prefix))]);
        if let Some(namespace) = &pod.namespace {
            self.text.push_str(&format!(" AND {side}_namespace = ?"));
            self.values.push(Value::Text(namespace.clone()));
        }
        self.text.push(')');
    }
}
