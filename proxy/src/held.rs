//! A held SYN: the one thing a client waits for. It leaves the gate exactly once, whatever happens.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use audit::Metrics;
use flow::DialedAddr;

use crate::authorize::BehindInterface;
use crate::datapath::Marks;
use crate::packet::Syn;
use crate::pending::Pending;
use crate::sys::icmp::IcmpSocket;
use crate::sys::nfqueue::{Packet, PacketVerdict, Queue};

/// What all held SYNs of one queue share.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    pub(crate) queue: Queue,
    /// `None` where raw sockets are not permitted: unreachable destinations then look refused.
    pub(crate) icmp: Option<Arc<IcmpSocket>>,
    /// One table for all gates: a client's connections may come through any of them.
    pub(crate) pending: Arc<Mutex<Pending>>,
    pub(crate) marks: Marks,
    pub(crate) metrics: Metrics,
}

impl Gatekeeper {
    /// Gives verdicts. A queue that cannot be written to is the end of the gate, which its reader notices.
    pub(crate) fn verdicts(&self, verdicts: &[(u32, PacketVerdict)]) {
        if let Err(error) = self.queue.verdicts(verdicts) {
            tracing::error!(%error, "the gate cannot give verdicts");
        }
    }

    pub(crate) fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One held SYN. Dropped without a word, its client is left to try again.
#[derive(Debug)]
pub(crate) struct HeldSyn {
    gate: Arc<Gatekeeper>,
    syn: Syn,
    dialed: Option<DialedAddr>,
    packet: u32,
    mark: u32,
    since: Instant,
    is_open: bool,
}

/// A released SYN whose handshake is under way. Copies of it belong to the kernel until this is dropped.
#[derive(Debug)]
pub(crate) struct InHandshake {
    gate: Arc<Gatekeeper>,
    syn: Syn,
}

impl HeldSyn {
    pub(crate) fn new(gate: &Arc<Gatekeeper>, syn: Syn, packet: &Packet<'_>, since: Instant) -> Self {
        Self {
            gate: Arc::clone(gate),
            syn,
            dialed: packet.dialed.map(DialedAddr),
            packet: packet.id,
            mark: packet.mark,
            since,
            is_open: true,
        }
    }

    /// The address that was dialled, where the kernel tells it of held packets.
    pub(crate) fn dialed(&self) -> Option<DialedAddr> {
        self.dialed
    }

    /// Which of its ends lie behind an interface of pods, by the marks of the rules.
    pub(crate) fn behind(&self) -> BehindInterface {
        let Marks { cluster, tracked, .. } = self.gate.marks;
        BehindInterface { client: self.mark & cluster != 0, destination: self.mark & tracked != 0 }
    }

    /// Lets it through: the kernel completes the handshake with the listener.
    pub(crate) fn release(mut self) -> InHandshake {
        // In this order, so that a copy that arrives meanwhile is not taken for a held one.
        self.gate.pending().release(&self.syn);
        self.verdict(PacketVerdict::Accept);
        InHandshake { gate: Arc::clone(&self.gate), syn: self.syn }
    }

    /// Answers it with a TCP reset: the client sees ECONNREFUSED.
    pub(crate) fn reset(mut self) {
        // Settled first: the client may try again from the same port before the verdict has returned.
        self.gate.pending().settle(&self.syn, false, Instant::now());
        self.verdict(PacketVerdict::AcceptWithMark(self.mark | self.gate.marks.reset));
    }

    /// Answers it with an ICMP error: the client sees EHOSTUNREACH.
    ///
    /// IPv6 errors are sent by the rules. An IPv4 error quotes the address that was dialled, as far as it is
    /// known; the rules' reset follows for a client that cannot make out what the error is about.
    pub(crate) fn unreachable(mut self) {
        let destination = self.dialed.map_or(self.syn.tuple.destination.0, |dialed| dialed.0);
        if let (SocketAddr::V4(client), SocketAddr::V4(destination), Some(icmp)) =
            (self.syn.tuple.client.0, destination, &self.gate.icmp)
            && let Err(error) = icmp.host_unreachable(client, destination, self.syn.isn)
        {
            tracing::debug!(%error, "no ICMP error for an unreachable destination");
        }
        self.gate.pending().settle(&self.syn, false, Instant::now());
        self.verdict(PacketVerdict::AcceptWithMark(self.mark | self.gate.marks.unreachable));
    }

    /// Answers it with silence; copies of it are part of the same attempt.
    pub(crate) fn silence(mut self) {
        self.verdict(PacketVerdict::Drop);
        self.gate.pending().settle(&self.syn, true, Instant::now());
    }

    fn verdict(&mut self, verdict: PacketVerdict) {
        self.is_open = false;
        self.gate.verdicts(&[(self.packet, verdict)]);
        self.gate.metrics.gate_latency.observe(self.since.elapsed().as_secs_f64());
    }
}

impl Drop for HeldSyn {
    fn drop(&mut self) {
        if self.is_open {
            self.verdict(PacketVerdict::Drop);
            self.gate.pending().settle(&self.syn, false, Instant::now());
        }
    }
}

impl Drop for InHandshake {
    fn drop(&mut self) {
        self.gate.pending().settle(&self.syn, false, Instant::now());
    }
}
