//! What happened to one connection, as the datapath describes it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use flow::{Decision, EndCause, Endpoint, Service, Tuple, UpstreamSource};
use serde::{Deserialize, Serialize};

/// What a record reports. The name goes into `event.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The connection was allowed and established; a record with [`Action::Ended`] will follow.
    Started,
    /// An established connection goes on; bytes and duration so far.
    Updated,
    /// An established connection ended.
    Ended,
    /// Policy refused the connection before it was established.
    Denied,
    /// The connection was allowed and could not be established.
    Failed,
}

impl Action {
    /// The name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "connection-started",
            Self::Updated => "connection-updated",
            Self::Ended => "connection-ended",
            Self::Denied => "connection-denied",
            Self::Failed => "connection-failed",
        }
    }
}

/// Names one connection in all of its records (`event.id`).
///
/// The first half is drawn at random once per process, the second counts connections, so that two ids differ
/// within a process, after a restart and between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u128);

impl ConnectionId {
    /// The next id of this process.
    pub fn next() -> Self {
        static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

        let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Self(u128::from(process()) << 64 | u128::from(connection))
    }

    /// The half that all ids of this process share, as it prints.
    pub(crate) fn process() -> String {
        format!("{:016x}", process())
    }
}

fn process() -> u64 {
    static PROCESS: OnceLock<u64> = OnceLock::new();

    // `RandomState` takes its keys from the operating system's random source.
    *PROCESS.get_or_init(|| RandomState::new().hash_one(SystemTime::now()))
}

impl ConnectionId {
    /// True for one in `one_in` connections, always the same ones.
    pub(crate) fn is_in_sample(self, one_in: u64) -> bool {
        // Every n-th would always leave out the same ones of clients that take turns. The finalizer of
        // MurmurHash3 spreads consecutive numbers evenly.
        let mut mixed = u64::try_from(self.0 & u128::from(u64::MAX)).unwrap_or_default();
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        one_in <= 1 || (mixed ^ (mixed >> 33)) % one_in == 0
    }
}

impl fmt::Display for ConnectionId {
    /// Sixteen hexadecimal digits for the process, a dash, the connection's number in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.0 >> 64, self.0 & u128::from(u64::MAX))
    }
}

impl ConnectionId {
    /// Appends it as it prints.
    pub(crate) fn append(self, to: &mut Vec<u8>) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";

        let digit = |place: u32| DIGITS[usize::try_from(self.0 >> (4 * place) & 15).unwrap_or_default()];
        to.extend((16..32).rev().map(digit));
        to.push(b'-');
        let last = (1..16).rev().find(|place| self.0 >> (4 * place) & 15 != 0).unwrap_or(0);
        to.extend((0..=last).rev().map(digit));
    }

    /// The connection's number, when this process drew the id.
    pub(crate) fn number_here(self) -> Option<u64> {
        (self.0 >> 64 == u128::from(process())).then(|| u64::try_from(self.0 & u128::from(u64::MAX)).ok())?
    }
}

/// Bytes carried, counted where they were accepted by the other leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What the client sent and the server's leg accepted: `source.bytes`.
    pub client_bytes: u64,
    /// What the server sent and the client's leg accepted: `destination.bytes`.
    pub server_bytes: u64,
    /// Packets from the client, where the kernel counts them: `source.packets`.
    pub client_packets: Option<u64>,
    /// Packets from the server, where the kernel counts them: `destination.packets`.
    pub server_packets: Option<u64>,
    /// True where nobody counted bytes: they are left out.
    pub uncounted: bool,
}

/// What the kernel knew of one leg when a direction of the connection had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegInfo {
    /// Smoothed round trip time, in microseconds. Source: `tcpi_rtt` of tcp_info.
    pub rtt_us: u32,
    /// Segments that were sent again in its life. Source: `tcpi_total_retrans` of tcp_info.
    pub retransmits: u32,
}

/// Both legs: `tcp.client` and `tcp.server`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Legs {
    /// From this node to the client.
    pub client: Option<LegInfo>,
    /// From this node to the server.
    pub server: Option<LegInfo>,
}

/// What a client's TLS ClientHello asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The server's name: `tls.client.server_name`.
    pub server_name: Option<Box<str>>,
    /// The protocols it offered, best first: `tls.client.alpn`.
    pub protocols: Box<[Box<str>]>,
}

/// How long the steps before the first byte took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From the arrival of the connection's first packet to the decision.
    pub decide: Option<Duration>,
    /// From the first packet towards the server to the established (or failed) leg.
    pub connect: Option<Duration>,
}

/// One event of one connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// What happened.
    pub action: Action,
    /// Which connection; the same in its started and ended records.
    pub id: ConnectionId,
    /// Protocol and addresses, after DNAT.
    pub tuple: Tuple,
    /// Who stands behind the client's address.
    pub source: Endpoint,
    /// Who stands behind the destination's address.
    pub destination: Endpoint,
    /// The Service that was dialled, when one was.
    pub service: Option<Service>,
    /// The decision that admitted or refused the connection.
    pub decision: Decision,
    /// How it ended; `None` while it lives.
    pub cause: Option<EndCause>,
    /// The decision that ended a live connection. Its sides and its generation are then what the record
    /// shows, in place of those of `decision`.
    pub revoked_by: Option<Decision>,
    /// When its first packet arrived.
    pub start: SystemTime,
    /// When it ended, was refused or failed; `None` while it lives.
    pub end: Option<SystemTime>,
    /// From start to end, or to an update, by the monotonic clock, so that a stepped wall clock cannot falsify it.
    pub duration: Option<Duration>,
    /// Bytes carried; written in updated and ended records.
    pub traffic: Traffic,
    /// The source address of the server's leg, when it differs from the client's.
    pub upstream_source: Option<UpstreamSource>,
    /// True when a pod reached itself through a Service, and was connected from the node's address.
    pub hairpin: bool,
    /// Latency of the steps.
    pub timing: Timing,
    /// What the kernel knew of both legs; written when the connection has ended.
    pub legs: Legs,
    /// What the client's ClientHello asked for, when it sent one.
    pub tls: Option<Box<Tls>>,
    /// What went wrong, for people: `connect: No route to host`.
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_of_one_process_differ_and_share_its_half() {
        let ids: Vec<String> = (0..1000).map(|_| ConnectionId::next().to_string()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert_eq!(ids.iter().map(|id| &id[..17]).collect::<HashSet<_>>().len(), 1);
        assert!(ids.iter().all(|id| id.len() > 17 && id.as_bytes()[16] == b'-'));
    }

    #[test]
    fn an_id_is_appended_as_it_prints() {
        for id in [0, 1, 15, 16, 0xabc << 64, u128::MAX, 0x1234_5678_9abc_def0 << 64 | 0x10_0000] {
            let mut text = Vec::new();
            ConnectionId(id).append(&mut text);
            assert_eq!(String::from_utf8(text).unwrap(), ConnectionId(id).to_string());
        }
        assert!(ConnectionId::next().number_here().is_some());
        assert_eq!(ConnectionId(5).number_here(), None);
    }
}
