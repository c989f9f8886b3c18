//! The gate: reads held SYNs from the kernel and starts a connection for each new one.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit::GateDrop;

use crate::connection::{self, Attempt};
use crate::datagram;
use crate::datapath::{Datapath, Marks};
use crate::held::{Gatekeeper, HeldSyn};
use crate::packet::parse_syn;
use crate::pending::Arrival;
use crate::registry::{Live, Phase, Registered, Stop};
use crate::sys::nfqueue::{Batch, Packet, PacketVerdict, Queue};
use crate::sys::readiness::watch_queue;

/// Packets the kernel may hold: more than the table of pending attempts, so that copies find room.
pub(crate) const MAX_HELD: u32 = 65_535;

/// How long a SYN waits for an older connection with its addresses and ports to leave.
const SUCCESSION: Duration = Duration::from_millis(200);

/// Of how many attempts that come at a time those that are refused are refused one after another. When there are more, other
/// threads share them, and one that is allowed waits for none of them.
const DECIDED_HERE: usize = 4;

/// A gate that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("bind NFQUEUE {number}: {cause}{}", hint(cause))]
pub struct GateError {
    /// The configured queue number.
    pub number: u16,
    /// What the kernel said.
    #[source]
    pub cause: io::Error,
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(nix::libc::EBUSY) => {
            " (another process holds this queue: another sluice, or set redirect.queue)"
        }
        Some(nix::libc::EPERM) => " (needs CAP_NET_ADMIN in this network namespace: run as root)",
        Some(nix::libc::EPROTONOSUPPORT | nix::libc::ENOENT | nix::libc::EOPNOTSUPP | nix::libc::EINVAL) => {
            " (the kernel lacks nfnetlink_queue: CONFIG_NETFILTER_NETLINK_QUEUE, module nfnetlink_queue)"
        }
        _ => "",
    }
}

/// Binds the queue of this network namespace.
pub(crate) fn open(number: u16) -> Result<Queue, GateError> {
    Queue::bind(number, MAX_HELD).map_err(|cause| GateError { number, cause })
}

