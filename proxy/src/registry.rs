//! The live connections: every one from the arrival of its SYN to its last record.
//!
//! Invariants: a connection is registered before the snapshot is read; a stop is sticky, the first one wins;
//! one connection writes one final record, whatever ends it, a panic of its task included.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use audit::{Action, ConnectionId, Legs, Metrics, Record, Recorder, Timing, Tls, Traffic};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use flow::{Decision, EndCause, Endpoint, Generation, Outcome, Reason, Service, Tuple, UpstreamSource};
use foldhash::fast::RandomState;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

/// Why a connection has to end though neither end asked for it.
#[derive(Debug, Clone)]
pub(crate) enum Stop {
    /// No longer allowed, by this decision.
    Revoked(Box<Decision>),
    /// Its client stopped sending its SYN, or used the ports for another attempt.
    ClientGone,
    /// The process stops.
    Shutdown,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Its SYN is held.
    Held = 0,
    /// Its SYN was released.
    Handshake = 1,
    /// Both legs are up.
    Carrying = 2,
    /// The legs are being closed.
    Closing = 3,
}

/// Who was judged, and how.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    pub(crate) decision: Decision,
}

/// One registered connection.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: ConnectionId,
    pub(crate) tuple: Tuple,
    /// Bytes the client sent and the server's leg accepted.
    pub(crate) client_bytes: AtomicU64,
    /// Bytes the server sent and the client's leg accepted.
    pub(crate) server_bytes: AtomicU64,
    /// What of both was counted in the metrics.
    counted: [AtomicU64; 2],
    started: Instant,
    started_at: SystemTime,
    phase: AtomicU8,
    judged: OnceLock<Judged>,
    report: Mutex<Report>,
    /// How many updates it has been due for.
    updates: AtomicU32,
    stop: OnceLock<Stop>,
    stopped: AtomicWaker,
}

impl Live {
    fn new(tuple: Tuple) -> Self {
        Self {
            id: ConnectionId::next(),
            tuple,
            client_bytes: AtomicU64::new(0),
            server_bytes: AtomicU64::new(0),
            counted: Default::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            phase: AtomicU8::new(Phase::Held as u8),
            judged: OnceLock::new(),
            report: Mutex::default(),
            updates: AtomicU32::new(0),
            stop: OnceLock::new(),
            stopped: AtomicWaker::new(),
        }
    }

    /// Orders the connection to end. The first order stays.
    pub(crate) fn stop(&self, stop: Stop) {
        if self.stop.set(stop).is_ok() {
            self.stopped.wake();
        }
    }

    /// Waits for an order to end. One task waits, the connection's own. Cancel safe.
    pub(crate) async fn stopped(&self) -> &Stop {
        poll_fn(|cx| self.poll_stopped(cx)).await
    }

    /// The same, for a task that waits for other things as well.
    pub(crate) fn poll_stopped(&self, cx: &mut Context<'_>) -> Poll<&Stop> {
        if let Some(stop) = self.stop.get() {
            return Poll::Ready(stop);
        }
        self.stopped.register(cx.waker());
        // It may have been ordered between the look and the registration.
        self.stop.get().map_or(Poll::Pending, Poll::Ready)
    }

    /// The order to end, when there is one.
    pub(crate) fn stop_order(&self) -> Option<&Stop> {
        self.stop.get()
    }

    /// Who was judged; `None` until the decision has fallen.
    pub(crate) fn judged(&self) -> Option<&Judged> {
        self.judged.get()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(crate) fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }

    /// True once for each `every` that the connection has lived.
    fn is_update_due(&self, every: Duration) -> bool {
        let due = u32::try_from(self.started.elapsed().as_nanos() / every.as_nanos()).unwrap_or(u32::MAX);
        self.updates.load(Ordering::Relaxed) < due && self.updates.swap(due, Ordering::Relaxed) < due
    }

