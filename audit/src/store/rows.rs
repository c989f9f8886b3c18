//! Rows of a file as they are read, and what the numbers in them stand for.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use serde_json::Value;

use crate::glance::{End, Glance};

/// Columns that conditions look at.
pub(super) const NARROW: &str = "number, time, action, cause, source, destination, source_ip, destination_ip";
/// Columns that a [`Glance`] needs beside.
pub(super) const MORE: &str = "protocol, direction, source_port, destination_port, connection, duration, \
                               source_bytes, destination_bytes, egress, ingress, service, line";

/// What is read of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brief<'r> {
    pub(super) number: i64,
    pub(super) time: i64,
    pub(super) action: i64,
    pub(super) cause: Option<i64>,
    pub(super) source: u32,
    pub(super) destination: u32,
    pub(super) source_ip: Option<&'r str>,
    pub(super) destination_ip: Option<&'r str>,
    more: Option<More<'r>>,
}

#[derive(Clone, Copy, Debug)]
struct More<'r> {
    protocol: Option<i64>,
    direction: Option<i64>,
    source_port: Option<i64>,
    destination_port: Option<i64>,
    connection: Option<i64>,
    duration: Option<i64>,
    source_bytes: Option<i64>,
    destination_bytes: Option<i64>,
    egress: Option<i64>,
    ingress: Option<i64>,
    service: Option<i64>,
    line: Option<&'r str>,
}

impl<'r> Brief<'r> {
    /// From the columns of [`NARROW`], and of [`MORE`] where it is wide.
    pub(super) fn of(row: &'r Row<'_>, is_wide: bool) -> rusqlite::Result<Self> {
        let more = || {
            Ok::<_, rusqlite::Error>(More {
                protocol: integer(row, 8)?,
                direction: integer(row, 9)?,
                source_port: integer(row, 10)?,
                destination_port: integer(row, 11)?,
                connection: integer(row, 12)?,
                duration: integer(row, 13)?,
                source_bytes: integer(row, 14)?,
                destination_bytes: integer(row, 15)?,
                egress: integer(row, 16)?,
                ingress: integer(row, 17)?,
                service: integer(row, 18)?,
                line: text(row, 19)?,
            })
        };
        let end =
            |place| Ok::<_, rusqlite::Error>(u32::try_from(integer(row, place)?.unwrap_or(0)).unwrap_or(0));
        Ok(Self {
            number: integer(row, 0)?.unwrap_or(0),
            time: integer(row, 1)?.unwrap_or(0),
            action: integer(row, 2)?.unwrap_or(-1),
            cause: integer(row, 3)?,
            source: end(4)?,
            destination: end(5)?,
            source_ip: text(row, 6)?,
            destination_ip: text(row, 7)?,
            more: if is_wide { Some(more()?) } else { None },
        })
    }
}

fn integer(row: &Row<'_>, place: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(place)? {
        ValueRef::Integer(value) => Some(value),
        _ => None,
    })
}

fn text<'r>(row: &'r Row<'_>, place: usize) -> rusqlite::Result<Option<&'r str>> {
    Ok(match row.get_ref(place)? {
        ValueRef::Text(text) => std::str::from_utf8(text).ok(),
        _ => None,
    })
}

/// What the numbers in a file's rows stand for, each read when it is first met.
#[derive(Debug)]
pub(super) struct Known {
    node: String,
    process: u128,
    words: Vec<String>,
    ends: Vec<Option<Box<Who>>>,
    parts: Vec<Option<Box<Value>>>,
}

/// Who stands at an end.
#[derive(Debug)]
struct Who {
    ip: String,
    k8s: Value,
}

/// The end behind which nobody is known.
static NOBODY: Value = Value::Null;

impl Known {
    /// `node` is a string of JSON, `process` hexadecimal.
    pub(super) fn new(node: String, process: String, file: &Connection) -> rusqlite::Result<Self> {
        let mut words = Vec::new();
        let mut statement = file.prepare("SELECT id, text FROM words ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            *place(&mut words, row.get(0)?) = row.get(1)?;
        }
        let process = u64::from_str_radix(&process, 16).unwrap_or_default();
        Ok(Self {
            node: serde_json::from_str(&node).unwrap_or_default(),
            process: u128::from(process),
            words,
            ends: Vec::new(),
            parts: Vec::new(),
        })
    }

