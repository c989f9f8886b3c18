//! What pairs of workloads did, as series of their own: `sluice_pair_…`.
//!
//! The number of pairs is bounded. What finds no place is counted in one series whose workloads are `other`, so
//! that sums stay right. Addresses, label values and (unless asked for) names of pods never become labels.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use flow::Endpoint;
use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::{Deserialize, Serialize};

use crate::metric_labels::{ByteDirection, Label};

/// What is counted beside the node's sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// What the series of pairs name: `off`, `namespaces`, `workloads` or `pods`. Default `workloads`.
    pub pairs: Named,
    /// Pairs with series of their own, six each; what others do is counted in the pair `other`. A pair at which
    /// nothing happened for an hour gives its place to a new one. Default 200.
    pub max_pairs: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { pairs: Named::Workloads, max_pairs: 200 }
    }
}

impl MetricsConfig {
    /// Every setting that cannot be used.
    pub fn validate(&self) -> Vec<crate::ConfigProblem> {
        let wrong = !(1..=100_000).contains(&self.max_pairs);
        let problem = crate::ConfigProblem {
            field: "max_pairs".into(),
            value: self.max_pairs.to_string(),
            problem: "must be from 1 to 100000",
        };
        wrong.then_some(problem).into_iter().collect()
    }
}

/// How closely a pair is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Named {
    /// No series of pairs.
    Off,
    /// By namespace only.
    Namespaces,
    /// By namespace and owner, such as `Deployment/api`; a pod without an owner is `Pod`.
    #[default]
    Workloads,
    /// By namespace and pod, such as `Pod/api-7c9f-x2x`. A series for every pod that ever was.
    Pods,
}

/// A pair at which nothing happens for this long gives its place to a new one, in seconds.
const FORGOTTEN_AFTER: u64 = 3_600;
/// The table is searched for such pairs at most this often, in seconds.
const SEARCH_EVERY: u64 = 60;

/// The counts of every pair. Clones share them.
#[derive(Clone)]
pub(crate) struct Pairs {
    shared: Arc<Shared>,
}

struct Shared {
    named: Named,
    max: usize,
    table: RwLock<HashMap<Pair, Arc<Counts>, RandomState>>,
    other: Counts,
    beyond: AtomicU64,
    searched_at: AtomicU64,
}

/// What one pair did.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) opened: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) denied: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    used_at: AtomicU64,
}

/// A pair as the table keeps it.
#[derive(Clone, Debug)]
struct Pair {
    source: Party,
    destination: Party,
}

#[derive(Clone, Debug)]
enum Party {
    External,
    Node,
    Unknown,
    Namespace(Box<str>),
    /// With kind and name of the owner.
    Workload(Box<str>, Option<(Box<str>, Box<str>)>),
    Pod(Box<str>, Box<str>),
}

/// A pair as it is asked for, for every connection several times: nothing of it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asked<'a> {
    source: AskedParty<'a>,
    destination: AskedParty<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum AskedParty<'a> {
    External,
    Node,
    Unknown,
    Namespace(&'a str),
    Workload(&'a str, Option<(&'a str, &'a str)>),
    Pod(&'a str, &'a str),
}

impl Asked<'_> {
    fn kept(self) -> Pair {
        Pair { source: self.source.kept(), destination: self.destination.kept() }
    }
}

impl AskedParty<'_> {
    fn kept(self) -> Party {
        match self {
            Self::External => Party::External,
            Self::Node => Party::Node,
            Self::Unknown => Party::Unknown,
            Self::Namespace(namespace) => Party::Namespace(namespace.into()),
            Self::Workload(namespace, owner) => {
                Party::Workload(namespace.into(), owner.map(|(kind, name)| (kind.into(), name.into())))
            }
            Self::Pod(namespace, name) => Party::Pod(namespace.into(), name.into()),
        }
    }
}

impl Pair {
    fn asked(&self) -> Asked<'_> {
        Asked { source: self.source.asked(), destination: self.destination.asked() }
    }
}

impl Party {
    fn asked(&self) -> AskedParty<'_> {
        match self {
            Self::External => AskedParty::External,
            Self::Node => AskedParty::Node,
            Self::Unknown => AskedParty::Unknown,
            Self::Namespace(namespace) => AskedParty::Namespace(namespace),
            Self::Workload(namespace, owner) => {
                AskedParty::Workload(namespace, owner.as_ref().map(|(kind, name)| (&**kind, &**name)))
            }
            Self::Pod(namespace, name) => AskedParty::Pod(namespace, name),
        }
    }
}