    /// Counts the bytes that were carried since they were last counted.
    fn count_bytes(&self, metrics: &Metrics) {
        let carried = [&self.client_bytes, &self.server_bytes];
        let [sent, received] = std::array::from_fn(|way| {
            let now = carried[way].load(Ordering::Relaxed);
            // The end of the connection may count at the same time: whoever comes with less adds nothing.
            now.saturating_sub(self.counted[way].fetch_max(now, Ordering::Relaxed))
        });
        if let Some(judged) = self.judged() {
            metrics.count_bytes((&judged.source, &judged.destination), sent, received);
        }
    }

    /// Writes that it goes on, once for each `every` that it has lived, between its first and its last record.
    fn update(&self, every: Duration, recorder: &Recorder) {
        if self.is_update_due(every) {
            let report = self.report();
            if report.established && !report.ended {
                recorder.submit(self.record(report.clone(), Action::Updated, None));
            }
        }
    }

    /// Notes what the client's ClientHello asked for.
    pub(crate) fn note_tls(&self, tls: Tls) {
        self.report().tls = Some(Box::new(tls));
    }

    /// Notes what the kernel knows of the legs, if the connection has lived for `after`. The first answer for each
    /// leg stays: later the kernel may have let go of it.
    pub(crate) fn note_legs(&self, after: Duration, ask: impl FnOnce(&mut Legs)) {
        if self.started.elapsed() >= after {
            ask(self.report().legs.get_or_insert_default());
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, report: Report, action: Action, cause: Option<EndCause>) -> Record {
        let live = self;
        // One reading, so that the end is the start and the duration together.
        let lived = (action != Action::Started).then(|| live.started.elapsed());
        let judged = live.judged().cloned().unwrap_or_else(|| Judged {
            source: Endpoint::External,
            destination: Endpoint::External,
            decision: Decision::refused(Generation(0), Reason::NoSnapshot),
        });
        let revoked_by = match (cause, live.stop_order()) {
            (Some(EndCause::PolicyRevoked), Some(Stop::Revoked(decision))) => Some(Decision::clone(decision)),
            _ => None,
        };
        Record {
            action,
            id: live.id,
            tuple: live.tuple,
            source: judged.source,
            destination: judged.destination,
            service: report.service.map(|service| *service),
            decision: judged.decision,
            cause,
            revoked_by,
            start: live.started_at,
            end: lived.filter(|_| cause.is_some()).map(|lived| live.started_at + lived),
            duration: lived,
            traffic: Traffic {
                client_bytes: live.client_bytes.load(Ordering::Relaxed),
                server_bytes: live.server_bytes.load(Ordering::Relaxed),
                ..Traffic::default()
            },
            upstream_source: report.upstream_source.map(|source| *source),
            hairpin: report.hairpin,
            timing: Timing { decide: report.decide, connect: report.connect },
            legs: report.legs.map(|legs| *legs).unwrap_or_default(),
            tls: report.tls,
            detail: report.detail,
        }
    }
}

/// All registered connections, found by tuple and by either address.
#[derive(Debug)]
pub(crate) struct Registry {
    by_tuple: DashMap<ByTuple, (), RandomState>,
    by_address: DashMap<IpAddr, HashSet<ByPlace, RandomState>, RandomState>,
    /// A connection was removed. One for all: hardly ever does anybody wait for one of them, and each would keep it.
    removed: Notify,
    recorder: Recorder,
    metrics: Metrics,
}

/// A connection that is found by its tuple. The tables hold no tuples of their own, so that an idle connection
/// costs them two words.
#[derive(Debug)]
struct ByTuple(Arc<Live>);

/// A connection as itself, whatever its tuple.
#[derive(Debug)]
struct ByPlace(Arc<Live>);

impl Borrow<Tuple> for ByTuple {
    fn borrow(&self) -> &Tuple {
        &self.0.tuple
    }
}

impl Hash for ByTuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.tuple.hash(state);
    }
}

