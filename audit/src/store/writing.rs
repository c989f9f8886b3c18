//! The file that rows are appended to. A batch is one transaction.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::{Span, Timestamp};
use rusqlite::{Connection, Statement, params};

use super::blocks;
use super::dictionary::{Ends, Given, Parts, Words};
use super::hints::{Marked, Marks, UNTOLD};
use super::layout::{BLOCK, COLUMNS, schema};
use super::{PREFIX, STAMP, SUFFIX, hour};
use crate::batch::{Batch, Entry, Told};
use crate::line::{self, LOST_ACTION};
use crate::output::SinkError;
use crate::parts;
use crate::record::{ConnectionId, Record};

/// A file of the store, open for writing.
#[derive(Debug)]
pub(super) struct Current {
    connection: Connection,
    pub(super) path: PathBuf,
    pub(super) hour: u64,
    insert: String,
    rows: Rows,
}

/// What the rows so far have told, and what the next ones need of it.
#[derive(Debug)]
struct Rows {
    /// Rows so far, and the number of the last.
    count: i64,
    words: Words,
    parts: Parts,
    ends: Ends,
    block: Block,
}

/// Rows since the last row of `blocks`.
#[derive(Debug)]
struct Block {
    /// The number of its first row.
    first: i64,
    length: usize,
    oldest: i64,
    newest: i64,
    /// See `blocks.words`.
    words: i64,
    marks: Marks,
    ends: blocks::Ends,
}

impl Current {
    pub(super) fn begin(folder: &Path, now: SystemTime, node: &str) -> Result<Self, SinkError> {
        let mut stamp = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
        let named = |stamp: Timestamp| folder.join(format!("{PREFIX}{}{SUFFIX}", stamp.strftime(STAMP)));
        // A clock that was set back may come to a time that it has been at.
        while named(stamp).exists() {
            stamp = stamp.saturating_add(Span::new().microseconds(1)).unwrap_or(Timestamp::UNIX_EPOCH);
        }
        let path = named(stamp);
        let connection = make(&path, node).map_err(|cause| {
            // On a full disk there would soon be thousands of them.
            let _ = super::remove(&path);
            SinkError::Store { path: path.clone(), cause }
        })?;
        let insert = format!("INSERT INTO connections VALUES ({})", vec!["?"; COLUMNS].join(", "));
        let rows = Rows {
            count: 0,
            words: Words::default(),
            parts: Parts::default(),
            ends: Ends::default(),
            block: Block::begin(1),
        };
        Ok(Self { connection, path, hour: hour(now), insert, rows })
    }

    pub(super) fn insert(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let rows = &mut self.rows;
        let (count, given) = (rows.count, Given::of(&rows.words, &rows.parts, &rows.ends));
        let inserted = self.connection.transaction().and_then(|transaction| {
            let mut statement = transaction.prepare(&self.insert)?;
            for entry in batch.entries() {
                rows.insert(&mut statement, batch, entry, &transaction)?;
            }
            drop(statement);
            transaction.commit()
        });
        inserted.map_err(|cause| {
            given.restore(&mut rows.words, &mut rows.parts, &mut rows.ends);
            rows.count = count;
            // What the block had of earlier rows is found by reading those.
            rows.block = Block::begin(count + 1);
            SinkError::Store { path: self.path.clone(), cause }
        })
    }

    /// Nothing more comes. Leaves one file, without a log beside it.
    pub(super) fn finish(&mut self) {
        let finished = self
            .rows
            .block
            .end(&self.connection)
            .and_then(|()| self.connection.pragma_update(None, "journal_mode", "DELETE"));
        if let Err(error) = finished {
            tracing::warn!(%error, file = %self.path.display(), "a file of the store keeps its log beside it");
        }
    }
}

