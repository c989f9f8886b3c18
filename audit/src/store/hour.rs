//! One file of a store, open for questions.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Statement};

use super::blocks;
use super::conditions::{Conditions, Set};
use super::hints::Marks;
use super::layout::LAYOUT;
use super::query::StoreQuery;
use super::rows::{Brief, Known, MORE, NARROW};
use crate::glance::Glance;

/// Why a file cannot be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// Nothing is in it.
    Unbegun,
    /// It is of another version.
    Layout(i32),
    File(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::File(error)
    }
}

/// An open file, and what of it is known so far.
#[derive(Debug)]
pub(super) struct Hour {
    file: Connection,
    /// The number of its last row when it was opened: rows that come later are not looked at.
    last: i64,
    known: Known,
}

/// Rows that are looked at together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    first: i64,
    last: i64,
    pub(super) oldest: i64,
    pub(super) newest: i64,
    /// See `blocks.words`.
    pub(super) words: i64,
    pub(super) marks: Marks,
    /// Whether a row of `blocks` tells of its ends.
    is_told: bool,
}

/// Lines that are made together at first, and then.
const FIRST_LINES: usize = 32;
const MOST_LINES: usize = 512;

/// When a row was, and its number.
type Place = (i64, i64);

impl Hour {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let file = open(path)?;
        let layout: i32 = file.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if layout != LAYOUT {
            // The file is made first, and its tables after.
            let tables: i64 = file.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            return Err(if tables == 0 { OpenError::Unbegun } else { OpenError::Layout(layout) });
        }
        // Before the words: those of every row up to here are there.
        let last =
            file.query_row("SELECT coalesce(max(number), 0) FROM connections", [], |row| row.get(0))?;
        let about = file
            .query_row("SELECT node, process FROM about", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((node, process)) = about else { return Err(OpenError::Unbegun) };
        let known = Known::new(node, process, &file)?;
        Ok(Self { file, last, known })
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> i64 {
        self.last
    }

    /// Gives the lines of what is wanted to `each`, in the order of their times, and those of one time in the order
    /// in which they were written. False when it has had enough.
    pub(super) fn lines(
        &mut self,
        query: &StoreQuery,
        mut wanted: Option<&mut dyn FnMut(&Glance<'_>) -> bool>,
        each: &mut dyn FnMut(&str) -> bool,
    ) -> rusqlite::Result<bool> {
        let is_backwards = query.newest_first;
        let Some(conditions) = Conditions::of(query, &self.known, &self.file)? else { return Ok(true) };
        let mut spans = self.spans()?;
        spans.retain(|span| conditions.may_be_in(span));
        if is_backwards {
            spans.sort_by_key(|span| std::cmp::Reverse(span.newest));
        } else {
            spans.sort_by_key(|span| span.oldest);
        }
        let Self { file, known, .. } = self;
        let mut line = file.prepare("SELECT line FROM records WHERE number = ?1")?;
        let mut found: Vec<Place> = Vec::new();
        for (place, span) in spans.iter().enumerate() {
            each_row(file, span, &conditions, wanted.is_some(), |row| {
                let is_wanted = match &mut wanted {
                    Some(wanted) => known.glance(row, file, |glance| wanted(glance))?,
                    None => true,
                };
                if is_wanted {
                    found.push((row.time, row.number));
                }
                Ok(())
            })?;
            found.sort_unstable();
            // What the next spans may still come before stays.
            let next = spans.get(place + 1);
            let goes_on = if is_backwards {
                let ready = next.map_or(0, |next| found.partition_point(|(time, _)| *time <= next.newest));
                tell(file, &mut line, found.split_off(ready).iter().rev(), each)?
            } else {
                let ready =
                    next.map_or(found.len(), |next| found.partition_point(|(time, _)| *time < next.oldest));
                let rest = found.split_off(ready);
                tell(file, &mut line, std::mem::replace(&mut found, rest).iter(), each)?
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives all that is wanted to `each`, in the order in which it was written. False when it has had enough, after
    /// which the rest of a block still comes.
    pub(super) fn scan(
        &mut self,
        query: &StoreQuery,
        each: &mut dyn FnMut(&Glance<'_>) -> bool,
    ) -> rusqlite::Result<bool> {
        let Some(conditions) = Conditions::of(query, &self.known, &self.file)? else { return Ok(true) };
        let spans = self.spans()?;
        let Self { file, known, .. } = self;
        let mut goes_on = true;
        for span in spans.iter().filter(|span| conditions.may_be_in(span)) {
            each_row(file, span, &conditions, true, |row| {
                known.glance(row, file, |glance| goes_on &= each(glance))
            })?;
            if !goes_on {
                break;
            }
        }
        Ok(goes_on)
    }

    /// Adds the namespaces of both ends of every record since then.
    pub(super) fn namespaces(&mut self, since: i64, found: &mut BTreeSet<String>) -> rusqlite::Result<()> {
        let query = StoreQuery { since, ..StoreQuery::default() };
        let Some(conditions) = Conditions::of(&query, &self.known, &self.file)? else { return Ok(()) };
        let spans = self.spans()?;
        // Every end is there for a row.
        let is_whole = spans.iter().all(|span| span.oldest >= since);
        let mut seen = Set::default();
        for span in spans.iter().filter(|span| !is_whole && conditions.may_be_in(span)) {
            each_row(&self.file, span, &conditions, false, |row| {
                seen.add(row.source);
                seen.add(row.destination);
                Ok(())
            })?;
        }
        let mut statement =
            self.file.prepare("SELECT id, namespace FROM ends WHERE namespace IS NOT NULL")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if is_whole || seen.has(row.get(0)?) {
                found.insert(row.get(1)?);
            }
        }
        Ok(())
    }

    /// All rows: blocks, and what no block tells of.
    fn spans(&self) -> rusqlite::Result<Vec<Span>> {
        let untold = |first, last| Span {
            first,
            last,
            oldest: i64::MIN,
            newest: i64::MAX,
            words: -1,
            marks: Marks::NONE,
            is_told: false,
        };
        let mut statement = self.file.prepare(
            "SELECT first, last, oldest, newest, words, ports, parts, longest, largest FROM blocks \
             WHERE last <= ?1 ORDER BY first",
        )?;
        let mut rows = statement.query([self.last])?;
        let (mut spans, mut next) = (Vec::new(), 1);
        while let Some(row) = rows.next()? {
            let span = Span {
                first: row.get(0)?,
                last: row.get(1)?,
                oldest: row.get(2)?,
                newest: row.get(3)?,
                words: row.get(4)?,
                marks: Marks {
                    ports: row.get(5)?,
                    parts: row.get(6)?,
                    longest: row.get(7)?,
                    largest: row.get(8)?,
                },
                is_told: true,
            };
            if span.first > next {
                spans.push(untold(next, span.first - 1));
            }
            next = span.last + 1;
            spans.push(span);
        }
        if next <= self.last {
            spans.push(untold(next, self.last));
        }
        Ok(spans)
    }
}

/// Gives the rows of a span that meet the conditions to `each`, in their order.
fn each_row(
    file: &Connection,
    span: &Span,
    conditions: &Conditions,
    is_wide: bool,
    mut each: impl FnMut(&Brief<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let columns = if is_wide { format!("{NARROW}, {MORE}") } else { NARROW.to_owned() };
    let mut look = |row: &rusqlite::Row<'_>| {
        let brief = Brief::of(row, is_wide)?;
        if conditions.are_met(&brief) { each(&brief) } else { Ok(()) }
    };
    // The file is locked once, not for every row that is looked up.
    let _reading = file.unchecked_transaction()?;
    match numbers(file, span, conditions)? {
        Some(numbers) => {
            let sql = format!("SELECT {columns} FROM connections WHERE number = ?1");
            let mut statement = file.prepare(&sql)?;
            for number in numbers {
                let mut rows = statement.query([number])?;
                if let Some(row) = rows.next()? {
                    look(row)?;
                }
            }
        }
        None => {
            let sql = format!("SELECT {columns} FROM connections WHERE number BETWEEN ?1 AND ?2");
            let mut statement = file.prepare(&sql)?;
            let mut rows = statement.query([span.first, span.last])?;
            while let Some(row) = rows.next()? {
                look(row)?;
            }
        }
    }
    Ok(())
}

/// The rows of the ends that are asked for, where their block tells and they are few.
fn numbers(file: &Connection, span: &Span, conditions: &Conditions) -> rusqlite::Result<Option<Vec<i64>>> {
    if !span.is_told || !conditions.ask_for_ends() {
        return Ok(None);
    }
    let told: Vec<u8> =
        file.query_row("SELECT ends FROM blocks WHERE first = ?1", [span.first], |row| row.get(0))?;
    let mut numbers = Vec::new();
    let is_whole =
        blocks::rows(&told, |end| conditions.may_be_of(end), |row| numbers.push(span.first + i64::from(row)));
    numbers.sort_unstable();
    numbers.dedup();
    let length = usize::try_from(span.last - span.first + 1).unwrap_or(usize::MAX);
    Ok((is_whole && numbers.len() <= length / 4).then_some(numbers))
}

/// Gives the lines of these rows to `each`; false when it has had enough. The file is not read while `each` has them: the
/// first few are made alone, for who wants no more, and then more at a time, because the file is locked anew each time.
fn tell<'a>(
    file: &Connection,
    line: &mut Statement<'_>,
    mut places: impl Iterator<Item = &'a Place>,
    each: &mut dyn FnMut(&str) -> bool,
) -> rusqlite::Result<bool> {
    let mut lines: Vec<String> = Vec::new();
    let mut together = FIRST_LINES;
    loop {
        let reading = file.unchecked_transaction()?;
        for (_, number) in places.by_ref().take(together) {
            lines.push(line.query_row([number], |row| row.get(0))?);
        }
        drop(reading);
        if lines.is_empty() {
            return Ok(true);
        }
        if !lines.drain(..).all(|line| each(&line)) {
            return Ok(false);
        }
        together = MOST_LINES;
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    // Reading a file that is being written needs its shared memory, and so the right to write.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(path, flags)
        .or_else(|_| Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
    file.busy_timeout(Duration::from_secs(5))?;
    Ok(file)
}