impl PartialEq for ByTuple {
    fn eq(&self, other: &Self) -> bool {
        self.0.tuple == other.0.tuple
    }
}

impl Eq for ByTuple {}

impl Hash for ByPlace {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl PartialEq for ByPlace {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByPlace {}

impl Registry {
    pub(crate) fn new(recorder: Recorder, metrics: Metrics) -> Self {
        Self {
            by_tuple: DashMap::default(),
            by_address: DashMap::default(),
            removed: Notify::new(),
            recorder,
            metrics,
        }
    }

    /// Registers a connection. The one that has the tuple already is given back instead when there is one.
    pub(crate) fn register(self: &Arc<Self>, tuple: Tuple) -> Result<Registered, Arc<Live>> {
        let live = Arc::new(Live::new(tuple));
        match self.by_tuple.entry(ByTuple(Arc::clone(&live))) {
            Entry::Occupied(taken) => return Err(Arc::clone(&taken.key().0)),
            Entry::Vacant(vacant) => drop(vacant.insert(())),
        }
        for address in [tuple.client.0.ip(), tuple.destination.0.ip()] {
            self.by_address.entry(address).or_default().insert(ByPlace(Arc::clone(&live)));
        }
        Ok(Registered { registry: Arc::clone(self), live })
    }

    /// The connection with this tuple.
    pub(crate) fn get(&self, tuple: &Tuple) -> Option<Arc<Live>> {
        self.by_tuple.get(tuple).map(|live| Arc::clone(&live.key().0))
    }

    /// The connections that have one of these addresses at either end.
    pub(crate) fn of_addresses<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<Arc<Live>> {
        let mut found = HashMap::new();
        for address in addresses {
            if let Some(of_address) = self.by_address.get(address) {
                found.extend(of_address.iter().map(|live| (Arc::as_ptr(&live.0), Arc::clone(&live.0))));
            }
        }
        found.into_values().collect()
    }

    /// The connections that have an address at either end that `wanted` says yes to.
    pub(crate) fn of_addresses_where(&self, wanted: impl Fn(IpAddr) -> bool) -> Vec<Arc<Live>> {
        // Addresses first: looking into the map while it is iterated could wait for itself.
        let addresses: Vec<IpAddr> = self.by_address.iter().map(|entry| *entry.key()).collect();
        self.of_addresses(addresses.iter().filter(|address| wanted(**address)))
    }

    /// Every connection.
    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        self.by_tuple.iter().map(|live| Arc::clone(&live.key().0)).collect()
    }

    /// Connections registered now.
    pub(crate) fn len(&self) -> usize {
        self.by_tuple.len()
    }

    /// Counts the bytes of every connection, and writes an updated record of those that have lived another
    /// `every`.
    pub(crate) fn update(&self, every: Option<Duration>) {
        // Without room for records, what is left of it belongs to those that tell of an end.
        let every = every.filter(|_| self.recorder.accepts_connections());
        for live in &self.by_tuple {
            let live = &live.key().0;
            live.count_bytes(&self.metrics);
            if let Some(every) = every {
                live.update(every, &self.recorder);
            }
        }
    }

    /// Writes the record of a connection that was never registered.
    pub(crate) fn submit(&self, record: Record) {
        self.recorder.submit(record);
    }

    /// Whether the records of another connection could be kept, if that is asked for.
    pub(crate) fn accepts(&self) -> bool {
        self.recorder.accepts_connections()
    }

    /// How often a connection writes an updated record.
    pub(crate) fn update_every(&self) -> Option<Duration> {
        self.recorder.update_every()
    }

    /// Waits until no connection is registered.
    pub(crate) async fn emptied(&self) {
        self.removed_until(|| self.by_tuple.is_empty()).await;
    }

    /// Waits until this connection has left the registry.
    pub(crate) async fn left(&self, live: &Arc<Live>) {
        self.removed_until(|| self.get(&live.tuple).is_none_or(|now| !Arc::ptr_eq(&now, live))).await;
    }

