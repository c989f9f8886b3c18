//! Turns a held first packet into a decision, and waits for a snapshot that knows both of its ends.
//!
//! A pod sends and is dialled before its object has arrived here. Such an attempt is neither let through nor
//! refused at once: it is decided by the first snapshot that knows the pod, and refused when none does within
//! the limit. Few may wait: a client that scans the node's addresses leaves room for itself and for others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use audit::Metrics;
use policy_cache::{Snapshot, SnapshotStore};

use crate::authorize::{BehindInterface, Permit, authorize, is_beyond_knowledge};
use crate::config::ProxyConfig;
use crate::registry::{Judged, Live, Stop};

/// A decision, and the snapshot it was made by; `None` when there was none.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    pub(crate) judged: Judged,
    pub(crate) permit: Option<Permit>,
}

/// Decides, unless that has to wait for a snapshot that knows both ends.
pub(crate) fn decide_at_once(
    policy: &SnapshotStore,
    live: &Live,
    behind: BehindInterface,
) -> Option<Decided> {
    let decided = Decided::now(policy, live, behind);
    (decided.knows_both_ends() || is_beyond_knowledge(&live.tuple)).then_some(decided)
}

/// Decides as soon as both ends are known, at the limit in any case.
///
/// Errors: the order to end that came meanwhile.
pub(crate) async fn decide<'a>(
    policy: &SnapshotStore,
    waiting: &Waiting,
    live: &'a Live,
    behind: BehindInterface,
) -> Result<Decided, &'a Stop> {
    let decided = Decided::now(policy, live, behind);
    if decided.knows_both_ends() || is_beyond_knowledge(&live.tuple) {
        return Ok(decided);
    }
    let decided = match waiting.enter(live.tuple.client.0.ip()) {
        Some(_place) => wait(policy, waiting.limit, live, behind).await?,
        None => decided,
    };
    if !decided.knows_both_ends() {
        waiting.metrics.gate_unknown_refused.inc();
    }
    Ok(decided)
}

async fn wait<'a>(
    policy: &SnapshotStore,
    limit: Duration,
    live: &'a Live,
    behind: BehindInterface,
) -> Result<Decided, &'a Stop> {
    let mut limit = pin!(tokio::time::sleep(limit));
    // Before the next look, so that no snapshot falls between them.
    let mut snapshots = policy.subscribe();
    loop {
        let decided = Decided::now(policy, live, behind);
        if decided.knows_both_ends() {
            return Ok(decided);
        }
        tokio::select! {
            biased;
            stop = live.stopped() => return Err(stop),
            Ok(()) = snapshots.changed() => {}
            () = &mut limit => return Ok(decided),
        }
    }
}

impl Decided {
    fn now(policy: &SnapshotStore, live: &Live, behind: BehindInterface) -> Self {
        let snapshot = policy.current();
        let (judged, permit) = authorize(snapshot.as_deref(), &live.tuple, behind);
        Self { snapshot, judged, permit }
    }

    fn knows_both_ends(&self) -> bool {
        !self.judged.lacks_knowledge()
    }
}

/// Those who wait, and how many may.
#[derive(Debug)]
pub(crate) struct Waiting {
    limit: Duration,
    max_total: usize,
    max_per_client: usize,
    per_client: Mutex<PerClient>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct PerClient {
    total: usize,
    clients: HashMap<IpAddr, usize>,
}

impl Waiting {
    /// Half of all pending attempts may wait, and a quarter of one client's.
    pub(crate) fn new(config: &ProxyConfig, metrics: Metrics) -> Self {
        let limit = Duration::from_millis(config.unknown_pod_timeout_ms);
        let may_wait = |share: usize| if limit.is_zero() { 0 } else { share.max(1) };
        Self {
            limit,
            max_total: may_wait(config.max_pending / 2),
            max_per_client: may_wait(config.max_pending_per_client / 4),
            per_client: Mutex::default(),
            metrics,
        }
    }

    /// How long one may wait.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// A place for one attempt of `client`, given back when it is dropped; `None` when there is none left.
    pub(crate) fn enter(&self, client: IpAddr) -> Option<Place<'_>> {
        let mut waiting = self.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.total >= self.max_total {
            return None;
        }
        let of_client = waiting.clients.entry(client).or_default();
        if *of_client >= self.max_per_client {
            return None;
        }
        *of_client += 1;
        waiting.total += 1;
        self.metrics.gate_unknown_held.inc();
        Some(Place { waiting: self, client, since: Instant::now() })
    }
}

/// One attempt's place among those who wait.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    client: IpAddr,
    since: Instant,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.total -= 1;
        if let Some(of_client) = waiting.clients.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                waiting.clients.remove(&self.client);
            }
        }
        drop(waiting);
        self.waiting.metrics.gate_unknown_held.dec();
        self.waiting.metrics.gate_unknown_latency.observe(self.since.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