/// A new file, with all of its tables or none.
fn make(path: &Path, node: &str) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit survives the process; the machine's end may take the last ones.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.busy_timeout(Duration::from_secs(1))?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(&schema())?;
    let mut observer = Vec::new();
    crate::json::text(&mut observer, node);
    transaction.execute(
        "INSERT INTO about VALUES (?1, ?2)",
        params![String::from_utf8_lossy(&observer), ConnectionId::process()],
    )?;
    transaction.commit()?;
    Ok(connection)
}

#[cfg(test)]
impl Current {
    /// The file grows no further than this: SQLite then fails as on a full disk.
    pub(super) fn limit_pages(&self, pages: u32) {
        self.connection.pragma_update(None, "max_page_count", pages).unwrap();
    }
}

impl Rows {
    fn insert(
        &mut self,
        statement: &mut Statement<'_>,
        batch: &Batch,
        entry: &Entry,
        file: &Connection,
    ) -> rusqlite::Result<()> {
        let row = match &entry.told {
            // The store keeps every record, and adds up when it is asked.
            Told::Summary => return Ok(()),
            Told::Lost(_) => self.lost(batch, entry, file)?,
            Told::Record(record) => match Fitting::of(record, entry) {
                Some(fitting) => self.record(record, &fitting, file)?,
                None => self.misfit(record, batch, entry, file)?,
            },
        };
        self.count += 1;
        row.bind(self.count, statement)?;
        statement.raw_execute()?;
        self.block.add(&row);
        if self.block.length == BLOCK {
            self.block.end(file)?;
        }
        Ok(())
    }

    fn record<'a>(
        &mut self,
        record: &Record,
        fitting: &Fitting<'a>,
        file: &Connection,
    ) -> rusqlite::Result<Row<'a>> {
        let Self { words, parts, ends, .. } = self;
        let mut row = Row::at(fitting.time, words.id(record.action.as_str(), file)?, fitting.sequence);
        let (client, server) = (record.tuple.client.0, record.tuple.destination.0);
        (row.source, row.destination) =
            (ends.id(&record.source, client.ip(), file)?, ends.id(&record.destination, server.ip(), file)?);
        let decision = parts::shown_decision(record);
        row.texts = [
            (row.source == 0).then(|| client.ip().to_string()),
            (row.destination == 0).then(|| server.ip().to_string()),
            line::upstream(record).filter(|leg| leg.ip() != client.ip()).map(|leg| leg.ip().to_string()),
        ];
        row.community = fitting.community;
        row.cause = record.cause.map(|cause| words.id(cause.as_str(), file)).transpose()?;
        row.before = [
            Some(words.id(record.tuple.protocol.as_lower_str(), file)?),
            Some(words.id(line::direction(record), file)?),
        ];
        let mut part = |write: &dyn Fn(&mut Vec<u8>)| {
            write(&mut parts.piece);
            parts.id(file).map(Some)
        };
        let egress = part(&|piece| parts::side(piece, &decision.egress))?;
        let ingress = part(&|piece| parts::side(piece, &decision.ingress))?;
        let service = match &record.service {
            Some(service) => part(&|piece| parts::service(piece, service))?,
            None => None,
        };
        let tls = match &record.tls {
            Some(hello) => part(&|piece| parts::tls(piece, hello))?,
            None => None,
        };
        let reason = match parts::reason(&mut parts.piece, record) {
            true => Some(parts.id(file)?),
            false => None,
        };
        let [client_leg, server_leg] = [record.legs.client, record.legs.server];
        let rtt = |leg: Option<crate::LegInfo>| leg.map(|leg| i64::from(leg.rtt_us));
        let retransmits = |leg: Option<crate::LegInfo>| leg.map(|leg| i64::from(leg.retransmits));
        row.after = [
            Some(i64::from(client.port())),
            Some(i64::from(server.port())),
            Some(fitting.connection),
            fitting.duration,
            fitting.bytes[0],
            fitting.bytes[1],
            egress,
            ingress,
            service,
            reason,
            tls,
            line::upstream(record).map(|leg| i64::from(leg.port())),
            Some(fitting.sequence),
            Some(fitting.age),
            Some(i64::from(record.end.is_some())),
            fitting.packets[0],
            fitting.packets[1],
            Some(fitting.generation),
            fitting.timing[0],
            fitting.timing[1],
            rtt(client_leg),
            retransmits(client_leg),
            rtt(server_leg),
            retransmits(server_leg),
            Some(i64::from(record.hairpin)),
        ];
        Ok(row)
    }

    /// What stands for lost records: nobody's.
    fn lost<'a>(&mut self, batch: &'a Batch, entry: &Entry, file: &Connection) -> rusqlite::Result<Row<'a>> {
        let line = text(batch, entry);
        // As its line says.
        let time = line.get(15..45).and_then(|time| time.parse::<Timestamp>().ok()).unwrap_or_default();
        let time = i64::try_from(time.as_nanosecond()).unwrap_or_default();
        let mut row = Row::at(time, self.words.id(LOST_ACTION, file)?, number(entry.sequence));
        row.line = Some(line);
        Ok(row)
    }

    /// A record of an impossible clock or count: its line as it is, and what can be asked for.
    fn misfit<'a>(
        &mut self,
        record: &Record,
        batch: &'a Batch,
        entry: &Entry,
        file: &Connection,
    ) -> rusqlite::Result<Row<'a>> {
        let clamped = |time: SystemTime| {
            nanos(time).unwrap_or(if time < SystemTime::UNIX_EPOCH { 0 } else { i64::MAX })
        };
        let sequence = number(entry.sequence);
        let action = self.words.id(record.action.as_str(), file)?;
        let mut row = Row::at(clamped(line::told_at(record)), action, sequence);
        let (client, server) = (record.tuple.client.0.ip(), record.tuple.destination.0.ip());
        (row.source, row.destination) =
            (self.ends.id(&record.source, client, file)?, self.ends.id(&record.destination, server, file)?);
        row.texts = [
            (row.source == 0).then(|| client.to_string()),
            (row.destination == 0).then(|| server.to_string()),
            None,
        ];
        row.cause = record.cause.map(|cause| self.words.id(cause.as_str(), file)).transpose()?;
        row.line = Some(text(batch, entry));
        Ok(row)
    }
}

