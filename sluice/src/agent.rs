//! The wiring of `sluice run`: policy cache, datapath, rules, records and admin API, from start to drain.
//!
//! Order matters: rules point at the listener and the gate, so those stand first; and they stay when the
//! process ends, so that isolated pods remain closed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use audit::{Metrics, Recorder, Sink, Writer};
use flow_api::{FlowApi, Nodes};
use policy_cache::{Interception, Options, Snapshot, SnapshotStore};
use prometheus_client::registry::Registry;
use proxy::{DatapathOptions, Running};
use redirect::{Redirect, RedirectHandle, RedirectSpec};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, AdminHandle, Alive, Conditions};
use crate::config::Config;
use crate::interfaces::own_addresses;
use crate::node;
use crate::node_metrics::NodeMetrics;
use crate::source::{Origin, Policies};
use crate::source_metrics::SourceMetrics;
use crate::status::{Board, Enforcement};
use crate::uncovered::Uncovered;

/// How often interface addresses and the state of the policies' source are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What `sluice run` was told.
#[derive(Debug)]
pub(crate) struct AgentOptions {
    pub(crate) node: String,
    pub(crate) origin: Origin,
    pub(crate) config: Config,
    pub(crate) sink: Sink,
    pub(crate) admin: Option<SocketAddr>,
}

/// Runs until a signal or a failure. Exit code 0 after a drain, 1 when a part failed.
pub(crate) fn run(options: AgentOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("datapath")
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let drain = options.config.shutdown.clone();
        let Some(mut agent) = Agent::start(options).await? else { return Ok(ExitCode::SUCCESS) };
        let code = agent.serve().await?;
        agent
            .stop(
                Duration::from_millis(drain.drain_timeout_ms),
                Duration::from_millis(drain.records_timeout_ms),
            )
            .await;
        Ok(code)
    })
}

struct Agent {
    node: String,
    policies: Policies,
    policy: SnapshotStore,
    interception: Interception,
    own_addresses: BTreeSet<IpAddr>,
    datapath: Running,
    rules: RedirectHandle,
    uncovered: Uncovered,
    records: Writer,
    conditions: Conditions,
    board: Board,
    metrics: Metrics,
    alive: Option<Alive>,
    node_problem: Option<String>,
    source_metrics: SourceMetrics,
    confirmed: Option<SystemTime>,
    _admin: Option<AdminHandle>,
    flows: Option<FlowApi>,
    nodes: watch::Sender<Arc<Nodes>>,
    signals: Signals,
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
}

impl Agent {
    /// `None`: a signal asked to stop before there was anything to enforce.
    async fn start(options: AgentOptions) -> anyhow::Result<Option<Self>> {
        let AgentOptions { node, origin, config, sink, admin } = options;
        let mut signals = Signals::new().context("listen for signals")?;
        let conditions = Conditions::new(&["snapshot", "rules", "gate", "node"]);
        let metrics = Metrics::new(&config.metrics);
        let board = Board::new(&node, conditions.clone(), metrics.clone());
        let source_metrics = SourceMetrics::default();
        let admin = admin
            .map(|address| start_admin(address, &conditions, &board, &metrics, &source_metrics))
            .transpose()?;

        let own_addresses = own_addresses().context("read the addresses of this node's interfaces")?;
        let policy_options = Options {
            node: Some(node.clone()),
            own_addresses: own_addresses.iter().copied().collect(),
            own_node_egress: config.policy.own_node_egress,
        };
        let opening = config.api.clone();
        // It makes threads and runtimes of its own, which must not be done on this one's threads.
        let (policies, policy) =
            tokio::task::spawn_blocking(move || Policies::open(origin, &opening, policy_options))
                .await
                .context("open the source of policies")??;
        board.set_policy(policy.clone());

        let gate = redirect::probe_for(config.redirect.backend).await;
        let backend = gate.choose(config.redirect.backend)?;
        let interception = config.interception.clone();
        let mut spec =
            RedirectSpec::new(&config.redirect, backend, gate.ipv6, redirect::LocalPods::default())?;
        let ports = config.proxy.upstream_ports;
        spec.upstream_ports = ports.first..=ports.last;
        board.set_enforcement(
            Enforcement::chosen(backend, gate.ipv6, config.redirect.fail_mode, &interception),
            gate.nft_version.as_deref(),
        );
        let (recorder, records) = Recorder::start(config.records, sink, &node, metrics.clone())?;
        board.set_recorder(recorder.clone());
        let (nodes, told) = watch::channel(Arc::default());
        let flows = FlowApi::start(&config.hubble, &recorder, &node, told)?;
        if let Some(flows) = &flows {
            tracing::info!(address = %flows.address(), "flow API");
        }
        let datapath = Running::start(DatapathOptions {
            config: config.proxy,
            listener_port: spec.listener_port,
            queue: spec.queue,
            queues: spec.queues,
            marks: proxy::Marks {
                cluster: spec.marks.cluster,
                tracked: spec.marks.tracked,
                reset: spec.marks.reset,
                unreachable: spec.marks.unreachable,
                flow: spec.marks.flow,
                // Nothing that is forwarded carries this bit, so it is free to tell of an accepted datagram.
                accept: spec.marks.proxy,
            },
            policy: policy.clone(),
            recorder,
            metrics: metrics.clone(),
        })?;
        conditions.set("gate", Ok(()));
        let alive = conditions.alive("datapath");
        // The gate stands and refuses. Rules that an earlier process left stay as they are until it is known
        // which pods they must be for; without pods they would open what those close.
        let told = Told { conditions: &conditions, board: &board, source_metrics: &source_metrics };
        let Some(snapshot) = first_snapshot(&policies, &policy, &mut signals, told).await else {
            return Ok(None);
        };
        report_snapshot(&node, &snapshot);
        spec.passes = interception != Interception::All;
        spec.pods = local_pods(&snapshot, &interception);
        let uncovered = Uncovered::new(spec.pods.clone(), spec.bypass != redirect::Bypassed::default());
        let rules = Redirect::start(spec).await?;
        datapath.judge_strays();
        conditions.set("rules", unseen(&rules.health().borrow()));
        board.set_rules(&rules.health().borrow());
        datapath.judge_older_flows().context("judge the flows that are older than this process")?;
        tracing::info!(node, ?backend, pid = std::process::id(), "enforcing");
        Ok(Some(Self {
            node,
            policies,
            board,
            policy,
            interception,
            own_addresses,
            datapath,
            rules,
            uncovered,
            records,
            conditions,
            metrics,
            alive: Some(alive),
            node_problem: None,
            source_metrics,
            confirmed: None,
            _admin: admin,
            flows,
            nodes,
            signals,
        }))
    }

