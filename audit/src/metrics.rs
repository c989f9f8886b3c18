//! What Sluice counts about itself, as Prometheus sees it: `sluice_…`.
//!
//! Labels take only values listed here, and every series exists from the start with 0, so that a rate can be
//! taken over the first event. Series that name workloads are those of `pairs.rs`, and bounded.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use flow::{EndCause, Endpoint};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use crate::metric_labels::{ByteDirection, DeniedSide, GateDrop, PerLabel};
use crate::pairs::{MetricsConfig, Pairs};
use crate::record::{Action, Record};

/// Every metric of the process. Cloning shares the counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections established on both legs: `sluice_connections_opened_total`.
    pub connections_opened: Counter,
    /// Established connections that ended, by cause: `sluice_connections_closed_total{cause}`.
    pub connections_closed: PerLabel<EndCause>,
    /// Connections that policy refused, by side: `sluice_connections_denied_total{side}`.
    pub connections_denied: PerLabel<DeniedSide>,
    /// Allowed connections that were not established, by cause: `sluice_connections_failed_total{cause}`.
    pub connections_failed: PerLabel<EndCause>,
    /// Connections established now: `sluice_connections_live`.
    pub connections_live: Gauge,
    /// Flows of UDP and SCTP among them: `sluice_flows_live`.
    pub flows_live: Gauge,
    /// From the first packet to the end, of those that were established: `sluice_connection_duration_seconds`.
    pub connection_duration: Histogram,
    /// Payload carried, by direction: `sluice_bytes_total{direction}`.
    pub bytes: PerLabel<ByteDirection>,
    /// Packets the kernel handed to the gate: `sluice_gate_packets_total`.
    pub gate_packets: Counter,
    /// Connection attempts the gate holds now: `sluice_gate_pending`.
    pub gate_pending: Gauge,
    /// Packets in the kernel's queues, at the last look: `sluice_gate_queued`.
    pub gate_queued: Gauge,
    /// Packets the gate dropped, by reason: `sluice_gate_dropped_total{reason}`.
    pub gate_dropped: PerLabel<GateDrop>,
    /// From the first packet to the gate's verdict: `sluice_gate_latency_seconds`.
    pub gate_latency: Histogram,
    /// From the first packet towards the server to the established leg: `sluice_connect_latency_seconds`.
    pub connect_latency: Histogram,
    /// Records that reached the sink: `sluice_records_written_total`.
    pub records_written: Counter,
    /// Records that did not: `sluice_records_lost_total`.
    pub records_lost: Counter,
    /// Records that reached each further sink: `sluice_sink_written_total{sink}`.
    sink_written: Family<SinkName, Counter>,
    /// Records that each further sink lost: `sluice_sink_lost_total{sink}`.
    sink_lost: Family<SinkName, Counter>,
    /// Of those, records that the sink's collector refused for good: `sluice_sink_rejected_total{sink}`.
    sink_rejected: Family<SinkName, Counter>,
    /// Requests that a sink's collector did not take, and that are tried again:
    /// `sluice_sink_failed_requests_total{sink}`.
    sink_failed_requests: Family<SinkName, Counter>,
    /// Records that wait for each further sink: `sluice_sink_waiting{sink}`.
    sink_waiting: Family<SinkName, Gauge>,
    /// What of that is on disk: `sluice_sink_spool_bytes{sink}`.
    sink_spool: Family<SinkName, Gauge>,
    /// Records that wait to be written: `sluice_records_waiting`.
    pub records_waiting: Gauge,
    /// Records that may wait: `sluice_records_limit`.
    pub records_limit: Gauge,
    /// Live connections ended by a change of policy: `sluice_policy_revocations_total`.
    pub policy_revocations: Counter,
    /// The generation in force: `sluice_snapshot_generation`.
    pub snapshot_generation: Gauge,
    /// Since the objects behind the snapshot were last read in full: `sluice_snapshot_age_seconds`.
    pub snapshot_age: Age,
    /// Rules, routes or set elements restored after someone else changed them: `sluice_ruleset_repairs_total`.
    pub ruleset_repairs: Counter,
    /// Pipes that carry bytes now: `sluice_pipes_in_use`.
    pub pipes_in_use: Gauge,
    /// Idle pipes kept for the next connection: `sluice_pipes_pooled`.
    pub pipes_pooled: Gauge,
    /// Descriptors this process has open: `sluice_descriptors_open`.
    pub descriptors_open: Gauge,
    /// Descriptors this process may open: `sluice_descriptors_limit`.
    pub descriptors_limit: Gauge,
    /// Attempts held because an end is a pod that is not known yet: `sluice_gate_unknown_held`.
    pub gate_unknown_held: Gauge,
    /// How long they were held, decided or not: `sluice_gate_unknown_latency_seconds`.
    pub gate_unknown_latency: Histogram,
    /// Attempts refused because an end stayed unknown: `sluice_gate_unknown_refused_total`.
    pub gate_unknown_refused: Counter,
    /// Connections older than this process that were judged, each time: `sluice_strays_judged_total`.
    pub strays_judged: Counter,
    /// Those of them that were ended: `sluice_strays_ended_total`.
    pub strays_ended: Counter,
    /// Server legs that could not keep the client's port: `sluice_upstream_port_fallbacks_total`.
    pub upstream_port_fallbacks: Counter,
    /// What pairs of workloads did: `sluice_pair_…`.
    pairs: Pairs,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&MetricsConfig::default())
    }
}