fn text<'a>(batch: &'a Batch, entry: &Entry) -> &'a str {
    std::str::from_utf8(batch.line(entry)).unwrap_or_default().trim_end()
}

impl Block {
    fn begin(first: i64) -> Self {
        Self {
            first,
            length: 0,
            oldest: i64::MAX,
            newest: i64::MIN,
            words: 0,
            marks: Marks::NONE,
            ends: blocks::Ends::default(),
        }
    }

    fn add(&mut self, row: &Row<'_>) {
        self.ends.add(u16::try_from(self.length).unwrap_or(u16::MAX), row.source, row.destination);
        self.length += 1;
        self.oldest = self.oldest.min(row.time);
        self.newest = self.newest.max(row.time);
        for word in [Some(row.action), row.cause].into_iter().chain(row.before).flatten() {
            self.words |= 1 << word.min(62);
        }
        if row.line.is_some() {
            self.words |= UNTOLD;
        }
        self.marks.add(row.marked());
    }

    /// Writes the row of `blocks`, if there is anything to tell, and begins the next.
    fn end(&mut self, file: &Connection) -> rusqlite::Result<()> {
        if self.length == 0 {
            return Ok(());
        }
        let next = self.first + i64::try_from(self.length).unwrap_or_default();
        let ends = self.ends.take();
        file.prepare("INSERT INTO blocks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?.execute(
            params![
                self.first,
                next - 1,
                self.oldest,
                self.newest,
                self.words,
                self.marks.ports,
                self.marks.parts,
                self.marks.longest,
                self.marks.largest,
                ends
            ],
        )?;
        *self = Self::begin(next);
        Ok(())
    }
}

