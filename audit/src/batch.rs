//! Records that were numbered together, and the lines they became. Every sink shares one batch.

use std::ops::Range;
use std::time::SystemTime;

use crate::community::CommunityId;
use crate::line::{self, LineWriter};
use crate::record::{Action, Record};
use crate::summary::{Pair, Sums};
use crate::summary_line;

/// Numbers whose records are missing. One line stands in their place, with the last of them as its own
/// `event.sequence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The first missing number.
    pub(crate) first: u64,
    /// The last missing number.
    pub(crate) last: u64,
    /// How many are missing from `first` to `last`: all of them, or some.
    pub(crate) count: u64,
    /// Where they were lost.
    pub(crate) cause: LossCause,
}

/// Where records were lost. The name goes into `event.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LossCause {
    /// The queue was full: they came faster than lines can be made.
    QueueFull,
    /// The sink was too slow for them.
    SinkSlow,
    /// The sink refused them.
    SinkFailed,
}

impl LossCause {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::SinkSlow => "sink-slow",
            Self::SinkFailed => "sink-failed",
        }
    }
}

impl Lost {
    /// `earlier` and this together.
    pub(crate) fn after(self, earlier: Option<Self>) -> Self {
        match earlier {
            None => self,
            Some(earlier) => Self { first: earlier.first, count: earlier.count + self.count, ..self },
        }
    }
}

/// What one line tells.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// A record.
    Record(Box<Record>),
    /// Records that are missing.
    Lost(Lost),
    /// What many records add up to, for one sink.
    Summary,
}

impl Told {
    /// Records that the line accounts for, when it is itself lost.
    pub(crate) fn records(&self) -> u64 {
        match self {
            Self::Record(_) => 1,
            Self::Lost(lost) => lost.count,
            Self::Summary => 0,
        }
    }

    /// True for what a sink keeps beyond its limit under [`crate::Overflow::BlockNew`]: without it, a carried
    /// connection would go unrecorded. There are no more of these than live connections.
    pub(crate) fn is_essential(&self) -> bool {
        match self {
            Self::Record(record) => is_essential(record.action),
            Self::Lost(_) => true,
            Self::Summary => false,
        }
    }
}

/// See [`Told::is_essential`].
pub(crate) const fn is_essential(action: Action) -> bool {
    matches!(action, Action::Started | Action::Ended)
}

/// One line and what it tells.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// `event.sequence`.
    pub(crate) sequence: u64,
    pub(crate) told: Told,
    /// Of a record.
    pub(crate) community: Option<CommunityId>,
    place: Range<usize>,
}

/// Lines in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    lines: Vec<u8>,
    entries: Vec<Entry>,
}

impl Batch {
    pub(crate) fn with_capacity(bytes: usize, entries: usize) -> Self {
        Self { lines: Vec::with_capacity(bytes), entries: Vec::with_capacity(entries) }
    }

    /// Adds a record.
    pub(crate) fn add_record(&mut self, sequence: u64, writer: &mut LineWriter, record: Box<Record>) {
        let start = self.lines.len();
        let community = Some(writer.append(&mut self.lines, sequence, &record));
        let place = start..self.lines.len();
        self.entries.push(Entry { sequence, told: Told::Record(record), community, place });
    }

    /// Adds the line that stands for missing records.
    pub(crate) fn add_lost(&mut self, node: &str, lost: Lost) {
        let start = self.lines.len();
        line::append_lost(&mut self.lines, node, &lost);
        let place = start..self.lines.len();
        self.entries.push(Entry { sequence: lost.last, told: Told::Lost(lost), community: None, place });
    }

    /// Adds the line of a row of a summary. It has no number: it is not one record.
    pub(crate) fn add_summary(
        &mut self,
        node: &str,
        pair: &Pair,
        sums: &Sums,
        interval: (SystemTime, SystemTime),
    ) {
        let start = self.lines.len();
        summary_line::append(&mut self.lines, node, pair, sums, interval);
        let place = start..self.lines.len();
        self.entries.push(Entry { sequence: 0, told: Told::Summary, community: None, place });
    }

    /// Adds a copy of a line of another batch.
    pub(crate) fn add_copy(&mut self, from: &Self, entry: &Entry) {
        let start = self.lines.len();
        self.lines.extend_from_slice(from.line(entry));
        let place = start..self.lines.len();
        self.entries.push(Entry { place, ..entry.clone() });
    }

    /// A batch of those lines that `keep` names.
    pub(crate) fn only(&self, mut keep: impl FnMut(&Entry) -> bool) -> Self {
        let mut kept = Self::default();
        for entry in self.entries.iter().filter(|entry| keep(entry)) {
            kept.add_copy(self, entry);
        }
        kept
    }

    /// All lines, each with its newline.
    pub(crate) fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// What the lines tell, in their order.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The line of an entry, its newline included.
    pub(crate) fn line(&self, entry: &Entry) -> &[u8] {
        &self.lines[entry.place.clone()]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What is missing when the entries from `kept` on are: `None` when there are none.
    pub(crate) fn lost_from(&self, kept: usize, cause: LossCause) -> Option<Lost> {
        let entries = self.entries.get(kept..)?;
        let (first, last) = (entries.first()?, entries.last()?);
        let first = match &first.told {
            Told::Lost(lost) => lost.first,
            Told::Record(_) | Told::Summary => first.sequence,
        };
        let count = entries.iter().map(|entry| entry.told.records()).sum();
        Some(Lost { first, last: last.sequence, count, cause })
    }
}
