//! The datapath's end of the records: a handle that numbers a record and never waits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;
use crate::output::{Output, Sink, SinkError};
use crate::queue::Queue;
use crate::record::{Action, Record};
use crate::writer::Writer;

/// How records are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecorderConfig {
    /// Records that may wait for the writer; more are lost and counted. A waiting record takes about 1 KiB.
    /// Default 65536.
    pub queue_records: usize,
    /// Also write `connection-started`, not only how connections end. Default true.
    pub started: bool,
    /// How long the writer lets records gather before it writes them, in milliseconds; 0 writes each as it
    /// comes. What gathers is what a killed process loses. Default 5.
    pub gather_ms: u64,
}

impl Default for RecorderConfig {
    fn default() -> Self {
        Self { queue_records: 65_536, started: true, gather_ms: 5 }
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The field's name.
    pub field: &'static str,
    /// Its value, as written.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.field, self.value, self.problem)
    }
}

impl RecorderConfig {
    /// Every setting that cannot be used; empty when all can.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let checks = [
            (
                !(1..=1 << 22).contains(&self.queue_records),
                "queue_records",
                self.queue_records.to_string(),
                "must be from 1 to 4194304",
            ),
            (self.gather_ms > 1_000, "gather_ms", self.gather_ms.to_string(), "must be at most 1000"),
        ];
        checks
            .into_iter()
            .filter(|(wrong, ..)| *wrong)
            .map(|(_, field, value, problem)| ConfigProblem { field, value, problem })
            .collect()
    }
}

/// Takes records from the datapath. Clones share one numbering and one queue.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    started: bool,
}

/// What the recorder and its writer share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    pub(crate) written: AtomicU64,
    pub(crate) lost: AtomicU64,
    /// The part of `lost` that found the queue full or closed.
    pub(crate) refused: AtomicU64,
}

impl Recorder {
    /// Opens `sink` and starts the thread that writes to it. `node` is this node's name.
    ///
    /// Of `metrics`, only `records_written` and `records_lost` are touched; the datapath counts the rest.
    pub fn start(
        config: RecorderConfig,
        sink: Sink,
        node: &str,
        metrics: Metrics,
    ) -> Result<(Self, Writer), SinkError> {
        if let Some(problem) = config.validate().into_iter().next() {
            return Err(SinkError::Config(problem));
        }
        let output = Output::open(sink)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(config.queue_records),
            metrics,
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let writer = Writer::spawn(Arc::clone(&shared), output, node, config.gather_ms)?;
        Ok((Self { shared, started: config.started }, writer))
    }

    /// Numbers `record` and passes it to the writer. Never waits for it: a record that finds the queue full,
    /// or the writer closed, is counted as lost and leaves a gap in `event.sequence`.
    pub fn submit(&self, record: Record) {
        if record.action == Action::Started && !self.started {
            return;
        }
        if !self.shared.queue.push(Box::new(record)) {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            self.shared.count_lost(1);
        }
    }

    /// How many records wait for the writer.
    pub fn waiting(&self) -> usize {
        self.shared.queue.len()
    }

    /// How many records may wait.
    pub fn limit(&self) -> usize {
        self.shared.queue.capacity()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn count_lost(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
        self.metrics.records_lost.inc_by(records);
    }

    pub(crate) fn count_written(&self, records: u64) {
        self.written.fetch_add(records, Ordering::Relaxed);
        self.metrics.records_written.inc_by(records);
    }
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
