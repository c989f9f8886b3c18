//! Records → one line for each pair of workloads, port and interval, on the way to a sink.
//!
//! Sits before a sink and holds what it is given until the interval is over. Nothing is lost by a sink that fails:
//! what could not be delivered is part of the next interval's lines. Lines that tell of lost records pass at once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use flow::{Endpoint, Owner, Protocol};

use crate::batch::{Batch, Entry, Told};
use crate::complaint::Complaint;
use crate::lane::{Deliver, Undelivered};
use crate::output::SinkError;
use crate::record::{Action, ConnectionId, Record};

/// Rows of one interval. Connections of further pairs are added up in one row without names.
const MOST_ROWS: usize = 10_000;

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) source: End,
    pub(crate) destination: End,
    /// The server's port; 0 in the row of those that found no room.
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
}

/// Who stands at one end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// No pod and no node.
    External,
    Unknown,
    /// Any: of the row of those that found no room.
    Other,
    Node(Arc<str>),
    /// A workload by its owner's kind and name, or a pod that has no owner.
    Workload {
        namespace: Arc<str>,
        owner: Option<(Arc<str>, Arc<str>)>,
        pod: Option<Box<str>>,
    },
}

/// What a row adds up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) opened: u64,
    pub(crate) ended: u64,
    pub(crate) denied: u64,
    pub(crate) failed: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Adds up what goes to `sink`.
pub(crate) struct Summary {
    sink: Box<dyn Deliver>,
    name: String,
    node: String,
    every: Duration,
    rows: BTreeMap<Pair, Sums>,
    /// Bytes of live connections that were added up already.
    told: HashMap<ConnectionId, (u64, u64)>,
    since: SystemTime,
    due: Instant,
    complaint: Complaint,
}

impl Summary {
    pub(crate) fn new(sink: Box<dyn Deliver>, name: &str, node: &str, every: Duration) -> Self {
        Self {
            sink,
            name: name.to_owned(),
            node: node.to_owned(),
            every,
            rows: BTreeMap::new(),
            told: HashMap::new(),
            since: SystemTime::now(),
            due: Instant::now() + every,
            complaint: Complaint::default(),
        }
    }

    fn add(&mut self, record: &Record) {
        let pair = Pair::of(record);
        let has_room = self.rows.len() < MOST_ROWS || self.rows.contains_key(&pair);
        let sums = self.rows.entry(if has_room { pair } else { pair.other() }).or_default();
        match record.action {
            Action::Started => sums.opened += 1,
            Action::Ended => sums.ended += 1,
            Action::Denied => sums.denied += 1,
            Action::Failed => sums.failed += 1,
            Action::Updated => {}
        }
        if !matches!(record.action, Action::Updated | Action::Ended) || record.traffic.uncounted {
            return;
        }
        let now = (record.traffic.client_bytes, record.traffic.server_bytes);
        let before = match record.action {
            Action::Updated => self.told.insert(record.id, now),
            _ => self.told.remove(&record.id),
        };
        let (sent, received) = before.unwrap_or_default();
        sums.sent += now.0.saturating_sub(sent);
        sums.received += now.1.saturating_sub(received);
    }

    /// Delivers the rows of the interval that is over. They stay when that fails.
    fn deliver_rows(&mut self) {
        let now = SystemTime::now();
        let mut batch = Batch::default();
        for (pair, sums) in &self.rows {
            batch.add_summary(&self.node, pair, sums, (self.since, now));
        }
        match if batch.is_empty() { Ok(()) } else { self.sink.deliver(&batch) } {
            Ok(()) => {
                self.rows.clear();
                self.since = now;
                self.complaint.settled();
            }
            Err(failure) => {
                let delivered = failure.delivered;
                let pairs: Vec<Pair> = self.rows.keys().take(delivered).cloned().collect();
                for pair in &pairs {
                    self.rows.remove(pair);
                }
                if let Some(rows) = self.complaint.due(self.rows.len() as u64) {
                    tracing::error!(sink = self.name, error = %failure.cause, rows, "summary not written yet");
                }
            }
        }
    }
}

impl Deliver for Summary {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        let losses = batch.only(|entry| matches!(entry.told, Told::Lost(_)));
        if !losses.is_empty() {
            // Before anything is added up, so that what is tried again is not added twice.
            self.sink.deliver(&losses).map_err(|failure| Undelivered { delivered: 0, ..failure })?;
        }
        for Entry { told, .. } in batch.entries() {
            if let Told::Record(record) = told {
                self.add(record);
            }
        }
        // Under load the lane may never come to wait for the end of the interval.
        self.wake();
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        self.sink.reopen()
    }

    fn wakes_at(&self) -> Option<Instant> {
        Some(self.sink.wakes_at().map_or(self.due, |at| at.min(self.due)))
    }

    fn wake(&mut self) {
        let now = Instant::now();
        if self.sink.wakes_at().is_some_and(|at| at <= now) {
            self.sink.wake();
        }
        if self.due <= now {
            self.deliver_rows();
            self.due = now + self.every;
        }
    }

    fn finish(&mut self) {
        self.deliver_rows();
        self.sink.finish();
    }
}

impl Pair {
    fn of(record: &Record) -> Self {
        let protocol = match record.tuple.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        Self {
            source: End::of(&record.source),
            destination: End::of(&record.destination),
            port: record.tuple.destination.0.port(),
            protocol,
        }
    }

    /// The row of those that found no room.
    fn other(self) -> Self {
        Self { source: End::Other, destination: End::Other, port: 0, protocol: self.protocol }
    }
}

impl End {
    fn of(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::External => Self::External,
            Endpoint::UnknownLocal => Self::Unknown,
            Endpoint::Node { name, .. } => Self::Node(Arc::clone(name)),
            Endpoint::Pod(pod) => {
                let names = |owner: &Owner| (Arc::clone(&owner.kind), Arc::clone(&owner.name));
                Self::Workload {
                    namespace: Arc::clone(&pod.namespace),
                    owner: pod.owner.as_ref().map(names),
                    pod: pod.owner.is_none().then(|| Box::from(&*pod.name)),
                }
            }
        }
    }
}

impl fmt::Display for End {
    /// As `sluice graph` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::External => f.write_str("external"),
            Self::Unknown => f.write_str("unknown"),
            Self::Other => f.write_str("other"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Workload { namespace, owner, pod } => {
                let of_owner = owner.as_ref().map(|(_, name)| &**name);
                write!(f, "{namespace}/{}", of_owner.or(pod.as_deref()).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
