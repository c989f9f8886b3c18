//! The datapath's end of the records: a handle that numbers a record and never waits.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lane::{Counted, Deliver, Lane, LaneOptions};
use crate::metrics::{Delivery, Metrics, SinkCounts};
use crate::otlp::Otlp;
use crate::output::{Output, Sink, SinkError};
use crate::pressure::Pressure;
use crate::queue::Queue;
use crate::record::{Action, Record};
use crate::rotation::Rotation;
use crate::sinks::{self, SinkConfig};
use crate::store::{Store, StoreConfig};
use crate::tap::{Listener, Tap};
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

/// Who may read records over the admin API, which asks nobody for a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServedTo {
    /// Processes of this node.
    #[default]
    Node,
    /// Whoever reaches the admin address.
    Anyone,
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
    /// When the file of `--records` is put aside.
    pub rotate: Rotation,
    /// Who may read them with `sluice observe`: `node` or `anyone`. Default `node`.
    pub served_to: ServedTo,
    /// Records kept for questions.
    pub store: StoreConfig,
    /// More places for records. Default: none.
    pub sinks: Vec<SinkConfig>,
}

impl Default for RecorderConfig {
    fn default() -> Self {
        Self {
            queue_records: 65_536,
            overflow: Overflow::Drop,
            started: true,
            update_every_s: 60,
            gather_ms: 5,
            rotate: Rotation::default(),
            served_to: ServedTo::Node,
            store: StoreConfig::default(),
            sinks: Vec::new(),
        }
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The field's name.
    pub field: Cow<'static, str>,
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
            (self.sinks.len() > 32, "sinks", self.sinks.len().to_string(), "must be at most 32"),
            (
                self.store.max_bytes < 1 << 20,
                "store.max_bytes",
                self.store.max_bytes.to_string(),
                "must be at least 1048576",
            ),
            (
                !(1..=87_600).contains(&self.store.max_age_h),
                "store.max_age_h",
                self.store.max_age_h.to_string(),
                "must be from 1 to 87600",
            ),
            (
                self.update_every_s > 86_400,
                "update_every_s",
                self.update_every_s.to_string(),
                "must be at most 86400",
            ),
            (self.gather_ms > 1_000, "gather_ms", self.gather_ms.to_string(), "must be at most 1000"),
        ];
        let own = checks
            .into_iter()
            .filter(|(wrong, ..)| *wrong)
            .map(|(_, field, value, problem)| ConfigProblem { field: field.into(), value, problem });
        let sinks = self.sinks.iter().enumerate();
        own.chain(sinks.clone().flat_map(|(index, sink)| sink.validate(index)))
            .chain(sinks.filter_map(|(index, sink)| self.name_taken(index, sink)))
            .collect()
    }

    /// Names folders inside `data` for whatever is to be kept and has no folder yet: `records` for the store,
    /// `spool-NAME` for the spool of the sink NAME.
    pub fn keep_in(&mut self, data: &Path) {
        self.store.folder.get_or_insert_with(|| data.join("records"));
        for sink in &mut self.sinks {
            if let Some(otlp) = &mut sink.otlp {
                otlp.spool.folder.get_or_insert_with(|| data.join(format!("spool-{}", sink.name)));
            }
        }
    }

    fn name_taken(&self, index: usize, sink: &SinkConfig) -> Option<ConfigProblem> {
        let is_taken = self.sinks[..index].iter().any(|other| other.name == sink.name)
            || [FIRST, STORE].contains(&&*sink.name);
        is_taken.then(|| ConfigProblem {
            field: format!("sinks[{index}].name").into(),
            value: sink.name.clone(),
            problem: "must be a name that no other sink has; records and store are taken",
        })
    }
}

/// The name of the sink that `--records` stands for.
const FIRST: &str = "records";
/// The name of the store among the sinks.
const STORE: &str = "store";

