//! Follows accepted flows in conntrack: from their end to their final record, and from a change of policy to
//! their end.
//!
//! The kernel's events tell of an end at once, or late, or not at all; a look at the whole table every few
//! seconds settles what they left open. The looks happen on threads that may block.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flow::{EndCause, Endpoint, Protocol, Tuple};
use policy_cache::{Affected, Snapshot};
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;

use crate::authorize::{BehindInterface, authorize, no_longer_allowed};
use crate::datagram::{find, is_datagram, service_of};
use crate::datapath::Datapath;
use crate::flows::Look;
use crate::sys::readiness::watch_endings;
use crate::sys::tracked::{Conntrack, Endings, Entry};

/// How often the flows are compared with conntrack's table. Reading it also ends the entries whose time is over,
/// which the kernel itself gets round to within a minute or two.
const LOOK: Duration = Duration::from_secs(5);
/// Ends that are read before others get their turn.
const BATCH: usize = 256;

/// Runs until the events cannot be read any more.
pub(crate) async fn follow(path: Arc<Datapath>, endings: Endings) -> io::Error {
    let endings = match watch_endings(endings) {
        Ok(endings) => endings,
        Err(error) => return error,
    };
    let mut buffer = vec![0; 8192];
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ready = endings.readable() => {
                let mut ready = match ready {
                    Ok(ready) => ready,
                    Err(error) => return error,
                };
                match read(&path, endings.get_ref(), &mut buffer) {
                    Ok(()) => tokio::task::yield_now().await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    // Some were lost: the next look finds their flows gone.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                        tracing::debug!("conntrack told of more ends than there was room for");
                    }
                    Err(error) => return error,
                }
            }
            _ = look.tick() => {
                let path = Arc::clone(&path);
                match spawn_blocking(move || compare(&path, Look::Later)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "cannot read conntrack's table"),
                    Err(panic) => return io::Error::other(panic),
                }
            }
        }
    }
}

fn read(path: &Datapath, endings: &Endings, buffer: &mut [u8]) -> io::Result<()> {
    for _ in 0..BATCH {
        if let Some(entry) = endings.next(buffer)?
            && entry.mark & path.marks().flow != 0
        {
            ended(path, &entry);
        }
    }
    Ok(())
}

fn ended(path: &Datapath, entry: &Entry) {
    let snapshot = path.policy.current();
    let contested = path.flows.ended(entry, |entry| service_of(snapshot.as_deref()?, entry));
    if !contested {
        return;
    }
    // Packets came to the gate after the flow had been accepted. If they began another, it is there now.
    let tuple = entry.tuple();
    match find(&path.conntrack(), &tuple) {
        Ok(Some(entry)) if entry.mark & path.marks().flow != 0 => take_up(path, &entry, false),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "conntrack does not answer"),
    }
}

/// Takes up the flows that a former process accepted. To be called before the first packet is judged.
pub(crate) fn take_over(path: &Datapath) -> io::Result<()> {
    compare(path, Look::First)
}

/// Ends the records of all flows, which live on without this process.
pub(crate) fn leave(path: &Datapath) {
    if let Err(error) = compare(path, Look::Later) {
        tracing::warn!(%error, "cannot read conntrack's table: the last records of flows have old counts");
    }
    path.flows.end_all(EndCause::Shutdown);
}

fn compare(path: &Datapath, look: Look) -> io::Result<()> {
    let begun = Instant::now();
    let mut seen = HashMap::new();
    let conntrack = Conntrack::open()?;
    let mut over = Vec::new();
    conntrack.dump(path.marks().flow, |entry| {
        // Of TCP the kernel tells no end here, and keeps what is over for two minutes.
        if entry.is_over || entry.protocol == Protocol::Tcp && entry.mark & path.revoked_mark != 0 {
            over.push(entry);
        } else {
            seen.insert(entry.tuple(), entry);
        }
    })?;
    for entry in &over {
        ended(path, entry);
    }
    let compared = path.flows.compare(begun, seen, look);
    for entry in &compared.strangers {
        take_up(path, entry, look == Look::First);
    }
    for entry in &compared.revoked {
        delete(path, &conntrack, entry);
    }
    Ok(())
}

