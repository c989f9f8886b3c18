//! A held SYN: the one thing a client waits for. It leaves the gate exactly once, whatever happens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use audit::Metrics;
use flow::Tuple;

use crate::datapath::Marks;
use crate::pending::Pending;
use crate::sys::nfqueue::{PacketVerdict, Queue};

/// What all held SYNs of the gate share.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    pub(crate) queue: Queue,
    pub(crate) pending: Mutex<Pending>,
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
    tuple: Tuple,
    packet: u32,
    mark: u32,
    since: Instant,
    is_open: bool,
}

/// A released SYN whose handshake is under way. Copies of it belong to the kernel until this is dropped.
#[derive(Debug)]
pub(crate) struct InHandshake {
    gate: Arc<Gatekeeper>,
    tuple: Tuple,
}

impl HeldSyn {
    pub(crate) fn new(gate: &Arc<Gatekeeper>, tuple: Tuple, packet: u32, mark: u32, since: Instant) -> Self {
        Self { gate: Arc::clone(gate), tuple, packet, mark, since, is_open: true }
    }

    /// Lets it through: the kernel completes the handshake with the listener.
    pub(crate) fn release(mut self) -> InHandshake {
        // In this order, so that a copy that arrives meanwhile is not taken for a held one.
        self.gate.pending().release(&self.tuple);
        self.verdict(PacketVerdict::Accept);
        InHandshake { gate: Arc::clone(&self.gate), tuple: self.tuple }
    }

    /// Answers it with a TCP reset: the client sees ECONNREFUSED.
    pub(crate) fn reset(mut self) {
        self.verdict(PacketVerdict::AcceptWithMark(self.mark | self.gate.marks.reset));
        self.gate.pending().settle(&self.tuple, false, Instant::now());
    }

    /// Answers it with an ICMP error: the client sees EHOSTUNREACH.
    pub(crate) fn unreachable(mut self) {
        self.verdict(PacketVerdict::AcceptWithMark(self.mark | self.gate.marks.unreachable));
        // The client's kernel may try again before it reports the error (RFC 1122, section 4.2.3.9).
        self.gate.pending().settle(&self.tuple, true, Instant::now());
    }

    /// Answers it with silence; copies of it are part of the same attempt.
    pub(crate) fn silence(mut self) {
        self.verdict(PacketVerdict::Drop);
        self.gate.pending().settle(&self.tuple, true, Instant::now());
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
            self.gate.pending().settle(&self.tuple, false, Instant::now());
        }
    }
}

impl Drop for InHandshake {
    fn drop(&mut self) {
        self.gate.pending().settle(&self.tuple, false, Instant::now());
    }
}
