//! Turns a registered tuple into a permit or a refusal, and judges live connections again.
//!
//! Reads one snapshot. Performs no I/O and never consults the clock. What is missing is refused: no snapshot,
//! a connection of which neither end is a known pod of this node, and one with an end that the kernel found
//! behind an interface of pods and the snapshot does not know there.

use std::net::{IpAddr, SocketAddr};

use flow::{Decision, Endpoint, Generation, Reason, SideVerdict, Tuple};
use policy_cache::{IdentifiedFlow, Snapshot};

use crate::registry::Judged;
use crate::sys::conntrack::Entry;

/// Which way the leg to the server goes, and so which address it can come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leg {
    /// To a pod: untracked, from the client's own address and port.
    Cluster,
    /// Out of the cluster: tracked, for the CNI's masquerade; from the client's address and a port that the
    /// client cannot use itself, so that conntrack sees two connections.
    External,
    /// To a process on this node: tracked, and its replies are brought back by the connection mark.
    OwnNode,
    /// Back to the client's own pod: its kernel refuses packets from its own address, so it comes from the
    /// node's.
    Hairpin,
}

/// Which ends of a first packet lie behind an interface of this node's pods, as the rules saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BehindInterface {
    pub(crate) client: bool,
    pub(crate) destination: bool,
}

/// The proof that a connection was allowed. Only [`authorize`] makes one.
#[derive(Debug)]
pub(crate) struct Permit {
    tuple: Tuple,
    leg: Leg,
}

impl Permit {
    pub(crate) fn tuple(&self) -> &Tuple {
        &self.tuple
    }

    pub(crate) fn leg(&self) -> Leg {
        self.leg
    }
}

/// Decides a tuple by one snapshot. The permit is there exactly when the decision allows.
pub(crate) fn authorize(
    snapshot: Option<&Snapshot>,
    tuple: &Tuple,
    behind: BehindInterface,
) -> (Judged, Option<Permit>) {
    let Some(snapshot) = snapshot else {
        let decision = Decision::refused(Generation::default(), Reason::NoSnapshot);
        return (Judged { source: Endpoint::External, destination: Endpoint::External, decision }, None);
    };
    let judged = judge(snapshot, tuple, behind);
    let permit = judged
        .decision
        .verdict()
        .is_allow()
        .then(|| Permit { tuple: *tuple, leg: leg(snapshot, &judged, tuple) });
    (judged, permit)
}

/// Judges a live connection by a newer snapshot: the decision that ends it, or `None` when it may go on.
pub(crate) fn no_longer_allowed(snapshot: &Snapshot, tuple: &Tuple, before: &Judged) -> Option<Decision> {
    let now = judge(snapshot, tuple, BehindInterface::default());
    let gone =
        !is_same_pod(&before.source, &now.source) || !is_same_pod(&before.destination, &now.destination);
    if gone {
        return Some(Decision::refused(snapshot.generation(), Reason::PodGone));
    }
    (!now.decision.verdict().is_allow()).then_some(now.decision)
}

impl Judged {
    /// True when this was refused because the snapshot lacks something that a later one may have.
    pub(crate) fn lacks_knowledge(&self) -> bool {
        let lacks = |side: &SideVerdict| matches!(side.reason, Reason::NoSnapshot | Reason::UnknownLocalPod);
        lacks(&self.decision.egress) || lacks(&self.decision.ingress)
    }
}

/// Judges a connection that came about without the proxy: the tuple and the denial that ends it, or `None` when
/// it may go on. A pod that is not known yet denies nothing. Where nobody saw which end opened the connection,
/// it may go on if it may be opened from either.
pub(crate) fn judge_stray(snapshot: &Snapshot, entry: &Entry) -> Option<(Tuple, Judged)> {
    let denied = |client, destination| {
        let tuple = Tuple::tcp(client, destination);
        let judged = judge(snapshot, &tuple, BehindInterface::default());
        let is_denied = !judged.decision.verdict().is_allow() && !judged.lacks_knowledge();
        is_denied.then_some((tuple, judged))
    };
    let as_seen = denied(entry.client, entry.destination)?;
    if !entry.opening_seen {
        denied(entry.destination, entry.client)?;
    }
    Some(as_seen)
}

fn judge(snapshot: &Snapshot, tuple: &Tuple, behind: BehindInterface) -> Judged {
    let mut identified = snapshot.identify(tuple);
    let mut unknown = false;
    let (client, destination) = (tuple.client.0, tuple.destination.0);
    for (behind, address, end) in [
        (behind.client, client, &mut identified.source),
        (behind.destination, destination, &mut identified.destination),
    ] {
        // Another node's pod here is one that has gone, and its address belongs to a new one.
        if (behind || is_link_local(address)) && (matches!(end, Endpoint::External) || is_remote_pod(end)) {
            *end = Endpoint::UnknownLocal;
            unknown = true;
        }
    }
    let decision = if unknown {
        Decision::refused(snapshot.generation(), Reason::UnknownLocalPod)
    } else if is_local_pod(&identified.source) || is_local_pod(&identified.destination) {
        leave_other_nodes_sides(snapshot.decide(&identified), &identified)
    } else {
        Decision::refused(snapshot.generation(), Reason::UnknownLocalPod)
    };
    Judged { source: identified.source, destination: identified.destination, decision }
}

/// Each node enforces for its own pods: what another node's pod may do is decided there, by that node's
/// snapshot. So each denial has one record, on the node of the pod whose policy denied it, and a node that
/// hears of a change late cannot refuse in another's name.
fn leave_other_nodes_sides(mut decision: Decision, flow: &IdentifiedFlow) -> Decision {
    if is_remote_pod(&flow.source) {
        decision.egress = SideVerdict::other_node();
    }
    if is_remote_pod(&flow.destination) {
        decision.ingress = SideVerdict::other_node();
    }
    decision
}

/// True when an end has an address that no object will ever name: it means something on one link only, and what
/// comes here with one is on its way between two ports of a bridge.
pub(crate) fn is_beyond_knowledge(tuple: &Tuple) -> bool {
    is_link_local(tuple.client.0) || is_link_local(tuple.destination.0)
}

fn is_link_local(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn leg(snapshot: &Snapshot, judged: &Judged, tuple: &Tuple) -> Leg {
    if tuple.is_hairpin() {
        return Leg::Hairpin;
    }
    match judged.destination {
        Endpoint::Pod(_) => Leg::Cluster,
        Endpoint::Node { own: true, .. } => Leg::OwnNode,
        _ if snapshot.in_cluster(tuple.destination.0.ip()) => Leg::Cluster,
        _ => Leg::External,
    }
}

fn is_local_pod(endpoint: &Endpoint) -> bool {
    endpoint.pod().is_some_and(|pod| pod.local)
}

fn is_remote_pod(endpoint: &Endpoint) -> bool {
    endpoint.pod().is_some_and(|pod| !pod.local)
}

/// True unless there was a pod and it is another one now, or none.
fn is_same_pod(before: &Endpoint, now: &Endpoint) -> bool {
    match (before.pod(), now.pod()) {
        (None, _) => true,
        (Some(before), Some(now)) => {
            before.uid == now.uid && before.name == now.name && before.namespace == now.namespace
        }
        (Some(_), None) => false,
    }
}
