//! The datapath's end of the records: a handle that numbers a record and never waits.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lane::{Counted, Lane, LaneOptions};
use crate::metrics::Metrics;
use crate::output::{Output, Sink, SinkError};
use crate::pressure::Pressure;
use crate::queue::Queue;
use crate::record::{Action, Record};
use crate::writer::Writer;

/// What happens when records come faster than they can be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// Connections go on and their records are lost, counted, and told in a `records-lost` line.
    #[default]
    Drop,
    /// New connections are refused until there is room. What was carried is recorded: a sink that fails is
    /// tried until it works.
    BlockNew,
}

/// How records are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecorderConfig {
    /// Records that may wait for the writer; more are lost and counted. A waiting record takes about 1 KiB.
    /// Default 65536.
    pub queue_records: usize,
    /// What happens when that many wait: `drop` or `block-new`. Default `drop`.
    pub overflow: Overflow,
    /// Also write `connection-started`, not only how connections end. Default true.
    pub started: bool,
    /// Long connections write `connection-updated` this often, in seconds; 0 is never. Default 60.
    pub update_every_s: u64,
    /// How long the writer lets records gather before it writes them, in milliseconds; 0 writes each as it
    /// comes. What gathers is what a killed process loses. Default 5.
    pub gather_ms: u64,
}

impl Default for RecorderConfig {
    fn default() -> Self {
        Self {
            queue_records: 65_536,
            overflow: Overflow::Drop,
            started: true,
            update_every_s: 60,
            gather_ms: 5,
        }
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
            (
                self.update_every_s > 86_400,
                "update_every_s",
                self.update_every_s.to_string(),
                "must be at most 86400",
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
    update_every: Option<Duration>,
}

/// What the recorder and its writer share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    pub(crate) pressure: Arc<Pressure>,
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
        let pressure = Arc::new(Pressure::default());
        let queue = Queue::new(config.queue_records, config.overflow, Arc::clone(&pressure));
        let shared = Arc::new(Shared { queue, metrics, pressure });
        let (done, finished) = mpsc::channel();
        let lanes = vec![Lane::start(first_lane(&config, node, &shared), Box::new(output), done.clone())?];
        let writer = Writer::spawn(Arc::clone(&shared), lanes, node, config.gather_ms, (done, finished))?;
        let update_every = (config.update_every_s > 0).then(|| Duration::from_secs(config.update_every_s));
        Ok((Self { shared, started: config.started, update_every }, writer))
    }

    /// False while records would go missing if more connections were admitted, and the configuration wants
    /// them refused instead. Costs one load.
    pub fn accepts_connections(&self) -> bool {
        !self.shared.pressure.is_on()
    }

    /// How often a long connection writes [`Action::Updated`]; `None` is never.
    pub fn update_every(&self) -> Option<Duration> {
        self.update_every
    }

    /// Numbers `record` and passes it to the writer. Never waits for it: a record that finds the queue full,
    /// or the writer closed, is counted as lost and leaves a gap in `event.sequence`.
    pub fn submit(&self, record: Record) {
        if record.action == Action::Started && !self.started {
            return;
        }
        if self.shared.queue.push(Box::new(record)) {
            self.shared.metrics.records_waiting.inc();
        } else {
            self.shared.metrics.records_lost.inc();
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

/// The sink that `--records` names: everything, under the counts without a label.
fn first_lane(config: &RecorderConfig, node: &str, shared: &Arc<Shared>) -> LaneOptions {
    let metrics = shared.metrics.clone();
    LaneOptions {
        name: "records".to_owned(),
        node: node.to_owned(),
        capacity: config.queue_records,
        overflow: config.overflow,
        place: 1,
        pressure: Arc::clone(&shared.pressure),
        wanted: None,
        count: Box::new(move |counted| {
            let (counter, records) = match counted {
                Counted::Written(records) => (&metrics.records_written, records),
                Counted::Lost(records) => (&metrics.records_lost, records),
            };
            counter.inc_by(records);
            metrics.records_waiting.dec_by(i64::try_from(records).unwrap_or(i64::MAX));
        }),
    }
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
