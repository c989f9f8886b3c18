//! Judges live connections again when the snapshot changes, and ends those no longer allowed.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use policy_cache::{Affected, Snapshot};

use crate::authorize::no_longer_allowed;
use crate::datapath::Datapath;
use crate::following;
use crate::registry::{Live, Stop};

/// Follows the snapshots until the store is gone.
pub(crate) async fn follow(path: Arc<Datapath>) {
    let mut changes = path.policy.subscribe();
    let mut before: Option<Arc<Snapshot>> = None;
    loop {
        changes.borrow_and_update();
        if let Some(now) = path.policy.current() {
            fence(Ordering::SeqCst);
            sweep(&path, before.as_deref(), &now);
            let generation = i64::try_from(now.generation().0).unwrap_or(i64::MAX);
            path.metrics.snapshot_generation.set(generation);
            before = Some(now);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Looks at the connections whose ends a change affects, and at no others.
fn sweep(path: &Arc<Datapath>, before: Option<&Snapshot>, now: &Snapshot) {
    let affected = before.map_or(Affected::All, |before| now.affected_since(before));
    following::sweep(path, now, &affected);
    let connections = match &affected {
        Affected::All => path.registry.all(),
        Affected::Addresses(addresses) => path.registry.of_addresses(addresses),
        Affected::Where(difference) => path.registry.of_addresses_where(|ip| difference.contains(ip)),
    };
    let looked_at = connections.len();
    let revoked = connections.iter().filter(|live| judge_again(path, now, live)).count();
    tracing::debug!(generation = now.generation().0, looked_at, revoked, "judged live connections again");
}

/// Judges a connection by the current snapshot, right after its first decision was noted.
///
/// A snapshot published between the reading of the older one and the noting of the decision was swept before
/// there was a decision to judge. One published later finds the decision. The fences keep both sides' write
/// before their read.
pub(crate) fn check(path: &Datapath, live: &Live) {
    fence(Ordering::SeqCst);
    if let Some(now) = path.policy.current() {
        judge_again(path, &now, live);
    }
}

/// True when this ended the connection.
fn judge_again(path: &Datapath, now: &Snapshot, live: &Live) -> bool {
    // Not judged yet: the connection checks itself once it is.
    let Some(judged) = live.judged() else { return false };
    if judged.decision.generation >= now.generation() || live.stop_order().is_some() {
        return false;
    }
    let Some(decision) = no_longer_allowed(now, &live.tuple, judged) else { return false };
    tracing::info!(tuple = %live.tuple, id = %live.id, "revoking a connection that is no longer allowed");
    path.metrics.policy_revocations.inc();
    live.stop(Stop::Revoked(Box::new(decision)));
    true
}
