//! What a block tells of its rows in a few numbers, so that a question passes over blocks that have nothing of what it
//! names. A block that is not passed over may have nothing of it all the same.

use rusqlite::Connection;

use super::hour::Span;
use super::rows::Known;

/// What every record that is wanted has, beside what the question itself names. Records that have it not may be read
/// all the same. Values of one list are alternatives; what is empty, or 0, leaves out nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Names of nodes that write records.
    pub nodes: Vec<String>,
    /// Ports of the server.
    pub ports: Vec<u16>,
    /// As `tcp`.
    pub protocols: Vec<String>,
    /// As `egress`.
    pub directions: Vec<String>,
    /// Labels at either end, with a value or with any.
    pub labels: Vec<(String, Option<String>)>,
    /// Names of workloads at either end.
    pub workloads: Vec<String>,
    /// What stands in the name of a policy that had a say.
    pub policies: Vec<String>,
    /// Names of Services.
    pub services: Vec<String>,
    /// Nanoseconds that the connection lived.
    pub least_ns: u64,
    /// Bytes both ways.
    pub least_bytes: u64,
}

/// What a row has that blocks tell of here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marked {
    pub(super) port: Option<i64>,
    /// Both decisions and the Service.
    pub(super) parts: [Option<i64>; 3],
    pub(super) duration: Option<i64>,
    pub(super) bytes: [Option<i64>; 2],
}

/// What the rows of a block have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// A bit for each port; some share one.
    pub(super) ports: i64,
    /// A bit for each decision and Service.
    pub(super) parts: i64,
    /// The longest duration, and the most bytes; -1 where no row tells.
    pub(super) longest: i64,
    pub(super) largest: i64,
}

impl Marks {
    pub(super) const NONE: Self = Self { ports: 0, parts: 0, longest: -1, largest: -1 };

    pub(super) fn add(&mut self, row: Marked) {
        self.ports |= row.port.map_or(0, bit);
        self.parts |= row.parts.into_iter().flatten().map(bit).fold(0, |all, bit| all | bit);
        self.longest = self.longest.max(row.duration.unwrap_or(-1));
        let bytes = row.bytes.into_iter().flatten().fold(0, i64::saturating_add);
        self.largest = self.largest.max(bytes);
    }
}

/// One of 64, spread so that neighbours differ.
fn bit(number: i64) -> i64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

    let place = number.cast_unsigned().wrapping_mul(GOLDEN) >> 58;
    (1_u64 << place).cast_signed()
}

/// The bit of a block's words that says that a row has more to tell than its columns do.
pub(super) const UNTOLD: i64 = i64::MIN;

/// Hints in the numbers of one file. Bits are those that a block must have one of; `None` is any.
#[derive(Debug)]
pub(super) struct Sought {
    is_other_node: bool,
    protocols: Option<i64>,
    directions: Option<i64>,
    ports: Option<i64>,
    policies: Option<i64>,
    services: Option<i64>,
    least_ns: i64,
    least_bytes: i64,
}

impl Sought {
    pub(super) fn of(hints: &Hints, known: &Known, file: &Connection) -> rusqlite::Result<Self> {
        let any = |bits: Vec<i64>| (!bits.is_empty()).then(|| bits.into_iter().fold(0, |all, bit| all | bit));
        let words = |words: &[String]| any(words.iter().map(|word| known.bit(word)).collect());
        let [policies, services] = parts(hints, file)?;
        let least = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Self {
            is_other_node: !hints.nodes.is_empty() && !hints.nodes.iter().any(|node| node == known.node()),
            protocols: words(&hints.protocols),
            directions: words(&hints.directions),
            ports: any(hints.ports.iter().map(|port| bit(i64::from(*port))).collect()),
            policies,
            services,
            least_ns: least(hints.least_ns),
            least_bytes: least(hints.least_bytes),
        })
    }

    /// Whether a row of a span may have what is sought.
    pub(super) fn may_be_in(&self, span: &Span) -> bool {
        let has_one = |sought: Option<i64>, of: i64| sought.is_none_or(|sought| sought & of != 0);
        !self.is_other_node
            && (span.words & UNTOLD != 0
                || has_one(self.protocols, span.words)
                    && has_one(self.directions, span.words)
                    && has_one(self.ports, span.marks.ports)
                    && has_one(self.policies, span.marks.parts)
                    && has_one(self.services, span.marks.parts)
                    && (self.least_ns == 0 || span.marks.longest >= self.least_ns)
                    && (self.least_bytes == 0 || span.marks.largest >= self.least_bytes))
    }
}

/// Bits of the parts that may be of the policies and Services that are asked for.
fn parts(hints: &Hints, file: &Connection) -> rusqlite::Result<[Option<i64>; 2]> {
    let asked = [&hints.policies, &hints.services];
    let mut found = asked.map(|names| (!names.is_empty()).then_some(0));
    if found == [None, None] {
        return Ok(found);
    }
    let mut statement = file.prepare("SELECT id, text FROM parts")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, text): (i64, String) = (row.get(0)?, row.get(1)?);
        for (names, bits) in asked.iter().zip(&mut found) {
            if let Some(bits) = bits
                && names.iter().any(|name| text.contains(&**name))
            {
                *bits |= bit(id);
            }
        }
    }
    Ok(found)
}

impl Hints {
    /// Whether ends are asked for.
    pub(super) fn ask_for_ends(&self) -> bool {
        !self.labels.is_empty() || !self.workloads.is_empty()
    }

    /// Whether this may be an end that is asked for, by its `k8s`.
    pub(super) fn may_be_of(&self, k8s: &str) -> bool {
        let Ok(k8s) = serde_json::from_str::<serde_json::Value>(k8s) else { return true };
        let has = |(key, value): &(String, Option<String>)| {
            let known = k8s["labels"].get(key).and_then(serde_json::Value::as_str);
            known.is_some_and(|known| value.as_ref().is_none_or(|value| known == value))
        };
        let owner = k8s["owner"]["name"].as_str();
        (self.labels.is_empty() || self.labels.iter().any(has))
            && (self.workloads.is_empty() || self.workloads.iter().any(|name| owner == Some(&**name)))
    }
}

#[cfg(test)]
#[path = "hints_tests.rs"]
mod tests;