/// A marked entry that no flow is known for becomes one, or goes.
fn take_up(path: &Datapath, entry: &Entry, is_older: bool) {
    let snapshot = path.policy.current();
    let (judged, permit) = authorize(snapshot.as_deref(), &entry.tuple(), BehindInterface::default());
    let service = snapshot.as_deref().and_then(|snapshot| service_of(snapshot, entry));
    if permit.is_some() {
        path.flows.adopt(entry, judged, service, is_older);
    } else {
        path.flows.bar(&mut path.flows.lock(), entry.tuple(), judged.decision.generation);
        delete(path, &path.conntrack(), entry);
        path.flows.end_stranger(entry, judged, service, is_older);
    }
}

/// Judges the flows of local pods that no process has accepted. Those that may go on come to the gate with the
/// next packet of their client, and get their mark and record there.
pub(crate) fn judge_unmarked(path: &Datapath) -> io::Result<()> {
    let Some(snapshot) = path.policy.current() else { return Ok(()) };
    let mut unmarked = Vec::new();
    let conntrack = Conntrack::open()?;
    conntrack.dump(0, |entry| {
        if is_datagram(&entry)
            && entry.mark & path.marks().flow == 0
            && is_of_local_pod(&snapshot, &entry.tuple())
        {
            unmarked.push(entry);
        }
    })?;
    for entry in &unmarked {
        let (judged, permit) = authorize(Some(&snapshot), &entry.tuple(), BehindInterface::default());
        // Marked meanwhile, it is another's to judge.
        let is_unmarked = || matches!(find(&conntrack, &entry.tuple()), Ok(found) if found.is_none_or(|now| now.mark == entry.mark));
        if permit.is_some() || !is_unmarked() {
            continue;
        }
        path.flows.bar(&mut path.flows.lock(), entry.tuple(), judged.decision.generation);
        if delete(path, &conntrack, entry) {
            path.flows.end_stranger(entry, judged, service_of(&snapshot, entry), false);
        }
    }
    Ok(())
}

/// What a process on this node sends never comes to the gate.
fn is_of_local_pod(snapshot: &Snapshot, tuple: &Tuple) -> bool {
    let is_local = |endpoint: &Endpoint| match endpoint {
        Endpoint::Pod(pod) => pod.local,
        Endpoint::UnknownLocal => true,
        Endpoint::Node { .. } | Endpoint::External => false,
    };
    let client = snapshot.endpoint(tuple.client.0.ip());
    !matches!(client, Endpoint::Node { own: true, .. })
        && (is_local(&client) || is_local(&snapshot.endpoint(tuple.destination.0.ip())))
}

/// Judges live flows by a new snapshot, and takes those no longer allowed out of conntrack: their next packet
/// is judged as a new flow's, and refused.
pub(crate) fn sweep(path: &Arc<Datapath>, now: &Snapshot, affected: &Affected) {
    let addresses: Option<Vec<IpAddr>> = match affected {
        Affected::All => None,
        Affected::Addresses(addresses) => Some(addresses.iter().copied().collect()),
        Affected::Where(difference) => {
            let ends = path.flows.addresses();
            Some(ends.into_iter().filter(|ip| difference.contains(*ip)).collect())
        }
    };
    let revoked = path.flows.sweep(addresses.as_ref(), |tuple, judged| {
        if judged.decision.generation >= now.generation() {
            return None;
        }
        no_longer_allowed(now, tuple, judged)
    });
    if revoked.is_empty() {
        return;
    }
    tracing::info!(flows = revoked.len(), "revoking flows that are no longer allowed");
    let path = Arc::clone(path);
    spawn_blocking(move || {
        if let Err(error) = end(&path, &revoked) {
            tracing::warn!(%error, "revoked flows are still in conntrack; the next look tries again");
        }
    });
}

fn end(path: &Datapath, revoked: &HashSet<Tuple>) -> io::Result<()> {
    let conntrack = Conntrack::open()?;
    let mut entries = Vec::new();
    conntrack.dump(path.marks().flow, |entry| {
        if revoked.contains(&entry.tuple()) {
            entries.push(entry);
        }
    })?;
    for entry in &entries {
        delete(path, &conntrack, entry);
    }
    Ok(())
}

/// Takes a flow away: its next packet is judged as a new flow's. A TCP connection is marked for the rules instead,
/// which answer its next packet with a reset.
fn delete(path: &Datapath, conntrack: &Conntrack, entry: &Entry) -> bool {
    let outcome = match entry.protocol {
        Protocol::Tcp => conntrack.mark(entry, path.revoked_mark),
        Protocol::Udp | Protocol::Sctp => conntrack.delete(entry),
    };
    outcome.unwrap_or_else(|error| {
        tracing::warn!(%error, tuple = %entry.tuple(), "a flow cannot be taken out of conntrack");
        false
    })
}