    /// Waits until removals have made something true.
    async fn removed_until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut removed = pin!(self.removed.notified());
            // Registered as a waiter before the look, so that a removal in between is not missed.
            removed.as_mut().enable();
            if is_so() {
                return;
            }
            removed.await;
        }
    }

    fn remove(&self, live: &Arc<Live>) {
        let tuple = &live.tuple;
        for address in [tuple.client.0.ip(), tuple.destination.0.ip()] {
            if let Entry::Occupied(mut of_address) = self.by_address.entry(address) {
                of_address.get_mut().remove(&ByPlace(Arc::clone(live)));
                if of_address.get().is_empty() {
                    of_address.remove();
                }
            }
        }
        self.by_tuple.remove(tuple);
        self.removed.notify_waiters();
    }
}

/// What the phases learn about a connection, for its records.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    // Most connections have none of these, and they wait in memory as long as the connection does.
    pub(crate) service: Option<Box<Service>>,
    pub(crate) upstream_source: Option<Box<UpstreamSource>>,
    pub(crate) legs: Option<Box<Legs>>,
    pub(crate) tls: Option<Box<Tls>>,
    pub(crate) hairpin: bool,
    pub(crate) decide: Option<Duration>,
    pub(crate) connect: Option<Duration>,
    pub(crate) established: bool,
    /// Its last record is being written.
    pub(crate) ended: bool,
    pub(crate) cause: Option<EndCause>,
    pub(crate) detail: Option<String>,
}

/// A connection's place in the registry. Dropping it, wherever that happens, removes the connection and
/// writes its final record.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Arc<Registry>,
    live: Arc<Live>,
}

impl Registered {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Notes who was judged and how. Once only.
    pub(crate) fn judged(&self, judged: Judged) {
        self.report(|report| report.decide = Some(self.live.started.elapsed()));
        let _ = self.live.judged.set(judged);
    }

    /// Adds to what is known for the records.
    pub(crate) fn report(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.live.report());
    }

    /// Both legs are up: counts the connection and writes its first record.
    pub(crate) fn established(&self) {
        self.live.enter(Phase::Carrying);
        if let Some(judged) = self.live.judged() {
            self.registry.metrics.count_opened(&judged.source, &judged.destination);
        }
        self.registry.metrics.connections_live.inc();
        self.report(|report| {
            report.established = true;
            self.registry.recorder.submit(self.live.record(report.clone(), Action::Started, None));
        });
    }

    /// Notes how it ended. The first cause stays.
    pub(crate) fn end(&self, cause: EndCause, detail: Option<String>) {
        self.report(|report| {
            if report.cause.is_none() {
                report.cause = Some(cause);
                report.detail = detail;
            }
        });
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let report = {
            // From here on no update is written.
            let ended = Report { ended: true, ..Report::default() };
            std::mem::replace(&mut *self.live.report(), ended)
        };
        let cause = report.cause.unwrap_or(EndCause::InternalError);
        let outcome = match (report.established, cause) {
            (true, _) => Outcome::Ended,
            (false, EndCause::PolicyDenied | EndCause::PolicyRevoked) => Outcome::Denied,
            (false, _) => Outcome::Failed,
        };
        let record = self.live.record(report, action(outcome), Some(cause));
        if outcome == Outcome::Ended {
            self.registry.metrics.connections_live.dec();
        }
        self.live.count_bytes(&self.registry.metrics);
        self.registry.metrics.count_final(&record);
        // In this order: an empty registry means that every record is on its way, and a connection that uses
        // the tuple again is recorded after this one.
        self.registry.recorder.submit(record);
        self.registry.remove(&self.live);
    }
}

fn action(outcome: Outcome) -> Action {
    match outcome {
        Outcome::Ended => Action::Ended,
        Outcome::Denied => Action::Denied,
        Outcome::Failed => Action::Failed,
    }
}

#[cfg(test)]
mod tests;
