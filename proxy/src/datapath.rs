//! Wires the phases together, keeps them running, and brings them to an end.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use audit::{GateDrop, Metrics, Recorder};
use policy_cache::SnapshotStore;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{DenyAction, ProxyConfig};
use crate::connect::Connector;
use crate::descriptors::Descriptors;
use crate::flows::Flows;
use crate::following;
use crate::gate::{self, GateError};
use crate::held::{Gatekeeper, HeldSyn};
use crate::listener::{self, ListenError, Listeners};
use crate::pairing::Pairing;
use crate::pending::Pending;
use crate::pipes::PipePool;
use crate::registry::{Phase, Registry, Stop};
use crate::relay::{Carrier, LegSocket};
use crate::revoke;
use crate::strays::{self, Strays};
use crate::streams::Streams;
use crate::sys;
use crate::sys::icmp::IcmpSocket;
use crate::sys::tracked::{Conntrack, Endings};
use crate::uncounted::Uncounted;
use crate::unknown::Waiting;

/// How often abandoned attempts are looked for, and gauges brought up to date.
const TICK: Duration = Duration::from_secs(1);
/// How long a drain keeps the listeners for handshakes that are under way: a round trip, and a lost packet.
const LAST_HANDSHAKES: Duration = Duration::from_millis(500);

/// The mark bits that rules and datapath agree on. Each is a single bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// `SO_MARK` of legs that conntrack must not see. On a held SYN: it came in by an interface of pods. In
    /// conntrack: a leg of the proxy.
    pub cluster: u32,
    /// `SO_MARK` of legs that conntrack must see. On a held SYN: its destination lies behind an interface of
    /// pods.
    pub tracked: u32,
    /// Set by a verdict: answer with a TCP reset; on a SYN that asked, that somebody is here. In conntrack: answer
    /// every packet so.
    pub reset: u32,
    /// Set by a verdict: answer with an ICMP error. On a SYN that is not for the proxy yet: it asks whether anybody
    /// is here.
    pub unreachable: u32,
    /// On held packets: they begin a flow of the kernel's, no connection of the proxy's. On connections: a flow that
    /// was accepted.
    pub flow: u32,
    /// Set by a verdict on a datagram: its flow is accepted.
    pub accept: u32,
}