/// Takes records from the datapath. Clones share one numbering and one queue.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    started: bool,
    update_every: Option<Duration>,
    tap: Tap,
    store: Option<Arc<Path>>,
    served_to: ServedTo,
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
    /// Of `metrics`, only those of records and sinks are touched; the datapath counts the rest.
    pub fn start(
        config: RecorderConfig,
        sink: Sink,
        node: &str,
        metrics: Metrics,
    ) -> Result<(Self, Writer), SinkError> {
        if let Some(problem) = config.validate().into_iter().next() {
            return Err(SinkError::Config(problem));
        }
        let first: Box<dyn Deliver> = match sink {
            Sink::File(path) => sinks::open_file(path, &config.rotate)?,
            Sink::Stdout | Sink::Discard => Box::new(Output::open(sink)?),
        };
        metrics.records_limit.set(i64::try_from(config.queue_records).unwrap_or(i64::MAX));
        let pressure = Arc::new(Pressure::default());
        let queue = Queue::new(config.queue_records, config.overflow, Arc::clone(&pressure));
        let shared = Arc::new(Shared { queue, metrics, pressure });
        let (done, finished) = mpsc::channel();
        let mut lanes = vec![Lane::start(first_lane(&config, node, &shared), first, done.clone())?];
        if let Some(folder) = &config.store.folder {
            let store = Store::open(&config.store, folder, node)?;
            let lane = other_lane(&config, node, &shared, STORE, 2);
            lanes.push(Lane::start(lane, Box::new(store), done.clone())?);
        }
        for (sink, place) in config.sinks.iter().zip(3..) {
            let mut lane = LaneOptions {
                overflow: sink.overflow,
                wanted: sink.wanted(),
                ..other_lane(&config, node, &shared, &sink.name, place)
            };
            let sink = match &sink.otlp {
                Some(otlp) => {
                    let delivery = shared.metrics.delivery(&sink.name);
                    lane.count = count_only_losses(delivery.clone());
                    Box::new(Otlp::open(&sink.name, otlp, sink.overflow, node, delivery)?)
                }
                None => sink.open(node)?,
            };
            lanes.push(Lane::start(lane, sink, done.clone())?);
        }
        let tap = Tap::default();
        // Without a name among the sinks: what a slow listener misses is no loss of records.
        let lane = LaneOptions { count: Box::new(|_| ()), ..first_lane(&config, node, &shared) };
        let lane = LaneOptions { name: "live".to_owned(), overflow: Overflow::Drop, ..lane };
        lanes.push(Lane::start(lane, Box::new(tap.clone()), done.clone())?);
        let writer = Writer::spawn(Arc::clone(&shared), lanes, node, config.gather_ms, (done, finished))?;
        let update_every = (config.update_every_s > 0).then(|| Duration::from_secs(config.update_every_s));
        let store = config.store.folder.as_deref().map(Arc::from);
        let started = config.started;
        let served_to = config.served_to;
        Ok((Self { shared, started, update_every, tap, store, served_to }, writer))
    }

    /// False while records would go missing if more connections were admitted, and the configuration wants
    /// them refused instead. Costs one load.
    pub fn accepts_connections(&self) -> bool {
        !self.shared.pressure.is_on()
    }

    /// Gives every line that is written from now on to `listener`, whole lines at a time. It must not wait, and
    /// says whether it wants more.
    pub fn listen(&self, listener: Listener) {
        self.tap.listen(listener);
    }

    /// Whether a client at this address may read records.
    pub fn serves(&self, client: IpAddr) -> bool {
        self.served_to == ServedTo::Anyone || client.to_canonical().is_loopback()
    }

    /// The folder of the store, when there is one.
    pub fn store_folder(&self) -> Option<&Path> {
        self.store.as_deref()
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
        name: FIRST.to_owned(),
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
                // Counted from the moment they are submitted.
                Counted::Waiting(_) => return,
            };
            counter.inc_by(records);
            metrics.records_waiting.dec_by(i64::try_from(records).unwrap_or(i64::MAX));
        }),
    }
}

/// A sink beside it: everything, unless said otherwise, under counts with its name.
fn other_lane(
    config: &RecorderConfig,
    node: &str,
    shared: &Arc<Shared>,
    name: &str,
    place: u32,
) -> LaneOptions {
    let SinkCounts { written, lost, waiting } = shared.metrics.sink(name);
    LaneOptions {
        name: name.to_owned(),
        node: node.to_owned(),
        capacity: config.queue_records,
        overflow: Overflow::Drop,
        place,
        pressure: Arc::clone(&shared.pressure),
        wanted: None,
        count: Box::new(move |counted| match counted {
            Counted::Written(records) => drop(written.inc_by(records)),
            Counted::Lost(records) => drop(lost.inc_by(records)),
            Counted::Waiting(records) => drop(waiting.set(i64::try_from(records).unwrap_or(i64::MAX))),
        }),
    }
}

/// For a sink that says itself when a record was written.
fn count_only_losses(delivery: Delivery) -> Box<dyn Fn(Counted) + Send + Sync> {
    Box::new(move |counted| {
        if let Counted::Lost(records) = counted {
            delivery.lost.inc_by(records);
        }
    })
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
pub(crate) mod tests;
