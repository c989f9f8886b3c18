//! Judges connections that came about without the proxy, and ends those that no policy allows.
//!
//! They are older than its first start, or were opened while no process ran or the rules were away. The rules
//! mark every connection of the proxy in conntrack: a live one of a pod of this node without that mark is a
//! stray. What is denied is marked for the rules, which answer its next packet with a reset.
//! Nothing here runs on the datapath's threads, and the kernel's table is read at most once in [`PAUSE`].

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use audit::{Action, ConnectionId, Legs, Record, Timing, Traffic};
use flow::{EndCause, Endpoint, Tuple};
use policy_cache::Snapshot;
use tokio::sync::Notify;
use tokio::sync::watch;

use crate::authorize::judge_stray;
use crate::datapath::Datapath;
use crate::registry::Judged;
use crate::sys::conntrack::{Conntrack, Entry};

/// The least time between two readings of the kernel's table, or judgements of the strays found in it.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the table is read again while there are strays: some of them have ended.
const REFRESH: Duration = Duration::from_secs(30);
/// Strays remembered between two readings. Those beyond are found again by the next.
const MAX_STRAYS: usize = 65_536;

/// Where the rest of the process asks for a look at the kernel's table.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    wanted: Notify,
}

impl Strays {
    /// Asks for a look. Several requests before it is taken are one.
    pub(crate) fn look(&self) {
        self.wanted.notify_one();
    }
}

/// Looks when asked to, and judges by each snapshot, until the store is gone.
pub(crate) async fn follow(path: Arc<Datapath>) {
    let mut snapshots = path.policy.subscribe();
    let mut known = Vec::new();
    let mut is_lacking = false;
    // Kept, so that the process has as many descriptors during a pass as between two.
    let mut socket = Conntrack::open().ok();
    loop {
        let read = wait(&path, &mut snapshots, is_lacking || !known.is_empty()).await;
        snapshots.borrow_and_update();
        if !read && known.is_empty() {
            continue;
        }
        let (of_pass, before, opened) = (Arc::clone(&path), std::mem::take(&mut known), socket.take());
        let pass = tokio::task::spawn_blocking(move || {
            let conntrack = opened.map_or_else(Conntrack::open, Ok)?;
            // After an error answers may be on their way that nobody waits for: the socket is dropped.
            pass(&of_pass, before, read, &conntrack).map(|left| (left, conntrack))
        });
        match pass.await {
            Ok(Ok((left, conntrack))) => (known, socket, is_lacking) = (left, Some(conntrack), false),
            Ok(Err(error)) if is_lacking => tracing::debug!(%error, "conntrack cannot be read"),
            Ok(Err(error)) => {
                is_lacking = true;
                tracing::warn!(%error, "conntrack cannot be read: connections older than this process go on unjudged");
            }
            Err(panic) => tracing::error!(%panic, "judging older connections panicked"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// True when the kernel's table is to be read, false when a new snapshot is all there is.
async fn wait(path: &Datapath, snapshots: &mut watch::Receiver<flow::Generation>, any: bool) -> bool {
    tokio::select! {
        biased;
        () = path.strays.wanted.notified() => true,
        changed = snapshots.changed() => match changed {
            Ok(()) => false,
            Err(_) => std::future::pending().await,
        },
        () = tokio::time::sleep(REFRESH), if any => true,
    }
}

/// Judges every stray by the current snapshot, and ends those denied. Gives back those that go on.
fn pass(
    path: &Datapath,
    known: Vec<Entry>,
    read: bool,
    conntrack: &Conntrack,
) -> std::io::Result<Vec<Entry>> {
    let Some(snapshot) = path.policy.current() else { return Ok(known) };
    let began = Instant::now();
    let strays = if read { find(path, &snapshot, conntrack)? } else { known };
    let (mut left, mut ended) = (Vec::new(), 0);
    for entry in strays {
        path.metrics.strays_judged.inc();
        match judge_stray(&snapshot, &entry) {
            Some((tuple, judged)) => {
                match conntrack.mark(&entry, path.revoked_mark) {
                    Ok(true) => {
                        ended += 1;
                        record(path, &snapshot, &entry, tuple, judged);
                    }
                    // It has ended by itself.
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%tuple, %error, "a connection that is not allowed cannot be ended");
                        left.push(entry);
                    }
                }
            }
            None => left.push(entry),
        }
    }
    let took = began.elapsed();
    tracing::debug!(read, ended, left = left.len(), ?took, "judged connections older than this process");
    Ok(left)
}

/// The live connections of this node's pods that the proxy does not carry.
fn find(path: &Datapath, snapshot: &Snapshot, conntrack: &Conntrack) -> std::io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    // What the kernel carries after a decision is no stray.
    let known = path.carried_mark | path.revoked_mark | path.marks().flow;
    conntrack.unmarked(known, |entry| {
        let (source, destination) =
            (snapshot.endpoint(entry.client.ip()), snapshot.endpoint(entry.destination.ip()));
        let tuple = Tuple::tcp(entry.client, entry.destination);
        let concerns_us = is_local(&source) || is_local(&destination);
        if concerns_us
            && !is_own_node(&source)
            && path.registry.get(&tuple).is_none()
            && found.len() < MAX_STRAYS
        {
            found.push(entry);
        }
    })?;
    Ok(found)
}

/// A pod of this node, known or not.
fn is_local(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::UnknownLocal) || endpoint.pod().is_some_and(|pod| pod.local)
}

/// What the node itself opens is never intercepted.
fn is_own_node(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Node { own: true, .. })
}

/// Its only record, with the kernel's counts where it counts.
fn record(path: &Datapath, snapshot: &Snapshot, entry: &Entry, tuple: Tuple, judged: Judged) {
    let now = SystemTime::now();
    let service = (entry.dialed != entry.destination)
        .then(|| snapshot.service_at(entry.dialed, tuple.protocol))
        .flatten();
    let (traffic, counted) = match entry.counted {
        Some([from, to]) => {
            let traffic = Traffic {
                client_bytes: from.bytes,
                server_bytes: to.bytes,
                client_packets: Some(from.packets),
                server_packets: Some(to.packets),
                uncounted: false,
            };
            (traffic, "bytes are the kernel's count, headers included")
        }
        None => (Traffic { uncounted: true, ..Traffic::default() }, "its bytes were not counted"),
    };
    let begin = if entry.since.is_some() { "" } else { ", and when it began is not known" };
    let start = entry.since.unwrap_or(now);
    path.metrics.strays_ended.inc();
    path.metrics.policy_revocations.inc();
    tracing::info!(%tuple, "ending a connection that came about without this process and is not allowed");
    let record = Record {
        action: Action::Ended,
        id: ConnectionId::next(),
        tuple,
        source: judged.source,
        destination: judged.destination,
        service,
        decision: judged.decision,
        cause: Some(EndCause::PolicyRevoked),
        revoked_by: None,
        start,
        end: Some(now),
        duration: Some(now.duration_since(start).unwrap_or_default()),
        traffic,
        upstream_source: None,
        hairpin: tuple.is_hairpin(),
        timing: Timing::default(),
        legs: Legs::default(),
        tls: None,
        detail: Some(format!("came about without this process, which does not allow it: {counted}{begin}")),
    };
    path.metrics.count_final(&record);
    let ends = (&record.source, &record.destination);
    path.metrics.count_bytes(ends, traffic.client_bytes, traffic.server_bytes);
    path.registry.submit(record);
}
