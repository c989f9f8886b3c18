//! The gate for datagrams, and for TCP connections that the rules could not hand to the listener: a held packet to
//! the verdict on its flow.
//!
//! The decision is made and the verdict given at once, under the lock of the flows' table: what follows in the
//! same flow finds it judged, and no change of policy falls between the decision and the table. There is no leg
//! to a server; the kernel carries what is accepted. Only a flow of which an end is not known yet waits.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use audit::GateDrop;
use flow::{EndCause, Endpoint, Protocol, Service, Tuple};
use policy_cache::Snapshot;

use crate::authorize::{BehindInterface, authorize, is_beyond_knowledge};
use crate::config::DenyAction;
use crate::datapath::{Datapath, Marks};
use crate::flows::{Known, Refusal, Table};
use crate::held::Gatekeeper;
use crate::packet::{length, parse_flow};
use crate::sys::nfqueue::{Packet, PacketVerdict};
use crate::sys::tracked::{Conntrack, Direction, Entry};

/// Judges a held datagram, and the flow it begins.
pub(crate) fn arrive(path: &Arc<Datapath>, gate: &Arc<Gatekeeper>, packet: &Packet<'_>, now: Instant) {
    match parse_flow(packet.payload) {
        Ok(tuple) => {
            let Packet { id, mark, dialed, .. } = *packet;
            let length = length(packet.payload);
            let held = Held { gate: Arc::clone(gate), tuple, id, mark, dialed, length, since: now };
            if let Some(held) = judge(path, held, Patience::Waits) {
                tokio::spawn(wait(Arc::clone(path), held));
            }
        }
        Err(error) => {
            tracing::debug!(%error, "a held packet begins no flow");
            path.metrics.gate_dropped.of(GateDrop::Malformed).inc();
            gate.verdicts(&[(packet.id, PacketVerdict::Drop)]);
        }
    }
}

/// A datagram that has had no verdict.
#[derive(Debug)]
struct Held {
    gate: Arc<Gatekeeper>,
    tuple: Tuple,
    id: u32,
    mark: u32,
    dialed: Option<SocketAddr>,
    /// Its length in bytes, from the IP header on.
    length: u64,
    since: Instant,
}

/// Whether a flow of which too little is known is refused, or may wait for a snapshot that knows more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Waits,
    IsOver,
}

/// Gives the verdict, or the packet back when it is to wait.
fn judge(path: &Datapath, held: Held, patience: Patience) -> Option<Held> {
    let Held { tuple, since, .. } = held;
    let mut table = path.flows.lock();
    let snapshot = path.policy.current();
    match known(&mut table, snapshot.as_deref(), &held) {
        // The client has sent its first packet again, and that has gone on.
        Known::AcceptedMeanwhile if tuple.protocol != Protocol::Udp => {
            path.metrics.gate_dropped.of(GateDrop::Duplicate).inc();
            held.verdict(PacketVerdict::Drop);
            return None;
        }
        Known::Accepted | Known::AcceptedMeanwhile => {
            if table.is_unseen(&tuple) {
                held.accept();
            } else if path.uncounted.around(&path.conntrack(), &tuple, || held.accept()) {
                table.count_beside(&tuple, held.length);
            }
            return None;
        }
        Known::Refused | Known::Answers(_) => {
            path.metrics.gate_dropped.of(GateDrop::Duplicate).inc();
            held.refuse(path.deny_action);
            return None;
        }
        Known::Nothing => {}
    }
    let (judged, permit) = authorize(snapshot.as_deref(), &tuple, held.behind());
    if judged.lacks_knowledge() && !is_beyond_knowledge(&tuple) {
        match patience {
            Patience::Waits => return Some(held),
            Patience::IsOver => {
                path.metrics.gate_unknown_refused.inc();
            }
        }
    }
    let service = held.dialed.and_then(|dialed| snapshot.as_deref()?.service_at(dialed, tuple.protocol));
    let refusal = if permit.is_none() {
        Some((EndCause::PolicyDenied, None))
    } else if !path.flows.can_be_recorded() {
        Some((EndCause::RecordsFull, Some("records cannot be kept")))
    } else if path.flows.is_full(&table) {
        Some((EndCause::Overload, Some("more flows than proxy.max_flows")))
    } else if path.flows.has_its_share(&table, tuple.client.0.ip()) {
        Some((EndCause::ClientLimit, Some("more flows of one client than proxy.max_flows_per_client")))
    } else {
        None
    };
    if let Some((cause, detail)) = refusal {
        held.refuse(path.deny_action);
        path.flows.refuse(&mut table, Refusal { tuple, judged, service, cause, since, detail });
        return None;
    }
    let destination = judged.destination.clone();
    path.flows.accept(&mut table, tuple, judged, since);
    held.accept();
    // The verdict has carried the packet on: conntrack has the flow now, if it ever will.
    let (service, is_seen) = match held.dialed {
        Some(_) => (service, true),
        None => look_up(path, snapshot.as_deref(), &tuple, &destination),
    };
    path.flows.started(&mut table, &tuple, service, is_seen);
    None
}