/// What the datapath needs from the rest of the process.
#[derive(Debug)]
pub struct DatapathOptions {
    /// Its settings.
    pub config: ProxyConfig,
    /// Port of the transparent listener on loopback.
    pub listener_port: u16,
    /// Number of the first NFQUEUE that holds SYNs.
    pub queue: u16,
    /// How many there are, at least 1: each has a reader of its own.
    pub queues: u16,
    /// The mark bits of the rules in force.
    pub marks: Marks,
    /// Where decisions are read from.
    pub policy: SnapshotStore,
    /// Where records go.
    pub recorder: Recorder,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why the datapath cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The transparent listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The queue.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Conntrack's netlink.
    #[error("speak with conntrack: {0} (CONFIG_NF_CT_NETLINK, module nf_conntrack_netlink)")]
    Conntrack(#[source] std::io::Error),
    /// The limit of open files.
    #[error("raise the limit of open files: {0}")]
    Limit(#[source] std::io::Error),
    /// The threads for streams.
    #[error("start threads for streams: {0}")]
    Streams(#[source] std::io::Error),
}

/// A part of the datapath that has ended though nobody asked it to: nothing can be admitted any more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Reading the queue failed.
    #[error("the gate failed: {0}")]
    Gate(#[source] std::io::Error),
    /// Following the flows of datagrams failed.
    #[error("following flows failed: {0}")]
    Flows(#[source] std::io::Error),
    /// Accepting failed.
    #[error("the listener failed: {0}")]
    Listener(#[source] std::io::Error),
    /// A part panicked.
    #[error("a part of the datapath panicked: {0}")]
    Panic(String),
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that were live when it began.
    pub live: usize,
    /// Connections that had to be reset at the limit.
    pub reset: usize,
}

/// What every phase may use.
#[derive(Debug)]
pub(crate) struct Datapath {
    pub(crate) policy: SnapshotStore,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pending: Arc<Mutex<Pending>>,
    pub(crate) waiting: Waiting,
    pub(crate) strays: Strays,
    pub(crate) carried_mark: u32,
    pub(crate) revoked_mark: u32,
    pub(crate) gates: Vec<Arc<Gatekeeper>>,
    pub(crate) pairing: Pairing<LegSocket>,
    pub(crate) listeners: Listeners,
    pub(crate) connector: Connector,
    pub(crate) carrier: Carrier,
    pub(crate) streams: Streams,
    pub(crate) descriptors: Arc<Descriptors>,
    pub(crate) metrics: Metrics,
    pub(crate) handshake_limit: Duration,
    pub(crate) flows: Flows,
    pub(crate) uncounted: Uncounted,
    conntrack: Mutex<Conntrack>,
    marks: Marks,
    pub(crate) deny_action: DenyAction,
    draining: AtomicBool,
}

impl Datapath {
    /// Refuses a held SYN as configured.
    pub(crate) fn refuse(&self, syn: HeldSyn) {
        match self.deny_action {
            DenyAction::Reset => syn.reset(),
            DenyAction::Drop => syn.silence(),
        }
    }

    /// The socket for single questions to conntrack.
    pub(crate) fn conntrack(&self) -> MutexGuard<'_, Conntrack> {
        self.conntrack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mark bits of the rules in force.
    pub(crate) fn marks(&self) -> Marks {
        self.marks
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The running datapath. Must be started within a tokio runtime, in the network namespace it serves.
#[derive(Debug)]
pub struct Running {
    path: Arc<Datapath>,
    parts: JoinSet<Failure>,
    listeners: Vec<AbortHandle>,
}

impl Running {
    /// Opens the listener and the queue and starts serving. Rules may point at it once this has returned.
    ///
    /// Errors name what is missing and how to get it.
    pub fn start(options: DatapathOptions) -> Result<Self, StartError> {
        let DatapathOptions { config, listener_port, queue, queues, marks, policy, recorder, metrics } =
            options;
        let limit = sys::descriptors::raise_limit().map_err(StartError::Limit)?;
        // On small hosts pipes must not eat the budget: two descriptors each.
        let max_pipes = config.max_pipes.min(usize::try_from(limit / 16).unwrap_or(usize::MAX));
        let kept_back = config.reserved_descriptors + 2 * max_pipes as u64;
        let listeners: Vec<_> =
            listener::open(listener_port, config.keepalive_s)?.into_iter().map(Arc::new).collect();
        let pending = Pending::new(config.max_pending, config.max_pending_per_client);
        let pending = Arc::new(Mutex::new(pending));
        let gates = open_gates(queue..queue.saturating_add(queues.max(1)), &pending, marks, &metrics)?;
        let path = Arc::new(Datapath {
            policy,
            registry: Arc::new(Registry::new(recorder.clone(), metrics.clone())),
            pending,
            waiting: Waiting::new(&config, metrics.clone()),
            strays: Strays::default(),
            carried_mark: marks.cluster,
            revoked_mark: marks.reset,
            gates,
            pairing: Pairing::new(),
            listeners: Listeners::new(&listeners),
            connector: Connector::new(
                marks,
                config.upstream_ports,
                config.keepalive_s,
                config.connect_timeout(),
            ),
            carrier: Carrier {
                pipes: PipePool::new(config.pipe_bytes, max_pipes, metrics.clone()),
                splice_threshold: config.splice_threshold_bytes,
                idle_limit: config.idle_timeout(),
                reads_hellos: config.tls_hellos,
                legs_after: config.tcp_info_after_ms.map(Duration::from_millis),
            },
            streams: Streams::start(threads()).map_err(StartError::Streams)?,
            descriptors: Arc::new(Descriptors::new(limit, kept_back)),
            handshake_limit: config.handshake_timeout(),
            deny_action: config.deny_action,
            marks,
            flows: Flows::new(recorder, metrics.clone(), config.max_flows, config.max_flows_per_client),
            uncounted: Uncounted::default(),
            conntrack: Mutex::new(Conntrack::open().map_err(StartError::Conntrack)?),
            draining: AtomicBool::new(false),
            metrics,
        });
        path.metrics.descriptors_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
        let mut parts = JoinSet::new();
        let listeners = start_listeners(&path, listeners, &mut parts);
        let endings = Endings::open().map_err(StartError::Conntrack)?;
        // Before a packet is judged, so that no flow of a former process is taken for a new one.
        following::take_over(&path).map_err(StartError::Conntrack)?;
        let of_flows = Arc::clone(&path);
        parts.spawn(async { Failure::Flows(following::follow(of_flows, endings).await) });
        start_parts(&path, &mut parts);
        Ok(Self { path, parts, listeners })
    }

    /// Waits until a part of the datapath has failed. Cancel safe.
    pub async fn failed(&mut self) -> Failure {
        match self.parts.join_next().await {
            Some(Ok(failure)) => failure,
            Some(Err(panic)) => Failure::Panic(panic.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Connections registered now.
    pub fn live(&self) -> usize {
        self.path.registry.len()
    }

    /// Asks for a look at connections that came about without this process: after the rules were installed or
    /// repaired, and when they have come to cover more pods. Does not wait for it.
    pub fn judge_strays(&self) {
        self.path.strays.look();
    }

    /// Flows of datagrams that the kernel carries now, as far as they are known.
    pub fn flows(&self) -> usize {
        self.path.flows.len()
    }

    /// Judges the flows of datagrams that began without a proxy, and ends those that are not allowed. To be
    /// called when the rules are in force. Blocks for some milliseconds.
    pub fn judge_older_flows(&self) -> std::io::Result<()> {
        following::judge_unmarked(&self.path)
    }

    /// True while the kernel still knows this process as the reader of its queues.
    pub fn holds_queue(&self) -> bool {
        self.path.gates.iter().all(|gate| gate.queue.state().is_some())
    }

    /// Stops admitting connections, waits for the live ones up to `limit`, then resets those that are left.
    /// Every one of them has written its record when this returns.
    ///
    /// Attempts that are held are left unanswered, and the listeners are closed: when their clients try again,
    /// the rules treat them as they treat every new connection while nobody listens.
    pub async fn drain(mut self, limit: Duration) -> DrainReport {
        self.path.draining.store(true, Ordering::Relaxed);
        self.stop_all_in(Phase::Held);
        let _ = tokio::time::timeout(limit.min(LAST_HANDSHAKES), self.handshakes_done()).await;
        self.stop_all_in(Phase::Handshake);
        self.listeners.iter().for_each(AbortHandle::abort);
        let live = self.path.registry.len();
        let drained = tokio::time::timeout(limit, self.path.registry.emptied()).await.is_ok();
        let mut reset = 0;
        if !drained {
            let left = self.path.registry.all();
            reset = left.len();
            for live in left {
                live.stop(Stop::Shutdown);
            }
            self.path.registry.emptied().await;
        }
        self.parts.shutdown().await;
        following::leave(&self.path);
        DrainReport { live, reset }
    }

    fn stop_all_in(&self, phase: Phase) {
        self.path
            .registry
            .all()
            .iter()
            .filter(|live| live.is_in(phase))
            .for_each(|live| live.stop(Stop::Shutdown));
    }

    async fn handshakes_done(&self) {
        while self.path.registry.all().iter().any(|live| live.is_in(Phase::Handshake)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn open_gates(
    queues: Range<u16>,
    pending: &Arc<Mutex<Pending>>,
    marks: Marks,
    metrics: &Metrics,
) -> Result<Vec<Arc<Gatekeeper>>, GateError> {
    let icmp = open_icmp();
    let open_gate = |number| {
        let (pending, icmp, metrics) = (Arc::clone(pending), icmp.clone(), metrics.clone());
        Ok(Arc::new(Gatekeeper { queue: gate::open(number)?, icmp, pending, marks, metrics }))
    };
    queues.map(open_gate).collect()
}

/// One for each processor that this process may use.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn open_icmp() -> Option<Arc<IcmpSocket>> {
    IcmpSocket::open()
        .map(Arc::new)
        .inspect_err(|error| {
            tracing::warn!(%error, "no raw socket (CAP_NET_RAW): unreachable destinations look refused");
        })
        .ok()
}

fn start_listeners(
    path: &Arc<Datapath>,
    listeners: Vec<Arc<std::net::TcpListener>>,
    parts: &mut JoinSet<Failure>,
) -> Vec<AbortHandle> {
    let start = |listener| {
        let path = Arc::clone(path);
        parts.spawn(async { Failure::Listener(listener::accept(path, listener).await) })
    };
    listeners.into_iter().map(start).collect()
}

fn start_parts(path: &Arc<Datapath>, parts: &mut JoinSet<Failure>) {
    for gate in &path.gates {
        let (path, gate) = (Arc::clone(path), Arc::clone(gate));
        parts.spawn(async { Failure::Gate(gate::read(path, gate).await) });
    }
    let of_revocation = Arc::clone(path);
    parts.spawn(async {
        revoke::follow(of_revocation).await;
        // The store is gone: the last snapshot stays in force.
        std::future::pending().await
    });
    let of_strays = Arc::clone(path);
    parts.spawn(async {
        strays::follow(of_strays).await;
        std::future::pending().await
    });
    let of_tick = Arc::clone(path);
    parts.spawn(async { tick(of_tick).await });
}

/// Ends attempts whose clients have given up, tells of long connections, and exports what only the kernel counts.
async fn tick(path: Arc<Datapath>) -> Failure {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut queue_full = QueueFull::default();
    loop {
        interval.tick().await;
        let (abandoned, held) = {
            let pending = path.pending.lock().unwrap_or_else(PoisonError::into_inner);
            (pending.abandoned(Instant::now()), pending.len())
        };
        for tuple in abandoned {
            if let Some(live) = path.registry.get(&tuple) {
                live.stop(Stop::ClientGone);
            }
        }
        path.registry.update(path.registry.update_every());
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        path.metrics.gate_pending.set(gauge(held as u64));
        path.metrics.flows_live.set(gauge(path.flows.len() as u64));
        let queues: Option<Vec<_>> = path.gates.iter().map(|gate| gate.queue.state()).collect();
        let waiting = queues.iter().flatten().map(|queue| queue.waiting).sum();
        path.metrics.gate_queued.set(gauge(waiting));
        let dropped = queues.map(|queues| queues.iter().map(|queue| queue.dropped).sum());
        path.metrics.gate_dropped.of(GateDrop::QueueFull).inc_by(queue_full.since_last(dropped));
        if let Ok(open) = sys::descriptors::count_open() {
            path.metrics.descriptors_open.set(gauge(open as u64));
        }
    }
}

/// The kernel's count of packets that found no room, as a difference.
#[derive(Default)]
struct QueueFull(Option<u64>);

impl QueueFull {
    fn since_last(&mut self, now: Option<u64>) -> u64 {
        let Some(now) = now else { return 0 };
        now.saturating_sub(self.0.replace(now).unwrap_or(0))
    }
}