impl Metrics {
    /// Every count at 0.
    pub fn new(config: &MetricsConfig) -> Self {
        Self {
            connections_opened: Counter::default(),
            connections_closed: PerLabel::default(),
            connections_denied: PerLabel::default(),
            connections_failed: PerLabel::default(),
            connections_live: Gauge::default(),
            flows_live: Gauge::default(),
            connection_duration: Histogram::new(DURATION_BUCKETS),
            bytes: PerLabel::default(),
            gate_packets: Counter::default(),
            gate_pending: Gauge::default(),
            gate_queued: Gauge::default(),
            gate_dropped: PerLabel::default(),
            gate_latency: Histogram::new(LATENCY_BUCKETS),
            connect_latency: Histogram::new(LATENCY_BUCKETS),
            records_written: Counter::default(),
            records_lost: Counter::default(),
            sink_written: Family::default(),
            sink_lost: Family::default(),
            sink_rejected: Family::default(),
            sink_failed_requests: Family::default(),
            sink_waiting: Family::default(),
            sink_spool: Family::default(),
            records_waiting: Gauge::default(),
            records_limit: Gauge::default(),
            policy_revocations: Counter::default(),
            snapshot_generation: Gauge::default(),
            snapshot_age: Age::default(),
            ruleset_repairs: Counter::default(),
            pipes_in_use: Gauge::default(),
            pipes_pooled: Gauge::default(),
            descriptors_open: Gauge::default(),
            descriptors_limit: Gauge::default(),
            gate_unknown_held: Gauge::default(),
            gate_unknown_latency: Histogram::new(LATENCY_BUCKETS),
            gate_unknown_refused: Counter::default(),
            strays_judged: Counter::default(),
            strays_ended: Counter::default(),
            upstream_port_fallbacks: Counter::default(),
            pairs: Pairs::new(config),
        }
    }
}

/// Seconds. A decision on the node takes tens of microseconds, a connection in the cluster a millisecond; a
/// lost SYN shows at 1, 3 and 7 seconds (tcp(7), `tcp_syn_retries`), a silent server at 130.
const LATENCY_BUCKETS: [f64; 18] = [
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 3.5,
    7.5, 130.0,
];

/// Seconds. A probe takes milliseconds, a request tens to hundreds, a flow of datagrams conntrack's 30 s or more; a
/// database's pool holds its connections for hours.
const DURATION_BUCKETS: [f64; 14] =
    [1e-3, 5e-3, 25e-3, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 3_600.0, 21_600.0, 86_400.0];