/// What is known of a packet's flow. What answers a revoked flow belongs to it, also when it is allowed again:
/// then its client begins it anew.
fn known(table: &mut Table, snapshot: Option<&Snapshot>, held: &Held) -> Known {
    let generation = snapshot.map(Snapshot::generation).unwrap_or_default();
    let now = Instant::now();
    let known = table.known(&held.tuple, generation, held.since, now);
    let Known::Answers(revoked) = known else { return known };
    let (_, permit) = authorize(snapshot, &revoked, BehindInterface::default());
    table.note_revoked(&revoked, generation, permit.is_some(), now);
    Known::Refused
}

/// Waits for a snapshot that knows both ends, like a connection attempt does and among the same few.
async fn wait(path: Arc<Datapath>, mut held: Held) {
    let mut patience = Patience::IsOver;
    if let Some(_place) = path.waiting.enter(held.tuple.client.0.ip()) {
        let mut limit = pin!(tokio::time::sleep(path.waiting.limit()));
        let mut snapshots = path.policy.subscribe();
        patience = Patience::Waits;
        loop {
            held = match judge(&path, held, patience) {
                Some(held) => held,
                None => return,
            };
            tokio::select! {
                Ok(()) = snapshots.changed() => {}
                () = &mut limit => patience = Patience::IsOver,
            }
        }
    }
    // Without patience nothing is given back.
    let _ = judge(&path, held, patience);
}

impl Held {
    fn accept(&self) {
        self.verdict(PacketVerdict::AcceptWithMark(self.mark | self.gate.marks.accept));
    }

    fn refuse(&self, action: DenyAction) {
        self.verdict(match action {
            DenyAction::Reset => PacketVerdict::AcceptWithMark(self.mark | self.gate.marks.reset),
            DenyAction::Drop => PacketVerdict::Drop,
        });
    }

    fn verdict(&self, verdict: PacketVerdict) {
        self.gate.verdicts(&[(self.id, verdict)]);
        self.gate.metrics.gate_latency.observe(self.since.elapsed().as_secs_f64());
    }

    /// Which ends lie behind an interface of pods, as the rules saw it.
    fn behind(&self) -> BehindInterface {
        let Marks { cluster, tracked, .. } = self.gate.marks;
        BehindInterface { client: self.mark & cluster != 0, destination: self.mark & tracked != 0 }
    }
}

/// The Service that was dialled, and whether conntrack sees the flow at all: some nodes exempt their own DNS
/// (`CT --notrack`). Where it cannot be known, it is told by the end of the flow.
fn look_up(
    path: &Datapath,
    snapshot: Option<&Snapshot>,
    tuple: &Tuple,
    destination: &Endpoint,
) -> (Option<Service>, bool) {
    if tuple.is_hairpin() || matches!(destination, Endpoint::External) {
        return (None, true);
    }
    match find(&path.conntrack(), tuple) {
        Ok(Some(entry)) => (snapshot.and_then(|snapshot| service_of(snapshot, &entry)), true),
        Ok(None) => (None, false),
        Err(error) => {
            tracing::warn!(%error, "conntrack does not answer");
            (None, true)
        }
    }
}

/// The entry of a flow, unless both its ends were translated.
pub(crate) fn find(conntrack: &Conntrack, tuple: &Tuple) -> std::io::Result<Option<Entry>> {
    let Tuple { protocol, client, destination } = *tuple;
    match conntrack.find(protocol, Direction::Reply, destination.0, client.0)? {
        Some(entry) => Ok(Some(entry)),
        None => conntrack.find(protocol, Direction::Original, client.0, destination.0),
    }
}

/// The Service that an entry's client dialled.
pub(crate) fn service_of(snapshot: &Snapshot, entry: &Entry) -> Option<Service> {
    snapshot.service_at(entry.dialed(), entry.protocol)
}

/// True for the protocols whose flows are all the kernel's to carry.
pub(crate) fn is_datagram(entry: &Entry) -> bool {
    matches!(entry.protocol, Protocol::Udp | Protocol::Sctp)
}