/// Reads until the queue fails; then the node can admit nothing, and the process must end.
pub(crate) async fn read(path: Arc<Datapath>, gate: Arc<Gatekeeper>) -> io::Error {
    let readiness = match watch_queue(&gate.queue) {
        Ok(readiness) => readiness,
        Err(error) => return error,
    };
    let mut batch = Batch::new();
    loop {
        let mut ready = match readiness.readable().await {
            Ok(ready) => ready,
            Err(error) => return error,
        };
        match gate.queue.read(&mut batch) {
            Ok(()) => {
                let begin = if batch.len() <= DECIDED_HERE { begin_here } else { begin_elsewhere };
                for packet in batch.packets() {
                    arrive(&path, &gate, packet, begin);
                }
                if !batch.is_full() {
                    ready.clear_ready();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                path.metrics.gate_dropped.of(GateDrop::QueueFull).inc();
            }
            Err(error) => return error,
        }
    }
}

/// Who decides a new attempt.
type Begin = fn(&Arc<Datapath>, Registered, HeldSyn);

/// Decides on the gate's own thread, which saves a task where it refuses. A panic is the end of this attempt, as it
/// would be in a task, and not of the gate.
fn begin_here(path: &Arc<Datapath>, registered: Registered, held: HeldSyn) {
    let begun = catch_unwind(AssertUnwindSafe(|| connection::begin(path, registered, held)));
    if begun.is_err() {
        tracing::error!("a panic while an attempt was decided: it is left unanswered, and comes again");
    }
}

/// Decides in a task.
fn begin_elsewhere(path: &Arc<Datapath>, registered: Registered, held: HeldSyn) {
    tokio::spawn(connection::carry(Arc::clone(path), Attempt::Held(registered, held)));
}

/// Judges one held packet: a new attempt becomes a connection, anything else gets its verdict here.
fn arrive(path: &Arc<Datapath>, gate: &Arc<Gatekeeper>, packet: Option<Packet<'_>>, begin: Begin) {
    let now = Instant::now();
    path.metrics.gate_packets.inc();
    let Some(packet) = packet else {
        // Not even a number to give a verdict on.
        path.metrics.gate_dropped.of(GateDrop::Malformed).inc();
        return;
    };
    if packet.mark & gate.marks.flow != 0 {
        return datagram::arrive(path, gate, &packet, now);
    }
    if is_question(packet.mark, &gate.marks) {
        return gate.verdicts(&[(packet.id, PacketVerdict::AcceptWithMark(packet.mark | gate.marks.reset))]);
    }
    let drop_packet = |reason| {
        path.metrics.gate_dropped.of(reason).inc();
        gate.verdicts(&[(packet.id, PacketVerdict::Drop)]);
    };
    let syn = match parse_syn(packet.payload) {
        Ok(syn) => syn,
        Err(error) => {
            tracing::debug!(%error, "a held packet is no connection attempt");
            return drop_packet(GateDrop::Malformed);
        }
    };
    if path.is_draining() {
        return drop_packet(GateDrop::Shutdown);
    }
    match gate.pending().arrive(&syn, now) {
        Arrival::New => {}
        Arrival::InHandshake => return gate.verdicts(&[(packet.id, PacketVerdict::Accept)]),
        Arrival::Duplicate | Arrival::Silenced => return drop_packet(GateDrop::Duplicate),
        Arrival::ClientLimit => return drop_packet(GateDrop::Flood),
        Arrival::TotalLimit => return drop_packet(GateDrop::Overload),
        // A released SYN's connection ends as its client ended it; a held one has nobody waiting.
        Arrival::Successor { was_released: true } => {}
        Arrival::Successor { was_released: false } => {
            if let Some(older) = path.registry.get(&syn.tuple) {
                older.stop(Stop::ClientGone);
            }
        }
    }
    let held = HeldSyn::new(gate, syn, &packet, now);
    match path.registry.register(syn.tuple) {
        Ok(registered) => {
            begin(path, registered, held);
        }
        Err(older) => {
            tokio::spawn(succeed(Arc::clone(path), older, held));
        }
    }
}

/// True for a SYN that is on its way to the rules: they hand it to the listener only if somebody is here, and let it
/// pass by when this queue has no reader. It comes again for its decision.
fn is_question(mark: u32, marks: &Marks) -> bool {
    mark & (marks.unreachable | marks.accept | marks.reset) == marks.unreachable
}

/// A SYN with the addresses and ports of a carried connection.
///
/// Most often that connection has ended a moment ago, in the kernel but not yet in its task: the SYN waits
/// for the task. Else the connection is established, and its socket answers the SYN (RFC 9293, section
/// 3.10.7.4): a client that has lost its side of the connection then resets ours, and tries again. One that is still in
/// its handshake has no client: that would have answered, and not begun anew.
async fn succeed(path: Arc<Datapath>, older: Arc<Live>, held: HeldSyn) {
    let left = async || tokio::time::timeout(SUCCESSION, path.registry.left(&older)).await.is_ok();
    if !left().await {
        if older.is_in(Phase::Carrying) {
            drop(held.release());
            return;
        }
        older.stop(Stop::ClientGone);
        if !left().await {
            return;
        }
    }
    match path.registry.register(older.tuple) {
        Ok(registered) => connection::carry(path, Attempt::Held(registered, held)).await,
        // Another successor was faster; this one's client sends its SYN again.
        Err(_) => drop(held),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_that_asks_is_told_from_one_that_is_to_be_decided() {
        let marks = Marks { cluster: 4, tracked: 8, reset: 16, unreachable: 32, flow: 64, accept: 2 };
        for (mark, asks) in
            [(32, true), (32 | 0x4000, true), (0, false), (2, false), (2 | 32, false), (32 | 16, false)]
        {
            assert_eq!(is_question(mark, &marks), asks, "{mark:#x}");
        }
    }
}