// Both forms are one key: whatever is kept is hashed and compared as it is asked for.
impl Hash for Pair {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.asked().hash(state);
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.asked() == other.asked()
    }
}

impl Eq for Pair {}

impl Equivalent<Pair> for Asked<'_> {
    fn equivalent(&self, kept: &Pair) -> bool {
        *self == kept.asked()
    }
}

impl Pairs {
    pub(crate) fn new(config: &MetricsConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                named: config.pairs,
                max: config.max_pairs,
                table: RwLock::default(),
                other: Counts::default(),
                beyond: AtomicU64::new(0),
                searched_at: AtomicU64::new(0),
            }),
        }
    }

    /// Counts something that the pair of `source` and `destination` did, `now` being seconds of any clock that
    /// goes forward.
    pub(crate) fn count(
        &self,
        (source, destination): (&Endpoint, &Endpoint),
        now: u64,
        add: impl FnOnce(&Counts),
    ) {
        let shared = &*self.shared;
        if shared.named == Named::Off {
            return;
        }
        let asked = Asked { source: shared.asked(source), destination: shared.asked(destination) };
        let table = shared.table.read().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: a pair that gives up its place takes no count with it that came after.
        if let Some(counts) = table.get(&asked) {
            counts.note(now, add);
            return;
        }
        drop(table);
        shared.begin(asked, now, add);
    }
}

impl Counts {
    fn note(&self, now: u64, add: impl FnOnce(&Self)) {
        self.used_at.store(now, Ordering::Relaxed);
        add(self);
    }
}

impl Shared {
    fn asked<'a>(&self, endpoint: &'a Endpoint) -> AskedParty<'a> {
        match endpoint {
            Endpoint::External => AskedParty::External,
            Endpoint::Node { .. } => AskedParty::Node,
            Endpoint::UnknownLocal => AskedParty::Unknown,
            Endpoint::Pod(pod) => match self.named {
                Named::Off | Named::Namespaces => AskedParty::Namespace(&pod.namespace),
                Named::Workloads => {
                    let owner = pod.owner.as_ref().map(|owner| (&*owner.kind, &*owner.name));
                    AskedParty::Workload(&pod.namespace, owner)
                }
                Named::Pods => AskedParty::Pod(&pod.namespace, &pod.name),
            },
        }
    }

    /// Counts what a pair did that is not known yet, among the others when there is no room for it.
    fn begin(&self, asked: Asked<'_>, now: u64, add: impl FnOnce(&Counts)) {
        if !self.is_full() || self.is_search_due(now) {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            if table.len() >= self.max && !table.contains_key(&asked) {
                table.retain(|_, counts| now < counts.used_at.load(Ordering::Relaxed) + FORGOTTEN_AFTER);
            }
            if table.len() < self.max || table.contains_key(&asked) {
                return table.entry(asked.kept()).or_default().note(now, add);
            }
        }
        self.beyond.fetch_add(1, Ordering::Relaxed);
        add(&self.other);
    }

    fn is_full(&self) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len() >= self.max
    }

    /// True once in a while.
    fn is_search_due(&self, now: u64) -> bool {
        let before = self.searched_at.load(Ordering::Relaxed);
        now >= before + SEARCH_EVERY
            && self.searched_at.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").field("named", &self.shared.named).finish_non_exhaustive()
    }
}

/// One family of the pairs' series.
struct Column {
    name: &'static str,
    help: &'static str,
    of: fn(&Counts) -> &AtomicU64,
}

const COLUMNS: [Column; 4] = [
    Column {
        name: "pair_connections_opened",
        help: "Connections established, by pair of workloads",
        of: |counts| &counts.opened,
    },
    Column {
        name: "pair_connections_closed",
        help: "Established connections that ended, by pair of workloads",
        of: |counts| &counts.closed,
    },
    Column {
        name: "pair_connections_denied",
        help: "Connections that policy refused, by pair of workloads",
        of: |counts| &counts.denied,
    },
    Column {
        name: "pair_connections_failed",
        help: "Allowed connections that could not be established, by pair of workloads",
        of: |counts| &counts.failed,
    },
];