    /// Follows changes until a signal asks to stop (0) or a part has failed (1).
    async fn serve(&mut self) -> anyhow::Result<ExitCode> {
        let mut snapshots = self.policy.subscribe();
        let mut health = self.rules.health();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = snapshots.changed() => {
                    snapshots.borrow_and_update();
                    if let Some(snapshot) = self.policy.current() {
                        let pods = local_pods(&snapshot, &self.interception);
                        let version = self.rules.set_local_pods(pods.clone());
                        self.uncovered.told(pods, version);
                    }
                }
                Ok(()) = health.changed() => self.report_rules(&health.borrow_and_update()),
                _ = look.tick() => self.look(),
                Some(()) = self.signals.hangup.recv() => {
                    tracing::info!("reopening the records file");
                    self.records.reopen();
                }
                Some(()) = self.signals.terminate.recv() => return Ok(ExitCode::SUCCESS),
                Some(()) = self.signals.interrupt.recv() => return Ok(ExitCode::SUCCESS),
                failure = self.datapath.failed() => {
                    tracing::error!(%failure, "the datapath failed; isolated pods stay closed until a restart");
                    self.conditions.set("gate", Err(failure.to_string()));
                    self.alive = None;
                    return Ok(ExitCode::from(1));
                }
            }
        }
    }

    /// Drains, then flushes records. The rules stay.
    async fn stop(self, drain: Duration, flush: Duration) {
        self.conditions.set("gate", Err("stopping".to_owned()));
        tracing::info!(live = self.datapath.live(), limit = ?drain, "draining");
        let report = self.datapath.drain(drain).await;
        self.rules.stop().await;
        let records = self.records.close(flush);
        tracing::info!(
            live = report.live,
            reset = report.reset,
            records_written = records.written,
            records_lost = records.lost,
            "stopped; the rules stay in place (sluice cleanup removes them)"
        );
    }

    fn report_rules(&mut self, health: &redirect::Health) {
        if self.uncovered.is_due(health) {
            self.datapath.judge_strays();
            if let Err(error) = self.datapath.judge_older_flows() {
                tracing::warn!(%error, "flows that began without the rules are not judged");
            }
        }
        self.board.set_rules(health);
        let repairs = self.metrics.ruleset_repairs.get();
        self.metrics.ruleset_repairs.inc_by(health.repairs.saturating_sub(repairs));
        let state = match (&health.last_error, health.installed) {
            (None, true) => unseen(health),
            (Some(error), _) => Err(error.clone()),
            (None, false) => Err("the rules are not in force".to_owned()),
        };
        self.conditions.set("rules", state);
    }

    fn look_at_policies(&mut self) {
        let told =
            Told { conditions: &self.conditions, board: &self.board, source_metrics: &self.source_metrics };
        let confirmed = told.look_at(&self.policies);
        if confirmed != self.confirmed {
            self.confirmed = confirmed;
            let age = confirmed.and_then(|at| SystemTime::now().duration_since(at).ok());
            self.metrics.snapshot_age.set(age.unwrap_or_default());
        }
    }

    /// Tells the flow API where the agents of the cluster are.
    fn look_at_nodes(&self) {
        if let (Some(_), Some(snapshot)) = (&self.flows, self.policy.current()) {
            let now = snapshot.nodes();
            self.nodes.send_if_modified(|nodes| {
                let is_new = **nodes != now;
                if is_new {
                    *nodes = Arc::new(now);
                }
                is_new
            });
        }
    }

    fn look(&mut self) {
        self.look_at_nodes();
        match own_addresses() {
            Ok(now) if now != self.own_addresses => {
                tracing::info!(addresses = ?now, "this node's addresses have changed");
                self.policies.set_own_addresses(now.iter().copied().collect());
                self.own_addresses = now;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot read the addresses of this node's interfaces"),
        }
        self.look_at_policies();
        let gate =
            if self.datapath.holds_queue() { Ok(()) } else { Err("the queue is not bound".to_owned()) };
        self.conditions.set("gate", gate);
        let named = self.policy.current().map_or(Ok(()), |snapshot| node::named(&self.node, &snapshot));
        let node = node::check().and(named);
        let problem = node.as_ref().err();
        if let Some(problem) = problem
            && self.node_problem.as_ref() != Some(problem)
        {
            tracing::error!(%problem, "pods of this node are not enforced");
        }
        self.node_problem = problem.cloned();
        self.conditions.set("node", node);
    }
}