impl Metrics {
    /// Counts a connection that was established between these ends.
    pub fn count_opened(&self, source: &Endpoint, destination: &Endpoint) {
        self.connections_opened.inc();
        self.pairs.count((source, destination), seconds(), |counts| {
            counts.opened.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Counts payload that was carried between these ends.
    pub fn count_bytes(&self, ends: (&Endpoint, &Endpoint), sent: u64, received: u64) {
        if sent == 0 && received == 0 {
            return;
        }
        self.bytes.of(ByteDirection::Sent).inc_by(sent);
        self.bytes.of(ByteDirection::Received).inc_by(received);
        self.pairs.count(ends, seconds(), |counts| {
            counts.sent.fetch_add(sent, Ordering::Relaxed);
            counts.received.fetch_add(received, Ordering::Relaxed);
        });
    }

    /// Counts how a connection ended, by its final record: closed, denied or failed. Its bytes, and whether it
    /// was live, are counted by whoever knows.
    pub fn count_final(&self, record: &Record) {
        let cause = record.cause.unwrap_or(EndCause::InternalError);
        match record.action {
            Action::Ended => {
                self.connections_closed.of(cause).inc();
                self.connection_duration.observe(record.duration.unwrap_or_default().as_secs_f64());
            }
            Action::Denied => {
                let decision = record.revoked_by.as_ref().unwrap_or(&record.decision);
                self.connections_denied.of(DeniedSide::of(decision)).inc();
            }
            Action::Failed => drop(self.connections_failed.of(cause).inc()),
            Action::Started | Action::Updated => return,
        }
        self.pairs.count((&record.source, &record.destination), seconds(), |counts| {
            let counter = match record.action {
                Action::Denied => &counts.denied,
                Action::Failed => &counts.failed,
                _ => &counts.closed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Adds every metric to `registry` under the prefix `sluice_`. The encoder appends `_total` to counters
    /// and a full stop to help texts, so neither is written here.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("sluice");
        self.register_connections(registry);
        self.register_gate(registry);
        self.register_unknown(registry);
        self.register_records(registry);
        self.register_state(registry);
    }

    /// What the sink of this name has written and lost, and what waits for it; the series exist from now on.
    /// Names come from the configuration, so there are few.
    pub(crate) fn sink(&self, name: &str) -> SinkCounts {
        let label = SinkName { sink: name.to_owned() };
        SinkCounts {
            written: self.sink_written.get_or_create_owned(&label),
            lost: self.sink_lost.get_or_create_owned(&label),
            waiting: self.sink_waiting.get_or_create_owned(&label),
        }
    }

    /// What a sink counts that knows later what became of a record. The further series exist when it counts.
    pub(crate) fn delivery(&self, name: &str) -> Delivery {
        let label = SinkName { sink: name.to_owned() };
        let SinkCounts { written, lost, waiting } = self.sink(name);
        Delivery {
            written,
            lost,
            rejected: self.sink_rejected.get_or_create_owned(&label),
            failed_requests: self.sink_failed_requests.get_or_create_owned(&label),
            waiting,
            spool_bytes: self.sink_spool.get_or_create_owned(&label),
        }
    }

    /// Records that the sink of this name has written; the store's is `store`.
    pub fn written_to(&self, name: &str) -> u64 {
        self.sink(name).written.get()
    }

    fn register_connections(&self, registry: &mut Registry) {
        registry.register(
            "connections_opened",
            "Connections established on both legs",
            self.connections_opened.clone(),
        );
        registry.register(
            "connections_closed",
            "Established connections that ended, by cause",
            self.connections_closed.clone(),
        );
        registry.register(
            "connections_denied",
            "Connections that policy refused, by the side that refused first",
            self.connections_denied.clone(),
        );
        registry.register(
            "connections_failed",
            "Allowed connections that could not be established, by cause",
            self.connections_failed.clone(),
        );
        registry.register("connections_live", "Connections established now", self.connections_live.clone());
        registry.register(
            "flows_live",
            "Flows of UDP and SCTP among the connections established now",
            self.flows_live.clone(),
        );
        registry.register_with_unit(
            "connection_duration",
            "From the first packet of an established connection to its end",
            Unit::Seconds,
            self.connection_duration.clone(),
        );
        registry.register_collector(Box::new(self.pairs.clone()));
        registry.register(
            "bytes",
            "Payload carried, counted every second: sent by clients, or received by them",
            self.bytes.clone(),
        );
        registry.register(
            "upstream_port_fallbacks",
            "Legs to servers that could not keep the port of the client",
            self.upstream_port_fallbacks.clone(),
        );
        registry.register(
            "policy_revocations",
            "Live connections ended because a change of policy, labels or pods no longer allows them",
            self.policy_revocations.clone(),
        );
        registry.register_with_unit(
            "connect_latency",
            "From the first packet towards the server to the established leg",
            Unit::Seconds,
            self.connect_latency.clone(),
        );
    }

    fn register_gate(&self, registry: &mut Registry) {
        registry.register("gate_packets", "Packets the kernel handed to the gate", self.gate_packets.clone());
        registry.register("gate_pending", "Connection attempts held at the gate", self.gate_pending.clone());
        registry.register(
            "gate_queued",
            "Packets in the kernel's queues to the gate, held ones included, at the last look",
            self.gate_queued.clone(),
        );
        registry.register(
            "gate_dropped",
            "Packets dropped at the gate, by reason",
            self.gate_dropped.clone(),
        );
        registry.register_with_unit(
            "gate_latency",
            "From the first packet of a connection to the verdict on it",
            Unit::Seconds,
            self.gate_latency.clone(),
        );
    }

    fn register_unknown(&self, registry: &mut Registry) {
        registry.register(
            "gate_unknown_held",
            "Connection attempts held because an end is a pod of this node that is not known yet",
            self.gate_unknown_held.clone(),
        );
        registry.register_with_unit(
            "gate_unknown_latency",
            "How long an attempt from or to an unknown pod was held",
            Unit::Seconds,
            self.gate_unknown_latency.clone(),
        );
        registry.register(
            "gate_unknown_refused",
            "Connection attempts refused because the pod at an end stayed unknown",
            self.gate_unknown_refused.clone(),
        );
        registry.register(
            "strays_judged",
            "Judgements of connections that came about without this process",
            self.strays_judged.clone(),
        );
        registry.register(
            "strays_ended",
            "Connections that came about without this process and were ended, because no policy allows them",
            self.strays_ended.clone(),
        );
    }

    fn register_records(&self, registry: &mut Registry) {
        registry.register(
            "records_written",
            "Connection records that reached the sink",
            self.records_written.clone(),
        );
        registry.register(
            "records_lost",
            "Connection records that did not reach the sink: the queue was full or a write failed",
            self.records_lost.clone(),
        );
        registry.register(
            "sink_written",
            "Connection records that reached a sink beside the first, by its name in the configuration",
            self.sink_written.clone(),
        );
        registry.register(
            "sink_lost",
            "Connection records that a sink beside the first has lost, by its name in the configuration",
            self.sink_lost.clone(),
        );
        registry.register(
            "sink_rejected",
            "Connection records that a sink's collector has refused for good; they are among the lost",
            self.sink_rejected.clone(),
        );
        registry.register(
            "sink_failed_requests",
            "Requests that a sink's collector did not take and that are tried again",
            self.sink_failed_requests.clone(),
        );
        registry.register(
            "sink_waiting",
            "Connection records that wait for a sink beside the first, by its name in the configuration",
            self.sink_waiting.clone(),
        );
        registry.register_with_unit(
            "sink_spool",
            "What a sink keeps on disk until its collector has taken it",
            Unit::Bytes,
            self.sink_spool.clone(),
        );
        registry.register(
            "records_limit",
            "Connection records that may wait for one sink",
            self.records_limit.clone(),
        );
        registry.register(
            "records_waiting",
            "Connection records that wait to be written",
            self.records_waiting.clone(),
        );
    }

    fn register_state(&self, registry: &mut Registry) {
        registry.register(
            "snapshot_generation",
            "Generation of the policy snapshot in force",
            self.snapshot_generation.clone(),
        );
        registry.register_with_unit(
            "snapshot_age",
            "Time since the objects behind the snapshot were last read in full, or since the start",
            Unit::Seconds,
            self.snapshot_age.clone(),
        );
        registry.register(
            "ruleset_repairs",
            "Times that rules, routes or sets were restored after a change by someone else",
            self.ruleset_repairs.clone(),
        );
        registry.register("pipes_in_use", "Pipes that carry bytes now", self.pipes_in_use.clone());
        registry.register(
            "pipes_pooled",
            "Idle pipes kept for the next connection",
            self.pipes_pooled.clone(),
        );
        registry.register(
            "descriptors_open",
            "File descriptors this process has open",
            self.descriptors_open.clone(),
        );
        registry.register(
            "descriptors_limit",
            "File descriptors this process may open",
            self.descriptors_limit.clone(),
        );
    }
}

/// Counts of a sink that knows later than its lane what became of a record.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// Records that arrived.
    pub(crate) written: Counter,
    /// Records that never will.
    pub(crate) lost: Counter,
    /// Those of them that were refused.
    pub(crate) rejected: Counter,
    /// Requests that are tried again.
    pub(crate) failed_requests: Counter,
    /// Records that wait.
    pub(crate) waiting: Gauge,
    /// Bytes on disk.
    pub(crate) spool_bytes: Gauge,
}

/// What is counted of one sink.
pub(crate) struct SinkCounts {
    pub(crate) written: Counter,
    pub(crate) lost: Counter,
    pub(crate) waiting: Gauge,
}

/// The label of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkName {
    sink: String,
}

/// The time since something last happened, read when it is scraped. Monotonic: stepping the clock does not
/// change it.
#[derive(Clone, Debug, Default)]
pub struct Age {
    /// Nanoseconds from the process's epoch to the last reset.
    reset_at: Arc<AtomicU64>,
}

/// The first use of a metric, which is the start of the process for all purposes.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Whole seconds of a clock that only goes forward.
fn seconds() -> u64 {
    EPOCH.elapsed().as_secs()
}

impl Age {
    /// It happened just now.
    pub fn reset(&self) {
        let nanos = u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.reset_at.store(nanos, Ordering::Relaxed);
    }

    /// It happened this long ago.
    pub fn set(&self, ago: std::time::Duration) {
        let nanos = u64::try_from(EPOCH.elapsed().saturating_sub(ago).as_nanos()).unwrap_or(u64::MAX);
        self.reset_at.store(nanos, Ordering::Relaxed);
    }

    /// Seconds since the last reset, or since the start when there was none.
    pub fn seconds(&self) -> f64 {
        let reset_at = std::time::Duration::from_nanos(self.reset_at.load(Ordering::Relaxed));
        EPOCH.elapsed().saturating_sub(reset_at).as_secs_f64()
    }
}

impl TypedMetric for Age {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Age {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.seconds())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