impl Collector for Pairs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shared = &*self.shared;
        if shared.named == Named::Off {
            return Ok(());
        }
        let rows = self.rows();
        for Column { name, help, of } in COLUMNS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counts) in &rows {
                let value = ConstCounter::new(of(counts).load(Ordering::Relaxed));
                value.encode(family.encode_family(labels)?)?;
            }
            let value = ConstCounter::new(of(&shared.other).load(Ordering::Relaxed));
            value.encode(family.encode_family(&OTHER)?)?;
        }
        let help = "Payload carried, by pair of workloads: sent by clients, or received by them";
        let mut family = encoder.encode_descriptor("pair_bytes", help, None, MetricType::Counter)?;
        for direction in ByteDirection::ALL {
            let of = |counts: &Counts| match direction {
                ByteDirection::Sent => counts.sent.load(Ordering::Relaxed),
                ByteDirection::Received => counts.received.load(Ordering::Relaxed),
            };
            let way = (ByteDirection::NAME.to_owned(), direction.value().to_owned());
            for (labels, counts) in &rows {
                let labels: Vec<_> = labels.iter().cloned().chain([way.clone()]).collect();
                ConstCounter::new(of(counts)).encode(family.encode_family(&labels)?)?;
            }
            let labels = OTHER.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let labels: Vec<_> = labels.into_iter().chain([way]).collect();
            ConstCounter::new(of(&shared.other)).encode(family.encode_family(&labels)?)?;
        }
        let pairs = ConstGauge::new(i64::try_from(rows.len()).unwrap_or(i64::MAX));
        let help = "Pairs of workloads that have series of their own";
        pairs.encode(encoder.encode_descriptor("pairs", help, None, MetricType::Gauge)?)?;
        let limit = ConstGauge::new(i64::try_from(shared.max).unwrap_or(i64::MAX));
        let help = "Pairs of workloads that may have series of their own";
        limit.encode(encoder.encode_descriptor("pairs_limit", help, None, MetricType::Gauge)?)?;
        let beyond = ConstCounter::new(shared.beyond.load(Ordering::Relaxed));
        let help = "Events counted in the pair other, because there was no room for a pair of their own";
        beyond.encode(encoder.encode_descriptor("pairs_beyond_limit", help, None, MetricType::Counter)?)
    }
}

type Labels = Vec<(String, String)>;

/// The pair that takes what finds no place.
const OTHER: [(&str, &str); 4] = [
    ("source_namespace", ""),
    ("source_workload", "other"),
    ("destination_namespace", ""),
    ("destination_workload", "other"),
];

impl Pairs {
    /// Labels and counts of every pair, in the order of the labels.
    fn rows(&self) -> Vec<(Labels, Arc<Counts>)> {
        let table = self.shared.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<_> =
            table.iter().map(|(pair, counts)| (labels(pair), Arc::clone(counts))).collect();
        drop(table);
        rows.sort_by(|one, other| one.0.cmp(&other.0));
        rows
    }
}

fn labels(pair: &Pair) -> Labels {
    let asked = pair.asked();
    let sides = [("source", asked.source), ("destination", asked.destination)];
    let of_side = |(side, party): (&str, AskedParty<'_>)| {
        let (namespace, workload) = party.names();
        [(format!("{side}_namespace"), namespace), (format!("{side}_workload"), workload)]
    };
    sides.into_iter().flat_map(of_side).collect()
}

impl AskedParty<'_> {
    /// Namespace and workload. Owners are written with their kind, so that none is mistaken for one of the words
    /// that stand for ends which are no pods.
    fn names(self) -> (String, String) {
        let outside = |word: &str| (String::new(), word.to_owned());
        match self {
            Self::External => outside("external"),
            Self::Node => outside("node"),
            Self::Unknown => outside("unknown"),
            Self::Namespace(namespace) => (namespace.to_owned(), String::new()),
            Self::Workload(namespace, Some((kind, name))) => (namespace.to_owned(), format!("{kind}/{name}")),
            Self::Workload(namespace, None) => (namespace.to_owned(), "Pod".to_owned()),
            Self::Pod(namespace, name) => (namespace.to_owned(), format!("Pod/{name}")),
        }
    }
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