/// What of a record fits into columns, exactly.
struct Fitting<'a> {
    sequence: i64,
    time: i64,
    age: i64,
    connection: i64,
    duration: Option<i64>,
    bytes: [Option<i64>; 2],
    packets: [Option<i64>; 2],
    generation: i64,
    timing: [Option<i64>; 2],
    community: Option<&'a str>,
}

impl<'a> Fitting<'a> {
    /// `None` when something is out of range.
    fn of(record: &Record, entry: &'a Entry) -> Option<Self> {
        let signed = |count: u64| i64::try_from(count).ok();
        let each = |counts: [Option<u64>; 2]| {
            let [one, other] = counts;
            let fits = |count: Option<u64>| count.map(signed).map_or(Some(None), |count| count.map(Some));
            Some([fits(one)?, fits(other)?])
        };
        let time = nanos(line::told_at(record))?;
        let traffic = record.traffic;
        let is_counted = line::is_counted(record);
        let [duration, _] = each([record.duration.map(line::nanos_of), None])?;
        let timing = [record.timing.decide, record.timing.connect];
        Some(Self {
            sequence: signed(entry.sequence)?,
            time,
            age: time - nanos(record.start)?,
            connection: signed(record.id.number_here()?)?,
            duration,
            bytes: each(
                [traffic.client_bytes, traffic.server_bytes].map(|count| is_counted.then_some(count)),
            )?,
            packets: each(
                [traffic.client_packets, traffic.server_packets].map(|count| count.filter(|_| is_counted)),
            )?,
            generation: signed(parts::shown_decision(record).generation.0)?,
            timing: each(timing.map(|step| step.map(line::micros_of)))?,
            community: entry.community.as_ref().map(|community| community.as_str().split_at(2).1),
        })
    }
}

/// One row of `connections`.
struct Row<'a> {
    time: i64,
    action: i64,
    cause: Option<i64>,
    source: u32,
    destination: u32,
    /// Protocol and direction.
    before: [Option<i64>; 2],
    /// Addresses of the source, of the destination and of the leg to the server.
    texts: [Option<String>; 3],
    /// From `source_port` to `hairpin`.
    after: [Option<i64>; 25],
    community: Option<&'a str>,
    line: Option<&'a str>,
}

impl Row<'_> {
    fn at(time: i64, action: i64, sequence: i64) -> Self {
        let mut after = [None; 25];
        after[12] = Some(sequence);
        Self {
            time,
            action,
            cause: None,
            source: 0,
            destination: 0,
            before: [None; 2],
            texts: [None, None, None],
            after,
            community: None,
            line: None,
        }
    }

    fn marked(&self) -> Marked {
        let [_, port, _, duration, source_bytes, destination_bytes, egress, ingress, service, ..] =
            self.after;
        Marked { port, parts: [egress, ingress, service], duration, bytes: [source_bytes, destination_bytes] }
    }

    fn bind(&self, number: i64, statement: &mut Statement<'_>) -> rusqlite::Result<()> {
        let first = [
            Some(number),
            Some(self.time),
            Some(self.action),
            self.cause,
            self.before[0],
            self.before[1],
            Some(self.source.into()),
            Some(self.destination.into()),
        ];
        for (place, value) in (1..).zip(first) {
            statement.raw_bind_parameter(place, value)?;
        }
        statement.raw_bind_parameter(9, self.texts[0].as_deref())?;
        statement.raw_bind_parameter(10, self.texts[1].as_deref())?;
        for (place, value) in (11..).zip(self.after) {
            statement.raw_bind_parameter(place, value)?;
        }
        statement.raw_bind_parameter(36, self.community)?;
        statement.raw_bind_parameter(37, self.texts[2].as_deref())?;
        statement.raw_bind_parameter(38, self.line)
    }
}

/// Nanoseconds since 1970; `None` outside the years 1970 to 2262.
fn nanos(time: SystemTime) -> Option<i64> {
    i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