/// Where the state of the source is told.
#[derive(Clone, Copy)]
struct Told<'a> {
    conditions: &'a Conditions,
    board: &'a Board,
    source_metrics: &'a SourceMetrics,
}

impl Told<'_> {
    /// Tells how the source does; returns when what is in force was last known to be right.
    fn look_at(self, policies: &Policies) -> Option<SystemTime> {
        let report = policies.report();
        self.conditions.set("snapshot", report.condition);
        self.conditions.remark("snapshot", report.remark);
        self.board.set_source(report.source);
        self.source_metrics.set(policies.api(), report.rejected);
        report.confirmed
    }
}

/// Waits for the first snapshot. `None`: a signal asks to stop instead.
async fn first_snapshot(
    policies: &Policies,
    policy: &SnapshotStore,
    signals: &mut Signals,
    told: Told<'_>,
) -> Option<Arc<Snapshot>> {
    let mut published = policy.subscribe();
    let mut look = tokio::time::interval(LOOK);
    loop {
        told.look_at(policies);
        if let Some(snapshot) = policy.current() {
            told.conditions.set("snapshot", Ok(()));
            return Some(snapshot);
        }
        tokio::select! {
            Ok(()) = published.changed() => {}
            _ = look.tick() => {}
            Some(()) = signals.terminate.recv() => return None,
            Some(()) = signals.interrupt.recv() => return None,
        }
    }
}

fn start_admin(
    address: SocketAddr,
    conditions: &Conditions,
    board: &Board,
    metrics: &Metrics,
    source_metrics: &SourceMetrics,
) -> anyhow::Result<AdminHandle> {
    let registry = Arc::new(registry(metrics, source_metrics, board));
    let admin = admin::start(address, conditions.clone(), board.clone(), registry)?;
    tracing::info!(address = %admin.address(), "admin API");
    Ok(admin)
}

/// Everything that /metrics tells.
pub(crate) fn registry(metrics: &Metrics, source_metrics: &SourceMetrics, board: &Board) -> Registry {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    registry.register_collector(Box::new(source_metrics.clone()));
    registry.register_collector(Box::new(NodeMetrics::new(board.clone())));
    registry
}

fn report_snapshot(node: &str, snapshot: &Snapshot) {
    let local = snapshot.local_pods();
    tracing::info!(
        node,
        objects = %snapshot.counts(),
        isolated_addresses = local.isolated.len(),
        observed_addresses = local.observed.len(),
        "the cluster is known"
    );
    for stray in snapshot.counts().stray_policies() {
        tracing::warn!(policies = stray, "passed over though it looks like a policy");
    }
    if local.isolated.is_empty() && local.observed.is_empty() {
        tracing::warn!(node, "no pod has spec.nodeName of this node and an address: nothing to enforce yet");
    }
}

/// A node is not ready while traffic of its pods could pass by the rules.
fn unseen(health: &redirect::Health) -> Result<(), String> {
    if health.unseen.is_empty() { Ok(()) } else { Err(health.unseen.join("; ")) }
}

fn local_pods(snapshot: &Snapshot, interception: &Interception) -> redirect::LocalPods {
    let policy_cache::LocalPods { isolated, mut observed } = snapshot.local_pods();
    let passed = snapshot.out_of_scope(interception);
    observed.retain(|pod| !passed.contains(pod));
    redirect::LocalPods {
        isolated,
        observed,
        passed,
        ranges: snapshot.own_pod_ranges().into_iter().collect(),
    }
}