    /// The bit of a word in the masks of blocks; 0 when no row has it.
    pub(super) fn bit(&self, word: &str) -> i64 {
        self.words.iter().position(|known| known == word).map_or(0, |place| 1 << place.min(62))
    }

    /// Shows a wide row.
    pub(super) fn glance<T>(
        &mut self,
        row: &Brief<'_>,
        file: &Connection,
        shown: impl FnOnce(&Glance<'_>) -> T,
    ) -> rusqlite::Result<T> {
        let Some(more) = &row.more else { return Ok(shown(&Glance::from(&NOBODY))) };
        if let Some(line) = more.line {
            let line = serde_json::from_str(line).unwrap_or_default();
            return Ok(shown(&Glance::from(&line)));
        }
        self.load_end(row.source, file)?;
        self.load_end(row.destination, file)?;
        for part in [more.egress, more.ingress, more.service].into_iter().flatten() {
            self.load_part(part, file)?;
        }
        let unsigned = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        let end = |id: u32, ip, port, bytes| {
            let who = self.ends.get(id as usize).and_then(Option::as_deref);
            End {
                ip: who.map(|who| &*who.ip).or(ip),
                port: unsigned(port),
                bytes: unsigned(bytes),
                k8s: who.map_or(&NOBODY, |who| &who.k8s),
            }
        };
        Ok(shown(&Glance {
            time: Some(row.time),
            action: self.word(Some(row.action)).unwrap_or_default(),
            id: self.process << 64 | u128::from(unsigned(more.connection).unwrap_or_default()),
            duration: unsigned(more.duration),
            transport: self.word(more.protocol).unwrap_or_default(),
            direction: self.word(more.direction).unwrap_or_default(),
            node: &self.node,
            source: end(row.source, row.source_ip, more.source_port, more.source_bytes),
            destination: end(
                row.destination,
                row.destination_ip,
                more.destination_port,
                more.destination_bytes,
            ),
            service: self.part(more.service),
            egress: self.part(more.egress),
            ingress: self.part(more.ingress),
            cause: self.word(row.cause),
        }))
    }

    /// Who wrote the file.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    fn word(&self, id: Option<i64>) -> Option<&str> {
        self.words.get(usize::try_from(id?).ok()?).map(String::as_str)
    }

    fn part(&self, id: Option<i64>) -> &Value {
        let part = id.and_then(|id| self.parts.get(usize::try_from(id).ok()?)?.as_deref());
        part.unwrap_or(&NOBODY)
    }

    fn load_end(&mut self, id: u32, file: &Connection) -> rusqlite::Result<()> {
        if id == 0 || self.ends.get(id as usize).is_some_and(Option::is_some) {
            return Ok(());
        }
        let mut statement = file.prepare("SELECT ip, k8s FROM ends WHERE id = ?1")?;
        let who = statement.query_row([id], |row| {
            let k8s: String = row.get(1)?;
            Ok(Who { ip: row.get(0)?, k8s: serde_json::from_str(&k8s).unwrap_or_default() })
        })?;
        *place(&mut self.ends, id.into()) = Some(Box::new(who));
        Ok(())
    }

    fn load_part(&mut self, id: i64, file: &Connection) -> rusqlite::Result<()> {
        let is_there = |place| self.parts.get(place).is_some_and(Option::is_some);
        if usize::try_from(id).is_ok_and(is_there) {
            return Ok(());
        }
        let mut statement = file.prepare("SELECT text FROM parts WHERE id = ?1")?;
        let text: String = statement.query_row([id], |row| row.get(0))?;
        *place(&mut self.parts, id) = Some(Box::new(serde_json::from_str(&text).unwrap_or_default()));
        Ok(())
    }
}

/// A place that is made when it is not there yet. Numbers are given one after the other.
fn place<T: Default>(of: &mut Vec<T>, id: i64) -> &mut T {
    let place = usize::try_from(id).unwrap_or_default();
    if of.len() <= place {
        of.resize_with(place + 1, T::default);
    }
    &mut of[place]
}
